"""Centered clipping: clipped steps from a centre towards the rows."""

from __future__ import annotations

import numpy as np

from draco.aggregators.gram import distances_to, products, weighted_sum
from draco.aggregators.nearest import point
from draco.aggregators.norms import finite_norms
from draco.aggregators.rows import below_half, finite_rows, is_finite
from draco.aggregators.rule import Matrix, RuleDeclaration, majority
from draco.declaration import Option
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
    CENTERED_CLIPPING.check_options(len(gradients), f, tau=tau, iterations=iterations)
    start = None if centre is None else point(CENTERED_CLIPPING, "centre", gradients, centre)
    if start is not None and not is_finite(start):
        raise ValueError("centered_clipping: the centre holds NaN or Inf")
    tolerated = below_half(gradients)
    if iterations == 1:
        rows, squares, _ = finite_norms(CENTERED_CLIPPING, gradients, f, tolerated=tolerated, centre=start)
        weights = _clipped(np.sqrt(squares), tau)
    else:
        rows = finite_rows(CENTERED_CLIPPING, gradients, f, tolerated=tolerated)
        origin = gradients.new_zeros(gradients.shape[1]) if start is None else start
        weights = _iterated(products(gradients.detach(), rows, origin, np.float64), tau, iterations)
    # centre + sum of w (row - centre), where the differences are never made
    out = weighted_sum(gradients.detach(), rows, weights)
    return out if start is None else out.add_(start, alpha=1 - weights.sum())


CENTERED_CLIPPING = RuleDeclaration(
    name="centered_clipping",
    function=centered_clipping,
    text="clipped steps from the last step's result towards the rows",
    options={
        "tau": Option(float, 100.0, "Clipping radius.", gt=0.0, le=1e30),
        "iterations": Option(int, 1, "Clipped steps from the last step's result.", ge=1, le=1000),
    },
    least=majority,
    remembers=True,
)


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
