"""Host memory that a GPU's copies read and write by themselves: page-locked, and so fast, and waited for by nobody."""

import mmap
import weakref

import numpy as np
import torch
from rich.filesize import decimal
from torch import Tensor

from draco.errors import MissingError
from draco.training import device

_PORTABLE = 1  # cudaHostRegisterPortable: page-locked for every GPU that this process uses


def pinned(count: int, size: int) -> Tensor:
    """Return zeroed, page-locked host memory of `count` rows of `size` bytes, (count, size) uint8.

    The pages are the process's own, locked by cudaHostRegister: torch's allocator of such memory rounds up to a power
    of two. They are unlocked when the last tensor over them is gone.

    Raises:
        MissingError: the driver does not lock them.
    """
    runtime = device.of_gpus().cudart()
    pages = np.frombuffer(mmap.mmap(-1, max(count * size, 1)), np.uint8)  # no other allocation shares a page with it
    if fault := int(runtime.cudaHostRegister(pages.ctypes.data, pages.nbytes, _PORTABLE)):
        raise MissingError(
            f"{decimal(pages.nbytes)} of this machine's memory cannot be locked for its GPU's copies (CUDA error "
            f"{fault}): is that much free, and may the process lock it? Without a GPU: device=cpu server_device=cpu"
        )
    weakref.finalize(pages, _unlock, runtime, pages.ctypes.data).atexit = False  # by then CUDA may be gone
    return torch.from_numpy(pages)[: count * size].view(count, size)


def _unlock(runtime: object, address: int) -> None:
    runtime.cudaHostUnregister(address)  # type: ignore[attr-defined]
