"""A simulated run inside the caller's process: server and workers in the caller's thread, in nobody's way afterwards.

It computes the bits of the processes that `draco train` starts: with as many threads, and in the state in which torch
is when a process begins. Threads, generators, signal handlers and torch's settings are as before afterwards.
"""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from draco import own
from draco.errors import DracoError, OwnCodeError, RefusedError
from draco.job import Job
from draco.launch.interrupts import Interrupts
from draco.runs import directory as run_directory
from draco.runs.directory import Status
from draco.training import process, repeatable, server
from draco.training.build import Built
from draco.training.transport.contract import Arrival, Task

Say = Callable[[str], None]
_ALONE = threading.Lock()


class _Watched(process.Simulation):
    """All workers of a job in this process; `look` is called before each step's replies and after each of them."""

    def __init__(self, built: Built, look: Callable[[], None]) -> None:
        super().__init__(built)
        self._look = look

    def exchange(self, tasks: Sequence[Task | None], model: Tensor, frames: Tensor) -> Generator[Arrival]:
        """See ServerTransport."""
        self._look()
        for arrival in super().exchange(tasks, model, frames):
            self._look()
            yield arrival


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Keep a second run out of this process while one is entered: they would share torch's threads and generators.

    Raises:
        RefusedError: one is going on, in another thread or around this very call.
    """
    if not _ALONE.acquire(blocking=False):
        raise RefusedError(
            "draco.run: another simulated run is going on in this process; wait for it, or take launcher='mpi', which "
            "has processes of its own"
        )
    try:
        yield
    finally:
        _ALONE.release()


@contextlib.contextmanager
def as_a_process_begins(threads: int) -> Iterator[None]:
    """Give torch and numpy the state that they have in a new process; put the caller's back afterwards."""
    generators = random.getstate(), np.random.get_state(), torch.get_rng_state()
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    threads_before, dtype, device = torch.get_num_threads(), torch.get_default_dtype(), torch.get_default_device()
    try:
        with threadpool_limits(threads), torch.inference_mode(False), torch.enable_grad():
            torch.set_num_threads(threads)
            torch.set_default_dtype(torch.float32)
            if device.type != "cpu":
                torch.set_default_device(None)
            yield
    finally:
        torch.set_num_threads(threads_before)
        torch.set_default_dtype(dtype)
        if device.type != "cpu":
            torch.set_default_device(device)
        random.setstate(generators[0])
        np.random.set_state(generators[1])
        torch.set_rng_state(generators[2])
        if devices:
            torch.cuda.set_rng_state_all(devices)


def simulate(job: Job, run: Path, look: Callable[[], None], say: Say) -> Status:
    """Run the job in `run` to its end and return how it ended; what goes wrong is raised, and recorded there.

    A first Ctrl-C asks it to stop after its step; a second one ends it where it is, and its newest checkpoint counts.
    `look` is called again and again, in this thread. `say` gets a line for the user.

    Raises:
        RefusedError: another run is going on in this process.
        TrainingError, OwnCodeError: the run failed.
    """
    unsaid: list[str] = []

    def answer(count: int, name: str) -> None:
        if count > 1:
            raise KeyboardInterrupt(name)
        run_directory.ask_to_stop(run)
        unsaid.append(f"{name}: stopping after this step; once more kills the run")  # the screen may be in use now

    def look_and_say() -> None:
        while unsaid:
            say(unsaid.pop())
        look()

    with alone(), Interrupts(answer), as_a_process_begins(job.threads):
        run_directory.reserve(run)
        try:
            built = Built(job)
            with repeatable.settled(job, *process.used_here(job)):
                server.train(built, run, _Watched(built, look_and_say))
        except KeyboardInterrupt:
            _record(run, "interrupted", "killed by its user")
        except BaseException as error:
            _record(run, "failed", str(error) or type(error).__name__)
            if isinstance(error, Exception) and not isinstance(error, DracoError) and (where := own.place(error)):
                raise OwnCodeError(f"{run.name}{where}: {type(error).__name__}: {error}") from error
            raise
    return run_directory.read_status(run)


def _record(run: Path, state: run_directory.State, message: str) -> None:
    """Record an end that the server has not recorded, or takes for a failure: it was not yet there, or was killed."""
    status = run_directory.read_status(run)
    if status.goes_on or (state == "interrupted" and status.state == "failed"):
        with contextlib.suppress(OSError):
            run_directory.write_status(run, state, status.step, message)
