"""Changes among a cluster's nodes while a launch goes on: some say that they will go, others come back.

Both end the launch at its next step, with a checkpoint, so that the next one has other nodes.
"""

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from draco.launch.notices import Notice
from draco.runs import events

READ_EVERY_S = 0.5  # the notices, which are fetched at their own pace
RETURN_EVERY_S = 3.0  # from one answer of the nodes that are left out to the next question


class Notifications:
    """What nodes have said of their end in the course of a run, each notice recorded once."""

    def __init__(self, directory: Path, read: Callable[[], Mapping[str, Notice]]) -> None:
        self._directory, self._read = directory, read
        self._standing: dict[str, Notice] = {}

    def standing(self) -> dict[str, Notice]:
        """Return the notices that stand; record those that are new.

        A node that expects to be taken away soon, but was not told so, is kept: a checkpoint makes its loss cheap.
        """
        found = dict(self._read())
        for node, notice in found.items():
            if self._standing.get(node) != notice:
                events.append(self._directory / "events.jsonl", "notice", node=node, kind=notice.kind, at=notice.at)
                if notice.kind == "rebalance":
                    (self._directory / "checkpoint").touch()
        self._standing = found
        return found


class Changes:
    """Looks, in one launch, for notices of its nodes and for nodes that it could have besides; called often."""

    def __init__(
        self,
        notifications: Notifications,
        out: Mapping[str, str],
        fit: Callable[[Sequence[str]], Sequence[str]] | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`out`: the nodes that are left out; `fit` says which of them could take part; None: they stay out."""
        self._notifications, self._out, self._fit, self._clock = notifications, out, fit, clock
        self._read_at, self._answered_at = -math.inf, -math.inf
        self._asking: threading.Thread | None = None
        self._answers: list[str] = []
        self.noticed: dict[str, str] = {}  # nodes of this launch that will go, each with what it said
        self.back: tuple[str, ...] = ()  # nodes left out of it that can take part again

    def look(self, *, may_return: bool) -> bool:
        """Say whether the launch is to be stopped; `may_return`: also for a node that is back."""
        now = self._clock()
        if now - self._read_at >= READ_EVERY_S:
            self._read_at = now
            found = self._notifications.standing()
            going = {node: notice.sentence() for node, notice in found.items() if notice.kind == "interruption"}
            self.noticed |= {node: said for node, said in going.items() if node not in self._out}
            if may_return:
                self._look_for_returned([node for node in self._out if node not in found])
        return bool(self.noticed or self.back)

    def _look_for_returned(self, out: Sequence[str]) -> None:
        """Ask beside everything else, since a node that is gone answers by silence, which takes long."""
        if self._asking and not self._asking.is_alive():
            self._asking, self._answered_at = None, self._clock()
            self.back = tuple(node for node in self._answers if node in out)
        due = self._clock() - self._answered_at >= RETURN_EVERY_S
        if self._fit and out and due and not self._asking and not self.back:
            self._asking = threading.Thread(target=self._ask, args=(self._fit, out), daemon=True)
            self._asking.start()

    def _ask(self, fit: Callable[[Sequence[str]], Sequence[str]], out: Sequence[str]) -> None:
        self._answers = list(fit(out))
