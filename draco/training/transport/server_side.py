"""The server's side of MPI, rank 0.

The server looks at the size of every message before it receives it. It cannot post receives beforehand: where a message
is longer than its buffer, Open MPI 5.0.11 writes past the buffer's end and only then reports MPI_ERR_TRUNCATE. That is
so by shared memory and by TCP, from the eager limit on.
"""

import contextlib
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from draco.errors import WorkerError
from draco.training.transport.contract import ENDED, GREETING_BYTES, TOO_LONG, UNASKED, Arrival, Task
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

_STOP_LIMIT_S = 10.0
# Limits of messages that nobody asked for. Larger ones are never received; MPI keeps no more than their beginning. A
# worker may have so many at a time that are not received, or not whole.
_THROWN_BYTES, _THROWN_AT_ONCE = 1 << 20, 256
_MESSAGES_AT_ONCE = 256  # of one worker, taken before the next one's turn


@dataclass
class _Peer:
    """A worker as the server sees it."""

    rank: int
    owes: int = 0  # tag of the message that it is to send next; 0: none
    open: "list[MPI.Request]" = field(default_factory=list)  # must complete before it gets a task again
    held: int | None = None  # the row that one of them still writes to
    thrown: "list[MPI.Request]" = field(default_factory=list)  # of messages that are thrown away
    untaken: int = 0
    gone: str = ""
    expelled: str = ""  # why

    @property
    def ready(self) -> bool:
        return not (self.owes or self.open or self.gone or self.expelled)


class MpiServer:
    """Rank 0. Every wait is one loop over all workers, so that a slow one delays nobody else's messages."""

    concurrent = True

    def __init__(self) -> None:
        self._comm = world()
        self.workers = self._comm.Get_size() - 1
        self._peers = [_Peer(rank) for rank in range(1, self.workers + 1)]
        self._announced: list[MPI.Request] = []
        self._handed: dict[int, MPI.Request] = {}
        self._given: list[Tensor] = []
        self._largest = GREETING_BYTES  # that a reply may be; all buffers for them are of this size

    def announce(self, text: str) -> None:
        """Send every worker the job: workers see no run directory, which holds a secret and is on the head."""
        self._job = np.frombuffer(text.encode(), np.uint8)  # kept: MPI reads it until it is sent
        for peer in self._peers:
            with _noticing(peer):
                self._announced.append(self._comm.Isend(self._job, dest=peer.rank, tag=TAG_JOB))
            peer.owes = TAG_GREETING

    def greetings(self, timeout_s: float) -> list[bytes]:
        """See ServerTransport."""
        self._greetings = np.zeros((self.workers, GREETING_BYTES), np.uint8)  # kept: a late one may still come
        deadline = time.monotonic() + timeout_s
        with contextlib.closing(self._answers(dict(enumerate(self._greetings, start=1)))) as arrivals:
            for arrival in arrivals:
                if arrival is None and time.monotonic() > deadline:
                    break
        for request in self._announced:
            request.Test()  # who has greeted has had the job
        return [bytes(row).rstrip(b"\0") for row in self._greetings]

    def hand_momenta(self, momenta: Sequence[Tensor]) -> None:
        """See ServerTransport. Not waited for: a worker takes it when it comes up, and answers no task before."""
        self._given = [own.clone() for own in momenta]  # kept: MPI reads it until it is sent
        for peer, given in zip(self._peers, self._given, strict=True):
            with _noticing(peer):
                self._handed[peer.rank] = self._comm.Isend(given.numpy(), dest=peer.rank, tag=TAG_MOMENTA)

    def exchange(self, tasks: Sequence[Task | None], model: Tensor, frames: Tensor) -> Generator[Arrival | None]:
        """See ServerTransport."""
        self._largest = frames.shape[1]
        self.ready()
        buffers, rows = {}, dict[int, int]()
        for peer, task in zip(self._peers, tasks, strict=True):
            if task is None:
                continue
            if peer.ready:
                sent = np.array(task.numbers(), np.int64)
                with _noticing(peer):
                    peer.open.append(self._comm.Isend(sent, dest=peer.rank, tag=TAG_TASK))
                    if task.loads:
                        peer.open.append(self._comm.Isend(model.numpy(), dest=peer.rank, tag=TAG_MODEL))
                    if task.enclosed is not None:
                        peer.open.append(self._comm.Isend(task.enclosed.numpy(), dest=peer.rank, tag=TAG_ENCLOSED))
                    peer.owes = TAG_REPLY
                    buffers[peer.rank], rows[peer.rank] = frames[task.row].numpy(), task.row
            elif peer.expelled:
                yield peer.rank, peer.expelled
        yield from self._answers(buffers, rows)

    def ready(self) -> set[int]:
        """See ServerTransport."""
        for peer in self._peers:
            if peer.owes and not peer.gone:
                self._look(peer, None, {})  # one whose late reply has come meanwhile takes part again
        self._settle()
        return {peer.rank for peer in self._peers if peer.ready}

    def gone(self) -> dict[int, str]:
        """See ServerTransport."""
        return {peer.rank: peer.gone for peer in self._peers if peer.gone}

    def held(self) -> dict[int, int]:
        """See ServerTransport."""
        self._settle()
        return {peer.rank: peer.held for peer in self._peers if peer.held is not None}

    @property
    def whole(self) -> bool:
        """Whether every worker is there and well, so that all can leave MPI together."""
        return all(peer.ready for peer in self._peers)

    def stop(self) -> None:
        """See ServerTransport. Nobody is waited for who may not be listening."""
        self._settle()
        end = np.array(Task(-1, int(self.whole)).numbers(), np.int64)
        sent: dict[int, MPI.Request] = {}
        for peer in self._peers:
            with _noticing(peer):
                sent[peer.rank] = self._comm.Isend(end, dest=peer.rank, tag=TAG_TASK)
        deadline = time.monotonic() + _STOP_LIMIT_S
        pause = Pause()
        while time.monotonic() < deadline and any(
            peer.rank in sent and not peer.gone and not peer.expelled and not _done(peer, sent[peer.rank])
            for peer in self._peers
        ):
            pause(False)

    def _answers(
        self,
        buffers: "dict[int, np.ndarray[tuple[int], np.dtype[np.uint8]]]",
        rows: Mapping[int, int] = MappingProxyType({}),
    ) -> Generator[Arrival | None]:
        """Yield each of the workers in `buffers` once its message is in its buffer, and None whenever nothing came.

        Goes on until all have answered who can, and have taken what was sent to them. Left early, it lets the others be
        late.
        """
        from mpi4py import MPI

        status = MPI.Status()
        pause = Pause()
        waiting = {*buffers}
        coming: dict[int, MPI.Request] = {}
        try:
            while waiting or any(self._peers[rank - 1].open for rank in buffers):
                arrivals: list[Arrival] = []
                heard = self._heard()
                for peer in (peer for peer in self._peers if not peer.gone):
                    rank = peer.rank
                    found: int | str | None = None
                    if heard:
                        found = self._look(peer, buffers[rank] if rank in waiting else None, coming)
                    if rank in coming and _done(peer, coming[rank], status):
                        del coming[rank]
                        found = status.Get_count(MPI.BYTE)
                    if peer.gone:
                        coming.pop(rank, None)
                    elif rank in waiting and found is not None:
                        arrivals.append((rank, found))
                    if found is not None:
                        waiting.discard(rank)
                waiting -= self.gone().keys()
                yield from arrivals
                if not arrivals:
                    self._settle()
                    yield None
                pause(bool(arrivals))
        finally:
            for rank, request in coming.items():
                peer = self._peers[rank - 1]
                peer.open.append(request)
                peer.held = rows.get(rank)

    def _heard(self) -> bool:
        """Say whether a message may have come from anybody: one probe, where each worker's own would take n."""
        from mpi4py import MPI

        try:
            return self._comm.Iprobe(source=MPI.ANY_SOURCE, tag=MPI.ANY_TAG)
        except MPI.Exception:  # somebody's process has ended; probes of one worker say whose
            return True

    def _look(
        self, peer: _Peer, buffer: "np.ndarray[tuple[int], np.dtype[np.uint8]] | None", coming: "dict[int, MPI.Request]"
    ) -> str | None:
        """Take the messages that a worker has sent, the one it owes into `buffer`; return why that is refused, if so.

        With `buffer` None nothing is wanted of it now: what it owes is late, and thrown away.
        """
        from mpi4py import MPI

        status = MPI.Status()
        refused = None
        for _ in range(_MESSAGES_AT_ONCE):
            message = None
            with _noticing(peer):
                message = self._comm.Improbe(source=peer.rank, status=status)
            if message is None:
                break
            size = status.Get_count(MPI.BYTE)
            most = GREETING_BYTES if peer.owes == TAG_GREETING else self._largest
            if status.Get_tag() != peer.owes or size > most:
                unasked = status.Get_tag() != peer.owes
                peer.expelled = refused = peer.expelled or (UNASKED if unasked else TOO_LONG)
                self._throw_away(peer, message, size)
                continue
            peer.owes = 0
            if buffer is not None:
                coming[peer.rank] = message.Irecv(buffer)
            else:
                peer.open.append(message.Irecv(np.empty(size, np.uint8)))
        return refused

    def _throw_away(self, peer: _Peer, message: "MPI.Message", size: int) -> None:
        """Free MPI of a message, where its size allows.

        Raises:
            WorkerError: the worker floods the server.
        """
        if size <= _THROWN_BYTES:
            with _noticing(peer):
                peer.thrown.append(message.Irecv(np.empty(size, np.uint8)))
                peer.thrown = [request for request in peer.thrown if not request.Test()]
        else:
            peer.untaken += 1
        if len(peer.thrown) + peer.untaken > _THROWN_AT_ONCE:
            raise WorkerError(f"rank {peer.rank} floods the server with messages that nobody asked for")

    def _settle(self) -> None:
        """See what has completed, and whose process has ended."""
        from mpi4py import MPI

        failed = self._comm.Get_failed()  # probes do not tell
        for rank in MPI.Group.Translate_ranks(failed, None, self._comm.Get_group()) if failed.Get_size() else ():
            self._peers[rank - 1].gone = ENDED
        self._handed = {rank: r for rank, r in self._handed.items() if not _done(self._peers[rank - 1], r)}
        self._given = self._given if self._handed else []
        for peer in self._peers:
            peer.open = [request for request in peer.open if not _done(peer, request)]
            if not peer.open:
                peer.held = None


@contextlib.contextmanager
def _noticing(peer: _Peer) -> Iterator[None]:
    """Note it where MPI says that the worker's process has ended."""
    from mpi4py import MPI

    try:
        yield
    except MPI.Exception as error:
        if error.Get_error_class() not in (MPI.ERR_PROC_FAILED, MPI.ERR_REVOKED):
            raise
        peer.gone = ENDED


def _done(peer: _Peer, request: "MPI.Request", status: "MPI.Status | None" = None) -> bool:
    """Say whether a request is complete; one of a worker that is gone is."""
    with _noticing(peer):
        return bool(request.Test(status))
    return True
