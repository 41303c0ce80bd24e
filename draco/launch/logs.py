"""The output of a run's processes: all of it, or one rank's."""

import sys
import time
from pathlib import Path

from draco.launch.settle import verdict
from draco.plain import lines, plain
from draco.runs.alive import Waiting

_POLL_S = 0.3
_LONGEST = 10_000  # characters of a line


def show(run: Path, rank: int | None, follow: bool) -> bool:
    """Print the run's logs, or those of one rank, and with `follow` what is added until the run ends.

    Returns whether there was anything. Ranks have files of their own on a cluster only; on one machine what they
    print is together in output.log.
    """
    positions: dict[Path, int] = {}
    tell = Waiting()
    while True:
        ended = not follow or verdict(run)  # asked first: what was printed before is shown
        for path in _files(run, rank):
            _print(path, positions)
        sys.stdout.flush()
        if ended:
            return bool(positions)
        tell(run)
        time.sleep(_POLL_S)


def _files(run: Path, rank: int | None) -> list[Path]:
    """Return log files, oldest first. Open MPI names a rank's file after its job and the rank."""
    pattern = "*" if rank is None else f"rank.*.{rank}.out"
    return sorted((run / "logs").glob(pattern), key=lambda path: (path.stat().st_mtime, path.name))


def _print(path: Path, positions: dict[Path, int]) -> None:
    text = path.read_bytes()
    new = text[positions.get(path, 0) :]
    if new and path not in positions:
        sys.stdout.write(f"==> {plain(path.name)} <==\n")
    if new:
        sys.stdout.write(lines(new.decode(errors="replace"), _LONGEST))
        positions[path] = len(text)
