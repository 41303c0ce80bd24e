"""What is asked of whole rows: their projections, and whether their bits are equal."""

from __future__ import annotations

from typing import Any

from draco.fused.source import DEVICES, THREADS, chosen, launched, usable
from draco.lazy import Tensor, torch


def _projected() -> Any:
    from draco.fused.kernels import projected

    return projected


def _unequal() -> Any:
    from draco.fused.kernels import unequal

    return unequal


def project(replies: Tensor, rows: list[int], directions: Tensor, inner: Tensor) -> bool:
    """Write the inner products of the chunks of the chosen rows with q directions (q, w) to inner (n, b, q).

    Replies are (n, d), of b chunks of w columns, the last of which may be shorter. False: there is no kernel.
    """
    count, width = directions.shape
    if (
        not usable(replies, directions, inner)
        or not rows
        or not inner.is_contiguous()
        or not directions.is_contiguous()
    ):
        return False
    d = replies.shape[1]
    if d > 1 and replies.stride(1) != 1:
        return False
    return launched(
        "projections", _projected, (inner.shape[1], len(rows)),
        replies, chosen(rows, replies.device), directions, inner, d, replies.stride(0), inner.shape[1],
        WIDTH=width, PADDED=1 << (width - 1).bit_length(), COUNT=count,
    )  # fmt: skip


def same_as_first(replies: Tensor, rows: list[int]) -> list[int] | None:
    """Return those of the chosen rows of replies (n, d), float32, that have the bits of the first of them.

    None: there is no kernel.
    """
    d = replies.shape[1]
    if replies.device.type not in DEVICES or replies.dtype != torch.float32 or (d > 1 and replies.stride(1) != 1):
        return None
    flags = torch.zeros(len(rows), dtype=torch.int32, device=replies.device)
    block = 4 * THREADS
    if not launched(
        "votes", _unequal, (-(-d // block),),
        replies.view(torch.int32), chosen(rows, replies.device), flags, d, replies.stride(0), len(rows), BLOCK=block,
    ):  # fmt: skip
        return None
    return [row for row, differs in zip(rows, flags.tolist(), strict=True) if not differs]
