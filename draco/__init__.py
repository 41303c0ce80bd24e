"""Draco: Byzantine-resilient distributed training with redundant gradients (arXiv:1803.09877).

Up to f of n gradients may be anything at all. A rule makes one gradient of them that they do not ruin; a scheme has
every gradient computed by several workers, finds who lied, and recovers what an honest cluster would have given.

    draco.aggregate(gradients, "krum", f=2)         one gradient of many: tensors, arrays or lists
    draco.Krum(f=2)(gradients)                      the same, with the options checked beforehand
    scheme = draco.build_scheme("cyclic", workers=9, adversaries=1)
    scheme.encode(row, gradients)                   what a worker sends
    scheme.decode(replies)                          .gradients and .suspects, or a DecodeError
    draco.run(job, task=Digits)                     trains a job, and returns its run: records, model, report

docs/library.md has each in three lines. `__all__` is what is public; CHANGELOG.md says how a name would go.
"""

TYPE_CHECKING = False  # True to type checkers, as that of `typing`, which would have to be loaded

__version__ = "0.1.0"

# The public names, and the only list of them. The imports below tell editors and type checkers what they are. What runs
# looks into `_HOMES` at the first use of a name, so that `import draco` loads nothing else; to a type checker such a
# `__getattr__` would make every name one that is there.
__all__ = [
    "ARC",
    "CAF",
    "CGE",
    "MDA",
    "NNM",
    "SMEA",
    "Bucketing",
    "Bulyan",
    "CenteredClipping",
    "Clipping",
    "DecodeError",
    "Decoded",
    "DracoError",
    "GeometricMedian",
    "Interrupted",
    "Krum",
    "Meamed",
    "Mean",
    "Median",
    "MedianOfMeans",
    "MoNNA",
    "MultiKrum",
    "PreRule",
    "Rule",
    "Run",
    "Scheme",
    "SignMajority",
    "Task",
    "TrimmedMean",
    "aggregate",
    "build_scheme",
    "run",
]

if TYPE_CHECKING:
    from draco.errors import DecodeError, DracoError
    from draco.experiment import Interrupted, Run, run
    from draco.rules.aggregators import (
        CAF,
        CGE,
        MDA,
        SMEA,
        Bulyan,
        CenteredClipping,
        GeometricMedian,
        Krum,
        Meamed,
        Mean,
        Median,
        MedianOfMeans,
        MoNNA,
        MultiKrum,
        SignMajority,
        TrimmedMean,
    )
    from draco.rules.pre_aggregators import ARC, NNM, Bucketing, Clipping
    from draco.rules.rule import PreRule, Rule, aggregate
    from draco.schemes import Decoded, Scheme, build_scheme
    from draco.tasks import Task
else:
    _HOMES = {
        "draco.errors": ("DecodeError", "DracoError"),
        "draco.experiment": ("Interrupted", "Run", "run"),
        "draco.rules.pre_aggregators": ("ARC", "NNM", "Bucketing", "Clipping"),
        "draco.rules.rule": ("PreRule", "Rule", "aggregate"),
        "draco.schemes": ("Decoded", "Scheme", "build_scheme"),
        "draco.tasks": ("Task",),
    }

    def __getattr__(name: str) -> object:
        """Return a public name, from its home, at its first use."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        home = next((home for home, names in _HOMES.items() if name in names), "draco.rules.aggregators")
        try:
            found = globals()[name] = getattr(import_module(home), name)
        except ModuleNotFoundError as error:
            from draco import extras

            if (needs := extras.missing(error)) is None:
                raise
            return extras.stand_in(name, needs)
        return found

    def __dir__() -> list[str]:
        """Return the public names, and those that every module has."""
        return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
