"""The rows that a rule may read: enough of them, finite, and in blocks of columns that fit the cache.

Shapes: n gradients, d parameters, f declared Byzantine rows, m rows that are finite.
"""

from __future__ import annotations

from collections.abc import Iterator

from draco.aggregators.rule import RowsDeclaration
from draco.lazy import Tensor, torch

CUDA_WIDTH = 1 << 18  # on a GPU a block only bounds the scratch memory and the number of launches


def check_count(declared: RowsDeclaration, n: int, f: int) -> None:
    """Raise ValueError unless n rows are enough to tolerate f Byzantine ones."""
    if f < 0:
        raise ValueError(f"{declared.name}: f = {f}; it must be 0 or more")
    if n < (least := declared.least(f)):
        raise ValueError(f"{declared.name}: f = {f} needs at least {least} gradients, got {n}")


def check(declared: RowsDeclaration, gradients: Tensor, f: int) -> None:
    """Raise ValueError unless `gradients` is (n, d), float32 or float64, with enough rows for f."""
    declared.require_rows(gradients)
    check_count(declared, len(gradients), f)


def finite_rows(declared: RowsDeclaration, gradients: Tensor, f: int, *, tolerated: int) -> list[int]:
    """Return the rows without NaN and Inf, increasing, after the checks; ValueError if over `tolerated` have some."""
    check(declared, gradients, f)
    finite = torch.isfinite(gradients.detach().sum(1))  # a finite sum has finite terms; others are looked at closely
    for row in torch.nonzero(~finite).flatten().tolist():
        finite[row] = torch.isfinite(gradients[row]).all()
    rows: list[int] = torch.nonzero(finite).flatten().tolist()
    lost = len(gradients) - len(rows)
    if lost > tolerated:
        limit = f"f = {f}" if tolerated == f else f"{tolerated}, fewer than half"
        held = f"{lost} of {len(gradients)} gradients hold NaN or Inf"
        raise ValueError(f"{declared.name}: {held}; the most it tolerates is {limit}")
    return rows


def below_half(gradients: Tensor) -> int:
    """Return the largest number of rows that is below half of them."""
    return (len(gradients) - 1) // 2


def is_finite(vector: Tensor) -> bool:
    """Say whether every element is finite: a sum carries every NaN and infinity, and reads the vector only once."""
    return bool(torch.isfinite(vector.sum())) or bool(torch.isfinite(vector).all())


def blocks(gradients: Tensor, rows: list[int], width: int) -> Iterator[tuple[slice, Tensor]]:
    """Yield the columns of every block and its chosen rows, (m, <= width); copies only where rows are left out."""
    for start in range(0, gradients.shape[1], width):
        columns = slice(start, min(start + width, gradients.shape[1]))
        block = gradients[:, columns]
        yield columns, block if len(rows) == len(gradients) else block[rows]
