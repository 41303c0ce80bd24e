"""Smallest maximum eigenvalue averaging, over all subsets."""

from __future__ import annotations

from itertools import combinations, islice
from math import comb

import numpy as np

from draco.aggregators.gram import Matrix, Weighing, equal_weights, weigh
from draco.aggregators.rows import check
from draco.lazy import Tensor

SUBSETS = 100_000  # a few seconds
CHUNK = 512  # subsets whose matrices are looked at together


def smea(gradients: Tensor, *, f: int = 0) -> Tensor:
    """Return the mean of the n - f rows whose covariance has the least greatest eigenvalue, (n, d) -> (d,).

    Source: Allouah, Guerraoui, Gupta, Pinot, Stephan, On the Privacy-Robustness-Utility Trilemma in Distributed
    Learning, ICML 2023 (arXiv:2302.04787). n >= 2f + 1. Every subset is looked at; its eigenvalue is that of the
    subset's centred (n - f, n - f) Gram matrix, which byzfl approximates by one power step from a random start. Of
    equal eigenvalues the first subset's in lexicographic order wins.

    Raises:
        ValueError: n < 2f + 1, more than f rows hold NaN or Inf, or there are more than `SUBSETS` subsets.
    """
    check("smea", gradients, f)
    return weigh("smea", gradients, f, smea_weighing(len(gradients), f), bearable=f)


def smea_weighing(n: int, f: int) -> Weighing:
    """Return what `weigh` asks to weight n rows as this rule does; ValueError where there are too many subsets."""
    if comb(n, f) > SUBSETS:
        raise ValueError(f"smea: n = {n} and f = {f} have {comb(n, f)} subsets; the most it looks at is {SUBSETS}")
    return _weights


def _weights(gram: Matrix, f: int, precise: bool) -> tuple[Matrix, bool]:
    """Return equal weights (n,) for the best subset; see `Weighing`."""
    n = len(gram)
    subsets, values = combinations(range(n), n - f), list[Matrix]()
    while chunk := list(islice(subsets, CHUNK)):
        chosen = np.array(chunk)
        parts = gram[chosen[:, :, None], chosen[:, None, :]]
        means = parts.mean(2, keepdims=True)
        centred = parts - means - means.transpose(0, 2, 1) + means.mean(1, keepdims=True)
        values.append(np.linalg.eigvalsh(centred)[:, -1])
    greatest = np.concatenate(values)
    within = greatest <= greatest.min() * (1 + 1e-12)
    best = next(islice(combinations(range(n), n - f), int(np.argmax(within)), None))
    certain = np.sum(greatest <= greatest.min() * (1 + 1e-5)) == 1  # float32's errors add up in an eigenvalue
    return equal_weights(n, list(best)), bool(certain)
