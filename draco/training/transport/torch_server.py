"""The server's side without MPI, rank 0: one connection to each worker, and one wait for all of them.

Why the bytes go by connections of our own and not by torch.distributed's send and recv: see this package's docstring.
"""

import contextlib
import select
import socket
import time
from collections.abc import Collection, Generator, Mapping, Sequence

import numpy as np
from torch import Tensor

from draco.training.transport.contract import GREETING_BYTES, Arrival, Task
from draco.training.transport.line import ENCLOSED, GREETING, JOB, MODEL, MOMENTA, REPLY, TASK, Line

_STOP_LIMIT_S = 10.0
_WAIT_MS = 2  # for anything at all, until the caller may decide to wait no longer


class TorchServer:
    """Rank 0. A worker that is slow delays nobody else's messages."""

    concurrent = True
    whole = False  # at the end no rank waits for another

    def __init__(self, connections: Sequence[socket.socket]) -> None:
        """Take the connection of each worker, that of rank 1 first."""
        self.workers = len(connections)
        self._lines = [Line(rank, connection) for rank, connection in enumerate(connections, start=1)]
        self._largest = GREETING_BYTES  # that a reply may be

    def announce(self, text: str) -> None:
        """Send every worker the job: workers see no run directory, which holds a secret and is on the head."""
        for line in self._lines:
            line.give(JOB, memoryview(text.encode()), owes=GREETING)

    def greetings(self, timeout_s: float) -> list[bytes]:
        """See ServerTransport."""
        said = [bytearray(GREETING_BYTES) for _ in self._lines]
        buffers = {line.rank: memoryview(each) for line, each in zip(self._lines, said, strict=True)}
        deadline = time.monotonic() + timeout_s
        with contextlib.closing(self._answers(buffers)) as arrivals:
            for arrival in arrivals:
                if arrival is None and time.monotonic() > deadline:
                    break
        return [bytes(each).rstrip(b"\0") for each in said]

    def hand_momenta(self, momenta: Sequence[Tensor]) -> None:
        """See ServerTransport. Not waited for: a worker takes it when it comes up, and answers no task before."""
        for line, own in zip(self._lines, momenta, strict=True):
            line.give(MOMENTA, own.clone().numpy().data)

    def exchange(self, tasks: Sequence[Task | None], model: Tensor, frames: Tensor) -> Generator[Arrival | None]:
        """See ServerTransport."""
        self._largest = frames.shape[1]
        self.ready()
        buffers = {}
        for line, task in zip(self._lines, tasks, strict=True):
            if task is None:
                continue
            if line.ready:
                buffers[line.rank] = frames[task.row].numpy().data
                line.give(TASK, np.array(task.numbers(), np.int64).data, owes=REPLY)
                if task.loads:
                    line.give(MODEL, model.numpy().data)
                if task.enclosed is not None:
                    line.give(ENCLOSED, task.enclosed.numpy().data)
            elif line.expelled:
                yield line.rank, line.expelled
        yield from self._answers(buffers)

    def ready(self) -> set[int]:
        """See ServerTransport."""
        self._turn({}, 0)  # one whose late reply has come meanwhile takes part again
        return {line.rank for line in self._lines if line.ready}

    def gone(self) -> dict[int, str]:
        """See ServerTransport."""
        return {line.rank: line.gone for line in self._lines if line.gone}

    def held(self) -> dict[int, int]:
        """See ServerTransport. There are none: what is late is read to other memory."""
        return {}

    def stop(self) -> None:
        """See ServerTransport. Nobody is waited for who may not be listening."""
        listening = [line for line in self._lines if line.ready]
        for line in self._lines:
            line.give(TASK, np.array(Task(-1, 0).numbers(), np.int64).data)
        deadline = time.monotonic() + _STOP_LIMIT_S
        while time.monotonic() < deadline and any(line.sending for line in listening):
            self._turn({}, _WAIT_MS)

    def _answers(self, buffers: Mapping[int, memoryview]) -> Generator[Arrival | None]:
        """Yield each of the workers in `buffers` once its message is in its buffer, and None whenever nothing came.

        Goes on until all have answered who can, and have taken what was sent to them. Left early, it lets the others be
        late.
        """
        waiting = {*buffers}
        while waiting or any(line.sending for line in self._lines if line.rank in buffers):
            came = self._turn({rank: buffers[rank] for rank in waiting}, _WAIT_MS)
            waiting -= {rank for rank, _ in came} | self.gone().keys()
            yield from came
            if not came:
                yield None

    def _turn(self, buffers: Mapping[int, memoryview], wait_ms: int) -> Collection[Arrival]:
        """Wait until anybody can be sent to or has sent something; return what is whole, or refused, of `buffers`.

        What others send who owe something is late, and thrown away.
        """
        lines = {line.connection.fileno(): line for line in self._lines if line.open}
        any_of = select.poll()
        for number, line in lines.items():
            any_of.register(number, select.POLLIN | (select.POLLOUT if line.sending else 0))
        came: list[Arrival] = []
        for number, what in any_of.poll(wait_ms):
            line = lines[number]
            if what & select.POLLOUT:
                line.send()
            if line.open and what & ~select.POLLOUT:
                most = GREETING_BYTES if line.owes == GREETING else self._largest
                found = line.receive(buffers.get(line.rank), most)
                if found is not None and line.rank in buffers:
                    came.append((line.rank, found))
        return came
