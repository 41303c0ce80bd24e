"""Kernels in Python of the six products, under a dispatch key that no tensor has. Loading this registers them.

The key comes after autograd's and before the devices'. A thread that includes it calls these kernels; all other
operations fall through, which costs them nothing. A `TorchDispatchMode` would see each of them, for 10 microseconds and
more every time. The key is torch's own, for random numbers of foreign devices; torch itself has no use for it.
"""

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any, Protocol

import torch
from torch.library import Library, fallthrough_kernel

from draco.replay.products import PRODUCTS, Places


class Mode(Protocol):
    """What is on in a thread that includes the key."""

    def product(self, op: Any, args: Sequence[Any], options: dict[str, Any], found: Places) -> Sequence[Any]:
        """Return the outputs of a product, of which `found` are the places."""


_NAME = "CustomRNGKeyId"
KEY = torch._C._dispatch_key_parse(_NAME)
_KEYS = torch._C.DispatchKeySet(KEY)
RUNNING: ContextVar[Mode] = ContextVar("the innermost mode of this thread")


def _kernel(op: Any, places: Callable[[Sequence[Any]], Places | None]) -> Callable[..., Any]:
    def run(*args: Any, **options: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(_KEYS):  # what is computed in here is nobody's product
            found = places(args)
            if found is None:
                return op(*args, **options)
            outputs = RUNNING.get().product(op, args, options, found)
        return tuple(outputs) if len(outputs) > 1 else outputs[0]

    return run


def _registered() -> list[Any]:
    """Register the kernels, which are there as long as what this returns.

    An operation may have a kernel for a device and one for any key. Under a key of its own torch takes the latter, and
    that may round otherwise. So these fall through one by one, and those that have none for any key do by the fallback.
    """
    library: Any = Library
    every, aten = library("_", "IMPL", _NAME), library("aten", "IMPL", _NAME)
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    takes = torch._C._dispatch_has_computed_kernel_for_dispatch_key
    products = {op.name() for op in PRODUCTS}
    for name in torch._C._dispatch_get_all_op_names():
        own = name.startswith("aten::") and (has(name, "CPU") or has(name, "CUDA"))
        if own and name not in products and takes(name, _NAME):
            aten.impl(name, fallthrough_kernel)
    every.fallback(fallthrough_kernel)
    for op, places in PRODUCTS.items():
        aten.impl(op, _kernel(op, places))
    return [every, aten]


_KERNELS = _registered()
