"""Centered clipping: steps from a centre towards the rows, each step clipped."""

from __future__ import annotations

import math

import numpy as np

from draco.aggregators.gram import Matrix, distances_to, products, weighted_sum
from draco.aggregators.nearest import point
from draco.aggregators.norms import finite_norms
from draco.aggregators.rows import finite_rows, is_finite
from draco.lazy import Tensor


def centered_clipping(
    gradients: Tensor, *, f: int = 0, tau: float = 100.0, iterations: int = 1, centre: Tensor | None = None
) -> Tensor:
    """Return the centre after steps of the rows' mean difference from it, each clipped to tau, (n, d) -> (d,).

    Source: Karimireddy, He, Jaggi, Learning from History for Byzantine Robust Optimization, ICML 2021
    (arXiv:2012.10333), section 4: v <- v + mean(min(1, tau / |x_i - v|) (x_i - v)). The paper starts from the last
    step's result, and the workers send momenta. `f` does not change the result; n >= 2f + 1 is required. byzfl keeps
    the last result inside the object.

    One iteration reads the rows twice; more take their inner products in float64, whatever their number.

    Args:
        gradients: (n, d).
        f: declared Byzantine rows.
        tau: clipping radius, above 0.
        iterations: steps, 1 or more.
        centre: where the first step starts, (d,), such as the last result; None: zero.

    Raises:
        ValueError: n < 2f + 1, half of the rows or more hold NaN or Inf, the centre is of another shape or not finite,
            or tau or the iterations are out of range.
    """
    if not 0 < tau < math.inf or iterations < 1:
        raise ValueError(f"centered_clipping: tau = {tau} and iterations = {iterations}; tau > 0, iterations >= 1")
    start = None if centre is None else point("centered_clipping", "centre", gradients, centre)
    if start is not None and not is_finite(start):
        raise ValueError("centered_clipping: the centre holds NaN or Inf")
    bearable = (len(gradients) - 1) // 2
    if iterations == 1:
        rows, squares, _ = finite_norms("centered_clipping", gradients, f, bearable=bearable, centre=start)
        weights = _clipped(np.sqrt(squares), tau)
    else:
        rows = finite_rows("centered_clipping", gradients, f, bearable=bearable)
        origin = gradients.new_zeros(gradients.shape[1]) if start is None else start
        weights = _iterated(products(gradients.detach(), rows, origin, np.float64), tau, iterations)
    out = weighted_sum(gradients.detach(), rows, weights)
    return out if start is None else out.add_(start, alpha=1 - weights.sum())


def _iterated(gram: Matrix, tau: float, iterations: int) -> Matrix:
    """Return the weights (m,) of the rows' differences from the first centre in the last one."""
    weights = np.zeros(len(gram))
    for _ in range(iterations):
        step = _clipped(distances_to(gram, weights), tau)
        weights = weights * (1 - step.sum()) + step
    return weights


def _clipped(distances: Matrix, tau: float) -> Matrix:
    """Return the weights (m,) of the rows in a clipped mean, given their distances (m,) to the centre."""
    weights: Matrix = np.minimum(1, tau / np.maximum(distances, tau)) / len(distances)
    return weights
