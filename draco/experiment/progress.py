"""What is shown of a run while it goes on: a line on a terminal that is redrawn, or one output of a notebook's cell.

The cell's output is updated in place, by IPython's own means, so it needs no widgets and stays in the saved notebook.
Where the output is neither, such as a file, a line is printed every few seconds.
"""

from __future__ import annotations

import html
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console

from draco.launch.progress import Progress
from draco.plain import lines
from draco.runs.door import Event

_EVERY_S = 0.25  # between two updates of a cell
_LINES = 20  # that a cell shows above the bar, the newest
_BAR = 30  # characters, where only text is shown


def console(quiet: bool) -> Console:
    """Return where messages go: stderr, in a notebook stdout, where stderr looks like a failure; or nowhere.

    Rich's own output in notebooks is left out: it needs a package of widgets.
    """
    file = sys.stdout if display() else sys.stderr
    return Console(
        file=file, quiet=quiet, force_jupyter=False, markup=False, emoji=False, highlight=False, soft_wrap=True
    )


def display() -> Any:
    """Return the function of IPython's by which a notebook's cell shows something; None outside a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if getattr(shell, "kernel", None) is None:  # IPython on a terminal has none
        return None
    from IPython.display import display

    return display


def progress(events: Path, said: Console, starting: str) -> Progress:
    """Return what follows a run's events, and shows them where `said` may."""
    show = None if said.quiet else display()
    return InCell(events, show, starting) if show else Progress(events, said, starting)


class InCell(Progress):
    """A run's progress as one output of a notebook's cell."""

    def __init__(self, events: Path | None, show: Any, starting: str) -> None:
        """`show` is IPython's `display`."""
        super().__init__(events, Console(quiet=True), starting)
        self._show, self._handle = show, None
        self._lines: list[str] = []
        self._done, self._now, self._drawn = 0, starting, 0.0

    def __enter__(self) -> InCell:
        self._draw()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._draw()

    def say(self, text: str) -> None:
        """Show a line above the bar."""
        self._lines = [*self._lines, lines(text)][-_LINES:]
        self._draw()

    def update(self) -> None:
        """Show what has happened since the last call; the cell is drawn anew a few times a second at most."""
        super().update()
        if time.monotonic() - self._drawn >= _EVERY_S:
            self._draw()

    def show(self, event: Event) -> None:
        """Show one event."""
        super().show(event)
        if event["event"] == "start":
            self._now = "training"
        elif event["event"] == "resume":
            self._done = event["step"]

    def _step(self, event: Event) -> None:
        rate, numbers = self._told(event)
        self._done, self._now = event["step"], f"{numbers}{self._left(event, rate)}"

    def _draw(self) -> None:
        """Put what is to be seen into the cell, as HTML and as text."""
        self._drawn = time.monotonic()
        filled = _BAR * self._done // self._steps if self._steps else 0
        count = f"{self._done}/{self._steps}" if self._steps else ""
        text = [*self._lines, f"{'#' * filled}{'.' * (_BAR - filled)} {count}  {self._now}"]
        told = "".join(f"<div>{html.escape(line)}</div>" for line in self._lines)
        bar = f'<progress value="{self._done}" max="{self._steps or 1}"></progress>'
        now = f"{bar} {count} <code>{html.escape(self._now)}</code>"
        data = {"text/plain": "\n".join(text), "text/html": f"<div>{told}<div>{now}</div></div>"}
        if self._handle is None:
            self._handle = self._show(data, raw=True, display_id=True)
        else:
            self._handle.update(data, raw=True)
