"""Dealing: who is asked for what, so that all compute equally much and nobody can foresee it."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

from draco.protocols.court import Court

K = TypeVar("K")


def deal(order: Sequence[int], pairs: int, copies: int) -> list[tuple[int, ...]]:
    """Give each of `pairs` pairs to `copies` workers, and name one of them to upload.

    Pair j gets the `copies` places from j * copies on, round and round `order`. So loads differ by one at most. With
    g = gcd(copies, m) for m workers, a window's first place is a multiple of g, and m / g windows in a row have
    different ones. So the uploader at offset j * g // m (mod g) is another worker for each of m pairs in a row, and
    the numbers of uploads differ by one at most too.

    Args:
        order: the workers, in an order that they cannot foresee.
        pairs: how many pairs there are.
        copies: how many workers compute each, at most len(order).

    Returns:
        for each pair the workers, the one that uploads first.
    """
    size, common = len(order), math.gcd(copies, len(order))
    dealt = []
    for pair in range(pairs):
        members = [order[(pair * copies + place) % size] for place in range(copies)]
        uploader = members.pop(pair * common // size % common)
        dealt.append((uploader, *members))
    return dealt


class Dealer:
    """Gives each pair of a step to one worker, and to another where nothing true came of that."""

    def __init__(self, court: Court, step: int) -> None:
        """Begin with nothing dealt.

        Raises:
            WorkerError: nobody can be asked.
        """
        if not court.present:
            raise court.too_few(step, 0)
        self.court, self.step = court, step
        self.silent: set[int] = set()  # did not answer in time: asked last
        self._asked: dict[int, set[int]] = defaultdict(set)  # partition -> who was asked for it
        self._load: Counter[int] = Counter()

    def deal(self, partitions: Sequence[int]) -> dict[int, int]:
        """Return who is to compute each of the partitions: nobody twice the same.

        Raises:
            WorkerError: nobody is left to ask.
        """
        court = self.court
        if self._asked:
            dealt: dict[int, int] = {}
            for partition in partitions:
                fresh = [worker for worker in court.shuffled(court.present) if worker not in self._asked[partition]]
                if not fresh:
                    raise court.too_few(self.step, partition)
                given = Counter(dealt.values())
                dealt[partition] = min(fresh, key=lambda w: (w in self.silent, self._load[w] + given[w]))
        else:
            each = deal(court.shuffled(court.present), len(partitions), 1)
            dealt = {partition: worker for partition, (worker,) in zip(partitions, each, strict=True)}
        for partition, worker in dealt.items():
            self._asked[partition].add(worker)
            self._load[worker] += 1
        return dealt


def walks(circle: Sequence[int], uploaders: Mapping[K, int], verifiers: int) -> dict[K, Iterator[int]]:
    """Return for each pair the others of a circle, in the order in which they are drawn to verify it.

    They are those who follow its uploader. So where the circle's order is drawn, they are uniform among the others. A
    worker's pairs get different ones.

    Args:
        circle: workers, among them all uploaders, in an order that is drawn only now.
        uploaders: of each pair.
        verifiers: how many are drawn for each pair, usually.
    """
    place = {worker: index for index, worker in enumerate(circle)}
    earlier: Counter[int] = Counter()  # pairs of each uploader that have their walk
    found = {}
    for pair, worker in uploaders.items():
        found[pair] = _walk(circle, place[worker], earlier[worker] * verifiers)
        earlier[worker] += 1
    return found


def _walk(circle: Sequence[int], place: int, skipped: int) -> Iterator[int]:
    others = len(circle) - 1
    return (circle[(place + 1 + (skipped + far) % others) % len(circle)] for far in range(others))
