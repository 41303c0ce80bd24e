"""Rules that average the rows nearest to one point: MoNNA's trusted row, or zero."""

from __future__ import annotations

from typing import Any

import numpy as np

from draco.aggregators.gram import equal_weights, least, weighted_sum
from draco.aggregators.norms import finite_norms, squared_norms
from draco.aggregators.rows import check, is_finite
from draco.aggregators.rule import RuleDeclaration, majority
from draco.declaration import Option
from draco.given import as_count, as_tensor
from draco.lazy import Tensor


def monna(gradients: Tensor, *, f: int = 0, reference: int | Tensor = 0) -> Tensor:
    """Return the mean of the n - f rows nearest to a trusted one, (n, d) -> (d,).

    Source: Farhadkhani, Guerraoui, Gupta, Hoang, Pinot, Stephan, Robust Collaborative Learning with Linear Gradient
    Overhead, ICML 2023 (arXiv:2209.10931): every worker takes its own vector as the trusted one. n >= 2f + 1. If the
    trusted row is Byzantine, the result may be anything.

    Args:
        gradients: (n, d).
        f: declared Byzantine rows.
        reference: the place of the trusted row, which counts among the nearest; or a trusted vector (d,).

    Raises:
        ValueError: n < 2f + 1, more than f rows hold NaN or Inf, or the reference is none, or is not finite.
    """
    check(MONNA, gradients, f)
    if isinstance(reference, int) or not hasattr(reference, "__len__"):
        reference = as_count("monna", "reference", reference)
        if not 0 <= reference < len(gradients):
            raise ValueError(f"monna: reference = {reference}; it must be a row, 0 to {len(gradients) - 1}")
        trusted = gradients.detach()[reference]
    else:
        trusted = point(MONNA, "reference", gradients, reference)
    if not is_finite(trusted):
        raise ValueError("monna: the reference holds NaN or Inf")
    return _mean_of_nearest(MONNA, gradients, f, trusted)


MONNA = RuleDeclaration(
    name="monna",
    function=monna,
    text="the mean of the m - f rows nearest to that of a trusted worker",
    options={"trusted": Option(int, 1, "Worker whose gradient is trusted; uncoded only.", ge=1, argument=False)},
    least=majority,
    trusts=True,
)


def cge(gradients: Tensor, *, f: int = 0) -> Tensor:
    """Return the mean of the n - f rows of least norm, (n, d) -> (d,).

    Source: Gupta, Liu, Vaidya, Byzantine Fault-Tolerant Distributed Machine Learning Using Stochastic Gradient Descent
    (SGD) and Norm-Based Comparative Gradient Elimination (CGE), 2020 (arXiv:2008.04699). n >= 2f + 1. It tolerates
    rows that are too long and no others: a short row in a wrong direction is kept.

    Raises:
        ValueError: n < 2f + 1, or more than f rows hold NaN or Inf.
    """
    return _mean_of_nearest(CGE, gradients, f, None)


CGE = RuleDeclaration(
    name="cge",
    function=cge,
    text="the mean of the m - f shortest rows",
    least=majority,
    whole_rows=True,
)


def _mean_of_nearest(declared: RuleDeclaration, gradients: Tensor, f: int, centre: Tensor | None) -> Tensor:
    rows, squares, precise = finite_norms(declared, gradients, f, tolerated=f, centre=centre)
    count = len(gradients) - f  # the same after b rows are dropped: (n - b) - (f - b)
    chosen, certain = least(squares, count)
    if not (certain or precise):
        chosen, _ = least(squared_norms(gradients.detach(), rows, centre, np.float64), count)
    return weighted_sum(gradients.detach(), rows, equal_weights(len(rows), chosen))


def point(declared: RuleDeclaration, option: str, gradients: Tensor, vector: Any) -> Tensor:
    """Return a vector (d,) in the dtype and on the device of `gradients`; ValueError where it has another shape."""
    moved = as_tensor(declared.name, option, vector).to(gradients)
    if moved.shape != gradients.shape[1:]:
        raise ValueError(f"{declared.name}: {option} is {tuple(moved.shape)}; it must be ({gradients.shape[1]},)")
    return moved
