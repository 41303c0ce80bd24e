"""Which segments of a run are recomputed, and what it means that none of them was wrong.

A segment is the steps from one checkpoint to the next: a step cannot be recomputed without the model before it, and
only checkpoints hold models. All segments are drawn with the same probability, m of N without replacement. If w of
them are wrong, all m are right by chance with the hypergeometric probability C(N-w, m) / C(N, m).
"""

import itertools
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from draco.runs.chain import Chain

SURE = 0.95  # confidence of the bound on how many segments may be wrong


class Segment(NamedTuple):
    """The steps start + 1 to stop."""

    start: int
    stop: int
    first: Path | None  # the checkpoint of `start`; None: the job's initial model
    last: Path | None  # the checkpoint of `stop`; None: what was taken after the last checkpoint

    @property
    def steps(self) -> int:
        """How many steps it has."""
        return self.stop - self.start

    def __str__(self) -> str:
        """Return it as messages name it."""
        return f"steps {self.start + 1} to {self.stop}"


def segments(chain: Chain, checkpoints: Sequence[tuple[int, Path]]) -> list[Segment]:
    """Return the segments of a run, in order; steps of which nothing is recorded are in none.

    Args:
        chain: what is recorded.
        checkpoints: (step, path), rising; those that can be used.
    """
    places: list[tuple[int, Path | None]] = [(step, path) for step, path in checkpoints if chain.model(step)]
    if chain.model(0) and (not places or places[0][0] > 0):
        places.insert(0, (0, None))
    last = max(chain.steps, default=0)
    if places and last > places[-1][0]:
        places.append((last, None))
    found = [Segment(a, b, first, final) for (a, first), (b, final) in itertools.pairwise(places)]
    return [each for each in found if all(step in chain.steps for step in range(each.start + 1, each.stop + 1))]


def draw(count: int, share: float, seed: int | None = None) -> list[int]:
    """Return which of `count` segments are recomputed, rising: the given share of them, rounded up, one at least.

    They are drawn by the operating system's source, which nobody can foresee, or with a seed by Python's own.
    """
    source = random.SystemRandom() if seed is None else random.Random(seed)
    return sorted(source.sample(range(count), min(count, max(1, math.ceil(round(share * count, 9))))))


def chance_to_miss(count: int, drawn: int, wrong: int) -> float:
    """Return the probability that none of `wrong` segments is among the drawn ones of `count`."""
    return math.comb(count - wrong, drawn) / math.comb(count, drawn)


def most_wrong(count: int, drawn: int, sure: float = SURE) -> int:
    """Return the most segments that may be wrong although none drawn was: with more, one had been found, so surely."""
    return next(w for w in range(count, -1, -1) if chance_to_miss(count, drawn, w) > 1 - sure)


def needed(count: int, wrong: int, sure: float) -> int:
    """Return how many segments must be drawn to find one of `wrong` with probability `sure`."""
    return next(m for m in range(count + 1) if 1 - chance_to_miss(count, m, wrong) >= sure)
