"""Questions of the head to its nodes: one ssh to each, all at once, with a time limit."""

import shlex
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from draco.launch.roster import Host, Roster

WORK = "/srv/draco"  # holds data/ and, on the head only, runs/


class Answer(NamedTuple):
    """What one node said."""

    output: str
    fault: str  # why there is no output, as ssh or the command put it; empty where all went well


def ask(
    roster: Roster, argv: Sequence[str], limit_s: float = 20.0, *, text: str = "", only: Sequence[str] = ()
) -> dict[str, Answer]:
    """Run `argv` with `text` as its input on every worker node, or on those named; return the answers by node."""
    asked = [node for node in roster.nodes[1:] if not only or node.name in only]
    with ThreadPoolExecutor(max(len(asked), 1)) as pool:
        answers = pool.map(lambda node: _answer(roster, node, argv, text, limit_s), asked)
        return {node.name: answer for node, answer in zip(asked, answers, strict=True)}


def module(roster: Roster, name: str, *arguments: str) -> list[str]:
    """Return the command that runs a Python module on a node, where ranks run."""
    return ["cd", WORK, "&&", roster.python, "-m", name, *arguments]


def sweeping(roster: Roster, *words: str) -> list[str]:
    """Return the command that ends what is left of runs on a node; see sweep.py for its words."""
    return module(roster, "draco.launch.sweep", *map(shlex.quote, words))


def unreachable(roster: Roster) -> dict[str, str]:
    """Return the nodes that do not let the head in, each with the reason."""
    return {name: answer.fault for name, answer in ask(roster, ["true"], limit_s=8.0).items() if answer.fault}


def _answer(roster: Roster, node: Host, argv: Sequence[str], text: str, limit_s: float) -> Answer:
    command = ["ssh", "-F", roster.ssh_config, node.name, "--", *argv]
    try:
        made = subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=limit_s)
    except subprocess.TimeoutExpired:
        return Answer("", "no answer by ssh within the time limit: is the node frozen or cut off?")
    if made.returncode == 0:
        return Answer(made.stdout, "")
    lines = [line.strip() for line in made.stderr.splitlines() if line.strip()]
    return Answer("", explained(lines) or f"the command ended with exit code {made.returncode}")


# What ssh says -> what it means here.
_MEANINGS = {
    "REMOTE HOST IDENTIFICATION HAS CHANGED": "its host key is not the one that make cluster-up recorded: a new "
    "machine, or another one that poses as it; make cluster-up records it anew over the operator's own connection",
    "Host key verification failed": "its host key is not known to the head; make cluster-up records it",
    "Permission denied": "it does not accept the head's key; make cluster-up authorises it again",
    "Connection refused": "no sshd answers there; make cluster-up starts it again",
}


def explained(lines: Sequence[str]) -> str:
    """Return the reason in what ssh printed, its last line where nothing better is known."""
    for sign, meaning in _MEANINGS.items():
        if any(sign in line for line in lines):
            return meaning
    return lines[-1] if lines else ""
