"""The promise of a placement: how many partitions the worst placed Byzantine workers can win or spoil.

Source: the number c_max(q) of Konstantinidis & Ramamoorthy, ByzShield (arXiv:2010.04902), who try all sets of workers.
Shapes: n workers = n rows, k partitions, q Byzantine rows. A partition is lost where half of its workers or more are
Byzantine: then honest workers have no majority.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]
NODES = 3_000  # of the search tree that are visited at most: about a second


class WorstCase(NamedTuple):
    """What the worst set of q Byzantine workers does."""

    lost: int  # partitions, or an upper bound on their number
    exact: bool  # False: a bound


def worst_case(assignment: npt.NDArray[np.bool_], q: int, *, net: bool = False) -> WorstCase:
    """Return the most partitions that q of the n rows of an assignment (n, k) can lose.

    Exact where the search ends within its limit of nodes, else an upper bound.

    `net` promises two things of the assignment. Rows fall into consecutive classes of n / r that share no partition.
    And a symmetry takes any two rows of different classes to the first rows of their classes. Then only sets with
    such first rows are searched.

    Raises:
        ValueError: q is not in 0..n.
    """
    n, k = assignment.shape
    if not 0 <= q <= n:
        raise ValueError(f"{q} Byzantine workers among {n} workers; there must be 0 to {n}")
    return _worst_case(np.packbits(assignment).tobytes(), n, k, q, net)


@lru_cache(maxsize=64)
def _worst_case(bits: bytes, n: int, k: int, q: int, net: bool) -> WorstCase:
    assignment = np.unpackbits(np.frombuffer(bits, np.uint8))[: n * k].reshape(n, k).astype(np.bool_)
    sizes = assignment.sum(0)  # (k,) workers of each partition
    r = int(sizes[0])
    if (sizes == r).all() and k == math.comb(n, r) == len(np.unique(assignment.T, axis=0)):
        # Every r of the n rows have a partition, so all sets of q rows are alike. Count the partitions that are lost.
        return WorstCase(sum(math.comb(q, i) * math.comb(n - q, r - i) for i in range((r + 1) // 2, r + 1)), True)
    return _Search(assignment, q, n // r if net else 1).run()


class _Search:
    """Branch and bound over sets of q rows, taken in increasing order within a set.

    A node of the tree is the first rows of a set. `counts` (k,) is how many of them compute each partition.
    """

    def __init__(self, assignment: npt.NDArray[np.bool_], q: int, size: int) -> None:
        self.rows = assignment.astype(np.int64)  # (n, k)
        self.need: Counts = (self.rows.sum(0) + 1) // 2  # (k,) Byzantine rows with which a partition is lost
        shared = self.rows @ self.rows.T
        np.fill_diagonal(shared, 0)
        self.shared = int(shared.max())  # partitions that two rows have in common, at most
        self.later = self.rows[::-1].cumsum(0)[::-1]  # (n, k): how many rows from i on compute partition j
        self.size, self.q, self.nodes = size, q, 0  # size: rows of a class
        self.best = self._greedy()  # the most that any set was found to lose
        self.open = self.best  # the largest bound of what was not searched

    def run(self) -> WorstCase:
        """Return the worst case, or a bound on it where the limit of nodes ended the search."""
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
        """Return how many more partitions can be lost at most, by counting pairs of rows that share a partition.

        A partition with c Byzantine rows takes c (c - 1) / 2 of their pairs. A pair shares at most `shared` partitions,
        and none within a class. So the pairs that q rows have are bounded, and most where classes are evenly filled.
        """
        # How many of the q rows are in each class: those taken, and the `left` others as evenly as possible.
        filled = [classes.count(at) for at in range(len(self.rows) // self.size)]
        for _ in range(left):
            at = min(range(first // self.size, len(filled)), key=filled.__getitem__)
            filled[at] += 1
        # Pairs of rows of different classes, times what a pair shares, less what the rows taken have used.
        pairs = self.shared * (self.q**2 - sum(f * f for f in filled)) // 2 - int((counts * (counts - 1)).sum()) // 2
        # Of the partitions that can still be lost, those that take the fewest more pairs come first.
        lacking = self.need - counts
        open_ = (lacking > 0) & (lacking <= np.minimum(left, self.later[min(first, len(self.rows) - 1)]))
        costs = np.sort((self.need * (self.need - 1) - counts * (counts - 1))[open_] // 2)
        return int((costs.cumsum() <= pairs).sum())

    def _by_rows(self, first: int, counts: Counts, left: int) -> int:
        """Return the same bound from the partitions that a row can complete as the (i + 1)-th of the `left` rows.

        It completes a partition where the i rows before it have left only one row to be missing. These i rows share
        i * shared partitions with it at most, counted once for each row.
        """
        rows = self.rows[first:]  # those that may still be taken
        missing = self.need - counts  # (k,)
        # For each row, how many others each of its partitions needs first, the fewest first. Partitions that do not
        # count get a number that is out of reach.
        lacking = np.sort(np.where((rows > 0) & (missing > 0), missing - 1, len(self.need) * left), axis=1)
        hits = np.arange(left) * self.shared  # (left,)
        # (left, rows, k) -> how many partitions each row completes in each place -> of the best row -> of all places.
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
        """Return what a set loses and, to tell equal ones apart, how near it is to losing more."""
        counts = self.rows[chosen].sum(0)
        return int((counts >= self.need).sum()), int((np.minimum(counts, self.need) ** 2).sum())
