"""The seconds that each part of a step takes, as its event tells."""

import time
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from draco.training import wire


class Clock:
    """Seconds spent in each part of one step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, part: str) -> None:
        """Charge the time since the last lap to `part`."""
        now = time.perf_counter()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._last
        self._last = now

    def split_exchange(self, timings: Sequence[wire.Timing], concurrent: bool) -> None:
        """Divide the exchange into the workers' compute and encode and the rest, communication.

        What workers say of their time is not trusted with more than the time that passed.
        """
        combine = median if concurrent else sum
        left = self.seconds.pop("exchange")
        for part in ("compute", "encode"):
            said = [getattr(timing, part) for timing in timings]
            clipped = [min(max(s, 0.0), left) if s == s else 0.0 for s in said]
            self.seconds[part] = min(combine(clipped), left) if clipped else 0.0
            left -= self.seconds[part]
        self.seconds["communication"] = left


def rounded(seconds: Mapping[Any, float]) -> dict[str, float]:
    """Return seconds as events have them, to the microsecond."""
    return {str(key): round(value, 6) for key, value in seconds.items()}
