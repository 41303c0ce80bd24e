"""The end of what is left of runs on this machine: ranks that lost their launcher, and their MPI daemons.

python -m draco.launch.sweep RUN              the ranks of one run, and mpirun's copy of what they printed
python -m draco.launch.sweep --but RUN ...    those of all runs but these, which go on
"""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from draco.launch import fork_client

_AGENT = "torch.distributed.run"  # a command line with it is torchrun's own process, which is no rank


def sweep(ends: Callable[[str], bool]) -> list[int]:
    """Kill every rank on this machine whose run `ends`, and the MPI daemon above it; return their process ids.

    Runs are paths from this process's working folder, as the ranks' own are from theirs.
    """
    ended = []
    for pid, words in _processes():
        run = _run(words)
        if run is not None and ends(run) and _folder(pid) == os.getcwd():
            parent = _parent(pid)
            for each, name in ((parent, b"prted"), (pid, b"")):
                if name in _command(each):
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.kill(each, signal.SIGKILL)
                        ended.append(each)
    return ended


def remove_copies(run: Path) -> None:
    """Remove what mpirun has written on a worker node of its ranks' output, which the head has, and its folders.

    A folder with a state is the run's own, and stays as it is: the nodes may share it with the head.
    """
    if (run / "state.json").exists():
        return
    for path in (run / "logs").glob("rank.*.out"):
        path.unlink(missing_ok=True)
    for folder in (run / "logs", run, run.parent):  # a folder of runs would be taken for the head's (facts.py)
        with contextlib.suppress(OSError):  # there is none, or it holds something else
            folder.rmdir()


def going_on() -> list[str]:
    """Return the runs that have a process on this machine: on the head all that go on have one."""
    return sorted({run for _, words in _processes() if (run := _run(words))})


def ranks(run: str) -> list[int]:
    """Return the processes on this machine that are ranks of a run, started or starting; not what starts them."""
    return [pid for pid, words in _of(run) if _AGENT not in words]


def agents(run: str) -> list[int]:
    """Return torchrun's own process of a run, which imports torch before it starts a rank."""
    return [pid for pid, words in _of(run) if _AGENT in words]


def _of(run: str) -> list[tuple[int, list[str]]]:
    return [(pid, words) for pid, words in _processes() if _run(words) == run and "python" in Path(words[0]).name]


def fork_servers_at_work(ranks: Sequence[int]) -> list[int]:
    """Return the fork servers, of these processes that wait to be ranks, that do not serve yet."""
    names = {name for pid in ranks if (name := _environment(pid).get(fork_client.NAME))}
    found = [pid for pid, words in _processes() if "draco.launch.fork_server" in words and names & {*words}]
    return [pid for pid in found if _name(pid) != fork_client.SERVES]


def _environment(pid: int) -> dict[str, str]:
    with contextlib.suppress(OSError):
        pairs = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
        return dict(pair.split("=", 1) for pair in pairs if "=" in pair)
    return {}


def _name(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().rstrip()
    return ""


def _run(words: Sequence[str]) -> str | None:
    """Return the run that a command line is of: a rank's, or that of the mpirun that starts it."""
    return words[words.index("rank") + 1] if "draco" in words and "rank" in words[:-1] else None


def _processes() -> list[tuple[int, list[str]]]:
    return [
        (int(entry.name), _command(int(entry.name)).decode(errors="replace").split("\0"))
        for entry in Path("/proc").glob("[0-9]*")
    ]


def _command(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def _folder(pid: int) -> str:
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/{pid}/cwd")
    return ""


def _parent(pid: int) -> int:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    return 0


if __name__ == "__main__":
    kept = sys.argv[2:] if sys.argv[1] == "--but" else None
    sweep(lambda run: run == sys.argv[1] if kept is None else run not in kept)
    if kept is None:
        remove_copies(Path(sys.argv[1]))
