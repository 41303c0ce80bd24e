"""Arguments that several commands share, and how a command is added to the parser."""

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from draco.files import expanded

Do = Callable[[argparse.Namespace], int]  # runs the command and returns its exit code


def command(commands: Any, name: str, do: Do, text: str, more: str = "") -> argparse.ArgumentParser:
    """Add a command: one line of `text` for the list of commands, and `more` for its own help."""
    described = text[:1].upper() + text[1:] + "."
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=f"{described} {more}".strip(), allow_abbrev=False
    )
    parser.set_defaults(do=do)
    return parser


def internal(commands: Any, name: str, do: Do) -> argparse.ArgumentParser:
    """Add a command that Draco runs itself, and that the help does not list."""
    parser: argparse.ArgumentParser = commands.add_parser(name, allow_abbrev=False)
    parser.set_defaults(do=do)
    return parser


def add_where(parser: argparse.ArgumentParser) -> None:
    """Add --on and --here: which machine the command is for."""
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--on", metavar="NAME", help="the cluster to use (default: the one that is up, if any)")
    where.add_argument("--here", action="store_true", help="use this machine, though a cluster is up")


def add_runs(parser: argparse.ArgumentParser) -> None:
    """Add --runs: the folder in which runs are looked for."""
    parser.add_argument(
        "--runs", type=path, default=Path("runs"), metavar="DIR", help="where runs are kept (default: %(default)s)"
    )


def add_run(parser: argparse.ArgumentParser) -> None:
    """Add RUN, which is the newest run unless it is named, and where it is."""
    parser.add_argument("run", nargs="?", type=path, metavar="RUN", help="run directory (default: the newest)")
    add_runs(parser)
    add_where(parser)


def add_set(parser: argparse.ArgumentParser, text: str = "override one value of the job, such as steps=100") -> None:
    """Add --set, which may be given several times, and with several values at once, as `make SET=...` gives them."""
    parser.add_argument("--set", action="extend", type=_assignments, default=[], metavar="KEY=VALUE", help=text)


def _assignments(text: str) -> list[str]:
    """Return the assignments in a text: one begins where a key and = follow a space, so values may hold spaces."""
    return re.split(r"\s+(?=[\w.-]+=)", text.strip())


def path(text: str) -> Path:
    """Return the path that an option's text is, with `~` and variables replaced."""
    return expanded(text)


def count(text: str) -> int:
    """Return the whole number, 1 or more, that an option's text is."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"is {text}; it must be a whole number, 1 or more")
    return int(text)


def seconds(text: str) -> float:
    """Return the whole number of seconds that an option's text is."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"is {text}; it must be a whole number of seconds")
    return float(text)
