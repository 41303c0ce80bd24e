"""The progress line of a run, read from its events: step, loss, steps/s, who is suspected, time left.

On a terminal one line that is redrawn; elsewhere a line every few seconds. Reading events keeps the display out of
the trainer, works for any launcher, and cannot slow a step down.
"""

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Column

from draco.launch.notices import Notice
from draco.plain import lines
from draco.runs import expulsions
from draco.runs.door import Event
from draco.runs.events import Tail

_PLAIN_EVERY_S = 5.0
_RECENT = 20  # steps over which the rate is measured


class Progress:
    """Follows a run's events.jsonl, or shows the events that it is given where `events` is None."""

    def __init__(self, events: Path | None, console: Console, starting: str) -> None:
        self._console = console
        self._tail = Tail(events) if events else None
        self._odd = 0
        self._bar = Bar(
            TextColumn("{task.description}", markup=False), BarColumn(bar_width=10),
            MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=9)),
            TextColumn("{task.fields[numbers]}", markup=False), TextColumn("left"), TimeRemainingColumn(compact=True),
            console=console, transient=True, disable=not console.is_terminal,
        )  # fmt: skip
        self._task = self._bar.add_task(starting, total=None, numbers="")
        self._starting = starting
        self._times: list[float] = []
        self._expelled: set[int] = set()
        self._steps = 0
        self._said = time.monotonic()

    def __enter__(self) -> "Progress":
        self._bar.start()
        if not self._console.is_terminal:
            self.say(self._starting)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """Print a line above the progress."""
        self._bar.console.print(lines(text), highlight=False, markup=False, emoji=False)

    def update(self) -> None:
        """Show what has happened since the last call."""
        if self._tail is None:
            return
        for event in self._tail.read():
            self.show(event)
        if self._tail.odd > self._odd:
            self._odd = self._tail.odd
            self.say(f"events.jsonl: {self._odd:,} new lines of it were not understood and left out")

    def show(self, event: Event) -> None:
        """Show one event, which draco/runs/door.py has let in."""
        if event["event"] == "start":
            self._steps, self._times = event.get("steps", 0), []  # the pace is that of one launch
            self._bar.update(self._task, total=self._steps, description="training")
            if "summary" in event:
                self.say(event["summary"])
            if "vote_reason" in event:
                self.say(f"vote: {event.get('vote', '?')} ({event['vote_reason']})")
        elif event["event"] == "refused_checkpoint":
            self.say(f"not used: {event.get('file', '?')}: {event.get('why', '?')}")
        elif event["event"] == "resume":
            self.say(f"resumed after step {event['step']} from {event.get('file', '?')}")
            if "before_on" in event:
                self.say(
                    f"the server was on {event['before_on']} and is on {event.get('server_device', '?')}: what follows "
                    "may differ in its last bits"
                )
            self._expelled = {each.rank for each in expulsions.of(event)}
            if self._expelled:
                self.say(f"expelled before: {', '.join(map(str, sorted(self._expelled)))}")
            self._bar.update(self._task, completed=event["step"])
        elif event["event"] == "step":
            self._expel(event)
            self._step(event)
        elif event["event"] == "expelled":
            self._expel(event)
        elif event["event"] in _SENTENCES:
            for line in _SENTENCES[event["event"]](event):
                self.say(line)

    def _expel(self, event: Event) -> None:
        """Tell of the workers that an event expels, once."""
        for each in expulsions.of(event):
            if each.rank not in self._expelled:
                self._expelled.add(each.rank)
                self.say(expulsions.sentence(each))

    def _step(self, event: Event) -> None:
        rate, numbers = self._told(event)
        self._bar.update(self._task, completed=event["step"], numbers=numbers)
        if self._console.is_terminal or time.monotonic() - self._said < _PLAIN_EVERY_S:
            return
        self._said = time.monotonic()
        self.say(f"step {event['step']}/{self._steps}  {numbers}{self._left(event, rate)}")

    def _told(self, event: Event) -> tuple[float, str]:
        """Return steps per second, and what is shown of a step: its loss, the rate, who is suspected or absent."""
        self._times = [*self._times[-_RECENT:], event["time"]]
        elapsed = self._times[-1] - self._times[0]
        rate = (len(self._times) - 1) / elapsed if elapsed > 0 else 0.0
        suspects = ", ".join(map(str, event.get("suspects", ()))) or "none"
        loss = f"{event['loss']:.4f}" if "loss" in event else "-"
        return (
            rate,
            f"loss {loss}  {rate:.1f} steps/s  suspects: {suspects}{absent(event)}{price(event, self._expelled)}",
        )

    def _left(self, event: Event, rate: float) -> str:
        return f"  {(self._steps - event['step']) / rate:.0f} s left" if rate else ""


def absent(event: Mapping[str, Any]) -> str:
    """Name the ranks that a step was taken without, if there are any.

    >>> absent({"lost": [3], "straggling": [1, 4]})
    '  lost: 3  straggling: 1, 4'
    """
    ranks = {kind: event.get(kind) for kind in ("lost", "straggling")}
    return "".join(f"  {kind}: {', '.join(map(str, held))}" for kind, held in ranks.items() if held)


def price(event: Mapping[str, Any], expelled: Iterable[int]) -> str:
    """Tell how many workers computed each partition, and who is expelled; nothing of a step that does not say.

    >>> price({"copies": 1.0}, {7, 3})
    '  copies 1.0, expelled 3 7'
    """
    if event.get("copies") is None:
        return ""
    who = " ".join(map(str, sorted(expelled)))
    return f"  copies {event['copies']:.1f}" + (f", expelled {who}" if who else "")


def _notice(event: Event) -> list[str]:
    return [f"{event['node']}: {Notice(event['kind'], event['at']).sentence()}"]


def _interruption(event: Event) -> list[str]:
    return [f"interrupted: {event['cause']}"]


def _relaunch(event: Event) -> list[str]:
    without, nodes = event.get("without"), event.get("nodes")
    out = f" without {', '.join(without)}" if without else ""
    hosts = f" on {', '.join(dict.fromkeys(nodes))}" if nodes else ""
    warnings = [f"warning: {warning}" for warning in event.get("warnings", ())]
    return [f"launch {event.get('launch', '?')}{hosts}{out}", *warnings]


def _checked(event: Event) -> list[str]:
    return [f"warning: {warning}" for warning in event.get("warnings") or ()]


def _doubt(event: Event) -> list[str]:
    return [f"warning: {sentence}" for sentence in event.get("sentences") or ()]


def _logger(event: Event) -> list[str]:
    return [f"warning: {event['name']} is left out of the loggers after step {event['step']}: {event['why']}"]


def _undone(event: Event) -> list[str]:
    return [expulsions.undone(event)]


def _watched(event: Event) -> list[str]:
    return [expulsions.watched(event)]


# What is said of other events: a line, and one more for each warning.
_SENTENCES = {
    "checked": _checked, "doubt": _doubt, "notice": _notice, "interruption": _interruption, "relaunch": _relaunch,
    "logger": _logger, "undone": _undone, "watched": _watched,
}  # fmt: skip
