"""Smallest maximum eigenvalue averaging, over all subsets."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations, islice
from math import comb
from typing import Any

import numpy as np

from draco.aggregators.gram import equal_weights, weigh
from draco.aggregators.rows import check
from draco.aggregators.rule import Faults, Matrix, RuleDeclaration, Weighing, majority
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
    check(SMEA, gradients, f)  # before subsets are counted
    return weigh(SMEA, gradients, f, smea_weighing(len(gradients), f), tolerated=f)


def smea_weighing(n: int, f: int) -> Weighing:
    """Return what `weigh` asks to weight n rows as this rule does; ValueError where there are too many subsets."""
    SMEA.check_options(n, f)
    return _weights


def _faults(n: int, f: int, given: Mapping[str, Any]) -> Faults:
    if comb(n, f) > SUBSETS:
        count = str(comb(n, f)) if comb(n, f) < 10**15 else "more than 10^15"
        yield "name", f"smea with f = {f} looks at {count} subsets of {n} gradients; the most is {SUBSETS}"


SMEA = RuleDeclaration(
    name="smea",
    function=smea,
    text="the mean of the m - f rows whose covariance has the least greatest eigenvalue",
    least=majority,
    faults=_faults,
    whole_rows=True,
    weighing=smea_weighing,
)


def _weights(gram: Matrix, f: int, precise: bool) -> tuple[Matrix, bool]:
    """Return equal weights (n,) for the best subset; see `Weighing`."""
    n = len(gram)
    subsets, values = combinations(range(n), n - f), list[Matrix]()
    while chunk := list(islice(subsets, CHUNK)):
        # The Gram matrix of every subset about its own mean has the eigenvalues of the subset's covariance.
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
