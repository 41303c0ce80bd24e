"""The rows' distances to one point, for rules that need no inner products: one pass over the data.

Shapes: n gradients, d parameters, m rows that are finite.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from draco.aggregators.gram import GRAM_WIDTH, TINY
from draco.aggregators.rows import CUDA_WIDTH, blocks, check, finite_rows
from draco.aggregators.rule import Matrix, RowsDeclaration
from draco.fused import products, source
from draco.lazy import Tensor, torch


def finite_norms(
    declared: RowsDeclaration, gradients: Tensor, f: int, *, tolerated: int, centre: Tensor | None = None
) -> tuple[list[int], Matrix, bool]:
    """Return the finite rows, their squared distances (m,) to `centre` (d,) or zero, and whether they are float64's.

    float32 does where it neither overflows nor underflows. NaN and Inf show in a float32 distance, so that only they
    cost a second look.

    Raises:
        ValueError: as `finite_rows`.
    """
    check(declared, gradients, f)
    rows = list(range(len(gradients)))
    if (gradients.is_cpu or source.usable(gradients)) and gradients.dtype == torch.float32:
        squares = squared_norms(gradients.detach(), rows, centre, np.float32)
        if np.isfinite(squares).all():
            low = [row for row in rows if squares[row] < TINY]  # the point itself, or an underflow
            if low := [row for row in low if centre is None or not torch.equal(gradients[row], centre)]:
                squares[low] = squared_norms(gradients.detach(), low, centre, np.float64)
            return rows, squares, False
    rows = finite_rows(declared, gradients, f, tolerated=tolerated)
    return rows, squared_norms(gradients.detach(), rows, centre, np.float64), True


def squared_norms(gradients: Tensor, rows: list[int], centre: Tensor | None, dtype: type[np.floating[Any]]) -> Matrix:
    """Return the chosen rows' squared distances (m,) to `centre` (d,) or zero, in blocks of `dtype`.

    On a GPU without kernels they are float64's.
    """
    if not gradients.is_cpu:
        found = products.squares(gradients, rows, centre, precise=dtype is np.float64)
        if found is not None:
            return np.asarray(found.cpu(), np.float64)
        total = gradients.new_zeros(len(rows), dtype=torch.float64)
        for columns, block in blocks(gradients, rows, CUDA_WIDTH):
            from_zero = block.double()
            total += (from_zero if centre is None else from_zero - centre[columns].double()).square().sum(1)
        return np.asarray(total.cpu(), np.float64)
    squares = np.zeros(len(rows))
    scratch = np.empty((len(rows), min(GRAM_WIDTH, gradients.shape[1])), dtype)
    with np.errstate(over="ignore", invalid="ignore"):  # the caller looks at the outcome
        for columns, block in blocks(gradients, rows, GRAM_WIDTH):
            values = block.numpy()
            if centre is not None:
                values = np.subtract(values, centre[columns].numpy(), out=scratch[:, : values.shape[1]], dtype=dtype)
            values = values.astype(dtype, copy=False)
            squares += np.vecdot(values, values)
    return squares
