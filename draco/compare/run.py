"""The loop over the cells without a result: several at a time, each a detached run on this machine.

What a cell computes depends on its job and its secret alone, not on other cells or their order. A cell goes on when the
comparison that started it is killed; the next comparison waits for it.
"""

import contextlib
import hashlib
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from draco import files
from draco.code.gather import gather
from draco.compare.cells import Cell
from draco.compare.outcome import Outcome, difference, outcome
from draco.compare.progress import Progress
from draco.errors import RefusedError
from draco.job import to_yaml
from draco.launch import stop, supervise
from draco.launch.interrupts import Interrupts
from draco.runs import directory as run_directory
from draco.runs import hold

_POLL_S = 0.1
_SHOWN = 5  # changed cells that are named


@contextlib.contextmanager
def alone(root: Path) -> Iterator[None]:
    """Keep a second comparison of the same name out while this one is entered.

    Raises:
        RefusedError: another one is running.
    """
    root.mkdir(parents=True, exist_ok=True)
    with hold.take(root / ".lock", f"{root}: another draco compare is at work there; wait for it or end it"):
        yield


def look(cells: Sequence[Cell], root: Path, *, new: bool) -> dict[str, Outcome]:
    """Return what has become of every cell so far, by name; with `new` put runs of changed jobs aside.

    Raises:
        RefusedError: runs of other jobs are where the cells' runs would be, and `new` was not asked for; or they go on.
    """
    changed = {
        cell.name: why
        for cell in cells
        if (root / cell.name / "state.json").exists() and (why := difference(root / cell.name, cell.job))
    }
    shown = "".join(f"\n  {name}: {why}" for name, why in list(changed.items())[:_SHOWN])
    shown += f"\n  and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
    if changed and not new:
        raise RefusedError(
            f"{root}: the jobs of {len(changed)} cells have changed since they were run; --new (make: NEW=1) runs "
            f"them anew and puts the old runs aside, another name keeps both:{shown}"
        )
    going_on = [name for name in changed if outcome(root / name).state == "running"]
    if going_on:
        raise RefusedError(f"{root}: still running with the old job: {', '.join(going_on)}; end them with draco stop")
    for name in changed:
        _put_aside(root, name)
    return {cell.name: outcome(root / cell.name) for cell in cells}


def _put_aside(root: Path, name: str) -> None:
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    (root / "replaced").mkdir(exist_ok=True)
    (root / name).rename(root / "replaced" / f"{name}-{stamp}")


def run(cells: Sequence[Cell], root: Path, outcomes: dict[str, Outcome], processes: int, progress: Progress) -> bool:
    """Run every cell without a result, `processes` at a time; update `outcomes`; return whether the user ended it."""
    left = [cell for cell in cells if not outcomes[cell.name].is_result]
    going_on = {c.name: None for c in left if outcomes[c.name].state == "running"}  # a killed comparison's
    waiting = [cell for cell in left if cell.name not in going_on]
    running: dict[str, subprocess.Popen[bytes] | None] = dict(going_on)
    asked = 0
    servers = supervise.fork_server(waiting[0].job) if waiting else contextlib.nullcontext()
    with servers as forks, Interrupts() as interrupts, progress:
        for name in running:
            progress.began(name)
        while running or (waiting and not interrupts.count):
            while waiting and len(running) < processes and not interrupts.count:
                cell = waiting.pop(0)
                progress.began(cell.name)
                running[cell.name] = _start(cell, root / cell.name, forks)
            if asked < interrupts.count:
                asked = interrupts.count
                _stop([root / name for name in running], kill=asked > 1)
                progress.say("killing them" if asked > 1 else "stopping after this step; once more kills the runs")
            time.sleep(_POLL_S)
            for name, process in list(running.items()):
                progress.update(name)
                if process.poll() is not None if process else outcome(root / name).state != "running":
                    del running[name]
                    outcomes[name] = outcome(root / name)
                    progress.ended(name, outcomes[name])
    return interrupts.count > 0


def _start(cell: Cell, directory: Path, forks: str | None) -> subprocess.Popen[bytes]:
    """Start the cell's run, or start it again where it ended."""
    if not (directory / "state.json").exists():
        shutil.rmtree(directory, ignore_errors=True)  # nothing was ever run there: the state is written last
        directory.mkdir(parents=True)
        run_directory.furnish(directory, to_yaml(cell.job), gather(cell.job).pack)
    if not (directory / "secret").exists():
        files.replace(directory / "secret", secret(cell.job.seed).encode(), mode=0o600)
    run_directory.forget_stop(directory)
    return supervise.detach(directory, here=True, forks=forks)


def secret(seed: int) -> str:
    """Return the run secret of every cell with that seed, 64 hexadecimal digits.

    No adversary is real in a simulation; with a secret of its own no cell could be repeated to the bit. Cells of one
    seed share it, so that they differ in nothing but what the grid says.
    """
    return hashlib.sha256(f"draco compare {seed}".encode()).hexdigest()


def _stop(runs: Sequence[Path], *, kill: bool) -> None:
    for directory in runs:
        with contextlib.suppress(RefusedError):  # it has just ended
            stop.stop(directory, kill=kill)
