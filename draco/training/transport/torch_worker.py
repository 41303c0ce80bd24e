"""The workers' side without MPI, ranks 1 to n, which have one connection, to rank 0, and trust it."""

import socket
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from draco.errors import WorkerError
from draco.training.transport.contract import ServerGone, Task
from draco.training.transport.line import ENCLOSED, GREETING, HEAD, JOB, MODEL, MOMENTA, REPLY, TASK


class TorchWorker:
    """Ranks 1..n. Waits in the kernel, so that it takes no core from those that compute."""

    whole = False  # see TorchServer

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection

    def job(self) -> str:
        """Return the job that the server announced, as YAML."""
        text = bytearray(self._head(JOB))
        self._receive(memoryview(text))
        return text.decode()

    def greet(self, greeting: bytes) -> None:
        """Say once who this worker is."""
        self._send(GREETING, memoryview(greeting))

    def take_momenta(self, out: Tensor) -> None:
        """Receive the momenta to go on from into `out` (rows, p).

        Raises:
            WorkerError: it has another size.
        """
        size = self._head(MOMENTA)
        if size != out.nbytes:
            raise WorkerError(f"the server's momenta have {size} bytes, this worker's {out.nbytes}")
        self._receive(out.numpy().data)

    def tasks(self, model: Tensor) -> Iterator[Task]:
        """Yield every task until the server says stop; the step's model is in `model`."""
        while True:
            numbers = np.empty(self._head(TASK) // 8, np.int64)
            self._receive(numbers.data)
            task, enclosed = Task.of(numbers.tolist())
            if task.step < 0:
                return
            if task.loads:
                assert self._head(MODEL) == model.nbytes
                self._receive(model.numpy().data)
            if enclosed:
                assert self._head(ENCLOSED) == enclosed
                came = torch.empty(enclosed, dtype=torch.uint8)
                self._receive(came.numpy().data)
                task = task._replace(enclosed=came)
            yield task

    def reply(self, frame: Tensor, length: int) -> None:
        """Send the first `length` bytes of `frame`."""
        self._send(REPLY, frame[:length].numpy().data)

    def _head(self, tag: int) -> int:
        """Wait for a message with that tag, which is the next; return its size in bytes."""
        head = bytearray(HEAD.size)
        self._receive(memoryview(head))
        found, size = HEAD.unpack(head)
        assert found == tag, f"the server has sent {found}, not {tag}"
        return int(size)

    def _send(self, tag: int, content: memoryview) -> None:
        try:
            self.connection.sendall(HEAD.pack(tag, content.nbytes))
            self.connection.sendall(content)
        except OSError:
            raise ServerGone from None

    def _receive(self, into: memoryview) -> None:
        """Fill `into`, which is contiguous."""
        rest = into.cast("B") if into.nbytes else memoryview(b"")
        while rest:
            try:
                count = self.connection.recv_into(rest)
            except OSError:
                count = 0
            if not count:
                raise ServerGone
            rest = rest[count:]
