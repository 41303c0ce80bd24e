"""Krum and Multi-Krum: the rows that have the nearest neighbours."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from draco.aggregators.gram import equal_weights, least, squared_distances, weigh
from draco.aggregators.rule import Faults, Matrix, RuleDeclaration, Weighing
from draco.declaration import Option
from draco.lazy import Tensor


def krum(gradients: Tensor, *, f: int = 0, neighbours: int | None = None) -> Tensor:
    """Return the row with the least sum of squared distances to its n - f - 2 nearest other rows, (n, d) -> (d,).

    Source: Blanchard, El Mhamdi, Guerraoui, Stainer, Machine Learning with Adversaries, NeurIPS 2017
    (arXiv:1703.02757), section 4, which is over the whole vector and needs n >= 2f + 3. byzfl and ByzPy sum n - f - 1
    distances (`neighbours`), Garfield's are not squared; the original Draco applied the paper's rule to every layer:
    see `per_layer`. Of equal scores the first row's wins.

    Args:
        gradients: (n, d).
        f: declared Byzantine rows.
        neighbours: how many nearest other rows count, 1 to n - f - 1; None: the paper's n - f - 2. The number stays
            when rows that are not finite are dropped.

    Raises:
        ValueError: n < 2f + 3, more than f rows hold NaN or Inf, or so many neighbours cannot be.
    """
    return weigh(KRUM, gradients, f, krum_weighing(len(gradients), f, neighbours=neighbours), tolerated=f)


def multi_krum(gradients: Tensor, *, f: int = 0, m: int | None = None, neighbours: int | None = None) -> Tensor:
    """Return the mean of the m rows with the least Krum scores, (n, d) -> (d,).

    Source: Blanchard et al. 2017 (arXiv:1703.02757), section 4, which asks for m < n - 2f - 2; libraries take
    m = n - f (byzfl), n - f - 2 (Garfield) or n - 2f - 3.

    Args:
        gradients: (n, d).
        f: declared Byzantine rows.
        m: how many rows are averaged, 1 to n - f; None: n - f.
        neighbours: as for `krum`.

    Raises:
        ValueError: n < 2f + 3, more than f rows hold NaN or Inf, or m or the neighbours are out of range.
    """
    weighing = multi_krum_weighing(len(gradients), f, m=m, neighbours=neighbours)
    return weigh(MULTI_KRUM, gradients, f, weighing, tolerated=f)


def krum_weighing(n: int, f: int, *, neighbours: int | None = None) -> Weighing:
    """Return what `weigh` asks to weight n rows as Krum does; ValueError where so many neighbours cannot be."""
    KRUM.check_options(n, f, neighbours=neighbours)
    return partial(_weights, m=1, neighbours=neighbours)


def multi_krum_weighing(n: int, f: int, *, m: int | None = None, neighbours: int | None = None) -> Weighing:
    """Return what `weigh` asks to weight n rows as Multi-Krum does; ValueError where an option is out of range."""
    MULTI_KRUM.check_options(n, f, m=m, neighbours=neighbours)
    return partial(_weights, m=n - f if m is None else m, neighbours=neighbours)


def _faults(n: int, f: int, given: Mapping[str, Any]) -> Faults:
    for option, most, words in (("m", n - f, "m - f"), ("neighbours", n - f - 1, "m - f - 1")):
        value = given.get(option)
        if value is not None and value > most:
            yield option, f"must be at most {words} = {most} of m = {n} gradients, got {value}"


_NEIGHBOURS = Option(int | None, None, "Nearest gradients that a score sums over; null: Krum's own m-f-2.", ge=1)

KRUM = RuleDeclaration(
    name="krum",
    function=krum,
    text="the row with the least sum of squared distances to its nearest others",
    options={"neighbours": _NEIGHBOURS},
    least=lambda f: 2 * f + 3,
    faults=_faults,
    whole_rows=True,
    weighing=krum_weighing,
)
MULTI_KRUM = RuleDeclaration(
    name="multi_krum",
    function=multi_krum,
    text="the mean of the m rows with the least Krum scores",
    options={
        "m": Option(int | None, None, "How many of the best gradients are averaged; null: all but f.", ge=1),
        "neighbours": _NEIGHBOURS,
    },
    least=lambda f: 2 * f + 3,
    faults=_faults,
    whole_rows=True,
    weighing=multi_krum_weighing,
)


def _weights(gram: Matrix, f: int, precise: bool, *, m: int, neighbours: int | None) -> tuple[Matrix, bool]:
    """Return equal weights (n,) for the m rows with the least scores; see `Weighing`."""
    n = len(gram)
    chosen, certain = least(krum_scores(squared_distances(gram), neighbours or n - f - 2), m)
    return equal_weights(n, chosen), certain


def krum_scores(distances: Matrix, neighbours: int) -> Matrix:
    """Return for every row the sum of its least squared distances (n, n) to so many other rows, (n,)."""
    nearest = np.sort(distances, axis=1)
    scores: Matrix = nearest[:, : neighbours + 1].sum(1)  # the first is the row's own, zero
    return scores
