"""Exact minimum-diameter averaging, by a search for a small vertex cover on the matrix of distances.

Two rows that are further apart than D conflict: they cannot both be in a subset of diameter D. Conflicts are the edges
of a graph. A subset of n - f rows of diameter D exists if at most f rows touch all edges: a vertex cover.
A search finds one, or that there is none, in fewer than 1.47^f branches, whatever n is. It need not look at all C(n, f)
subsets.
"""

from __future__ import annotations

import numpy as np

from draco.aggregators.gram import AMBIGUOUS, equal_weights, squared_distances, weigh
from draco.aggregators.rule import Matrix, RuleDeclaration, Weighing, majority
from draco.lazy import Tensor

BRANCHES = 200_000  # of one search for a cover; f <= 31 never needs as many


def mda(gradients: Tensor, *, f: int = 0) -> Tensor:
    """Return the mean of the n - f rows whose greatest distance among themselves is least, (n, d) -> (d,).

    Source: El Mhamdi, Guerraoui, Guirguis, Hoang, Rouault, Genuinely Distributed Byzantine Machine Learning, PODC 2020
    (arXiv:1905.03853); Rousseeuw's minimal-diameter estimator. n >= 2f + 1. Of subsets of the same diameter it takes
    the first in lexicographic order, as byzfl does. The subset is exact; the search is bounded by `BRANCHES`.

    Raises:
        ValueError: n < 2f + 1, more than f rows hold NaN or Inf, or, with f above 31, the search is too long.
    """
    return weigh(MDA, gradients, f, mda_weighing(len(gradients), f), tolerated=f)


def mda_weighing(n: int, f: int) -> Weighing:
    """Return what `weigh` asks to weight n rows as this rule does."""
    return _weights


MDA = RuleDeclaration(
    name="mda",
    function=mda,
    text="the mean of the m - f rows whose greatest distance among themselves is least",
    least=majority,
    whole_rows=True,
    weighing=mda_weighing,
)


def _weights(gram: Matrix, f: int, precise: bool) -> tuple[Matrix, bool]:
    """Return equal weights (n,) for the subset of least diameter; see `Weighing`."""
    n = len(gram)
    distances, norms = squared_distances(gram), gram.diagonal()
    distances = np.maximum(distances, distances.T)  # rounding may differ in the two
    distances[distances <= 1e-13 * (norms + norms[:, None])] = 0  # copies of each other, up to rounding
    # The diameter is one of the distances that occur: search among them, sorted, for the least that n - f rows have.
    pairs = np.unique(np.concatenate([[0.0], distances[np.triu_indices(n, 1)]]))
    low, high = 0, len(pairs) - 1
    while low < high:
        middle = (low + high) // 2
        if _coverable(_further_apart(distances, pairs[middle]), (1 << n) - 1, f, [0]):
            high = middle
        else:
            low = middle + 1
    diameter = pairs[low]
    # Certain if no other distance is so near that float32 might swap the two.
    alone = np.sum(np.abs(pairs - diameter) <= AMBIGUOUS * diameter) == 1
    certain = bool(alone and diameter > 1e-2 * np.median(norms))  # or it is lost in the errors of the products
    return equal_weights(n, _first_subset(_further_apart(distances, diameter), f)), certain


def _further_apart(distances: Matrix, diameter: float) -> list[int]:
    """Return for every row the set, as bits, of the rows that are further from it than `diameter`."""
    apart = distances > diameter * (1 + 1e-12)
    return [sum(1 << int(other) for other in np.flatnonzero(row)) for row in apart]


def _first_subset(conflicts: list[int], f: int) -> list[int]:
    """Return the first, in lexicographic order, of the subsets of n - f rows without a conflict."""
    n, budget = len(conflicts), f
    alive, kept = (1 << n) - 1, list[int]()
    for row in range(n):
        if len(kept) == n - f or not alive >> row & 1:
            continue
        # Keep the row if the rows that it conflicts with may go, and the rest then still has a cover.
        out = conflicts[row] & alive
        left = alive & ~out & ~(1 << row)
        if _coverable(conflicts, left, budget - out.bit_count(), [0]):
            kept.append(row)
            alive &= ~out
            budget -= out.bit_count()
        else:
            budget -= 1
            alive &= ~(1 << row)
    return kept


def _coverable(conflicts: list[int], alive: int, budget: int, branches: list[int]) -> bool:
    """Say whether at most `budget` of the rows in `alive` touch every conflict among them."""
    branches[0] += 1
    if branches[0] > BRANCHES:
        raise ValueError(f"mda: no subset found in {BRANCHES} branches; f is too large for an exact search")
    while budget >= 0:
        # Every row's conflicts with rows that are still there.
        degrees = {row: degree for row in _bits(alive) if (degree := (conflicts[row] & alive).bit_count())}
        if not degrees:
            return True
        most = max(degrees, key=degrees.__getitem__)
        # Each row that goes ends at most degrees[most] of the sum / 2 conflicts.
        if sum(degrees.values()) > 2 * budget * degrees[most]:
            return False
        leaf = next((row for row in degrees if degrees[row] == 1), None)
        if leaf is not None:  # taking out its neighbour is never worse than taking out the leaf
            alive &= ~(conflicts[leaf] & alive)
            budget -= 1
        elif degrees[most] > budget:  # its neighbours are more than may go, so it goes itself
            alive &= ~(1 << most)
            budget -= 1
        else:
            # Branch: all neighbours of the row go, or else the row itself does.
            others = conflicts[most] & alive
            if _coverable(conflicts, alive & ~others, budget - others.bit_count(), branches):
                return True
            alive &= ~(1 << most)
            budget -= 1
    return False


def _bits(mask: int) -> list[int]:
    return [place for place in range(mask.bit_length()) if mask >> place & 1]
