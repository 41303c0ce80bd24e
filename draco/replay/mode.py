"""What both sides run a computation in: it sees each product, forward and backward, and nothing else.

The six operations have kernels in Python under a dispatch key that no tensor has. It comes after autograd's keys and
before the CPU's. While a mode is on, its thread includes the key, and torch calls these kernels; all other operations
fall through to the CPU's, which costs them nothing. A `TorchDispatchMode` would see each of them, for 10 microseconds
and more every time. The key is torch's own, for random numbers of foreign devices; torch itself has no use for it.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch.library import Library, fallthrough_kernel

from draco.replay.products import PRODUCTS, Places

_NAME = "CustomRNGKeyId"
_KEY = torch._C._dispatch_key_parse(_NAME)
_KEYS = torch._C.DispatchKeySet(_KEY)
_LOCAL = threading.local()  # has the modes that are on in this thread, the innermost last
_LOCK = threading.Lock()
_KERNELS: list[Library] = []  # registered as long as these live


class ProductMode:
    """Hands each product that transcripts have to `product`, in the thread that has entered it."""

    def __enter__(self) -> Self:
        _register()
        vars(_LOCAL).setdefault("modes", []).append(self)
        self._guard = torch._C._IncludeDispatchKeyGuard(_KEY)
        self._guard.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: object) -> None:
        self._guard.__exit__(*error)
        _LOCAL.modes.pop()

    def product(self, op: Any, args: Sequence[Any], options: dict[str, Any], found: Places) -> Sequence[Any]:
        """Return the outputs of a product, of which `found` are the places."""
        raise NotImplementedError


def _kernel(op: Any, places: Callable[[Sequence[Any]], Places | None]) -> Callable[..., Any]:
    def run(*args: Any, **options: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(_KEYS):  # what is computed in here is nobody's product
            found = places(args)
            if found is None:
                return op(*args, **options)
            outputs = _LOCAL.modes[-1].product(op, args, options, found)
        return tuple(outputs) if len(outputs) > 1 else outputs[0]

    return run


def _register() -> None:
    """Register the kernels, at the first use: that takes 40 milliseconds.

    An operation may have a kernel for a device and one for any key. Under a key of its own torch takes the latter, and
    that may round otherwise. So these fall through one by one, and those that have none for any key do by the fallback.
    """
    with _LOCK:
        if _KERNELS:
            return
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
        _KERNELS.extend((every, aten))
