"""What will be run: the command line and environment of a job, as values."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from draco.job import Job


class Plan(NamedTuple):
    """One process that is the whole job."""

    argv: tuple[str, ...]
    environment: tuple[tuple[str, str], ...]  # what is added to the caller's

    def __str__(self) -> str:
        settings = " ".join(f"{name}={value}" for name, value in self.environment)
        return f"{settings} {' '.join(self.argv)}"


def plan(job: Job, run: Path, python: str = sys.executable) -> Plan:
    """Return how `job` is run in the directory `run`."""
    return LAUNCHERS[job.launcher](job, run, python)


def _process(job: Job) -> dict[str, str]:
    """Torch's threads and those of numpy's matrix products, on which bits depend; and large pages for large tensors.

    With 2 MiB pages the kernel copies replies between processes about a seventh faster (`make bench`: receive).
    """
    threads = {name: str(job.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    return {**threads, "THP_MEM_ALLOC_ENABLE": "1"}


def _simulate(job: Job, run: Path, python: str) -> Plan:
    """Server and workers in one process."""
    return Plan((python, "-m", "draco", "rank", str(run), "--simulate"), tuple(_process(job).items()))


def _local_mpi(job: Job, run: Path, python: str) -> Plan:
    """One rank for the server and one per worker on this machine, by the Open MPI of the virtual environment.

    With more ranks than cores a rank that waits must give its core away: Open MPI's own waits sleep 0.1 ms between
    polls, as ours do. Ranks are not bound to cores. One machine needs only shared memory; TCP is left out, so that
    nothing listens on the network. `python -m mpi4py` ends all ranks when one of them fails.
    """
    environment = {
        **_process(job),
        "OMPI_MCA_pml": "ob1",
        "OMPI_MCA_btl": "self,sm",
        "OMPI_MCA_mpi_yield_when_idle": "1",
        "OMPI_MCA_threads_pthreads_yield_strategy": "nanosleep",
        "OMPI_MCA_threads_pthreads_nanosleep_time": "100000",
        # A container's only user is often root; on one machine mpirun gains nothing that its caller lacks.
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "PRTE_ALLOW_RUN_AS_ROOT": "1",
        "PRTE_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    }
    mpirun = str(Path(python).parent / "mpirun")
    argv = (mpirun, "-n", str(job.workers + 1), "--map-by", ":OVERSUBSCRIBE", "--bind-to", "none")
    return Plan((*argv, python, "-m", "mpi4py", "-m", "draco", "rank", str(run)), tuple(environment.items()))


LAUNCHERS: Mapping[str, Callable[[Job, Path, str], Plan]] = {"mpi": _local_mpi, "simulate": _simulate}
