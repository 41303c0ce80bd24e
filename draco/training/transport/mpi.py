"""The common part of both sides of MPI: this process's place among the ranks, how it waits and how it ends."""

import contextlib
import functools
import importlib
import os
import sys
import time
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from mpi4py import MPI

TAG_GREETING, TAG_TASK, TAG_MODEL, TAG_REPLY, TAG_JOB, TAG_MOMENTA, TAG_ENCLOSED = 1, 2, 3, 4, 5, 6, 7
# What is slept is this share of what was waited already, and no longer: a poll costs 10 to 20 us of a core, waking up
# included, which a rank without a core of its own takes from those that compute.
_SHARE = 1 / 16
_LONGEST_S, _LONGEST_ALONE_S = 1e-3, 0.2e-3


class Pause:
    """Sleeps between polls: hardly at all right after something came, longer and longer while nothing does."""

    def __init__(self) -> None:
        self._longest_s = _LONGEST_ALONE_S if _has_a_core() else _LONGEST_S
        self._since = time.monotonic()

    def __call__(self, progress: bool) -> None:
        """Sleep once; `progress` says whether something has happened since the last time."""
        now = time.monotonic()
        if progress:
            self._since = now
        time.sleep(min(_SHARE * (now - self._since), self._longest_s))


@functools.cache
def _has_a_core() -> bool:
    """Say whether every rank of this machine has a core, as far as mpirun tells, and a core for each of its threads."""
    ranks, threads = (int(os.environ.get(name, "0")) for name in ("OMPI_COMM_WORLD_LOCAL_SIZE", "OMP_NUM_THREADS"))
    return 0 < ranks * max(threads, 1) <= len(os.sched_getaffinity(0))


def load() -> None:
    """Load MPI without initialising it, which is each rank's own affair."""
    import mpi4py

    mpi4py.rc.initialize = False
    with contextlib.suppress(ImportError, RuntimeError):  # whoever needs it is told; a simulation does not
        importlib.import_module("mpi4py.MPI")


def world() -> "MPI.Intracomm":
    """Return the communicator of all ranks; the first call initialises MPI."""
    from mpi4py import MPI

    if not MPI.Is_initialized():
        MPI.Init_thread(MPI.THREAD_MULTIPLE)  # as mpi4py does where it is imported in the usual way
    return MPI.COMM_WORLD


def rank_and_size() -> tuple[int, int]:
    """Return this process's MPI rank and the number of ranks."""
    comm = world()
    return comm.Get_rank(), comm.Get_size()


def leave(*, finalize: bool) -> NoReturn:
    """End this process well: MPI first, then at once, without the second that torch takes to clear up.

    `finalize` only where every rank does: it waits for all of them, those that are gone too. Without MPI none does.
    """
    if finalize:
        from mpi4py import MPI

        MPI.Finalize()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def fail() -> NoReturn:
    """End this process at once: leaving MPI in good order would wait for the others.

    Without a worker the others go on; without the server every worker ends. Open MPI 5.0.11 tells them of exit code 0
    and of signals, but not of another exit code; and its Abort ends none that is not in a call of MPI at that moment.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
