"""How a kernel is compiled and launched; where it cannot be, a warning says why, once."""

from __future__ import annotations

import linecache
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from draco.lazy import Tensor, torch

DEVICES = {"cuda"}  # torch's types of devices that have kernels
WARPS = 4  # of 32 threads each, in a program
THREADS = 32 * WARPS
_broken: set[str] = set()


def usable(*tensors: Tensor) -> bool:
    """Say whether tensors are where kernels run, and are of numbers that they take."""
    types = {torch.float32, torch.float64}
    return all(tensor.device.type in DEVICES and tensor.dtype in types for tensor in tensors)


def launched(
    what: str, kernel: Callable[[], Any], grid: tuple[int, ...], *given: Any, fusion: bool = True, **constants: Any
) -> bool:
    """Launch a kernel where its first argument is; return False where this machine cannot build it.

    Args:
        what: what the kernel is for, as a warning is to call it.
        kernel: makes it; called before each launch, so it had better remember what it made.
        grid: number of programs.
        given: tensors and numbers.
        fusion: whether a multiplication and an addition may be rounded once, together.
        constants: arguments that the kernel is compiled for.
    """
    if what in _broken:
        return False
    try:
        with _current(given[0].device):
            kernel()[grid](*given, **constants, num_warps=WARPS, enable_fp_fusion=fusion)
    except Exception as error:  # Triton's own, its C compiler's, the driver's: each means that there is no kernel
        _broken.add(what)
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        warnings.warn(
            f"no fused kernel for {what} on this GPU ({reason}), so it takes several times as long; kernels need "
            "Triton, which comes with torch's CUDA build, a C compiler and Python's headers (Debian: gcc libc6-dev "
            "python3-dev)",
            RuntimeWarning,
            stacklevel=3,
        )
        return False
    return True


def _current(device: torch.device) -> AbstractContextManager[Any]:
    """Return what makes a device the current one, on which Triton launches."""
    module: Any = torch.get_device_module(device)
    return nullcontext() if device.index in (None, module.current_device()) else module.device(device)


def compiled(name: str, text: str) -> Any:
    """Return the function `name` of a kernel's source as Triton's.

    Triton reads a function's source from where Python says that it is: it is put there.
    """
    import triton
    import triton.language as tl

    place = f"<draco.fused {name} {abs(hash(text)):x}>"
    linecache.cache[place] = (len(text), None, text.splitlines(keepends=True), place)
    space: dict[str, Any] = {"tl": tl, "__name__": __name__}
    exec(compile(text, place, "exec"), space)
    return triton.jit(space[name], do_not_specialize=["d", "stride", "steps"])


def chosen(rows: list[int], device: torch.device) -> Tensor:
    """Return the numbers of rows where a kernel reads them."""
    return torch.tensor(rows, dtype=torch.int64, device=device)
