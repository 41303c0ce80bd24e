"""The rounding of a step vector from float64 to float32, so that unlike kernels leave the same bits nearly always.

Kernels order sums differently, so that float64 results differ by some 1e-16 of what was summed. A float32 of its own
exponent for each element would keep such differences where terms cancel. An element that is zero but for rounding, as
the gradient of a key's bias, would be nothing else. So each tensor's elements are rounded to one grid: whole multiples
of the *quantum*, 2^-24 of the power of two above the tensor's largest element. These are float32 numbers, and no
rounding error is greater than that of the largest element in float32. A tensor below 2^-12 of the largest takes the
quantum of one that is not, as it may be zero but for rounding as a whole.

Two results on both sides of the middle between two multiples differ by one quantum: a *tie*. docs/numerics.md says how
often that happens, and what follows.

Fixed point with one exponent for a block: Wilkinson, Rounding errors in algebraic processes, 1963, chapter 1.
Shapes: d elements of a step vector, in blocks of a tensor each.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

BITS = 24  # of a multiple, without its sign: those of a float32
SPAN = 12  # powers of two by which a tensor's quantum may be below that of the largest tensor
_LEAST = -149  # exponent of the smallest float32 above zero


def exponents(blocks: Sequence[Tensor]) -> list[int | None]:
    """Return e of each block's quantum 2^e; None where a block is empty, all zero, or not finite."""
    full = [block for block in blocks if block.numel()]
    found = iter(torch.stack([block.abs().max() for block in full]).tolist() if full else [])  # waits once for a GPU
    largest = [next(found) if block.numel() else 0.0 for block in blocks]
    tops = [math.frexp(each)[1] if each and math.isfinite(each) else None for each in largest]
    least = max((top for top in tops if top is not None), default=0) - SPAN
    return [None if top is None else max(top, least) - BITS for top in tops]


def round_blocks(blocks: Sequence[Tensor], out: Sequence[Tensor]) -> None:
    """Write the blocks (float64, which are used up) into `out` (float32), each rounded to its grid; none keeps a -0.0.

    Halves go to the even multiple. A block that is not finite is copied as it is, and the server refuses it.
    """
    for block, place, exponent in zip(blocks, out, exponents(blocks), strict=True):
        if exponent is not None:
            quantum = 2.0 ** max(exponent, _LEAST)
            block.mul_(1 / quantum).round_().mul_(quantum)
        place.copy_(block.add_(0.0))  # which of the two zeros is left would depend on the kernel
