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

Counts = npt.NDArray[np.integer]
NODES = 15_000  # of the search tree that are visited at most: one or two seconds
WORK = 15_000_000  # numbers that all nodes and the greedy start look at, each at most: so that large ones are fewer


class WorstCase(NamedTuple):
    """What the worst set of q Byzantine workers does."""

    lost: int  # partitions, or an upper bound on their number
    exact: bool  # False: a bound


class _GivenUpError(Exception):
    """The search has visited its nodes."""


def worst_case(assignment: npt.NDArray[np.bool_], q: int, *, net: bool = False, effort: float = 1.0) -> WorstCase:
    """Return the most partitions that q of the n rows of an assignment (n, k) can lose.

    Exact where the search ends within its limit of nodes, `effort` times the usual one, else an upper bound.

    `net` promises two things of the assignment. Rows fall into consecutive classes of n / r that share no partition.
    And a symmetry takes any two rows of different classes to the first rows of their classes. Then only sets with
    such first rows are searched.

    Raises:
        ValueError: q is not in 0..n.
    """
    n, k = assignment.shape
    if not 0 <= q <= n:
        raise ValueError(f"{q} Byzantine workers among {n} workers; there must be 0 to {n}")
    return _worst_case(np.packbits(assignment).tobytes(), n, k, q, net, effort)


@lru_cache(maxsize=64)
def _worst_case(bits: bytes, n: int, k: int, q: int, net: bool, effort: float) -> WorstCase:
    assignment = np.unpackbits(np.frombuffer(bits, np.uint8))[: n * k].reshape(n, k).astype(np.bool_)
    sizes = assignment.sum(0)  # (k,) workers of each partition
    r = int(sizes[0])
    if (sizes == r).all() and k == math.comb(n, r) == len({row.tobytes() for row in np.packbits(assignment, 0).T}):
        # Every r of the n rows have a partition, so all sets of q rows are alike. Count the partitions that are lost.
        return WorstCase(sum(math.comb(q, i) * math.comb(n - q, r - i) for i in range((r + 1) // 2, r + 1)), True)
    return _Search(assignment, q, n // r if net else 1).run(effort)


class _Search:
    """Branch and bound over sets of q rows, taken in increasing order within a set.

    A node of the tree is the first rows of a set. `counts` (k,) is how many of them compute each partition.
    """

    def __init__(self, assignment: npt.NDArray[np.bool_], q: int, size: int) -> None:
        n, k = assignment.shape
        self.rows = assignment.astype(np.int32)  # (n, k)
        self.need: Counts = (self.rows.sum(0) + 1) // 2  # (k,) Byzantine rows with which a partition is lost
        some = assignment.astype(np.float32)
        shared = some @ (some[:1] if size > 1 else some).T  # in a net the first row shares as much as any other
        np.fill_diagonal(shared, 0)
        self.shared = int(shared.max())  # partitions that two rows have in common, at most
        self.later = self.rows[::-1].cumsum(0)[::-1]  # (n, k): how many rows from i on compute partition j
        # (n, load) the partitions of each row; rows with fewer than others have partition k beside, which nobody has.
        load = int(assignment.sum(1).max())
        self.own = np.sort(np.where(assignment, np.arange(k), k), axis=1)[:, :load]
        self.size, self.q, self.nodes = size, q, 0  # size: rows of a class
        self.small = q * n * load <= WORK // 40  # so that every node can be bounded by its rows

    def run(self, effort: float = 1.0) -> WorstCase:
        """Return the worst case, or a bound on it where the limit of nodes ended the search.

        Is there a set that loses as many as the bound says? If not, is there one that loses one fewer, and so on: the
        higher the number that is asked for, the fewer sets come near to it.
        """
        n, k = self.rows.shape
        self.limit = int(effort * min(NODES, WORK // (self.q * self.own.size + k + 1)))
        nobody: Counts = np.zeros_like(self.need)
        best = self._greedy() if self.q * n * k <= WORK else int((self.need <= 0).sum())
        most = max(best, self._bound(0, nobody, [], self.q, 0))
        try:
            while most > best and not self._reaches(most, 0, nobody, [], self.q):
                most -= 1
        except _GivenUpError:
            return WorstCase(most, False)
        return WorstCase(most, True)

    def _reaches(self, target: int, first: int, counts: Counts, classes: list[int], left: int) -> bool:
        """Say whether some set of `left` more rows from `first` on loses `target` partitions.

        `classes` are those of the rows counted in `counts`.
        """
        if left == 0:
            return int((counts >= self.need).sum()) >= target
        if left == 1:  # all last rows at once
            return bool(((counts + self.rows[first:]) >= self.need).sum(1).max(initial=0) >= target)
        if self._bound(first, counts, classes, left, target) < target:
            return False
        self.nodes += 1
        if self.nodes > self.limit:
            raise _GivenUpError
        for row in range(first, len(self.rows) - left + 1):
            at = row // self.size
            if len(set(classes)) < 2 and at not in classes and row % self.size:
                continue  # a symmetry takes it to the first of its class
            if self._reaches(target, row + 1, counts + self.rows[row], [*classes, at], left - 1):
                return True
        return False

    def _bound(self, first: int, counts: Counts, classes: list[int], left: int, target: int) -> int:
        """Return how many partitions sets with these first rows lose at most; less exactly where below `target`."""
        if left == 0 or first >= len(self.rows):
            return int((counts >= self.need).sum())
        lost = int((counts >= self.need).sum())
        bound = lost + self._by_pairs(first, counts, classes, left)
        if bound < target or not self.small:
            return bound
        return min(bound, lost + self._by_rows(first, counts, left))

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
        missing = np.append(self.need - counts, 0)  # (k + 1,), the last for what nobody has
        # For each row that may still be taken, how many others each of its partitions needs first, the fewest first.
        # Partitions that do not count get a number that is out of reach.
        lacking = missing[self.own[first:]]  # (rows, load)
        lacking = np.sort(np.where(lacking > 0, lacking - 1, len(missing) * left), axis=1)
        hits = np.arange(left) * self.shared  # (left,)
        # (left, rows, load) -> how many partitions each row completes in each place -> of the best row -> of all.
        return int((lacking.cumsum(1)[None] <= hits[:, None, None]).sum(2).max(1).sum())

    def _greedy(self) -> int:
        """Return what a set lost that was built row by row and then improved by swapping rows."""
        chosen: list[int] = []
        counts: Counts = np.zeros_like(self.need)
        for _ in range(self.q):
            chosen.append(self._best(counts, chosen)[1])
            counts = counts + self.rows[chosen[-1]]
        score = self._scores(counts[None])[0]
        for _ in range(max(1, WORK // (self.q * self.rows.size + 1))):  # rounds of swaps
            swaps = [(*self._best(counts - self.rows[row], chosen), place) for place, row in enumerate(chosen)]
            better, row, place = max(swaps, default=(score, 0, 0))
            if better <= score:
                break
            counts, score = counts - self.rows[chosen[place]] + self.rows[row], better
            chosen[place] = row
        return int((counts >= self.need).sum())

    def _best(self, counts: Counts, chosen: list[int]) -> tuple[int, int]:
        """Return the best score with one row more that is not chosen, and this row."""
        scores = self._scores(counts + self.rows)
        scores[chosen] = -1
        row = int(scores.argmax())
        return int(scores[row]), row

    def _scores(self, counts: Counts) -> Counts:
        """Return of N sets (N, k) what each loses and, to tell equal ones apart, how near it is to losing more."""
        near: Counts = (np.minimum(counts, self.need) ** 2).sum(1)
        scores: Counts = (counts >= self.need).sum(1).astype(np.int64) * int((self.need**2).sum() + 1) + near
        return scores
