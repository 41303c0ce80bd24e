"""The watch over one launch: whether the server still takes steps, and which nodes are gone where it does not.

When nothing has been heard from the server for a while the nodes are asked; one that does not answer twice in a row is
lost and the launch is ended. So a dead, frozen or cut off node is known after QUIET_S + 2 * (LOOK_EVERY_S + 8 s) at
most. Where all nodes answer and still no step is taken, the time of the steps before says when to wait no longer.
"""

import math
import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from statistics import median

from draco.job import Job
from draco.launch import plan
from draco.runs.events import Tail

QUIET_S = 10.0  # without a sign of life from the server before the nodes are asked
LOOK_EVERY_S = 4.0
SLACK_S = 240.0  # beyond the server's own time limits, after which it is taken to hang before its steps have a pace
# A launch that has found its pace and loses it for so long hangs. A step that waits for memory, a disk or another job
# may well take ten times as long as others; 40 s keep jobs of short steps from being ended by a pause of the machine,
# and are within the minute in which a hang is to be found.
PACE_STEPS = 5  # the first are slow: memory is touched and connections are made
PACE_RECENT = 20
PACE_FACTOR = 20.0
PACE_LEAST_S = 40.0


class Watch:
    """Looks after a launch's heartbeat; called often, costs nothing while steps are being taken."""

    def __init__(
        self,
        directory: Path,
        job: Job,
        lost: Callable[[], Mapping[str, str]],
        clock: Callable[[], float] = time.monotonic,
        starting: Callable[[float], str] = lambda now: "",
    ) -> None:
        """`starting` is called with the time until the server has begun, and says why the launch must be ended."""
        self._events, self._job, self._lost, self._clock = directory / "events.jsonl", job, lost, clock
        self._starting = starting
        self._tail = Tail(self._events)
        self._beat, self._heard = (
            self._last_beat(),
            clock(),
        )  # by this machine's clock, wherever the file is stored
        self._started = False
        self._times: list[float] = []  # of the newest steps, by the server's clock
        self._asked = -math.inf
        self._silent: Mapping[str, str] = {}
        self.gone: dict[str, str] = {}  # nodes that did not answer twice in a row, each with the reason

    def __call__(self) -> str:
        """Return why the launch must be ended, or nothing."""
        beat = self._last_beat()
        if beat != self._beat:
            self._beat, self._heard = beat, self._clock()
            self._read()
        quiet = self._clock() - self._heard
        if quiet < QUIET_S or not plan.of(self._job).starter:  # it waits for no other process
            self._silent = {}
            return ""
        if self._clock() - self._asked >= LOOK_EVERY_S:
            before, self._silent = self._silent, self._lost()
            self._asked = self._clock()
            self.gone |= {node: why for node, why in self._silent.items() if node in before}
            if self.gone:
                return "; ".join(f"{node} is lost: {why}" for node, why in self.gone.items())
        if len(self._times) >= PACE_STEPS:
            pace = median(later - earlier for earlier, later in pairwise(self._times))
            return f"no step for {quiet:.0f} s" if quiet > max(PACE_LEAST_S, PACE_FACTOR * pace) else ""
        if not self._started and (why := self._starting(self._clock())):
            return why
        limit = SLACK_S + (self._job.reply_timeout_s if self._started else self._job.start_timeout_s)
        return f"nothing was heard from the server for {quiet:.0f} s" if quiet > limit else ""

    @property
    def begun(self) -> bool:
        """Whether the server of this launch has met its workers."""
        self._read()
        return self._started

    @property
    def stepped(self) -> bool:
        """Whether this launch has taken a step."""
        self._read()
        return bool(self._times)

    def _last_beat(self) -> tuple[int, int]:
        if not self._events.exists():
            return 0, 0
        found = self._events.stat()
        return found.st_mtime_ns, found.st_size

    def _read(self) -> None:
        for event in self._tail.read():
            self._started = self._started or event["event"] == "start"
            if event["event"] == "step":
                self._times = [*self._times[-PACE_RECENT:], event["time"]]
