"""The way figures are taken: variants in turn in one process, medians, and the ratio to a limit beside each.

Absolute times on a shared machine drift by more than any effect worth reporting; ratios of calls that alternate do not.
"""

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import NamedTuple

Call = Callable[[], object]


class Row(NamedTuple):
    """One line of the table."""

    what: str
    size: str
    seconds: float
    against: str  # what `ratio` compares with
    ratio: float
    target: float | None  # the ratio must be at most this; None: for information

    @property
    def verdict(self) -> str:
        """Say whether the target is met."""
        if self.target is None:
            return ""
        return "met" if self.ratio <= self.target else "MISSED"


def alternate(calls: Mapping[str, Call], repeats: int) -> dict[str, float]:
    """Return the median seconds of each call, all of them called in turn `repeats` times after one warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(repeats + 1):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            if repeat:
                seconds[name].append(time.perf_counter() - began)
    return {name: median(taken) for name, taken in seconds.items()}
