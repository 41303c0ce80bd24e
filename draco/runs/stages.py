"""How far each rank of a launch has come, as lines that it prints, for the supervisor until the server has begun."""

import contextlib
import os
import re
import sys
from collections.abc import Iterable
from typing import NamedTuple

from draco.runs import spoken

# up: its Python runs. imported: so is torch, and the others are about to be met. joined: they have met (MPI_Init).
# told: it has the job. ready: data is loaded, and the server and it have found each other.
STAGES = ("up", "imported", "joined", "told", "ready")
_LINE = re.compile(rf"draco: rank (\d+), process (\d+): ({'|'.join(STAGES)})$")


class Reached(NamedTuple):
    """The last stage of one rank."""

    stage: str
    pid: int  # on its own node


def say(stage: str) -> None:
    """Print that this process has reached a stage, where a launcher of Draco's has said which rank it is."""
    assert stage in STAGES
    rank = None if spoken.JOINED in os.environ else spoken.rank()
    if rank is not None and sys.stdout is not None:
        with contextlib.suppress(OSError):
            sys.stdout.write(f"draco: rank {rank}, process {os.getpid()}: {stage}\n")
            sys.stdout.flush()


def reached(lines: Iterable[str]) -> dict[int, Reached]:
    """Return the last stage of every rank that has said one."""
    found = {}
    for line in lines:
        if match := _LINE.search(line):
            found[int(match[1])] = Reached(match[3], int(match[2]))
    return found


def is_stage(line: str) -> bool:
    """Say whether a line tells a stage."""
    return _LINE.search(line) is not None
