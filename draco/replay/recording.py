"""The worker's side: run a computation, and keep its products."""

import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from draco.replay.mode import ProductMode
from draco.replay.products import Places, to_numbers

T = TypeVar("T")
_KEPT: list[NDArray[np.float32]] = []  # memory of earlier transcripts, the last at the end
_MOST_KEPT = 2
_NOBODY = 2  # references to one of them that no tensor has: of a name, and of the call that counts


def _memory(numbers: int) -> Tensor:
    """Return memory for so many numbers: an earlier transcript's that nobody has any more, or new.

    The system clears new memory page by page, which takes twice as long as to write a transcript there.
    """
    for _ in range(len(_KEPT)):
        kept = _KEPT.pop(0) if _KEPT else np.empty(0, np.float32)  # meanwhile no other thread finds it
        free = kept.size >= numbers and sys.getrefcount(kept) <= _NOBODY
        memory = torch.from_numpy(kept)
        _KEPT.append(kept)
        if free:
            return memory
    new = np.empty(numbers, np.float32)
    memory = torch.from_numpy(new)
    _KEPT.append(new)
    del _KEPT[:-_MOST_KEPT]
    return memory


class _Recording(ProductMode):
    """Copies each product at once, as later operations may change it in place."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.numbers = _memory(room)
        self.used = 0

    def product(self, op: Any, args: Sequence[Any], options: dict[str, Any], found: Places) -> Sequence[Any]:
        """Return the outputs of a product, in the layout that the checker will give them."""
        out = op(*args, **options)
        kept: list[Any] = []
        for product, place in zip(out if isinstance(out, tuple) else (out,), found, strict=True):
            if place is None:
                kept.append(product)
            else:
                laid, numbers = to_numbers(product, place)
                self._keep(numbers)
                kept.append(laid)
        return kept

    def _keep(self, numbers: Tensor) -> None:
        end = self.used + len(numbers)
        if end > len(self.numbers):  # memory that nobody touches costs none
            grown = _memory(2 * end)
            grown[: self.used] = self.numbers[: self.used]
            self.numbers = grown
        self.numbers[self.used : end].copy_(numbers)
        self.used = end


def record(compute: Callable[[], T], *, room: int = 1 << 20) -> tuple[T, Tensor]:
    """Run a computation, and return its result and its transcript.

    Args:
        compute: may do anything with torch: forward passes, torch.autograd.grad, side effects.
        room: for how many numbers there is memory at first; the length of an earlier transcript saves copies.

    Returns:
        The result, and one flat float32 tensor: the products end to end, in the order in which they came.
    """
    with _Recording(room) as mode:
        result = compute()
    return result, mode.numbers[: mode.used]
