"""The votes of one group: which replies are the same, bit for bit or within a tolerance, and which of them wins.

Source: majority voting of Chen et al., DRACO, ICML 2018 (arXiv:1803.09877), section 3. Replacing equality by cliques of
mutually close replies follows Konstantinidis & Ramamoorthy, Aspis, 2022 (arXiv:2208.00010 and its clique detection).
Shapes: d parameters; a class is the rows of equal bits.
"""

import ctypes
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from draco.errors import DecodeError

BLOCK = 1 << 15  # columns compared at once, so that the rows of a group stay in the cache; 128 KiB a row

_memcmp = ctypes.CDLL(None).memcmp  # 2 to 4 times faster than torch.equal, which does not vectorise
_memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
_memcmp.restype = ctypes.c_int


class Winner(NamedTuple):
    """The outcome of one group's vote."""

    rows: tuple[int, ...]  # all rows with the winner's bits, the chosen one first
    suspects: tuple[int, ...]


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Return whether two contiguous rows hold the same bits; NaN equals itself, 0.0 and -0.0 differ."""
    if a.is_cpu:
        return int(_memcmp(a.data_ptr(), b.data_ptr(), a.numel() * a.element_size())) == 0
    return torch.equal(a.view(torch.int32), b.view(torch.int32))


class Ballot:
    """The arrived rows of one group, sorted into classes of equal bits, with the distances between classes."""

    def __init__(self, replies: Tensor, *, distances: bool) -> None:
        self.replies = replies
        self.classes: list[list[int]] = []
        self.distances: dict[tuple[int, int], float] = {}  # between the first rows of classes a <= b; (a, a): its norm
        self._measured = distances

    def add(self, row: int) -> None:
        """Compare one row with every class."""
        for rows in self.classes:
            if same_bits(self.replies[rows[0]], self.replies[row]):
                rows.append(row)
                return
        self._open([row])

    def add_all(self, rows: Sequence[int]) -> None:
        """Do what `add` does for every row, reading each row about once."""
        rest = list(rows)
        while rest:
            same = self._same_as_first(rest)
            self._open(same)
            rest = [row for row in rest if row not in same]

    def _same_as_first(self, rows: list[int]) -> list[int]:
        width = BLOCK if self.replies.is_cpu else self.replies.shape[1]
        for start in range(0, self.replies.shape[1], width):
            block = self.replies[:, start : start + width]
            first = block[rows[0]]
            rows = rows[:1] + [row for row in rows[1:] if same_bits(first, block[row])]
            if len(rows) == 1:
                break
        return rows

    def _open(self, rows: list[int]) -> None:
        self.classes.append(rows)
        if self._measured:
            first = self.replies[rows[0]]
            others = [self.replies[c[0]] for c in self.classes[:-1]]
            new = len(self.classes) - 1
            for other, distance in enumerate(_distances(first, others)):
                self.distances[other, new] = distance


def _distances(row: Tensor, others: Sequence[Tensor]) -> Iterator[float]:
    """Yield the L2 distances of a row to others, then its norm; in float64, where no float32 square overflows."""
    squares = torch.zeros(len(others) + 1, dtype=torch.float64, device=row.device)
    width = BLOCK if row.is_cpu else row.shape[0]
    for start in range(0, row.shape[0], width):
        block = row[start : start + width]
        for index, other in enumerate(others):
            difference = block - other[start : start + width]
            squares[index] += torch.linalg.vector_norm(difference, dtype=torch.float64) ** 2
        squares[-1] += torch.linalg.vector_norm(block, dtype=torch.float64) ** 2
    yield from (math.sqrt(x) for x in squares.tolist())


def exact_winner(ballot: Ballot, s: int) -> Winner:
    """Return the class with at least s + 1 rows.

    Raises:
        DecodeError: there is none, or more than one.
    """
    winners = [rows for rows in ballot.classes if len(rows) > s]
    counts = sorted((len(rows) for rows in ballot.classes), reverse=True)
    if len(winners) != 1:
        raise DecodeError(
            f"the replies that arrived agree in classes of {counts}, exactly one must have {s + 1} or more; do honest "
            "workers compute other bits (threads, instruction sets)? Then use vote=tolerance"
        )
    suspects = [row for rows in ballot.classes if rows is not winners[0] for row in rows]
    return Winner(tuple(winners[0]), tuple(suspects))


def tolerant_winner(ballot: Ballot, s: int, tolerance: float) -> Winner:
    """Return the medoid of the largest clique of at least s + 1 rows that are mutually within the tolerance.

    A clique, not a chain: s + 1 rows hold an honest one, and every other row of a clique is within the tolerance of it,
    so no bridge between honest values can carry the result away. Ties go to the smallest total distance. Suspects are
    the rows with fewer neighbours than an honest one must have, so no honest row is accused while the promise holds.

    Raises:
        DecodeError: there is no such clique.
    """
    rows = sorted(row for c in ballot.classes for row in c)
    class_of = {row: index for index, c in enumerate(ballot.classes) for row in c}
    distance = {(a, b): _distance(ballot, class_of[a], class_of[b]) for a, b in itertools.permutations(rows, 2)}
    near = {a: {b for b in rows if b != a and _near(ballot, class_of[a], class_of[b], tolerance)} for a in rows}
    cliques = [c for c in _maximal_cliques(set(), {a for a in rows if near[a] or s == 0}, set(), near) if len(c) > s]
    if not cliques:
        raise DecodeError(
            f"no {s + 1} of the {len(rows)} replies that arrived are mutually within {tolerance:g} of each other"
        )
    totals = {c: math.fsum(distance[a, b] for a, b in itertools.combinations(c, 2)) for c in cliques}
    best = min(cliques, key=lambda c: (-len(c), totals[c], c))
    medoid = min(best, key=lambda a: (math.fsum(distance[a, b] for b in best if b != a), a))
    suspects = tuple(a for a in rows if len(near[a]) < len(rows) - s - 1 or not _finite(ballot, class_of[a]))
    same = [row for row in ballot.classes[class_of[medoid]] if row != medoid]
    return Winner((medoid, *same), suspects)


def _distance(ballot: Ballot, a: int, b: int) -> float:
    return 0.0 if a == b else ballot.distances[min(a, b), max(a, b)]


def _finite(ballot: Ballot, a: int) -> bool:
    return math.isfinite(ballot.distances[a, a])


def _near(ballot: Ballot, a: int, b: int, tolerance: float) -> bool:
    if not (_finite(ballot, a) and _finite(ballot, b)):
        return False
    return _distance(ballot, a, b) <= tolerance * max(ballot.distances[a, a], ballot.distances[b, b])


def _maximal_cliques(
    clique: set[int], candidates: set[int], done: set[int], near: dict[int, set[int]]
) -> Iterator[tuple[int, ...]]:
    """Yield the maximal cliques: Bron & Kerbosch 1973, with Tomita's pivot 2006."""
    if not candidates and not done:
        yield tuple(sorted(clique))
        return
    pivot = max(candidates | done, key=lambda a: len(near[a] & candidates))
    for a in sorted(candidates - near[pivot]):
        yield from _maximal_cliques(clique | {a}, candidates & near[a], done & near[a], near)
        candidates = candidates - {a}
        done = done | {a}
