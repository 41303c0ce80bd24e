"""The contract of a transport: what server and workers may ask of it, whichever it is."""

from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

GREETING_BYTES = 1024
ENDED = "its process has ended"
UNASKED = "it sent a message that nobody asked for"
TOO_LONG = "it sent a message that is longer than any that was asked for"

Arrival = tuple[int, int | str]  # worker 1..n; the length of its frame in bytes, or why there is none


class ServerGone(Exception):  # noqa: N818 - no fault of this process
    """The server's process has ended."""


class Task(NamedTuple):
    """What a worker is to do at one step."""

    step: int
    row: int
    leak: tuple[int, ...] = ()  # what simulated Byzantine workers are to know besides, up to n + 1 numbers
    # Where a step takes several rounds: what is asked of this worker, ASK_NUMBERS a pair; see draco/training/pairs.py.
    asks: tuple[int, ...] = ()
    loads: bool = True  # the model of the step comes with it
    enclosed: Tensor | None = None  # bytes (uint8) that come with it, after the model

    def numbers(self) -> list[int]:
        """Return the task as it travels, without what is enclosed: of that the size."""
        size = 0 if self.enclosed is None else len(self.enclosed)
        return [self.step, self.row, self.loads, size, len(self.leak), *self.leak, *self.asks]

    @classmethod
    def of(cls, numbers: Sequence[int]) -> tuple["Task", int]:
        """Return the task that the numbers tell, and how many bytes are enclosed, which come by themselves."""
        step, row, loads, size, leaked = numbers[:5]
        return cls(step, row, tuple(numbers[5 : 5 + leaked]), tuple(numbers[5 + leaked :]), bool(loads)), size


class ServerTransport(Protocol):
    """The server's side."""

    workers: int
    concurrent: bool  # whether workers compute at the same time

    def greetings(self, timeout_s: float) -> list[bytes]:
        """Return what each worker said of itself at the start, at most GREETING_BYTES; nothing for those not up yet."""

    def hand_momenta(self, momenta: Sequence[Tensor]) -> None:
        """Give each worker the momenta (rows, p) float32 that it keeps, once, before its first task."""

    def exchange(self, tasks: Sequence[Task | None], model: Tensor, frames: Tensor) -> Generator[Arrival | None]:
        """Send task and model to every worker that can take them; yield each once its frame is in `frames[row]`.

        A worker whose task is None is left out. Where `Task.loads` is false the model is not sent. What a task encloses
        is sent last.
        Yields None whenever nothing has come, so that the caller may decide to wait no longer and leave. Ends when
        nobody is left who could answer: workers that were not yielded are late or gone.
        """

    def gone(self) -> dict[int, str]:
        """Return the workers whose process has ended, each with how that was noticed."""

    def ready(self) -> set[int]:
        """Return the workers that can take a task now: none that is gone, expelled, or owes an old answer."""

    def held(self) -> dict[int, int]:
        """Return worker -> row for every late reply that is still being written into that row of the frames."""

    def stop(self) -> None:
        """Tell every worker that there is no more work."""


class ServerRank(ServerTransport, Protocol):
    """The server's side where each worker is a process of its own."""

    @property
    def whole(self) -> bool:
        """Whether all ranks are there and well, and are to leave together."""

    def announce(self, text: str) -> None:
        """Send every worker the job: workers see no run directory, which holds a secret and is on the head."""


class WorkerRank(Protocol):
    """A worker's side. Each of its calls may raise ServerGone."""

    whole: bool  # see ServerRank; told with the end of the run

    def job(self) -> str:
        """Return the job that the server announced, as YAML."""

    def greet(self, greeting: bytes) -> None:
        """Say once who this worker is, in no more than GREETING_BYTES."""

    def take_momenta(self, out: Tensor) -> None:
        """Receive the momenta to go on from into `out` (rows, p)."""

    def tasks(self, model: Tensor) -> Iterator[Task]:
        """Yield every task until the server says stop; the step's model (p,) is in `model`."""

    def reply(self, frame: Tensor, length: int) -> None:
        """Send the first `length` bytes of `frame`."""


def ranks(workers: Iterable[int]) -> str:
    """Name workers by their ranks.

    >>> ranks([3, 1])
    'ranks 1, 3'
    """
    return f"ranks {', '.join(map(str, sorted(workers)))}"


def new_frames(count: int, frame_bytes: int) -> Tensor:
    """Return zeroed receive buffers (count, frame_bytes), uint8, aligned and already paged in."""
    return torch.zeros(count, frame_bytes, dtype=torch.uint8)
