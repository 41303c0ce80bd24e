"""A console of rich that shows text as text: no markup, nothing a terminal would obey, on however narrow a screen."""

import errno
from typing import Any

from rich.console import Console
from rich.status import Status
from rich.text import Text

from draco.plain import lines, plain

_NARROWEST = 40  # columns: a table in fewer has no letters left; a narrower terminal, or COLUMNS=0, folds the lines


class Screen(Console):
    """Where text comes from does not matter here: a worker, a file's name, Draco itself."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)
        if self.width < _NARROWEST:
            self.width = _NARROWEST

    def render_str(self, text: str, **options: Any) -> Text:
        """Make text of a string: of what is printed, and of the cells of a table."""
        return super().render_str(lines(text), **options)

    def status(self, status: Any, **options: Any) -> "Waiting":
        """Show what is being waited for."""
        return Waiting(_text(status), console=self, **options)

    def on_broken_pipe(self) -> None:
        """Leave it to the command line, which ends as the shell expects."""
        raise BrokenPipeError(errno.EPIPE, "its reader has left")

    def _check_buffer(self) -> None:
        """Write what was printed; what is only said beside the work, on stderr, ends no work that it cannot tell of."""
        try:
            super()._check_buffer()
        except OSError:
            if not self.stderr:
                raise
            self.quiet = True


class Waiting(Status):
    """A line with a spinner, whose words are no markup either."""

    def update(self, status: Any = None, **options: Any) -> None:
        """Say what is being waited for now."""
        super().update(None if status is None else _text(status), **options)


def _text(status: Any) -> Any:
    return Text(plain(status)) if isinstance(status, str) else status
