"""Functions of columns, (n, d) -> (d,): each row is read once, and one number a column is written."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from draco.fused.source import THREADS, chosen, compiled, launched, usable
from draco.fused.writing import Value, source
from draco.lazy import Tensor, torch

Written = Callable[[list[Value], bool], Value]  # (values of the rows, whether they are float64) -> the result
MOST = 128  # numbers of 4 bytes that a thread keeps: with more it would run out of registers
FEW = 32  # values that a thread keeps at least, where a column has fewer


def reduced(gradients: Tensor, rows: list[int], written: Written, what: str, *, watch: bool = False) -> Tensor | None:
    """Return what `written` makes of the chosen rows of each column, (n, d) -> (d,).

    None: there is no kernel; or, with `watch`, some number is NaN or infinite.
    """
    m, (n, d) = len(rows), gradients.shape
    double = gradients.dtype == torch.float64
    if (
        not usable(gradients)
        or not d
        or m * gradients.element_size() > 4 * MOST
        or (d > 1 and gradients.stride(1) != 1)
    ):
        return None
    out = gradients.new_empty(d)
    flag = torch.zeros(1, dtype=torch.int32, device=gradients.device)
    every = rows == list(range(n))
    block = THREADS * _columns(m)
    if not launched(
        what, lambda: _kernel(m, written, double), (-(-d // block),),
        gradients, flag if every else chosen(rows, gradients.device), out, flag, d, gradients.stride(0),
        fusion=False, EVERY=every, WATCH=watch, BLOCK=block,
    ):  # fmt: skip
        return None
    return None if watch and int(flag) else out


def _columns(m: int) -> int:
    """Return how many columns a thread takes: the fewer rows, the more, so that enough reads are under way."""
    return 1 << max(0, (FEW // m).bit_length() - 1)


@lru_cache(maxsize=64)
def _kernel(m: int, written: Written, double: bool) -> Any:
    return compiled("reduced", text_of(m, written, double))


def text_of(m: int, written: Written, double: bool) -> str:
    """Return the source of the kernel for m rows."""
    lines: list[str] = []
    return source(m, lines, written([Value(lines, f"x{i}") for i in range(m)], double))
