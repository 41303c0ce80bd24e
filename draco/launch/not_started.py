"""What to say of a launch that ended before its ranks had met: the words of what starts them, and a remedy."""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from draco.job import Job
from draco.launch import plan
from draco.runs import stages

SHARED = Path("/dev/shm")
# Open MPI refuses to make a rank's segment of 16 MiB where less than that and a twentieth is free.
SEGMENT_BYTES = (16 << 20) * 21 // 20
_LARGER = "make it larger (docker run --shm-size=1g; as root: mount -o remount,size=1g /dev/shm), or SIMULATE=1"
_SHOWN = 400  # letters of mpirun's words


class _Sign(NamedTuple):
    """A pattern in what mpirun or srun prints, and what to do about it."""

    pattern: str
    remedy: str


_SIGNS = (
    _Sign(r"not enough space for /dev/shm|shared-memory backing", _LARGER),
    _Sign(r"unable to find network interfaces|no available\s+interfaces", "give this machine its loopback address: "
          "ip link set lo up"),
    _Sign(r"call to mkdir was unable|Unable to create.*session dir", "name a folder that can be written: TMPDIR=..."),
    _Sign(r"SYS_LIMITS_PIPES|sys-limit-pipe|[Tt]oo many open files", "allow more open files: ulimit -n 4096"),
    _Sign(r"SYS_LIMITS_CHILDREN|Resource temporarily unavailable", "allow more processes: ulimit -u"),
    _Sign(r"Permission denied.*mpirun|Exec format error", "set the virtual environment up anew: make clean setup"),
    _Sign(r"More processors requested than permitted", "the allocation is too small, or another step has its cores: "
          "ask for more with --ntasks and --cpus-per-task"),
    _Sign(r"[Ee]xpired or invalid job|Unable to confirm allocation", "the allocation has ended: begin another with "
          "salloc or sbatch"),
    _Sign(r"srun: unrecognized option", "take a Slurm of version 20.11 or later"),
)  # fmt: skip
# Another launch can help: on other nodes, or at another port.
_PASSING = re.compile(
    r"daemon (?:failed to report back|.*unexpectedly)|unable to reliably start one or more daemons"
    r"|[Aa]ddress already in use|EADDRINUSE|srun: error: Node failure"
)


def shared_memory_fault(job: Job, folder: Path = SHARED) -> str:
    """Return why the ranks of a job would find too little shared memory here, or nothing."""
    if not plan.of(job).shared_memory or not folder.is_dir():
        return ""
    free = shutil.disk_usage(folder).free
    if free >= SEGMENT_BYTES:
        return ""
    return f"{folder}: {free >> 20} MiB free, and MPI needs {-(-SEGMENT_BYTES >> 20)} MiB or more: {_LARGER}"


def never_joined(printed: Sequence[str]) -> bool:
    """Say whether no rank of a launch came so far that it had joined the run."""
    joined = stages.STAGES.index("joined")
    return all(stages.STAGES.index(rank.stage) < joined for rank in stages.reached(printed).values())


def may_pass(printed: Sequence[str], step: int) -> bool:
    """Say whether another launch may help: a node was out of reach, or a run that was going met the unknown."""
    text = " ".join(printed)
    known = any(re.search(sign.pattern, text) for sign in _SIGNS)
    return _PASSING.search(text) is not None or (step > 0 and not known)


def sentence(printed: Sequence[str], exit_code: int | None, starter: str = "mpirun") -> str:
    """Return in one line that the launch could not be started, why as what starts ranks puts it, and what to do."""
    told = [line.strip() for line in printed if line.strip(" -*") and not stages.is_stage(line)]
    text = " ".join(told)
    remedy = next((sign.remedy for sign in _SIGNS if re.search(sign.pattern, text)), "")
    words = text[:_SHOWN].rstrip(" .:") or f"{starter} said nothing"
    code = "" if exit_code is None else f" (exit code {exit_code})"
    return f"could not be started{code}: {words}" + (f"; {remedy}" if remedy else "")
