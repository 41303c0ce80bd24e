"""How many partitions the worst placed liars can win or spoil: the promise of a placement, computed.

Source: the number c_max(q) of Konstantinidis & Ramamoorthy, ByzShield (arXiv:2010.04902), there by trying all sets.
Shapes: n workers, k partitions; a partition is lost with half of its workers.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]
NODES = 3_000  # of the search: about a second


class WorstCase(NamedTuple):
    """What the worst set of liars does."""

    lost: int  # partitions of which they are half or more, or a bound on it
    exact: bool  # no bound


def worst_case(assignment: npt.NDArray[np.bool_], q: int, *, net: bool = False) -> WorstCase:
    """Return the most partitions that q of the n rows of an assignment (n, k) can lose.

    Exact where the search ends within its limit of nodes, else an upper bound. `net` promises that rows fall into
    consecutive classes of n / r that share no partition, and that a symmetry of the assignment takes any two rows of
    different classes to the first ones of these classes: then only sets with such rows are searched.

    Raises:
        ValueError: q is not in 0..n.
    """
    n, k = assignment.shape
    if not 0 <= q <= n:
        raise ValueError(f"{q} liars among {n} workers; there must be 0 to {n}")
    return _worst_case(np.packbits(assignment).tobytes(), n, k, q, net)


@lru_cache(maxsize=64)
def _worst_case(bits: bytes, n: int, k: int, q: int, net: bool) -> WorstCase:
    assignment = np.unpackbits(np.frombuffer(bits, np.uint8))[: n * k].reshape(n, k).astype(np.bool_)
    sizes = assignment.sum(0)
    r = int(sizes[0])
    if (sizes == r).all() and k == math.comb(n, r) == len(np.unique(assignment.T, axis=0)):  # all r-subsets, all alike
        return WorstCase(sum(math.comb(q, i) * math.comb(n - q, r - i) for i in range((r + 1) // 2, r + 1)), True)
    return _Search(assignment, q, n // r if net else 1).run()


class _Search:
    """Branch and bound over sets of rows, rows in increasing order of index within a set."""

    def __init__(self, assignment: npt.NDArray[np.bool_], q: int, size: int) -> None:
        self.rows = assignment.astype(np.int64)
        self.need: Counts = (self.rows.sum(0) + 1) // 2
        shared = self.rows @ self.rows.T
        np.fill_diagonal(shared, 0)
        self.shared = int(shared.max())  # partitions that two rows have in common, at most
        self.later = self.rows[::-1].cumsum(0)[::-1]  # (n, k): rows from i on that compute j
        self.size, self.q, self.nodes = size, q, 0  # size: rows of a class
        self.best = self._greedy()
        self.open = self.best  # the largest bound of what was not searched

    def run(self) -> WorstCase:
        self._visit(0, np.zeros_like(self.need), [], self.q)
        return WorstCase(max(self.best, self.open), self.open <= self.best)

    def _visit(self, first: int, counts: Counts, classes: list[int], left: int) -> None:
        """Try all sets of `left` more rows from `first` on; `classes` are those of the rows counted in `counts`."""
        self.nodes += 1
        lost = int((counts >= self.need).sum())
        if left == 0:
            self.best = max(self.best, lost)
            return
        bound = lost + min(self._by_pairs(first, counts, classes, left), self._by_rows(first, counts, left))
        if bound <= self.best:
            return
        if self.nodes > NODES:
            self.open = max(self.open, bound)
            return
        for row in range(first, len(self.rows) - left + 1):
            at = row // self.size
            if len(set(classes)) < 2 and at not in classes and row % self.size:
                continue  # a symmetry takes it to the first of its class
            self._visit(row + 1, counts + self.rows[row], [*classes, at], left - 1)

    def _by_pairs(self, first: int, counts: Counts, classes: list[int], left: int) -> int:
        """Return how many more can be lost, as c liars on a partition take c (c - 1) / 2 pairs of rows that share it.

        Pairs of different classes share `shared` partitions at most, and are most where classes are evenly filled.
        """
        filled = [classes.count(at) for at in range(len(self.rows) // self.size)]
        for _ in range(left):
            at = min(range(first // self.size, len(filled)), key=filled.__getitem__)
            filled[at] += 1
        pairs = self.shared * (self.q**2 - sum(f * f for f in filled)) // 2 - int((counts * (counts - 1)).sum()) // 2
        lacking = self.need - counts
        open_ = (lacking > 0) & (lacking <= np.minimum(left, self.later[min(first, len(self.rows) - 1)]))
        costs = np.sort((self.need * (self.need - 1) - counts * (counts - 1))[open_] // 2)
        return int((costs.cumsum() <= pairs).sum())

    def _by_rows(self, first: int, counts: Counts, left: int) -> int:
        """Return the same from what a row can lose as the (i+1)-th to be taken: see each of its partitions lack one.

        The i rows taken before it meet it in i * shared partitions at most.
        """
        rows = self.rows[first:]
        missing = self.need - counts
        lacking = np.sort(np.where((rows > 0) & (missing > 0), missing - 1, len(self.need) * left), axis=1)
        hits = np.arange(left) * self.shared
        return int((lacking.cumsum(1)[None] <= hits[:, None, None]).sum(2).max(1).sum())

    def _greedy(self) -> int:
        """Return what a set lost that was built row by row and then improved by swapping rows."""
        chosen: list[int] = []
        for _ in range(self.q):
            rest = [row for row in range(len(self.rows)) if row not in chosen]
            chosen = max(([*chosen, row] for row in rest), key=self._score)
        while True:
            rest = [row for row in range(len(self.rows)) if row not in chosen]
            swaps = ([*chosen[:i], row, *chosen[i + 1 :]] for i in range(self.q) for row in rest)
            better = max(swaps, key=self._score, default=chosen)
            if self._score(better) <= self._score(chosen):
                return self._score(chosen)[0]
            chosen = better

    def _score(self, chosen: list[int]) -> tuple[int, int]:
        counts = self.rows[chosen].sum(0)
        return int((counts >= self.need).sum()), int((np.minimum(counts, self.need) ** 2).sum())
