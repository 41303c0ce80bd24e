"""How server and workers reach each other: MPI between processes, or plain calls inside one process.

The only file that imports mpi4py. The server sends the model to each worker directly, never through a tree of
workers that may lie; both sides poll with short sleeps, so that ranks that wait leave the cores to ranks that
compute; every wait of the server has a time limit. Upper-case mpi4py calls on preallocated buffers: no pickles.

    server                                   worker
    announce(job as YAML)                    job() -> its text
    greetings(timeout) -> bytes of each      greet(bytes)
    exchange(step, rows, model, frames)      tasks() -> (step, row), the model in the given buffer
        yields (worker, length | fault)      reply(frame, length)
    stop()                                   tasks() ends
"""

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NoReturn, Protocol

import numpy as np
import torch
from torch import Tensor

from draco.errors import WorkerError

if TYPE_CHECKING:
    from mpi4py import MPI

GREETING_BYTES = 1024
_TAG_GREETING, _TAG_TASK, _TAG_MODEL, _TAG_REPLY, _TAG_JOB = 1, 2, 3, 4, 5
_SHORTEST_SLEEP_S, _LONGEST_SLEEP_S = 20e-6, 1e-3

Arrival = tuple[int, int | str]  # worker 1..n; the length of its frame in bytes, or why there is none


class ServerTransport(Protocol):
    """The server's side."""

    workers: int
    concurrent: bool  # whether workers compute at the same time

    def greetings(self, timeout_s: float) -> list[bytes]:
        """Return what each worker said of itself at the start, at most GREETING_BYTES each."""

    def exchange(
        self, step: int, rows: Sequence[int], model: Tensor, frames: Tensor, timeout_s: float
    ) -> Iterator[Arrival]:
        """Send step, row and model to every worker; yield each worker once its frame is in `frames[its row]`.

        Raises:
            WorkerError: workers did not take the model or did not answer within `timeout_s`; names them.
        """

    def stop(self) -> None:
        """Tell every worker that there is no more work."""


class Simulated:
    """n workers inside this process, called one after the other."""

    concurrent = False

    def __init__(
        self, workers: Sequence[Callable[[int, int, Tensor, Tensor], int]], greetings: Sequence[bytes]
    ) -> None:
        """Take one `(step, row, model, frame) -> length` per worker."""
        self.workers = len(workers)
        self._workers = workers
        self._greetings = list(greetings)

    def greetings(self, timeout_s: float) -> list[bytes]:
        """See ServerTransport."""
        del timeout_s
        return self._greetings

    def exchange(
        self, step: int, rows: Sequence[int], model: Tensor, frames: Tensor, timeout_s: float
    ) -> Iterator[Arrival]:
        """See ServerTransport; nothing is waited for, so the time limit cannot pass."""
        del timeout_s
        for worker, reply in enumerate(self._workers, start=1):
            row = rows[worker - 1]
            yield worker, reply(step, row, model, frames[row])

    def stop(self) -> None:
        """See ServerTransport."""


class _Pause:
    """Sleeps between polls: short while messages flow, longer while nothing happens."""

    def __init__(self) -> None:
        self._sleep_s = _SHORTEST_SLEEP_S

    def __call__(self, progress: bool) -> None:
        self._sleep_s = _SHORTEST_SLEEP_S if progress else min(2 * self._sleep_s, _LONGEST_SLEEP_S)
        time.sleep(self._sleep_s)


def _world() -> "MPI.Intracomm":
    from mpi4py import MPI

    return MPI.COMM_WORLD


def rank_and_size() -> tuple[int, int]:
    """Return this process's MPI rank and the number of ranks."""
    comm = _world()
    return comm.Get_rank(), comm.Get_size()


def leave() -> NoReturn:
    """End this process well: MPI first, then at once, without the second that torch takes to clear up."""
    from mpi4py import MPI

    MPI.Finalize()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


class MpiServer:
    """Rank 0. One non-blocking send and receive per worker and message; a slow worker delays nobody else's."""

    concurrent = True

    def __init__(self) -> None:
        self._comm = _world()
        self.workers = self._comm.Get_size() - 1
        self._announced: list[MPI.Request] = []

    def announce(self, text: str) -> None:
        """Send every worker the job: workers see no run directory, which may hold secrets and lies on the head."""
        self._job = np.frombuffer(text.encode(), np.uint8)  # kept: MPI reads it until it is sent
        self._announced = [self._comm.Isend(self._job, dest=w, tag=_TAG_JOB) for w in range(1, self.workers + 1)]

    def greetings(self, timeout_s: float) -> list[bytes]:
        """See ServerTransport."""
        buffers = np.zeros((self.workers, GREETING_BYTES), np.uint8)
        requests = {
            w: self._comm.Irecv(buffers[w - 1], source=w, tag=_TAG_GREETING) for w in range(1, self.workers + 1)
        }
        for worker, arrival in self._completed(requests, time.monotonic() + timeout_s, "did not start"):
            if isinstance(arrival, str):
                raise WorkerError(f"rank {worker}: its greeting was refused: {arrival}")
        for request in self._announced:
            request.Test()  # who has greeted has had the job
        return [bytes(row).rstrip(b"\0") for row in buffers]

    def exchange(
        self, step: int, rows: Sequence[int], model: Tensor, frames: Tensor, timeout_s: float
    ) -> Iterator[Arrival]:
        """See ServerTransport."""
        deadline = time.monotonic() + timeout_s
        self._refuse_unasked(step)
        replies = {
            w: self._comm.Irecv(frames[rows[w - 1]].numpy(), source=w, tag=_TAG_REPLY)
            for w in range(1, self.workers + 1)
        }
        self._tasks = np.array([[step, row] for row in rows], np.int64)  # kept: MPI reads it until it is sent
        sends = {}
        for w in range(1, self.workers + 1):
            self._comm.Isend(self._tasks[w - 1], dest=w, tag=_TAG_TASK).Free()
            sends[w] = self._comm.Isend(model.numpy(), dest=w, tag=_TAG_MODEL)
        yield from self._completed(replies, deadline, f"did not answer step {step}")
        for _ in self._completed(sends, deadline, f"did not take the model of step {step}"):
            pass

    def stop(self) -> None:
        """See ServerTransport."""
        end = np.array([-1, -1], np.int64)
        requests = {w: self._comm.Isend(end, dest=w, tag=_TAG_TASK) for w in range(1, self.workers + 1)}
        for _ in self._completed(requests, time.monotonic() + 10.0, "did not take the end of the run"):
            pass

    def _refuse_unasked(self, step: int) -> None:
        """A worker that sends more than it was asked for would fill the server's memory with queued messages."""
        from mpi4py import MPI

        status = MPI.Status()
        if self._comm.Iprobe(source=MPI.ANY_SOURCE, tag=MPI.ANY_TAG, status=status):
            raise WorkerError(f"rank {status.Get_source()} sent a message that nobody asked for before step {step}")

    def _completed(self, requests: "dict[int, MPI.Request]", deadline: float, failing: str) -> Iterator[Arrival]:
        """Yield (worker, bytes or why it failed) as requests complete; raise WorkerError for those that never do."""
        from mpi4py import MPI

        status = MPI.Status()
        pause = _Pause()
        while requests:
            done: list[Arrival] = []
            for worker, request in requests.items():
                try:
                    if request.Test(status):
                        done.append((worker, status.Get_count(MPI.BYTE)))
                except MPI.Exception as error:  # MPI_ERR_TRUNCATE: longer than anything that was asked for
                    done.append((worker, f"MPI: {error.Get_error_string()}"))
            for worker, _ in done:
                del requests[worker]
            yield from done
            if requests and not done and time.monotonic() > deadline:
                raise WorkerError(f"ranks {', '.join(map(str, sorted(requests)))} {failing} within the time limit")
            if requests:
                pause(bool(done))


class MpiWorker:
    """Ranks 1..n. Speaks to rank 0 only."""

    def __init__(self) -> None:
        self._comm = _world()

    def job(self) -> str:
        """Return the job that the server announced, as YAML."""
        from mpi4py import MPI

        status = MPI.Status()
        pause = _Pause()
        while not self._comm.Iprobe(source=0, tag=_TAG_JOB, status=status):
            pause(False)
        buffer = np.empty(status.Get_count(MPI.BYTE), np.uint8)
        self._receive(buffer, _TAG_JOB)
        return buffer.tobytes().decode()

    def greet(self, greeting: bytes) -> None:
        """Say once who this worker is."""
        buffer = np.zeros(GREETING_BYTES, np.uint8)
        buffer[: len(greeting)] = np.frombuffer(greeting, np.uint8)
        self._comm.Send(buffer, dest=0, tag=_TAG_GREETING)

    def tasks(self, model: Tensor) -> Iterator[tuple[int, int]]:
        """Yield (step, row) after the step's model has been received into `model`, until the server says stop."""
        task = np.empty(2, np.int64)
        while True:
            self._receive(task, _TAG_TASK)
            if task[0] < 0:
                return
            self._receive(model.numpy(), _TAG_MODEL)
            yield int(task[0]), int(task[1])

    def reply(self, frame: Tensor, length: int) -> None:
        """Send the first `length` bytes of `frame`."""
        request = self._comm.Isend(frame[:length].numpy(), dest=0, tag=_TAG_REPLY)
        pause = _Pause()
        while not request.Test():
            pause(False)

    def _receive(self, buffer: np.ndarray[tuple[int, ...], np.dtype[np.generic]], tag: int) -> None:
        request = self._comm.Irecv(buffer, source=0, tag=tag)
        pause = _Pause()
        while not request.Test():
            pause(False)


def new_frames(count: int, frame_bytes: int) -> Tensor:
    """Return zeroed receive buffers (count, frame_bytes), uint8, aligned and already paged in."""
    return torch.zeros(count, frame_bytes, dtype=torch.uint8)
