"""What is to be said of a run whose processes have ended: one pure function from what was observed to its state.

A launcher's exit code is no evidence: Open MPI has been seen to exit with 0 after the loss of a node.
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from draco.run_directory import State, Status

_ERROR = re.compile(r"[\w.]+(Error|Exception|Interrupt)\b.*:")  # the last line of a traceback
_KILLED = re.compile(r"process rank (\d+) with PID \S+ on node (\S+) exited on\s+signal (\d+)")


class Observed(NamedTuple):
    """Everything that a verdict rests on."""

    status: Status  # the run's own record
    exit_code: int | None = None  # of mpirun or of the one process; None: nobody saw it end
    ended_because: str = ""  # why the supervisor ended it; empty: it ended by itself
    unreachable: Mapping[str, str] = {}  # node -> why the head cannot reach it
    ranks: Mapping[str, Sequence[int]] = {}  # node -> its ranks
    printed: Sequence[str] = ()  # what its processes and mpirun printed
    stop_asked: bool = False  # the user asked for the end
    kill_asked: bool = False  # and would not wait for it


def judge(seen: Observed) -> tuple[State, str]:
    """Return the state to record and why, in one line; equal to what is recorded where that can stand.

    The order is the order of causes: a run that says that it succeeded did; a node that is gone explains whatever the
    run says besides; a rank that was killed explains why the server was told to stop; the server's own word; and last,
    for a run that went without a word, what is known of its end.
    """
    status = seen.status
    if status.state == "succeeded":
        return status.state, status.message
    if seen.unreachable:
        return "lost", "; ".join(_lost(node, why, seen.ranks.get(node, ())) for node, why in seen.unreachable.items())
    if status.state == "interrupted" and (seen.stop_asked or not killed_ranks(seen.printed)):
        return status.state, status.message
    if status.state == "failed":
        return status.state, status.message
    if seen.kill_asked:
        return "interrupted", "killed as asked; what came after the last checkpoint is lost"
    if killed := killed_ranks(seen.printed):
        return "failed", "; ".join(killed)
    if seen.ended_because:
        return "failed", seen.ended_because
    errors = [line.strip() for line in seen.printed if _ERROR.match(line.strip())]
    code = "" if seen.exit_code is None else f" (exit code {seen.exit_code})"
    return "failed", f"its processes ended{code}: {errors[-1] if errors else 'they printed no error'}"


def _lost(node: str, why: str, ranks: Sequence[int]) -> str:
    held = f" (ranks {', '.join(map(str, ranks))})" if ranks else ""
    return f"{node}{held} is lost: {why}"


def killed_ranks(printed: Sequence[str]) -> list[str]:
    """Return a sentence for every rank that mpirun saw die by a signal other than its own."""
    text = " ".join(printed)
    return [f"rank {rank} on {node} was killed by signal {number}" for rank, node, number in _KILLED.findall(text)]
