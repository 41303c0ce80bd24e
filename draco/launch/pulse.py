"""A number that grows while processes of this machine do anything: compute, read, or fault pages in from a disk.

python -m draco.launch.pulse PID ...              of these ranks
python -m draco.launch.pulse --but RUN PID ...    of all of the run but these

A fork server that still imports torch counts too: ranks wait for it, and do nothing meanwhile.
"""

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

from draco.launch import sweep

_FIELDS = (9, 11, 12)  # of /proc/PID/stat from the state on: major faults, user time and system time


def pulse(words: Sequence[str]) -> int:
    """Return the sum over the processes that the words of the command line name; those that are gone count nothing."""
    if words[:1] == ["--but"]:
        pids = [pid for pid in sweep.ranks(words[1]) if str(pid) not in words[2:]]
        pids += [] if words[2:] else sweep.agents(words[1])  # it is waited for until a rank is up, and then polls
    else:
        pids = [int(pid) for pid in words]
    return sum(map(_of, [*pids, *sweep.fork_servers_at_work(pids)]))


def _of(pid: int) -> int:
    total = 0
    with contextlib.suppress(OSError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        total += sum(int(fields[i]) for i in _FIELDS)
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/io").read_text().splitlines()
        total += sum(int(line.split()[1]) for line in lines if line.startswith(("rchar", "read_bytes")))
    return total


if __name__ == "__main__":
    sys.stdout.write(str(pulse(sys.argv[1:])))
