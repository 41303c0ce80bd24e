"""The replies of a step on their way to where they are decoded: in host memory in place, or on the server's GPU.

Receive frames are host memory, as MPI and sockets write to no other. **On the CPU** a reply is there once its frame
was checked. **On a GPU** the frames are page-locked, and the matrix of replies (n, e) is the GPU's. A reply whose
header, size and step are right is copied in chunks, on a stream of its own, while other replies arrive. There a chunk
is widened from float16 or bfloat16, and its least and greatest number are taken: both are finite only where all are.

Three things may not overlap, and each has its line below:

- a copy to a row, and what the step before still reads of it: at the beginning of a step its copies are made to wait;
- a copy from a frame, and the next reply that is received there: a step waits for all its copies, however it ends;
- what reads a row, and the copy to it: a row is told of (`settled`) once an event after its copy is complete.

Shapes: n workers, e elements of a reply.
"""

import mmap
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from rich.filesize import decimal
from torch import Tensor

from draco.aggregators.rows import is_finite
from draco.errors import MissingError
from draco.training import device, wire
from draco.training.transport import new_frames
from draco.training.wire import DTYPES, HEADER, Timing, Wire

CHUNK = 1 << 24  # bytes of a payload that are copied at once: 0.6 ms by PCIe 4.0
_PORTABLE = 1  # cudaHostRegisterPortable: page-locked for every GPU that this process uses


class Rows(Protocol):
    """Where the replies of one step after the other arrive."""

    frames: Tensor  # (n, bytes) uint8 in host memory, by row: where the transport leaves what it receives
    replies: Tensor  # (n, e) where they are decoded; a row is to be read only once it is `settled`

    def step(self) -> AbstractContextManager[None]:
        """Receive the replies of a step inside this; afterwards its frames may be written to again."""

    def put(self, row: int, length: int, step: int) -> Timing | str:
        """Check the frame of `length` bytes that has come for a row, and begin to bring its vector to the replies.

        Returns the worker's timing, or one sentence that says why the frame is refused.
        """

    def settled(self, *, wait: bool) -> Iterator[tuple[int, bool]]:
        """Yield each row that is there now and was not told of yet, and whether all its numbers are finite.

        Rows come in the order in which they were put. With `wait` it goes on until all are there.
        """


def build_rows(where: torch.device, workers: int, format_: Wire, dtype: torch.dtype, more: int = 0) -> Rows:
    """Return the rows of n workers on a device; frames have room for `more` bytes behind the largest reply."""
    kind = HostRows if where.type == "cpu" else DeviceRows
    return kind(where, workers, format_, dtype, more)


class HostRows:
    """Replies that stay in host memory: where nothing has to be widened or opened, in the frames themselves."""

    def __init__(self, where: torch.device, workers: int, format_: Wire, dtype: torch.dtype, more: int) -> None:
        del where
        self.frames = new_frames(workers, format_.frame_bytes + more)
        self.replies = wire.reply_matrix(self.frames, format_, dtype)
        self._wire = format_
        self._there: deque[tuple[int, bool]] = deque()

    def step(self) -> AbstractContextManager[None]:
        """See Rows."""
        self._there.clear()
        return nullcontext()

    def put(self, row: int, length: int, step: int) -> Timing | str:
        """See Rows."""
        timing = wire.unpack(self.frames[row], length, self._wire, step, self.replies[row])
        if not isinstance(timing, str):
            self._there.append((row, is_finite(self.replies[row])))
        return timing

    def settled(self, *, wait: bool) -> Iterator[tuple[int, bool]]:
        """See Rows."""
        del wait
        while self._there:
            yield self._there.popleft()


class _Coming(NamedTuple):
    """A row that is being copied."""

    row: int
    event: Any  # is complete when the row is there, and its extremes are in host memory
    opened: Tensor | None  # the buffer that it is copied from, where that is not its frame


class DeviceRows:
    """Replies on a GPU, to which they are copied while others arrive."""

    def __init__(self, where: torch.device, workers: int, format_: Wire, dtype: torch.dtype, more: int) -> None:
        self._wire, self._where = format_, where
        self.frames = pinned(workers, format_.frame_bytes + more)
        self.replies = torch.empty(workers, format_.elements, dtype=dtype, device=where)
        sent = DTYPES[format_.dtype]
        self._step = CHUNK // sent.itemsize
        width = min(self._step, format_.elements)
        self._narrow = None if sent == dtype else torch.empty(width, dtype=sent, device=where)
        # The least and the greatest number of each chunk of each row, on the GPU and as the host is told them.
        chunks = -(-format_.elements // self._step)
        self._real = torch.float64 if dtype == torch.complex128 else torch.float32
        self._extremes = torch.empty(workers, chunks, 2, dtype=self._real, device=where)
        self._told = pinned(workers, chunks * 2 * self._real.itemsize).view(self._real)
        # Two buffers: one is opened into while the other is copied from.
        spares = pinned(2, format_.payload_bytes).unbind(0) if format_.compression == "blosc2" else ()
        self._spares: deque[Tensor] = deque(spares)
        self._stream = device.of_gpus().Stream(device=where)
        self._coming: deque[_Coming] = deque()

    @contextmanager
    def step(self) -> Iterator[None]:
        """See Rows."""
        self._stream.wait_stream(device.of_gpus().current_stream(self._where))
        try:
            yield
        finally:
            for _ in self.settled(wait=True):
                pass

    def put(self, row: int, length: int, step: int) -> Timing | str:
        """See Rows."""
        frame = self.frames[row]
        timing = wire.check(frame, length, self._wire, step)
        if isinstance(timing, str):
            return timing
        payload, opened = frame[HEADER.size : length], None
        if self._wire.compression == "blosc2":
            opened = self._spare()
            if fault := wire.decompress(payload, opened):
                self._spares.append(opened)
                return fault
            payload = opened
        with device.of_gpus().stream(self._stream):
            self._copy(row, payload.view(DTYPES[self._wire.dtype]))
            event = device.of_gpus().Event()
            event.record(self._stream)
        self._coming.append(_Coming(row, event, opened))
        return timing

    def settled(self, *, wait: bool) -> Iterator[tuple[int, bool]]:
        """See Rows."""
        while self._coming and (wait or self._coming[0].event.query()):
            yield self._taken()

    def _copy(self, row: int, payload: Tensor) -> None:
        """Copy a payload (e,) to its row, chunk by chunk, all on the current stream."""
        for place, source in enumerate(torch.split(payload, self._step)):
            start = place * self._step
            target = self.replies[row, start : start + len(source)]
            if self._narrow is None:
                target.copy_(source, non_blocking=True)
            else:
                narrow = self._narrow[: len(source)]
                narrow.copy_(source, non_blocking=True)
                target.copy_(narrow)
            if target.dtype != torch.uint8:  # bytes are always finite
                real = torch.view_as_real(target) if target.is_complex() else target
                torch.stack(torch.aminmax(real), out=self._extremes[row, place])  # both are NaN where a number is
        if self.replies.dtype != torch.uint8:
            self._told[row].copy_(self._extremes[row].view(-1), non_blocking=True)

    def _spare(self) -> Tensor:
        """Return a buffer from which nothing is copied any more."""
        if not self._spares:
            at, first = next((at, each) for at, each in enumerate(self._coming) if each.opened is not None)
            first.event.synchronize()
            self._coming[at] = first._replace(opened=None)
            return first.opened  # type: ignore[return-value]
        return self._spares.popleft()

    def _taken(self) -> tuple[int, bool]:
        """Return the row that was put first of those that are not told of, once it is there."""
        coming = self._coming.popleft()
        coming.event.synchronize()
        device.of_gpus().current_stream(self._where).wait_event(coming.event)
        if coming.opened is not None:
            self._spares.append(coming.opened)
        finite = self.replies.dtype == torch.uint8 or bool(torch.isfinite(self._told[coming.row]).all())
        return coming.row, finite


def host_vectors(where: torch.device, count: int, elements: int) -> Tensor:
    """Return host memory (count, elements) float32 for vectors that go to a device, or come from it."""
    if where.type == "cpu":
        return torch.empty(count, elements)
    return pinned(count, 4 * elements).view(torch.float32)


def pinned(count: int, size: int) -> Tensor:
    """Return zeroed, page-locked host memory of `count` rows of `size` bytes, (count, size) uint8.

    The pages are the process's own, locked by cudaHostRegister: torch's allocator of such memory rounds up to a power
    of two. They are unlocked when the last tensor over them is gone.

    Raises:
        MissingError: the driver does not lock them.
    """
    runtime = device.of_gpus().cudart()
    # No other allocation shares their pages. They are shared, so that a fork leaves them where the GPU reads them.
    pages = np.frombuffer(mmap.mmap(-1, max(count * size, 1)), np.uint8)
    if fault := int(runtime.cudaHostRegister(pages.ctypes.data, pages.nbytes, _PORTABLE)):
        raise MissingError(
            f"{decimal(pages.nbytes)} of this machine's memory cannot be locked for its GPU's copies (CUDA error "
            f"{fault}): is that much free, and may the process lock it? Without a GPU: device=cpu server_device=cpu"
        )
    where = device.of_gpus().current_device()
    weakref.finalize(pages, _unlock, pages.ctypes.data, where).atexit = False  # by then CUDA may be gone
    return torch.from_numpy(pages)[: count * size].view(count, size)


def _unlock(address: int, where: int) -> None:
    """Unlock memory, once no copy of that GPU reads or writes it any more."""
    device.of_gpus().synchronize(where)
    device.of_gpus().cudart().cudaHostUnregister(address)
