"""The common part of both sides of MPI: this process's place among the ranks, how it waits and how it ends."""

import contextlib
import importlib
import os
import sys
import time
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from mpi4py import MPI

TAG_GREETING, TAG_TASK, TAG_MODEL, TAG_REPLY, TAG_JOB, TAG_MOMENTA = 1, 2, 3, 4, 5, 6
_SHORTEST_SLEEP_S, _LONGEST_SLEEP_S = 20e-6, 1e-3


class Pause:
    """Sleeps between polls: short while messages flow, longer while nothing happens."""

    def __init__(self) -> None:
        self._sleep_s = _SHORTEST_SLEEP_S

    def __call__(self, progress: bool) -> None:
        """Sleep once; `progress` says whether something has happened since the last time."""
        self._sleep_s = _SHORTEST_SLEEP_S if progress else min(2 * self._sleep_s, _LONGEST_SLEEP_S)
        time.sleep(self._sleep_s)


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

    `finalize` only where every rank does: it waits for all of them, those that are gone too.
    """
    from mpi4py import MPI

    if finalize:
        MPI.Finalize()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def fail(*, everybody: bool) -> NoReturn:
    """End this process at once, or every rank of the job: leaving MPI in good order would wait for the others."""
    sys.stdout.flush()
    sys.stderr.flush()
    if everybody:
        world().Abort(1)
        os._exit(1)
    os._exit(0)  # Open MPI 5.0.11 tells the others of this and of signals, but not of another exit code
