"""Bulyan: repeated selection by Krum, then the values around the median of the selected rows."""

from __future__ import annotations

import numpy as np

from draco.aggregators.gram import AMBIGUOUS, decide, squared_distances
from draco.aggregators.krum import krum_scores
from draco.aggregators.rule import Matrix, RuleDeclaration
from draco.aggregators.sorting import mean_of_picked, near_median
from draco.lazy import Tensor


def bulyan(gradients: Tensor, *, f: int = 0) -> Tensor:
    """Return, per coordinate, the mean of the theta - 2f values nearest to the median of theta rows, (n, d) -> (d,).

    The theta = n - 2f rows are selected one by one, each by Krum among the rows that are left.

    Source: El Mhamdi, Guerraoui, Rouault, The Hidden Vulnerability of Distributed Learning in Byzantium, ICML 2018
    (arXiv:1802.07927), with Krum as its base rule; n >= 4f + 3. Garfield selects n - 2f - 2 rows, AggregaThor averages
    several at each selection. The last selections have fewer rows left than Krum's n - f - 2 neighbours need: they use
    one neighbour at least, and where scores tie the next neighbour counts too.

    Raises:
        ValueError: n < 4f + 3, or more than f rows hold NaN or Inf.
    """
    rows, left, chosen = decide(BULYAN, gradients, f, _selection, tolerated=f)
    return mean_of_picked(gradients.detach(), [rows[place] for place in chosen], near_median(len(chosen), 2 * left))


BULYAN = RuleDeclaration(
    name="bulyan",
    function=bulyan,
    text="per coordinate, the mean of the values nearest to the median of m - 2f rows that Krum selects",
    least=lambda f: 4 * f + 3,
    whole_rows=True,
)


def _selection(gram: Matrix, f: int, precise: bool) -> tuple[list[int], bool]:
    """Return the places of the n - 2f rows that Krum selects one after the other, and whether float32 settles them."""
    distances = squared_distances(gram)
    left, chosen, certain = list(range(len(gram))), list[int](), True
    while len(chosen) < len(gram) - 2 * f:
        best, sure = _central(distances[np.ix_(left, left)], max(len(left) - f - 2, 1))
        chosen.append(left.pop(best))
        certain &= sure
    return sorted(chosen), certain


def _central(distances: Matrix, neighbours: int) -> tuple[int, bool]:
    """Return the row that Krum selects, by one neighbour more where scores tie, and whether float32 settles it.

    With one neighbour they do tie: two rows are each other's nearest.
    """
    tied, certain = list(range(len(distances))), True
    for count in range(neighbours, max(len(distances), neighbours + 1)):
        scores = krum_scores(distances, count)
        near = [row for row in tied if scores[row] <= scores[tied].min() * (1 + AMBIGUOUS)]
        tied = [row for row in near if scores[row] <= scores[tied].min() * (1 + 1e-12)]
        certain &= len(near) == len(tied)
        if len(tied) == 1:
            break
    return tied[0], certain
