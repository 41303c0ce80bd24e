"""The server's side of an exchange: replies are received, checked, and decoded as soon as that can be done.

A worker that is gone, or late beyond the server's patience, is an erasure where the scheme tolerates that
(`Scheme.tolerates`). The step is then taken without it, with the same result. Where it does not, all who can answer are
waited for up to a limit. A reply that is refused is an erasure too, of a worker that is known to be Byzantine. Some
schemes say how many workers may straggle. Their step is taken once all others have answered and nothing has just come.
"""

import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median

import numpy as np
from torch import Tensor

from draco.aggregators.rows import is_finite
from draco.errors import DecodeError, TrainingError, WorkerError
from draco.job import Job
from draco.schemes import Decoded, Inspection, Scheme
from draco.training import wire
from draco.training.transport import ServerTransport, Task, new_frames, ranks
from draco.training.worker_momentum import Attached

NOT_FINITE = "it holds numbers that are not finite"
DIVERGED = "training has diverged; is a defence missing, or optimizer.lr too high?"
# Both are (times the median of recent steps, at least so many seconds).
_LATE = (10.0, 2.0)  # for a worker that the scheme can do without
_LOST = (20.0, 30.0)  # for a worker that is needed
_FIRST, _RECENT = 5, 20  # steps from which on there is a median, and over which it is taken

Lap = Callable[[str], None]  # charges the time since the last call to a part of the step


class Patience:
    """The time that a step's replies are waited for, from the time that recent steps took."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._taken: deque[float] = deque(maxlen=_RECENT)

    def note(self, seconds: float) -> None:
        """Count a step from which nobody was absent."""
        self._taken.append(seconds)

    @property
    def limit_s(self) -> float:
        """Seconds after which a worker that is needed is lost."""
        return min(self._job.reply_timeout_s, self._usual(_LOST, default=math.inf))

    @property
    def spare_s(self) -> float:
        """Seconds after which a worker is left out that can be done without."""
        if self._job.patience_s is not None:
            return self._job.patience_s
        return self._usual(_LATE, default=self._job.reply_timeout_s)

    def _usual(self, rule: tuple[float, float], default: float) -> float:
        times, least = rule
        return max(least, times * median(self._taken)) if len(self._taken) >= _FIRST else default


@dataclass
class Replies:
    """What came of one step."""

    decoded: Decoded
    absent: set[int]  # ranks that sent nothing
    refused: dict[int, str]  # rank -> why its reply was not used
    timings: list[wire.Timing]
    bytes_received: int  # without attached momenta
    momenta: dict[int, Tensor]  # rank -> (p,): the momentum of a worker that has one; until the next step


@dataclass
class _Arrived:
    """What has come so far."""

    tasks: Sequence[Task]  # of worker 1..n
    mask: np.ndarray[tuple[int], np.dtype[np.bool_]]  # (n,) by row
    refused: dict[int, str] = field(default_factory=dict)
    timings: list[wire.Timing] = field(default_factory=list)
    bytes_received: int = 0
    attached: dict[int, Tensor] = field(default_factory=dict)  # rank -> momentum (p,)

    @property
    def absent(self) -> set[int]:
        return {rank for rank, row in enumerate(self.rows, 1) if not self.mask[row] and rank not in self.refused}

    @property
    def rows(self) -> list[int]:
        return [task.row for task in self.tasks]


class Collector:
    """Collects the replies of one step after the other."""

    def __init__(
        self, job: Job, scheme: Scheme, transport: ServerTransport, format_: wire.Wire, momentum: int = 0
    ) -> None:
        """`momentum`: elements of a worker's momentum, p or 0."""
        self.job, self.scheme, self.transport, self.wire, self.momentum = job, scheme, transport, format_, momentum
        self.attached = Attached(job, momentum)
        self.frames = new_frames(job.workers, format_.frame_bytes + self.attached.room)
        self.replies = wire.reply_matrix(self.frames, format_, scheme.dtype)
        self.patience = Patience(job)

    def collect(self, tasks: Sequence[Task], model: Tensor, seed: int, lap: Lap) -> Replies:
        """Send every worker its task, all of one step; return what can be made of the replies.

        Raises:
            WorkerError: workers that are needed are gone or did not answer; names them.
            DecodeError: all have answered, and it cannot be decoded.
            TrainingError: no reply is finite.
        """
        inspection = self.scheme.inspect(self.replies, seed) if self.scheme.inspect else None
        here = _Arrived(tasks, np.zeros(self.job.workers, np.bool_))
        step, rows = tasks[0].step, here.rows
        decoded = self._exchange(step, model, here, seed, inspection, lap)
        lap("exchange")
        if len(here.refused) == self.job.workers and set(here.refused.values()) == {NOT_FINITE}:
            raise TrainingError(f"step {step}: no worker's reply is finite: {DIVERGED}")
        if decoded is None:
            decoded = self._decode_or_blame(step, here, seed, inspection)
        lap("decode")
        sent = {rank: self.replies[row, : self.momentum] for rank, row in enumerate(rows, 1) if here.mask[row]}
        momenta = {**sent, **here.attached} if self.momentum else {}
        return Replies(decoded, here.absent, here.refused, here.timings, here.bytes_received, momenta)

    def _exchange(
        self, step: int, model: Tensor, here: _Arrived, seed: int, inspection: Inspection | None, lap: Lap
    ) -> Decoded | None:
        """Fill `here` until all who can answer have, or it was decoded without the others."""
        began = time.monotonic()
        tried = -1
        with contextlib.closing(self.transport.exchange(here.tasks, model, self.frames)) as arrivals:
            for arrival in arrivals:
                if arrival is not None:
                    lap("exchange")
                    self._note(step, here, *arrival, inspection)
                    lap("decode")
                    continue
                # Nothing has just come. Give up, or try what has come, once for every number of replies.
                waited, count = time.monotonic() - began, int(here.mask.sum())
                if waited > self.patience.limit_s:
                    return None
                enough = self.scheme.stragglers and len(here.absent) <= self.scheme.stragglers
                if (enough or waited > self.patience.spare_s) and count != tried:
                    tried = count
                    with contextlib.suppress(DecodeError):
                        return self._decode(here, seed, inspection)
        if not here.absent:
            self.patience.note(time.monotonic() - began)
        return None

    def _note(self, step: int, here: _Arrived, rank: int, length: int | str, inspection: Inspection | None) -> None:
        """Check one reply."""
        row = here.tasks[rank - 1].row
        if isinstance(length, int):
            length, momentum = self.attached.take(step, rank, self.frames[row], length)
            if momentum is not None:
                here.attached[rank] = momentum
            here.bytes_received += length
        timing = self._checked(step, row, length)
        if isinstance(timing, str):
            here.refused[rank] = timing
            return
        here.mask[row] = True
        here.timings.append(timing)
        if inspection:
            inspection.add(row)

    def _checked(self, step: int, row: int, length: int | str) -> wire.Timing | str:
        """Return the timing in a usable reply, or why it is refused."""
        if isinstance(length, str):
            return length
        timing = wire.unpack(self.frames[row], length, self.wire, step, self.replies[row])
        if isinstance(timing, wire.Timing) and not is_finite(self.replies[row]):
            return NOT_FINITE
        return timing

    def _decode(self, here: _Arrived, seed: int, inspection: Inspection | None) -> Decoded:
        """Decode what is here; raise a DecodeError where that might be wrong."""
        decoded = self.scheme.decode(self.replies, here.mask, seed=seed, inspection=inspection)
        absent = [here.rows[rank - 1] for rank in here.absent]
        if not self.scheme.tolerates(absent, decoded.suspects, len(decoded.gradients)):
            raise DecodeError(f"{len(absent)} missing and {len(decoded.suspects)} suspects are too many")
        return decoded

    def _decode_or_blame(self, step: int, here: _Arrived, seed: int, inspection: Inspection | None) -> Decoded:
        """Decode, or raise what is to blame: those who are missing, or what was sent."""
        absent = here.absent
        try:
            return self._decode(here, seed, inspection)
        except DecodeError as error:
            if not absent:
                raise
            gone = absent & {*self.transport.gone()}
            ended = f"{ranks(gone)} ended" if gone else ""
            silent = f"{ranks(absent - gone)} did not answer step {step} within the time limit" if absent - gone else ""
            who = "; ".join(filter(None, (ended, silent)))
            raise WorkerError(f"{who}, and the {self.scheme.name} scheme cannot do without: {error}") from None
