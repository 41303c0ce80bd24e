"""The watch over a launch until its server has begun: which stage it is in, who is waited for, and whether they move.

A cold disk may take minutes to give torch, and a large data set to be read: a launch has stalled where those who are
waited for do nothing at all for STALL_S, not where they take long. Doing is computing, reading, faulting pages in, and
printing. While MPI is joined, or the job handed round, waiting itself computes, and there is nothing to do that takes
time: there STALL_S counts from the last stage that anybody reached.

All ranks are waited for until MPI is joined, which takes all. From then on rank 0 alone is: what becomes of a worker
that does not greet is for the server to say (start_timeout_s), and a Byzantine one could pretend to stall.
"""

import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from draco.launch import every_node
from draco.launch.pulse import pulse
from draco.launch.roster import Roster
from draco.runs import stages
from draco.runs.stages import STAGES, Reached

STALL_S = 16.0  # with QUIET_S of watch.py and LOOK_EVERY_S a stall is found within 30 s
LOOK_EVERY_S = 4.0
_ASK_S = 8.0
_BUSY_WAITING = ("imported", "joined")  # stages at whose end a rank waits for others with its core busy
_NEXT = {
    None: "started", "up": "imported torch", "imported": "joined the run", "joined": "taken the job",
    "told": "loaded the data",
}  # fmt: skip

Pulse = Callable[[Sequence[int], Mapping[int, Reached]], int]  # of ranks, which are up or not, by what all have reached


class Waited(NamedTuple):
    """What a launch waits for."""

    stage: str | None  # the last one that all have reached who are waited for; None: none of them is up
    ranks: tuple[int, ...]  # those that have reached no more; all that are not up, where some are not


def waited(found: Mapping[int, Reached], size: int) -> Waited | None:
    """Return what a launch of `size` ranks waits for; None: for the server, which is ready."""
    joined = STAGES.index("joined")
    level = {rank: STAGES.index(found[rank].stage) if rank in found else -1 for rank in range(size)}
    counted = level if min(level.values()) < joined else {0: level[0]}
    least = min(counted.values())
    if least == len(STAGES) - 1:
        return None
    return Waited(None if least < 0 else STAGES[least], tuple(rank for rank, at in counted.items() if at == least))


class Starting:
    """Looks at the ranks of a launch from their logs on."""

    def __init__(self, logs: Path, size: int, pulse: Pulse, nodes: Sequence[str] | None = None) -> None:
        """`nodes[rank - 1]` is the machine that hosts a worker; None: they share one."""
        self._logs, self._size, self._pulse, self._nodes = logs, size, pulse, nodes
        self._lengths = _lengths(logs)
        self._seen: tuple[object, ...] = ()
        self._since = 0.0
        self._looked = -math.inf

    def __call__(self, now: float) -> str:
        """Return why the launch must be ended, or nothing; `now` is in seconds."""
        if now - self._looked < LOOK_EVERY_S:
            return ""
        self._looked = now
        printed = printed_since(self._logs, self._lengths)
        found = stages.reached(printed)
        wait = waited(found, self._size)
        if wait is None:
            self._seen = ()
            return ""
        still = wait.stage in _BUSY_WAITING
        moved = 0 if still else self._pulse(wait.ranks, found)
        others = sum(
            not stages.is_stage(line) for line in printed
        )  # stages of those who are not waited for tell nothing
        seen = (wait, moved, 0 if still else others)
        if seen != self._seen:
            self._seen, self._since = seen, now
        if now - self._since < STALL_S:
            return ""
        return f"stalled: {self._names(wait.ranks)} {'has' if len(wait.ranks) == 1 else 'have'} not {_NEXT[wait.stage]}"

    def _names(self, ranks: Sequence[int]) -> str:
        text = f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
        if not self._nodes:
            return text
        return f"{text} on {', '.join(dict.fromkeys('head' if not rank else self._nodes[rank - 1] for rank in ranks))}"


def pulses(run: Path, roster: Roster | None, nodes: Sequence[str] | None) -> Pulse:
    """Return what sums the pulses of ranks, on whatever nodes they are.

    One that is not up has said no process id: all processes of the run on its node count that are not known.
    """

    def node(rank: int) -> str:
        return "head" if not rank or not nodes else nodes[rank - 1]

    def found(ranks: Sequence[int], reached: Mapping[int, Reached]) -> int:
        total = 0
        for each in {node(rank) for rank in ranks}:
            up = [str(reached[rank].pid) for rank in ranks if rank in reached and node(rank) == each]
            known = [str(one.pid) for rank, one in reached.items() if node(rank) == each]
            total += _there(roster, each, up or ["--but", str(run), *known])
        return total

    return found


def _there(roster: Roster | None, node: str, words: Sequence[str]) -> int:
    if node == "head" or roster is None:
        return pulse(words)
    argv = every_node.module(roster, "draco.launch.pulse", *map(shlex.quote, words))
    answer = every_node.ask(roster, argv, _ASK_S, only=[node])[node]
    return int(answer.output) if answer.output.isdecimal() else 0


def _lengths(logs: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in logs.iterdir()}


def printed_since(logs: Path, lengths: Mapping[str, int], *, starter: bool = True) -> list[str]:
    """Return what was printed since the logs had these lengths, by line: each rank's own, then mpirun's if wanted."""
    lines: list[str] = []
    for path in [*sorted(logs.glob("rank.*.out")), *([logs / "output.log"] if starter else [])]:
        if path.exists():
            with open(path, "rb") as file:
                file.seek(lengths.get(path.name, 0))
                lines += file.read().decode(errors="replace").splitlines()
    return lines
