"""The workers' side of MPI, ranks 1 to n, which speak to rank 0 only."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from draco.errors import WorkerError
from draco.training.transport.contract import GREETING_BYTES, ServerGone, Task
from draco.training.transport.mpi import (
    TAG_ENCLOSED,
    TAG_GREETING,
    TAG_JOB,
    TAG_MODEL,
    TAG_MOMENTA,
    TAG_REPLY,
    TAG_TASK,
    Pause,
    world,
)

if TYPE_CHECKING:
    from mpi4py import MPI


class MpiWorker:
    """Ranks 1..n. Speaks to rank 0 only."""

    def __init__(self) -> None:
        self._comm = world()
        self.whole = False  # see MpiServer.whole; told with the end of the run

    def job(self) -> str:
        """Return the job that the server announced, as YAML."""
        buffer = np.empty(self._awaited(TAG_JOB), np.uint8)
        self._receive(buffer, TAG_JOB)
        return buffer.tobytes().decode()

    def _awaited(self, tag: int) -> int:
        """Wait for a message of the server's with that tag; return its size in bytes."""
        from mpi4py import MPI

        status = MPI.Status()
        pause = Pause()
        try:
            while not self._comm.Iprobe(source=0, tag=tag, status=status):
                pause(False)
        except MPI.Exception:
            raise ServerGone from None
        return int(status.Get_count(MPI.BYTE))

    def greet(self, greeting: bytes) -> None:
        """Say once who this worker is."""
        buffer = np.zeros(GREETING_BYTES, np.uint8)
        buffer[: len(greeting)] = np.frombuffer(greeting, np.uint8)
        self._complete(lambda: self._comm.Isend(buffer, dest=0, tag=TAG_GREETING))

    def take_momenta(self, out: Tensor) -> None:
        """Receive the momenta to go on from into `out` (rows, p).

        Raises:
            WorkerError: it has another size.
        """
        size = self._awaited(TAG_MOMENTA)
        if size != out.nbytes:
            raise WorkerError(f"the server's momenta have {size} bytes, this worker's {out.nbytes}")
        self._receive(out.numpy(), TAG_MOMENTA)

    def tasks(self, model: Tensor) -> Iterator[Task]:
        """Yield every task until the server says stop; the step's model is in `model`."""
        while True:
            buffer = np.empty(self._awaited(TAG_TASK) // 8, np.int64)
            self._receive(buffer, TAG_TASK)
            task, enclosed = Task.of(buffer.tolist())
            if task.step < 0:
                self.whole = bool(task.row)
                return
            if task.loads:
                self._receive(model.numpy(), TAG_MODEL)
            if enclosed:
                came = torch.empty(enclosed, dtype=torch.uint8)
                self._receive(came.numpy(), TAG_ENCLOSED)
                task = task._replace(enclosed=came)
            yield task

    def reply(self, frame: Tensor, length: int) -> None:
        """Send the first `length` bytes of `frame`."""
        self._complete(lambda: self._comm.Isend(frame[:length].numpy(), dest=0, tag=TAG_REPLY))

    def _receive(self, buffer: np.ndarray[tuple[int, ...], np.dtype[np.generic]], tag: int) -> int:
        """Receive a message of the server's; return its size in bytes."""
        return self._complete(lambda: self._comm.Irecv(buffer, source=0, tag=tag))

    def _complete(self, begin: "Callable[[], MPI.Request]") -> int:
        from mpi4py import MPI

        status = MPI.Status()
        pause = Pause()
        try:
            request = begin()
            while not request.Test(status):
                pause(False)
        except MPI.Exception as error:
            if error.Get_error_class() not in (MPI.ERR_PROC_FAILED, MPI.ERR_REVOKED):
                raise
            raise ServerGone from None
        return int(status.Get_count(MPI.BYTE))
