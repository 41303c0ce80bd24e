"""Where messages go, and how a question is asked. What a script may want to read is printed on stdout instead."""

import sys
from typing import TYPE_CHECKING

from draco.errors import RefusedError
from draco.plain import lines

if TYPE_CHECKING:
    from rich.console import Console

WIDE = 160  # columns of a table that goes into a file or a pipe


def messages() -> "Console":
    """Return the console for what is said to the user, on stderr."""
    from draco.cli.screen import Screen

    return Screen(stderr=True, soft_wrap=True)


def results(width: int | None = WIDE, *, soft_wrap: bool = True) -> "Console":
    """Return the console for tables, on stdout; `width`: of a table that goes into a file or a pipe, None: 80."""
    from draco.cli.screen import Screen

    return Screen(soft_wrap=soft_wrap, width=None if sys.stdout.isatty() else width)


def say(text: str) -> None:
    """Print a line on stdout that may have the name of a file in it, or what others wrote."""
    print(lines(text), flush=True)


def warn(text: str) -> None:
    """Print such a line on stderr."""
    print(lines(text), file=sys.stderr, flush=True)


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
