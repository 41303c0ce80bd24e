"""The geometric median, by Weiszfeld's iteration on the rows' inner products."""

from __future__ import annotations

from functools import partial
from typing import Literal

import numpy as np

from draco.aggregators.gram import distances_to, equal_weights, spread_of, squared_distances, weigh
from draco.aggregators.rows import below_half, finite_rows
from draco.aggregators.rule import Matrix, RuleDeclaration, Weighing, majority
from draco.declaration import OnlyWith, Option
from draco.errors import MissingError
from draco.lazy import Tensor, torch

NEAR_A_ROW = 1e-2  # a point this near to a row, relative to the middle distance, may be on a slow way to it
PATIENT = 100  # iterations in which a median that is not near a row settles


def geometric_median(
    gradients: Tensor,
    *,
    f: int = 0,
    nu: float = 0.0,
    tol: float = 1e-9,
    max_iterations: int = 1000,
    backend: str = "gram",
) -> Tensor:
    """Return the point with the least sum of (unsquared) distances to the rows, (n, d) -> (d,).

    Source: Chen, Su, Xu, Distributed Statistical Machine Learning in Adversarial Settings, POMACS 2017
    (arXiv:1705.05491), section 3; Weiszfeld's iteration, whose stay at a row that is not the median is avoided and
    whose slow approach to a row that is the median is cut short by the test of Vardi and Zhang, The multivariate
    L1-median, PNAS 2000. `nu` makes it the smoothed Weiszfeld algorithm of Pillutla, Kakade, Harchaoui, Robust
    Aggregation for Federated Learning, 2019 (arXiv:1912.13445), run until it settles; byzfl's three steps from zero
    with nu = 0.1 stop short of it.

    Args:
        gradients: (n, d).
        f: declared Byzantine rows; it does not change the result, but n >= 2f + 1 is required.
        nu: distances below this count as so much; 0: the geometric median itself.
        tol: the iteration ends when a step is at most this times the middle distance from the point to the rows.
        max_iterations: it ends then in any case, at the best point so far.
        backend: "gram", or "hdmedians" for the library that the original Draco used, on a float64 copy of the rows,
            with `tol` and `max_iterations` as its `eps` and `maxiters`; it is there to compare with.

    Raises:
        ValueError: n < 2f + 1, half of the rows or more hold NaN or Inf, nu is negative, or is given to hdmedians, or
            an unknown backend.
        MissingError: the package hdmedians is asked for and not installed.
    """
    GEOMETRIC_MEDIAN.check_options(len(gradients), f, nu=nu, backend=backend)
    if backend == "hdmedians":
        rows = finite_rows(GEOMETRIC_MEDIAN, gradients, f, tolerated=below_half(gradients))
        return _hdmedians(gradients.detach(), rows, tol, max_iterations)
    weighing = geometric_median_weighing(len(gradients), f, nu=nu, tol=tol, max_iterations=max_iterations)
    return weigh(GEOMETRIC_MEDIAN, gradients, f, weighing, tolerated=below_half(gradients))


def geometric_median_weighing(
    n: int, f: int, *, nu: float = 0.0, tol: float = 1e-9, max_iterations: int = 1000
) -> Weighing:
    """Return what `weigh` asks to weight n rows as this rule does; ValueError where nu is out of range."""
    GEOMETRIC_MEDIAN.check_options(n, f, nu=nu)
    return partial(_weights, nu=nu, tol=tol, max_iterations=max_iterations)


GEOMETRIC_MEDIAN = RuleDeclaration(
    name="geometric_median",
    function=geometric_median,
    text="the point with the least sum of distances to the rows",
    options={
        "backend": Option(
            Literal["gram", "hdmedians"], "gram", "gram: Draco's own, on the Gram matrix; hdmedians: the package."
        ),
        "nu": Option(
            float,
            0.0,
            "Smoothing: distances below it count as so much; 0: none.",
            ge=0.0,
            le=1e30,
            only_with=OnlyWith("backend", ("gram",)),
        ),
    },
    least=majority,
    whole_rows=True,
    weighing=geometric_median_weighing,
)


def _weights(gram: Matrix, f: int, precise: bool, *, nu: float, tol: float, max_iterations: int) -> tuple[Matrix, bool]:
    """Return the weights (m,) of the (smoothed) geometric median; see `Weighing`."""
    weights, distances, settled = _weiszfeld(gram, nu, tol, max_iterations)
    if not precise:
        ended = settled or max_iterations < PATIENT  # else it is the noise of float32 that keeps it from settling
        return weights, ended and bool(distances.min() > NEAR_A_ROW * np.median(distances))
    if nu == 0:
        # Is one of the rows the median itself? The rows nearest to the point are asked first.
        for place in np.argsort(distances)[: len(gram) // 2 + 1]:
            if _minimal_at(gram, place):
                return equal_weights(len(gram), [int(place)]), True
        # A row that is barely the median is approached too slowly, and rounding may deny it: compare the sums.
        sums = np.sqrt(squared_distances(gram)).sum(1)
        if sums.min() < distances.sum() * (1 - 1e-9):
            return equal_weights(len(gram), [int(sums.argmin())]), True
    return weights, True


def _weiszfeld(gram: Matrix, nu: float, tol: float, max_iterations: int) -> tuple[Matrix, Matrix, bool]:
    """Return the geometric median's weights (m,), of sum 1, its distances (m,) to the rows, and whether it settled.

    Each step weights every row by the inverse of its distance to the last point, so the point stays a weighted sum.
    It starts from the inverse spreads: near the majority, whatever the size of the rest.
    """
    weights = _inverse(np.sqrt(spread_of(gram)))  # no distances yet: the spreads stand for them
    for _ in range(max_iterations):
        distances = distances_to(gram, weights)
        middle = np.median(distances)
        # A distance below the products' noise counts as that noise: the point can leave a row that is not the median.
        update = _inverse(np.maximum(distances, max(nu, 1e-8 * middle)))
        step = update - weights
        weights = update
        # The squared distance by which the step moves the point, for the weights' sum stays one.
        if step @ gram @ step <= (tol * middle) ** 2:
            return weights, distances_to(gram, weights), True
    return weights, distances_to(gram, weights), False


def _inverse(distances: Matrix) -> Matrix:
    """Return weights (m,) of sum 1 in inverse proportion to the distances, of which some may be zero."""
    inverse = 1 / np.maximum(distances, 1e-150)
    weights: Matrix = inverse / inverse.sum()
    return weights


def _minimal_at(gram: Matrix, row: int) -> bool:
    """Say whether `row` is the only geometric median: the others' unit pulls sum to less than its multiplicity."""
    # Inner products about the row: its distances to the others are the roots of their diagonal.
    about = gram - gram[row] - gram[:, [row]] + gram[row, row]
    norms = about.diagonal()
    apart = norms > 1e-13 * (gram.diagonal() + gram[row, row])  # nearer rows are copies of it, up to rounding
    # The others' unit vectors from the row add up to a pull. The row is the median if its copies outweigh that.
    units = 1 / np.sqrt(norms[apart])
    return bool(units @ about[np.ix_(apart, apart)] @ units < np.sum(~apart) ** 2 * (1 - 1e-9))


def _hdmedians(gradients: Tensor, rows: list[int], tol: float, max_iterations: int) -> Tensor:
    """Return the geometric median that the package hdmedians finds for the chosen rows, (n, d) -> (d,)."""
    try:
        import hdmedians  # built from source and needed for this comparison only
    except ModuleNotFoundError as error:
        raise MissingError(
            "geometric_median: backend hdmedians needs the package hdmedians, which is not installed; the backend gram "
            "finds the same point without it"
        ) from error
    points = gradients[rows].double().T.cpu().numpy()
    found = np.asarray(hdmedians.geomedian(points, axis=1, eps=tol, maxiters=max_iterations))  # a view that can die
    return torch.tensor(found, dtype=gradients.dtype, device=gradients.device)
