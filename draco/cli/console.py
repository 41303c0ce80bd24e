"""Where messages go, and how a question is asked. What a script may want to read is printed on stdout instead."""

import sys
from typing import TYPE_CHECKING

from draco.errors import RefusedError

if TYPE_CHECKING:
    from rich.console import Console

WIDE = 160  # columns of a table that goes into a file or a pipe


def messages() -> "Console":
    """Return the console for what is said to the user, on stderr."""
    from rich.console import Console

    return Console(stderr=True, soft_wrap=True)


def results() -> "Console":
    """Return the console for tables, on stdout."""
    from rich.console import Console

    return Console(soft_wrap=True, width=None if sys.stdout.isatty() else WIDE)


def confirm(what: str, yes: bool) -> None:
    """Ask the user whether it may be done; `yes`: they have said so.

    Raises:
        RefusedError: they declined, or there is nobody to ask.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise RefusedError(f"{what}? There is nobody to ask: YES=1 says that it may")
    if answer(f"{what}? [y/N] ").strip().lower() not in ("y", "yes"):
        raise RefusedError("nothing was started or removed")


def answer(question: str) -> str:
    """Return what the user types; nothing where they end the input."""
    try:
        return input(question)
    except EOFError:
        return ""
