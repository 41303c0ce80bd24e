"""Draco in somebody's own PyTorch loop: faulty hardware found, named and repaired within the step.

    guard = draco.torch.Guard(model, redundancy=2)     model is a DistributedDataParallel: torchrun, any backend
    sampler = guard.sampler(dataset)                   replicas of a group see the same samples
    optimizer = guard.optimizer(optimizer)             parameters and its state are compared every so often
    guard.suspects                                     rank -> evidence: step, what, how found, how repaired
    draco.torch.all_reduce(gradients, rule="krum", f=1)    robust rules for ranks that nobody trusts

Pure torch.distributed. docs/torch.md says what it protects against, and what it costs.
"""

TYPE_CHECKING = False  # True to type checkers

__all__ = ["Evidence", "Guard", "LostRankError", "UnrepairedError", "all_reduce", "robust_hook"]

if TYPE_CHECKING:
    from draco.errors import LostRankError, UnrepairedError
    from draco.torch.evidence import Evidence
    from draco.torch.guard import Guard
    from draco.torch.rules import all_reduce, robust_hook
else:
    _HOMES = {
        "Evidence": "draco.torch.evidence",
        "Guard": "draco.torch.guard",
        "LostRankError": "draco.errors",
        "UnrepairedError": "draco.errors",
        "all_reduce": "draco.torch.rules",
        "robust_hook": "draco.torch.rules",
    }

    def __getattr__(name: str) -> object:
        """Return a public name, from its home, at its first use."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        from draco.lazy import load_torch

        load_torch()
        found = globals()[name] = getattr(import_module(_HOMES[name]), name)
        return found

    def __dir__() -> list[str]:
        """Return the public names, and those that every module has."""
        return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
