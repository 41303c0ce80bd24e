"""The vote on one gradient: which replies are the same, bit for bit or within a tolerance, and which of them wins.

Source: majority voting of Chen et al., DRACO, ICML 2018 (arXiv:1803.09877), section 3. The vote within a tolerance
takes cliques of mutually close replies for equal ones, after the clique detection of Konstantinidis & Ramamoorthy,
Aspis, 2021 (arXiv:2108.02416).
Shapes: n rows, d parameters; s adversaries. A class is the rows of equal bits, and is named by its index.
"""

from __future__ import annotations

import ctypes
import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from draco.declaration import OnlyWith, Option
from draco.errors import DecodeError
from draco.fused import products
from draco.fused.rows import same_as_first
from draco.lazy import Tensor, torch

TOLERANCE = 2e-6  # relative L2 distance; thread counts and instruction sets were measured to differ by up to 5e-7
OPTIONS = {
    "vote": Option(
        Literal["auto", "exact", "tolerance"],
        "auto",
        "exact: equal bits win; tolerance: replies within a relative distance do; auto: exact where all workers "
        "compute alike.",
    ),
    "tolerance": Option(
        float | None,
        None,
        f"Relative distance by which honest replies may differ, beside the wire's rounding; null: {TOLERANCE:g}.",
        gt=0.0,
        le=1e-2,
        only_with=OnlyWith("vote", ("auto", "tolerance")),
    ),
}
SMALLEST = 1e-30  # a float32 sum of squares below it may have lost terms that underflowed
BLOCK = 1 << 18  # columns compared at once: 1 MiB a row, so that a group's rows meet in the last-level cache

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

    def __init__(self, replies: Tensor | Sequence[Tensor], *, distances: bool) -> None:
        """Take (n, d) by row, or as many vectors (d,)."""
        self.replies = replies
        self.classes: list[list[int]] = []
        self.distances: dict[tuple[int, int], float] = {}  # between the first rows of classes a < b; (a, a): its norm
        self._measured = distances

    def add(self, row: int) -> None:
        """Compare one row with every class."""
        for rows in self.classes:
            if same_bits(self.replies[rows[0]], self.replies[row]):
                rows.append(row)
                return
        self.classes.append([row])
        last = len(self.classes) - 1
        self._measure([(other, last) for other in range(last + 1)])

    def add_all(self, rows: Sequence[int]) -> None:
        """Do what `add` does for every row, reading each row about once."""
        rest = list(rows)
        while rest:
            same = self._same_as_first(rest)
            self.classes.append(same)
            rest = [row for row in rest if row not in same]
        self._measure(list(itertools.combinations_with_replacement(range(len(self.classes)), 2)))

    def without(self, rows: Collection[int]) -> Ballot:
        """Return the ballot with some rows left out; their classes stay, empty, so that distances keep their keys."""
        other = Ballot(self.replies, distances=self._measured)
        other.classes = [[row for row in rows_of if row not in rows] for rows_of in self.classes]
        other.distances = self.distances
        return other

    def _same_as_first(self, rows: list[int]) -> list[int]:
        """Return the rows that have the bits of the first, block by block, so that its block stays in the cache.

        On a GPU each row is read once.
        """
        if isinstance(self.replies, torch.Tensor) and not self.replies.is_cpu and len(rows) > 1:
            same = same_as_first(self.replies, rows)
            if same is not None:
                return same
        for part in _blocks(self.replies):
            first = self.replies[rows[0]][part]
            rows = rows[:1] + [row for row in rows[1:] if same_bits(first, self.replies[row][part])]
            if len(rows) == 1:
                break
        return rows

    def _measure(self, pairs: list[tuple[int, int]]) -> None:
        """Note the distances of pairs of classes, by their first rows."""
        if self._measured:
            firsts = [(self.classes[a][0], self.classes[b][0]) for a, b in pairs]
            self.distances.update(zip(pairs, _distances(self.replies, firsts), strict=True))


def _blocks(replies: Tensor | Sequence[Tensor]) -> Iterator[slice]:
    """Return the columns of each block; on a GPU all columns are one block."""
    d = replies[0].numel()
    width = BLOCK if replies[0].is_cpu else d
    return (slice(start, start + width) for start in range(0, d, width))


def _distances(replies: Tensor | Sequence[Tensor], pairs: Sequence[tuple[int, int]]) -> list[float]:
    """Return the L2 distances of the pairs of rows; of a row and itself, its norm."""
    if len(pairs) and not replies[0].is_cpu:
        return [_distance_on_gpu(replies[a], None if a == b else replies[b]) for a, b in pairs]
    squares = [0.0] * len(pairs)
    for part in _blocks(replies):
        for index, (a, b) in enumerate(pairs):
            x = replies[a][part] if a == b else replies[a][part] - replies[b][part]
            square = float(torch.dot(x, x))
            if not SMALLEST < square < math.inf:  # float32 may have under- or overflowed
                square = float(x.double().square().sum())
            squares[index] += square
    return [math.sqrt(x) for x in squares]


def _distance_on_gpu(row: Tensor, other: Tensor | None) -> float:
    """Return the L2 distance of a row (d,) and another one or zero: float32 unless that under- or overflows."""
    for precise in (False, True):
        found = products.squares(row[None], [0], other, precise=precise)
        if found is None:  # there is no kernel
            difference = row.double() if other is None else row.double() - other
            found = torch.dot(difference, difference)[None]
        if SMALLEST < (square := float(found)) < math.inf:
            break
    return math.sqrt(square)


def checked_vote(name: str, vote: str, tolerance: float) -> float | None:
    """Return within which relative L2 distance replies count as the same; None: only equal bits do.

    Raises:
        ValueError: there is no such vote or tolerance.
    """
    if vote not in {"exact", "tolerance"}:
        raise ValueError(f"{name}: vote is {vote!r}, must be 'exact' or 'tolerance'")
    if not 0 < tolerance < 1:
        raise ValueError(f"{name}: tolerance is {tolerance}, must be between 0 and 1")
    return tolerance if vote == "tolerance" else None


def winner(ballot: Ballot, s: int, within: float | None, preferred: Collection[int] = ()) -> Winner:
    """Return who wins with at least s + 1 rows that are the same within `within`, bit for bit where it is None.

    `preferred` is as in `tolerant_winner`.

    Raises:
        DecodeError: nobody does.
    """
    return exact_winner(ballot, s) if within is None else tolerant_winner(ballot, s, within, preferred)


def elect(
    classes: Sequence[Sequence[int]],
    distances: Mapping[tuple[int, int], float],
    s: int,
    within: float | None,
    preferred: Collection[int] = (),
) -> Winner:
    """Return the winner among rows of which only classes and distances are known, as `Ballot` has them.

    Raises:
        DecodeError: there is none.
    """
    ballot = Ballot((), distances=False)
    ballot.classes, ballot.distances = [list(rows) for rows in classes], dict(distances)
    return winner(ballot, s, within, preferred)


def disagreements(ballot: Ballot, within: float | None) -> Iterator[tuple[int, int]]:
    """Yield the pairs of rows that are not the same within `within`, bit for bit where it is None."""
    for a, b in itertools.combinations_with_replacement(range(len(ballot.classes)), 2):
        if a != b and (within is None or not _near(ballot, a, b, within)):
            yield from itertools.product(ballot.classes[a], ballot.classes[b])
        elif a == b and within is not None and not _finite(ballot, a):
            yield from itertools.combinations(ballot.classes[a], 2)


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


def tolerant_winner(ballot: Ballot, s: int, tolerance: float, preferred: Collection[int] = ()) -> Winner:
    """Return the medoid of the largest clique of at least s + 1 rows that are mutually within the tolerance.

    A clique of s + 1 rows holds an honest one, and its other rows are within the tolerance of that. So the result is
    near an honest reply. A chain of rows, each near the next, could lead away from all honest ones.

    Among cliques of one size the smallest total distance wins. Suspects are the rows with fewer neighbours than an
    honest row must have. So no honest row is accused while the promise holds.

    Where a clique of s + 1 rows holds a row that is `preferred`, such a clique wins, and such a row of it.

    Raises:
        DecodeError: there is no such clique.
    """
    # Distances between rows are those of their classes.
    rows = sorted(row for c in ballot.classes for row in c)
    class_of = {row: index for index, c in enumerate(ballot.classes) for row in c}
    distance = {(a, b): _distance(ballot, class_of[a], class_of[b]) for a, b in itertools.permutations(rows, 2)}
    near = {a: {b for b in rows if b != a and _near(ballot, class_of[a], class_of[b], tolerance)} for a in rows}
    # A row that is near no other is no clique, unless one vote is enough.
    cliques = [c for c in _maximal_cliques(set(), {a for a in rows if near[a] or s == 0}, set(), near) if len(c) > s]
    if not cliques:
        raise DecodeError(
            f"no {s + 1} of the {len(rows)} replies that arrived are mutually within {tolerance:g} of each other"
        )
    # The largest clique, then the smallest total distance, then the first rows. Its medoid is nearest to its others.
    totals = {c: math.fsum(distance[a, b] for a, b in itertools.combinations(c, 2)) for c in cliques}
    best = min(cliques, key=lambda c: ({*preferred}.isdisjoint(c), -len(c), totals[c], c))
    medoid = min(best, key=lambda a: (a not in preferred, math.fsum(distance[a, b] for b in best if b != a), a))
    # An honest row is near all others but s Byzantine ones.
    suspects = tuple(a for a in rows if len(near[a]) < len(rows) - s - 1 or not _finite(ballot, class_of[a]))
    same = [row for row in ballot.classes[class_of[medoid]] if row != medoid]
    return Winner((medoid, *same), suspects)


def _distance(ballot: Ballot, a: int, b: int) -> float:
    """Return the distance of two classes, 0 within a class."""
    return 0.0 if a == b else ballot.distances[min(a, b), max(a, b)]


def _finite(ballot: Ballot, a: int) -> bool:
    """Say whether the rows of a class are finite."""
    return math.isfinite(ballot.distances[a, a])


def _near(ballot: Ballot, a: int, b: int, tolerance: float) -> bool:
    """Say whether two classes are within the tolerance, relative to the longer of them."""
    if not (_finite(ballot, a) and _finite(ballot, b)):
        return False
    return _distance(ballot, a, b) <= tolerance * max(ballot.distances[a, a], ballot.distances[b, b])


def _maximal_cliques(
    clique: set[int], candidates: set[int], done: set[int], near: dict[int, set[int]]
) -> Iterator[tuple[int, ...]]:
    """Yield the maximal cliques that hold `clique` and are made of `candidates`, and no rows of `done`.

    Source: Bron & Kerbosch 1973, with the pivot of Tomita et al. 2006.
    """
    if not candidates and not done:
        yield tuple(sorted(clique))
        return
    # A maximal clique holds the pivot or a row that is not near it, so only these have to be tried.
    pivot = max(candidates | done, key=lambda a: len(near[a] & candidates))
    for a in sorted(candidates - near[pivot]):
        yield from _maximal_cliques(clique | {a}, candidates & near[a], done & near[a], near)
        candidates = candidates - {a}
        done = done | {a}
