"""The table of launchers, which says how each starts a job's processes; the plan of a launch by the one that it names.

What starts ranks differs in its command line and its environment, and in what may be asked of its processes. It
does not differ in anything else: run.py and supervise.py do the same for each, and none compares a launcher's name.
"""

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from draco.code.recorded import Copy
from draco.job import Job
from draco.launch import fork_client, mpirun, slurm, torchrun
from draco.launch.environment import gpu_environment, process_environment
from draco.launch.planned import Allocation, Plan, Start, one_process
from draco.launch.roster import Roster


class Launcher(NamedTuple):
    """How the processes of a job are started, and what they are."""

    plan: Callable[[Start], Plan]
    starter: str = ""  # the program that starts one process per rank; empty: one process is all ranks
    clusters: bool = False  # its ranks may be on the nodes of a cluster of Draco's
    shared_memory: bool = False  # ranks of one machine write to each other in /dev/shm
    here: bool = True  # without a cluster all processes are on this machine, where they can be looked at
    forks: bool = True  # they may be forked from one that has imported torch
    allocation: Callable[[Job], Allocation] | None = None  # what a scheduler has given; raises MissingError for nothing
    meet: Callable[[Job, Path], Allocation] | None = None  # the same, and asks its nodes, which are to see that folder


LAUNCHERS: Mapping[str, Launcher] = {
    "mpi": Launcher(mpirun.plan, mpirun.NAME, clusters=True, shared_memory=True),
    "simulate": Launcher(one_process),
    "torchrun": Launcher(torchrun.plan, torchrun.NAME),
    "slurm": Launcher(slurm.plan, slurm.NAME, here=False, forks=False, allocation=slurm.allocation, meet=slurm.meet),
}


def of(job: Job) -> Launcher:
    """Return how a job's processes are started."""
    return LAUNCHERS[job.launcher]


def plan(
    job: Job,
    run: Path,
    roster: Roster | None = None,
    python: str = sys.executable,
    home: str | None = None,
    forks: str | None = None,
    code: Copy | None = None,
    port: int | None = None,
    allocation: Allocation | None = None,
    joined: Mapping[str, str] | None = None,
) -> Plan:
    """Return how `job` is run in the directory `run`: on the roster's nodes, or on this machine where it is None.

    `home` is the user's, by default that of the user database where HOME is not set. `forks` is the name of the fork
    server that ranks are forked by (fork_client.py); without it each starts by itself. `code` is where ranks find the
    job's own code, the same place on every node; None: it has none. `port` is where ranks that mpirun starts meet
    without MPI; None: what follows from the run's name. `allocation` is what a scheduler has given. With `joined`
    somebody else has started all ranks, and rank 0 alone is planned, in that environment.
    """
    launcher = of(job)
    ranks = {**process_environment(job.threads), **({fork_client.NAME: forks} if forks and launcher.forks else {})}
    ranks |= gpu_environment(job, os.environ) | (code.environment if code else {})
    start = Start(job, run, {**ranks, **(joined or {})}, python, home or _home(), roster, port, allocation)
    return Plan(start.rank, tuple(start.ranks.items())) if joined else launcher.plan(start)


def _home() -> str:
    found = os.path.expanduser("~")
    return found if found != "~" else "/"  # a user whom no database knows, as in containers
