"""The checks of a cluster before a run: every node lets the head in, is as the head is, and carries messages."""

import json
import os
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from draco.code import recorded
from draco.code.discovery import Need, missing
from draco.errors import MissingError, NotConfiguredError
from draco.job import Job
from draco.launch import every_node, rank_placement, sweep, worker_code, worker_data
from draco.launch.environment import launch_environment
from draco.launch.facts import facts, faults, lacking
from draco.launch.mpirun import AS_ROOT, mpirun
from draco.launch.roster import Roster
from draco.runs import directory as run_directory
from draco.runs.alive import is_supervised

_ROUND_LIMIT_S = 60.0
_LEAST_FREE_BYTES = 64 << 20


def check(roster: Roster, needs: Mapping[str, Need] = {}) -> None:
    """Raise an error that names every node that is not fit for a run, with its reason.

    `needs` are the packages that the job's own code imports. Ranks of runs that have ended, which a node kept that was
    cut off at the time, are ended on the way.

    Raises:
        NotConfiguredError: nodes cannot be reached, differ from the head, or MPI does not work between them.
    """
    here = missing(needs, lacking(facts([*needs])), roster.nodes[0].name if roster.nodes else "")
    found = [*_disk(Path("runs")), *here, *_nodes(roster, needs)]
    if not found:
        found = _round(roster)
    if found:
        raise NotConfiguredError("\n".join(found))


def _disk(runs: Path) -> list[str]:
    free = shutil.disk_usage(runs if runs.exists() else ".").free
    if free >= _LEAST_FREE_BYTES:
        return []
    return [f"{runs.absolute()}: {free >> 20} MiB free; a run needs {_LEAST_FREE_BYTES >> 20} MiB or more"]


def _nodes(roster: Roster, needs: Mapping[str, Need] = {}) -> list[str]:
    supervised = [str(run) for run in run_directory.runs(Path("runs")) if is_supervised(run)]
    kept = sorted({*sweep.going_on(), *supervised})
    return [fault for faults in _unfit(roster, ["--but", *kept], needs=needs).values() for fault in faults]


def _unfit(
    roster: Roster, ended: Sequence[str], only: Sequence[str] = (), needs: Mapping[str, Need] = {}
) -> dict[str, list[str]]:
    """Let worker nodes, or those named, end what is left of runs; return what is wrong with each of them."""
    asked = time.time()
    sweeping = every_node.sweeping(roster, *ended)
    asking = every_node.module(roster, "draco.launch.facts", *map(shlex.quote, needs))
    answers = every_node.ask(roster, [*sweeping, "&&", *asking], only=only)
    mine = {**facts(), "asked": asked}
    found: dict[str, list[str]] = {}
    for name, answer in answers.items():
        if answer.fault:
            found[name] = [f"{name}: {answer.fault}"]
            continue
        try:
            said = json.loads(answer.output)
        except ValueError:
            found[name] = [f"{name}: its facts are not JSON: {answer.output[:80]!r}"]
            continue
        found[name] = [*faults(name, said, mine), *missing(needs, lacking(said), name)]
    return found


def fit(roster: Roster, job: Job, run: Path, names: Sequence[str]) -> list[str]:
    """Return those of the nodes, which host no rank of `run` now, that could.

    Ranks of an earlier launch that a node kept are ended: it was cut off, not down.
    """
    found = [name for name, faults in _unfit(roster, [str(run)], names).items() if not faults]
    try:
        worker_data.provide(roster, job, found)
        worker_code.provide(roster, recorded.pack_of(run), found)
    except MissingError:
        return []
    return found


def _round(roster: Roster) -> list[str]:
    """Start one rank on every node and pass a megabyte there and back."""
    everywhere = {node.name: (rank,) for rank, node in enumerate(roster.nodes)}
    with tempfile.TemporaryDirectory() as folder:
        hostfile = Path(folder, "hostfile")
        hostfile.write_text(rank_placement.hostfile(roster, everywhere))
        argv = [
            *mpirun(roster, {"OMPI_MCA_pml": "ob1", "OMPI_MCA_btl": "self,sm,tcp"}, f"check {os.getpid()}"),
            "-n", str(len(everywhere)), "--hostfile", str(hostfile), "--map-by", "seq:OVERSUBSCRIBE",
            roster.python, "-m", "mpi4py", "-m", "draco.launch.round_trip",
        ]  # fmt: skip
        environment = launch_environment(os.environ, AS_ROOT)
        try:
            made = subprocess.run(
                argv, capture_output=True, text=True, check=False, env=environment, timeout=_ROUND_LIMIT_S
            )
        except subprocess.TimeoutExpired:
            return [
                f"MPI: no round of messages over all nodes within {_ROUND_LIMIT_S:.0f} s; is {roster.subnet} right?"
            ]
    try:
        answered = json.loads(made.stdout)
    except ValueError:
        answered = {}
    silent = [node.name for rank, node in enumerate(roster.nodes) if rank and str(rank) not in answered]
    if silent:
        words = [line.strip() for line in made.stderr.splitlines() if line.strip(" -")]
        return [f"MPI: {', '.join(silent)} took no part in a round of messages: {' '.join(words)[:600]}"]
    return []
