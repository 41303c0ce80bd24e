"""The covariance-bound agnostic filter, in which rows far out along the direction of most variance lose weight."""

from __future__ import annotations

import numpy as np

from draco.aggregators.gram import weigh
from draco.aggregators.rule import Matrix, RuleDeclaration, Weighing, majority
from draco.lazy import Tensor


def caf(gradients: Tensor, *, f: int = 0) -> Tensor:
    """Return the weighted mean with the least top eigenvalue of the covariance that filtering passes, (n, d) -> (d,).

    Source: Allouah, Guerraoui, Stephan, Towards Trustworthy Federated Learning with Untrusted Participants, ICML 2025
    (arXiv:2505.01874), algorithm 2. n >= 2f + 1. The top eigenvector is exact, found in the rows' span; byzfl takes one
    power step from a random start, goes on dividing by the projection of rows that have no weight left, and returns
    None for f = 0.

    Raises:
        ValueError: n < 2f + 1, or more than f rows hold NaN or Inf.
    """
    return weigh(CAF, gradients, f, caf_weighing(len(gradients), f), tolerated=f, precise=f > 0)


def caf_weighing(n: int, f: int) -> Weighing:
    """Return what `weigh` asks to weight n rows as this rule does."""
    return _weights


CAF = RuleDeclaration(
    name="caf",
    function=caf,
    text="a mean in which rows far out along the direction of most variance lose weight",
    least=majority,
    whole_rows=True,
    weighing=caf_weighing,
)


def _weights(gram: Matrix, f: int, precise: bool) -> tuple[Matrix, bool]:
    """Return the weights (n,), of sum 1; see `Weighing`. A small gap between eigenvalues magnifies float32's errors."""
    n = len(gram)
    if f == 0:
        return np.full(n, 1 / n), True
    if not precise:
        return np.full(n, 1 / n), False
    left, smallest, best = np.ones(n), np.inf, np.full(n, 1 / n)
    while left.sum() > n - 2 * f:
        # The covariance of the rows that are left, in their span: its eigenvalues are those of a (rows, rows) matrix.
        weights = left / left.sum()
        on = np.flatnonzero(left)
        roots = np.sqrt(weights[on])
        centred = centred_about(gram[np.ix_(on, on)], weights[on])
        values, vectors = np.linalg.eigh(centred * roots * roots[:, None])
        if values[-1] < smallest:
            smallest, best = values[-1], weights
        # Each row loses weight by its squared projection on the top eigenvector; the farthest loses all of it.
        projections = (centred @ (roots * vectors[:, -1])) ** 2
        if not projections.max() > 0:  # the rows that are left are equal
            break
        keep = 1 - projections / projections.max()
        left[on] *= np.where(keep > 1e-9, keep, 0)  # equal projections may differ by a rounding
    return best, True


def centred_about(gram: Matrix, weights: Matrix) -> Matrix:
    """Return the inner products (m, m) about the rows' sum with `weights` (m,) of sum 1."""
    projections = gram @ weights
    about: Matrix = gram - projections - projections[:, None] + weights @ projections
    return about
