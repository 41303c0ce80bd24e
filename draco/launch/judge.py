"""The verdict on a launch whose processes have ended: one pure function from what was observed to a state.

`failed`: the job itself did, and would again. `lost`: a node or a process went, and another launch can help; whether
there is one is for decide.py to say. A launcher's exit code is no evidence of success: Open MPI has been seen to exit
with 0 after the loss of a node.
"""

import re
import signal
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from draco.launch import not_started
from draco.runs.directory import State, Status

_ERROR = re.compile(r"[\w.]+(Error|Exception|Interrupt)\b.*:")  # the last line of a traceback
# What ranks print that lost the one they speak to; the cause is elsewhere.
_BROKEN = re.compile(r"(mpi4py\.)?MPI\.Exception: |draco\.errors\.WorkerError: ")
_KILLED = (  # in what mpirun says; torchrun, of its own processes; those processes, of the ranks that they stand for
    re.compile(r"process rank (?P<rank>\d+) with PID \S+ on node (?P<node>\S+) exited on\s+signal (?P<signal>\d+)"),
    re.compile(
        r"Root Cause \(first observed failure\):\s+\[\d+\]:\s+time\s+: \S+\s+host\s+: (?P<node>\S+)\s+"
        r"rank\s+: (?P<rank>\d+) \(local_rank: \d+\)\s+exitcode\s+: -(?P<signal>(?!15\b)\d+)"
    ),
    re.compile(r"draco: rank (?P<rank>\d+) on (?P<node>\S+) was killed by signal (?P<signal>\d+)"),
)
# srun names its ranks 1,3-5 and signals in words; it says the same of all of them where it ends the step itself.
_KILLED_TASKS = re.compile(r"srun: error: (\S+): tasks? ([\d,-]+): (Out Of Memory|[A-Z][a-z]+(?: [a-z]+)?)")
_SIGNALS = {signal.strsignal(number): int(number) for number in signal.Signals if number != signal.SIGTERM}
_STEP_ENDED = re.compile(r"srun: (?:forcing job termination|Job step aborted)|CANCELLED AT")
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
    starter: str = ""  # the program that started its ranks, which say how far they come; empty: there was none


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
    if seen.starter and status.state == "pending" and not errors and not_started.never_joined(seen.printed):
        state: State = "lost" if not_started.may_pass(seen.printed, status.step) else "failed"
        return state, not_started.sentence(seen.printed, seen.exit_code, seen.starter)
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
    """Return a sentence for every rank that died by a signal which what had started it did not send."""
    text = " ".join(printed)
    found = [match for pattern in _KILLED for match in pattern.finditer(text)]
    killed = {int(m["rank"]): f"rank {m['rank']} on {m['node']} was killed by signal {m['signal']}" for m in found}
    return {**killed, **_killed_tasks(printed)}


def _killed_tasks(printed: Sequence[str]) -> dict[int, str]:
    """Return the same of srun's tasks, none where it has ended them itself."""
    killed: dict[int, str] = {}
    for node, tasks, word in _KILLED_TASKS.findall("\n".join(printed)):
        why = "had no memory left" if word == "Out Of Memory" else f"was killed by signal {_SIGNALS.get(word, '')}"
        if word == "Out Of Memory" or word in _SIGNALS:
            killed |= {rank: f"rank {rank} on {node} {why}" for rank in _numbers(tasks)}
    return {} if any(_STEP_ENDED.search(line) for line in printed) else killed


def _numbers(text: str) -> list[int]:
    """Return the numbers of a text such as 1,3-5."""
    ranges = [part.partition("-") for part in text.split(",") if part]
    return [number for first, _, last in ranges for number in range(int(first), int(last or first) + 1)]


def lost_daemons(printed: Sequence[str]) -> list[str]:
    """Return the nodes, by the names that mpirun has for them, whose daemon it has lost; it exits with 0 after that."""
    return list(dict.fromkeys(_CUT.findall("\n".join(printed))))
