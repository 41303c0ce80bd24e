"""The place where a command runs: this machine, or the head of a cluster that is up."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from draco.cli import console
from draco.errors import RefusedError
from draco.files import expanded

if TYPE_CHECKING:
    from draco.cluster.backend import Cluster

SAME_ON_A_HEAD = ("eval", "export", "verify", "report", "logs", "stop")  # commands that are run on a head word for word


def target(args: argparse.Namespace) -> "Cluster | None":
    """Return the cluster that a command is to run on, or None for this machine.

    Raises:
        MissingError, RefusedError: no cluster of that name is up, or several are and none was named.
    """
    from draco.cluster import state

    if args.here or (args.on is None and (not state.names() or _is_here(getattr(args, "run", None)))):
        return None
    return state.chosen(args.on)


def _is_here(run: Path | list[Path] | None) -> bool:
    """Say whether a run directory was named that is on this machine."""
    named = run if isinstance(run, list) else [run] if run else []
    return bool(named) and all((path / "state.json").exists() for path in named)


def same(cluster: "Cluster", args: argparse.Namespace, arguments: Sequence[str]) -> int:
    """Run the same command on the cluster's head."""
    from draco.cluster import remote

    for word in ("plot", "html"):
        if getattr(args, word, None):
            raise RefusedError(
                f"--{word}: draws on the machine that holds the runs; leave it out, or --here for runs here"
            )
    words = list(arguments)
    if "--on" in words:
        at = words.index("--on")
        del words[at : at + 2]
    console.warn(f"on {cluster.name} ({cluster.backend})")
    return remote.same(cluster, [_as_typed(word) for word in words if not word.startswith("--on=")])


def _as_typed(word: str) -> str:
    """Return a word with `~` and variables replaced by this user's, as a shell would have it done here."""
    option, equals, text = word.partition("=") if word.startswith("--") else ("", "", word)
    return f"{option}{equals}{expanded(text)}" if "~" in text or "$" in text else word
