"""Weighted sums of rows, (n, d) -> (k, d): each row is read once, however many sums there are."""

from __future__ import annotations

from typing import Any

from draco.fused.source import THREADS, chosen, launched, usable
from draco.lazy import Tensor, torch

MOST = 32  # sums that a program keeps in registers
VALUES = 16  # numbers that a thread keeps of all of its sums, at least


def _kernel() -> Any:
    from draco.fused.kernels import weighted

    return weighted


def weighted_sums(given: Tensor, rows: list[int], weights: Tensor, outs: list[Tensor]) -> bool:
    """Write the sums of the chosen rows of `given` (n, d) with each row of weights (k, m) to k vectors (d,).

    The sums are taken in the weights' type. The vectors but the first must be equally far apart in memory, and they may
    lie where the rows are. Return False where there is no kernel; nothing is written then.
    """
    sums, m = weights.shape
    d = given.shape[1]
    if not usable(given, weights, *outs) or not (m and d) or sums > MOST:
        return False
    if any(out.dtype != given.dtype for out in outs):
        return False
    if any(o.stride(0) != 1 for o in outs if d > 1) or (d > 1 and given.stride(1) != 1):
        return False
    first, others = outs[0], outs[1:] or outs
    size = given.element_size()
    apart = (others[1].data_ptr() - others[0].data_ptr()) // size if len(others) > 1 else 0
    # The kernel takes four rows at a time: the last one, with a weight of 0, fills up; and a power of 2 of sums.
    filled, padded = -(-m // 4) * 4, 1 << (sums - 1).bit_length()
    factors = torch.nn.functional.pad(weights.t(), (0, padded - sums, 0, filled - m)).contiguous()
    which = chosen([*rows, *rows[-1:] * (filled - m)], given.device)
    block = max(THREADS, THREADS * VALUES // padded // 4)
    return launched(
        f"{sums} weighted sums", _kernel, (-(-d // block),),
        given, which, factors, first, others[0], d, given.stride(0), apart, filled,
        SUMS=sums, PADDED=padded, BLOCK=block,
    )  # fmt: skip
