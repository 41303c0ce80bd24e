"""The verdict on a launch whose processes have ended: one pure function from what was observed to a state.

`failed`: the job itself did, and would again. `lost`: a node or a process went, and another launch can help; whether
there is one is for decide.py to say. A launcher's exit code is no evidence of success: Open MPI has been seen to exit
with 0 after the loss of a node.
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from draco.launch import not_started
from draco.runs.directory import State, Status

_ERROR = re.compile(r"[\w.]+(Error|Exception|Interrupt)\b.*:")  # the last line of a traceback
# What ranks print that lost the one they speak to; the cause is elsewhere.
_BROKEN = re.compile(r"(mpi4py\.)?MPI\.Exception: |draco\.errors\.WorkerError: ")
_KILLED = re.compile(r"process rank (\d+) with PID \S+ on node (\S+) exited on\s+signal (\d+)")
_CUT = re.compile(r"lost communication with a remote daemon\..*?Remote daemon: \S+ on node (\S+)", re.DOTALL)


class Observed(NamedTuple):
    """Everything that a verdict rests on."""

    status: Status  # the run's own record
    exit_code: int | None = None  # of mpirun or of the one process; None: nobody saw it end
    ended_because: str = ""  # why the supervisor ended it; empty: it ended by itself
    unreachable: Mapping[str, str] = {}  # node -> why the head cannot reach it
    ranks: Mapping[str, Sequence[int]] = {}  # node -> its ranks
    printed: Sequence[str] = ()  # what its processes and mpirun printed
    stop_asked: bool = False  # the user or the supervisor asked for the end
    kill_asked: bool = False  # and the user would not wait for it
    by_mpirun: bool = False  # it was started by mpirun, and its ranks say how far they come


def judge(seen: Observed) -> tuple[State, str]:
    """Return the state of the launch and why, in one line; equal to what is recorded where that can stand.

    Causes come first:
    - A run that says that it succeeded did.
    - A node that is gone explains whatever else the run says.
    - Then the server's own word counts. One exception: it says that it was told to stop, and nobody told it to. Then a
      rank that was killed explains that, or a connection that broke.
    - For a run that ended without a word, what is known of its end counts: a Python error where it had not begun, and
      mpirun's words where it could not be started, which another launch would not mend.
    """
    status = seen.status
    if status.state == "succeeded":
        return status.state, status.message
    if seen.unreachable:
        return "lost", "; ".join(_lost(node, why, seen.ranks.get(node, ())) for node, why in seen.unreachable.items())
    if status.state == "interrupted" and seen.stop_asked:
        return status.state, status.message
    if status.state == "failed":
        return status.state, status.message
    if seen.kill_asked:
        return "interrupted", "killed as asked; what came after the last checkpoint is lost"
    if killed := killed_ranks(seen.printed):
        return "lost", "; ".join(killed.values())
    if daemons := lost_daemons(seen.printed):
        return "lost", f"mpirun lost its connection to {', '.join(daemons)}"
    if status.state == "lost":
        return status.state, status.message
    if seen.ended_because:
        return "lost", seen.ended_because
    errors = [line.strip() for line in seen.printed if _ERROR.match(line.strip()) and not _BROKEN.match(line.strip())]
    if seen.by_mpirun and status.state == "pending" and not errors and not_started.never_joined(seen.printed):
        state: State = "lost" if not_started.may_pass(seen.printed, status.step) else "failed"
        return state, not_started.sentence(seen.printed, seen.exit_code)
    code = "" if seen.exit_code is None else f" (exit code {seen.exit_code})"
    if errors and status.state == "pending":  # once it runs the server records its own end, and a worker's is no reason
        return "failed", f"its processes ended{code}: {errors[-1]}"
    if status.state == "interrupted" and not seen.exit_code:  # the file `stop` was put there by hand
        return status.state, status.message
    return "lost", f"its processes ended{code} without a word of the server"


def _lost(node: str, why: str, ranks: Sequence[int]) -> str:
    held = f" (ranks {', '.join(map(str, ranks))})" if ranks else ""
    return f"{node}{held} is lost: {why}"


def killed_ranks(printed: Sequence[str]) -> dict[int, str]:
    """Return a sentence for every rank that mpirun saw die by a signal other than its own."""
    found = _KILLED.findall(" ".join(printed))
    return {int(rank): f"rank {rank} on {node} was killed by signal {number}" for rank, node, number in found}


def lost_daemons(printed: Sequence[str]) -> list[str]:
    """Return the nodes, by the names that mpirun has for them, whose daemon it has lost; it exits with 0 after that."""
    return list(dict.fromkeys(_CUT.findall("\n".join(printed))))
