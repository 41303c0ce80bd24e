"""The progress of a comparison: cells and steps that are done, cells that run, and the time left."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as Bar

from draco import metrics
from draco.compare.cells import Cell
from draco.compare.outcome import Outcome
from draco.plain import lines
from draco.runs import events


class Pace(NamedTuple):
    """What one cell took."""

    setting: str  # cells of one setting take alike
    steps: int
    seconds: float


def seconds_left(left: Sequence[tuple[str, int]], paces: Sequence[Pace], processes: int) -> float | None:
    """Return the seconds that the cells left, each (setting, steps), take in so many processes; None: nothing known.

    A step takes what it took in cells of the same setting, else what it took in all.
    """
    whole = _per_step(paces)
    if whole is None:
        return None
    by_setting = {setting: _per_step([pace for pace in paces if pace.setting == setting]) for setting, _ in left}
    work = [steps * (by_setting[setting] or whole) for setting, steps in left]
    return max(sum(work) / processes, max(work, default=0.0))


def _per_step(paces: Sequence[Pace]) -> float | None:
    steps = sum(pace.steps for pace in paces)
    return sum(pace.seconds for pace in paces) / steps if steps else None


def earlier_pace(cell: Cell, root: Path) -> Pace | None:
    """Return what the cell took in earlier calls, from the times of its events; None where it took no step."""
    seconds, steps, last = 0.0, 0, None
    for event in events.read(root / cell.name / "events.jsonl"):
        if event["event"] == "start":
            last = event["time"]  # what was between two launches took no time of this cell
        elif last is not None:
            seconds, steps, last = seconds + event["time"] - last, steps + (event["event"] == "step"), event["time"]
    return Pace(cell.setting, steps, seconds) if steps else None


def in_words(seconds: float | None) -> str:
    """Return a duration as one would say it.

    >>> in_words(200.0)
    '3 min'
    """
    if seconds is None:
        return "unknown"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class Progress:
    """A bar for the whole and one for each cell that goes on, on a terminal; a line for each that has ended."""

    def __init__(
        self,
        cells: Sequence[Cell],
        steps: Mapping[str, int],
        done: Mapping[str, Outcome],
        root: Path,
        processes: int,
        console: Console,
    ) -> None:
        """`steps`: each cell's last step; `done`: what has become of the cells before."""
        self._cells = {cell.name: cell for cell in cells}
        self._steps, self._root, self._processes = steps, root, processes
        self._left = {
            cell.name: steps[cell.name] - done[cell.name].step for cell in cells if not done[cell.name].is_result
        }
        self._paces = [pace for cell in cells if (pace := earlier_pace(cell, root))]
        self._tails: dict[str, events.Tail] = {}
        self._began: dict[str, tuple[float, int]] = {}  # when this call started it, and its steps left then
        self._bar = Bar(
            TextColumn("{task.description}", markup=False), BarColumn(bar_width=20), MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}", markup=False),
            console=console, transient=True, disable=not console.is_terminal,
        )  # fmt: skip
        ended = len(self._cells) - len(self._left)
        self._whole = self._bar.add_task("cells", total=len(self._cells), completed=ended, numbers="")
        self._bars: dict[str, TaskID] = {}

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """Print a line above the progress."""
        self._bar.console.print(lines(text), highlight=False, markup=False, emoji=False)

    def began(self, name: str) -> None:
        """Show a cell that has been started."""
        self._tails[name] = events.Tail(self._root / name / "events.jsonl")
        self._began[name] = time.monotonic(), self._left[name]
        done = self._steps[name] - self._left[name]
        self._bars[name] = self._bar.add_task(name, total=self._steps[name], completed=done, numbers="")

    def update(self, name: str) -> None:
        """Show what has happened to a cell since the last call."""
        for event in self._tails[name].read():
            if event["event"] in ("resume", "step"):
                self._left[name] = self._steps[name] - event["step"]
                loss = f"loss {event['loss']:.3g}" if "loss" in event else ""
                self._bar.update(self._bars[name], completed=event["step"], numbers=loss)
                self._bar.update(self._whole, numbers=f"about {in_words(self.left())} left")

    def left(self) -> float | None:
        """Return the seconds that are left, from cells that have ended and steps that the others have taken."""
        now = time.monotonic()
        going_on = [
            Pace(self._cells[name].setting, then - self._left[name], now - since)
            for name, (since, then) in self._began.items()
        ]
        left = [(self._cells[name].setting, steps) for name, steps in self._left.items()]
        return seconds_left(left, [*self._paces, *going_on], self._processes)

    def ended(self, name: str, what: Outcome) -> None:
        """Show how a cell has ended."""
        self.update(name)
        since, then = self._began.pop(name)
        self._paces.append(Pace(self._cells[name].setting, then - self._left[name], time.monotonic() - since))
        if what.is_result:
            del self._left[name]
        self._bar.remove_task(self._bars.pop(name))
        ended = len(self._cells) - len(self._left)
        self._bar.update(self._whole, completed=ended, numbers=f"about {in_words(self.left())} left")
        how = f"{what.state} at step {what.step}"
        evaluations = [*events.evaluations(self._root / name / "evaluations.jsonl")]
        if what.state == "succeeded" and evaluations:
            quality = metrics.recorded(evaluations[-1])
            how = f"{quality['top1']:.1%}" if "top1" in quality else f"test loss {quality['loss']:.4g}"
            how += f" at step {what.step} of {self._steps[name]}" if what.step < self._steps[name] else ""
        why = f": {what.reason}" if what.reason and what.state != "succeeded" else ""
        self.say(f"[{ended}/{len(self._cells)}] {name}: {how}{why}; about {in_words(self.left())} left")
