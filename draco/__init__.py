"""Draco: Byzantine-resilient distributed training with redundant gradients (arXiv:1803.09877).

Up to f of n gradients may be anything at all. A rule makes one gradient of them that they do not ruin; a scheme has
every gradient computed by several workers, finds who lied, and recovers what an honest cluster would have given.

    draco.aggregate(gradients, "krum", f=2)         one gradient of many: tensors, arrays or lists
    draco.Krum(f=2)(gradients)                      the same, with the options checked beforehand
    scheme = draco.build_scheme("cyclic", workers=9, adversaries=1)
    scheme.encode(row, gradients)                   what a worker sends
    scheme.decode(replies)                          .gradients and .suspects, or a DecodeError

docs/library.md has each in three lines. `__all__` is what is public; CHANGELOG.md says how a name would go.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# The public names, and the only list of them. The imports below tell editors and type checkers what they are;
# `_HOMES` is where they are found at their first use, so that `import draco` loads nothing else.
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
    "Krum",
    "Meamed",
    "Mean",
    "Median",
    "MedianOfMeans",
    "MoNNA",
    "MultiKrum",
    "PreRule",
    "Rule",
    "Scheme",
    "SignMajority",
    "Task",
    "TrimmedMean",
    "aggregate",
    "build_scheme",
]

if TYPE_CHECKING:
    from draco.errors import DecodeError, DracoError
    from draco.rules import (
        ARC,
        CAF,
        CGE,
        MDA,
        NNM,
        SMEA,
        Bucketing,
        Bulyan,
        CenteredClipping,
        Clipping,
        GeometricMedian,
        Krum,
        Meamed,
        Mean,
        Median,
        MedianOfMeans,
        MoNNA,
        MultiKrum,
        PreRule,
        Rule,
        SignMajority,
        TrimmedMean,
        aggregate,
    )
    from draco.schemes import Decoded, Scheme, build_scheme
    from draco.tasks import Task

_HOMES = {
    "draco.errors": ("DecodeError", "DracoError"),
    "draco.schemes": ("Decoded", "Scheme", "build_scheme"),
    "draco.tasks": ("Task",),
}


def __getattr__(name: str) -> Any:
    """Return a public name, from its home, at its first use."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    home = next((home for home, names in _HOMES.items() if name in names), "draco.rules")
    found = globals()[name] = getattr(import_module(home), name)
    return found


def __dir__() -> list[str]:
    """Return the public names, and those that every module has."""
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
