"""torch, loaded at its first use: commands that never compute read declarations too, and torch costs seconds.

`from draco.lazy import Tensor, torch` stands for `import torch` and `from torch import Tensor` in modules that declare
options. Such a module has `from __future__ import annotations`, and `Tensor` in annotations only.
"""

import importlib.util
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["Tensor", "load_torch", "torch"]


def _lazy(name: str) -> ModuleType:
    """Return the module `name`, which the first access to an attribute loads."""
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.find_spec(name)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    spec.loader = importlib.util.LazyLoader(spec.loader)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def load_torch() -> None:
    """Load torch now; an `import torch.optim` of foreign code would else execute that module twice."""
    torch.__version__  # noqa: B018


class _OnlyInAnnotations(type):
    def __instancecheck__(cls, instance: Any) -> bool:
        raise TypeError("draco.lazy.Tensor stands in annotations only; ask isinstance(x, torch.Tensor)")


if not TYPE_CHECKING:
    torch = _lazy("torch")

    class Tensor(metaclass=_OnlyInAnnotations):
        """Stand-in for torch.Tensor in annotations."""
