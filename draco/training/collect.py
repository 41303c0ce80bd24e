"""The server's side of an exchange: replies are received, checked, and decoded as soon as that can be done.

A worker that is gone, or late beyond the server's patience (`patience.py`), is an erasure where the scheme tolerates
that (`Scheme.tolerates`). The step is then taken without it, with the same result. Where it does not, all who can
answer are waited for up to a limit. A reply that is refused is an erasure too, of a worker that is known to be
Byzantine. Some schemes say how many workers may straggle. Their step is taken once all others have answered and nothing
has just come.
"""

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from draco.errors import DecodeError, TrainingError, WorkerError
from draco.job import Job
from draco.schemes import Decoded, Inspection, Scheme
from draco.training import wire
from draco.training.patience import Patience
from draco.training.staging import build_rows
from draco.training.transport import ServerTransport, Task, ranks
from draco.training.worker_momentum import Attached

NOT_FINITE = "it holds numbers that are not finite"
Lap = Callable[[str], None]  # charges the time since the last call to a part of the step


class DivergedError(TrainingError):
    """No reply of a step is finite, or what was made of them is not; `what` says at which step and which."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}: training has diverged; is a defence missing, or optimizer.lr too high?")


@dataclass
class Replies:
    """What came of one step."""

    decoded: Decoded
    absent: set[int]  # ranks that sent nothing
    refused: dict[int, str]  # rank -> why its reply was not used
    timings: list[wire.Timing]
    bytes_received: int  # without attached momenta
    momenta: dict[int, Tensor]  # rank -> (p,): the momentum of a worker that has one; until the next step
    waited: dict[int, float]  # late ranks -> seconds for which only those were waited for who could be done without


@dataclass
class _Arrived:
    """What has come so far."""

    tasks: Sequence[Task]  # of worker 1..n
    mask: np.ndarray[tuple[int], np.dtype[np.bool_]]  # (n,) by row
    refused: dict[int, str] = field(default_factory=dict)
    coming: dict[int, wire.Timing] = field(default_factory=dict)  # row -> timing, where the reply is still copied
    timings: list[wire.Timing] = field(default_factory=list)
    bytes_received: int = 0
    attached: dict[int, Tensor] = field(default_factory=dict)  # rank -> momentum (p,)
    pace_s: float | None = None  # seconds until the scheme could have done without the rest
    waited: dict[int, float] = field(default_factory=dict)  # rank -> seconds beyond that until it came

    @property
    def absent(self) -> set[int]:
        return {
            rank
            for rank, row in enumerate(self.rows, 1)
            if not self.mask[row] and row not in self.coming and rank not in self.refused
        }

    @property
    def rows(self) -> list[int]:
        return [task.row for task in self.tasks]


class Collector:
    """Collects the replies of one step after the other."""

    def __init__(
        self, job: Job, scheme: Scheme, transport: ServerTransport, format_: wire.Wire, momentum: int = 0,
        where: torch.device | None = None,
    ) -> None:  # fmt: skip
        """`momentum`: elements of a worker's momentum, p or 0; `where` replies are decoded, the CPU unless it says."""
        self.job, self.scheme, self.transport, self.wire, self.momentum = job, scheme, transport, format_, momentum
        self.attached = Attached(job, momentum)
        self.staged = build_rows(
            where or torch.device("cpu"), job.workers, format_, scheme.dtype, more=self.attached.room
        )
        self.frames, self.replies = self.staged.frames, self.staged.replies
        self.patience = Patience(job.workers, scheme.adversaries, job.reply_timeout_s, job.patience_s)

    def collect(self, tasks: Sequence[Task], model: Tensor, seed: int, lap: Lap) -> Replies:
        """Send every worker its task, all of one step; return what can be made of the replies.

        Raises:
            WorkerError: workers that are needed are gone or did not answer; names them.
            DecodeError: all have answered, and it cannot be decoded.
            DivergedError: no reply is finite.
            TrainingError: the code of more workers has failed than may lie.
        """
        inspection = self.scheme.inspect(self.replies, seed) if self.scheme.inspect else None
        here = _Arrived(tasks, np.zeros(self.job.workers, np.bool_))
        step, rows = tasks[0].step, here.rows
        decoded = self._exchange(step, model, here, seed, inspection, lap)
        late = self._late(here)
        lap("exchange")
        if len(here.refused) == self.job.workers and set(here.refused.values()) == {NOT_FINITE}:
            raise DivergedError(f"step {step}: no worker's reply is finite")
        self._require_working(step, here)
        if decoded is None:
            decoded = self._decode_or_blame(step, here, seed, inspection)
        lap("decode")
        sent = {rank: self.replies[row, : self.momentum] for rank, row in enumerate(rows, 1) if here.mask[row]}
        momenta = {**sent, **here.attached} if self.momentum else {}
        return Replies(decoded, here.absent, here.refused, here.timings, here.bytes_received, momenta, late)

    def _require_working(self, step: int, here: _Arrived) -> None:
        """Raise TrainingError where the code of more workers has failed than may lie about it."""
        failed = {rank: why for rank, why in here.refused.items() if why.startswith(wire.FAILED)}
        if len(failed) > self.job.scheme.adversaries:
            why = next(iter(failed.values())).removeprefix(f"{wire.FAILED}: ")
            raise TrainingError(f"step {step}: the code of {ranks(set(failed))} failed: {why}")

    def _exchange(
        self, step: int, model: Tensor, here: _Arrived, seed: int, inspection: Inspection | None, lap: Lap
    ) -> Decoded | None:
        """Fill `here` until all who can answer have, or it was decoded without the others."""
        began = time.monotonic()
        tried = -1
        arriving = contextlib.closing(self.transport.exchange(here.tasks, model, self.frames))
        with self.staged.step(), arriving as arrivals:
            for arrival in arrivals:
                waited = time.monotonic() - began
                if arrival is not None:
                    lap("exchange")
                    self._note(step, here, *arrival)
                    lap("decode")
                    self._settle(here, inspection, lap, wait=False)
                    if here.pace_s is not None:
                        here.waited[arrival[0]] = waited - here.pace_s
                    elif self.scheme.spares([here.rows[rank - 1] for rank in here.absent]):
                        here.pace_s = waited
                    continue
                # Nothing has just come. Give up, or try what has come, once for every number of replies.
                self._settle(here, inspection, lap, wait=False)
                if waited > self.patience.limit_s:
                    break
                if here.pace_s is None or int(here.mask.sum()) + len(here.coming) == tried:
                    continue
                missing = here.absent - {*self.transport.gone()}
                beyond = waited - here.pace_s
                spared = self.scheme.stragglers and len(here.absent) <= self.scheme.stragglers
                if spared or beyond > self.patience.spare_s(missing, here.pace_s):
                    here.waited |= dict.fromkeys(missing, beyond)
                    self._settle(here, inspection, lap, wait=True)
                    tried = int(here.mask.sum())
                    with contextlib.suppress(DecodeError):
                        return self._decode(here, seed, inspection)
            self._settle(here, inspection, lap, wait=True)
        return None

    def _late(self, here: _Arrived) -> dict[int, float]:
        """Tell the patience how the exchange went; return the workers that were late, and by how much."""
        if here.pace_s is None or not self.transport.concurrent:
            return {}
        return self.patience.note(here.pace_s, here.waited)

    def _note(self, step: int, here: _Arrived, rank: int, length: int | str) -> None:
        """Check one reply, and begin to bring it to where it is decoded."""
        row = here.rows[rank - 1]
        if isinstance(length, int):
            length, momentum = self.attached.take(step, rank, self.frames[row], length)
            if momentum is not None:
                here.attached[rank] = momentum
            here.bytes_received += length
        timing = length if isinstance(length, str) else self.staged.put(row, length, step)
        if isinstance(timing, str):
            here.refused[rank] = timing
        else:
            here.coming[row] = timing

    def _settle(self, here: _Arrived, inspection: Inspection | None, lap: Lap, *, wait: bool) -> None:
        """Take note of the replies that have reached the place where they are decoded; with `wait`, of all."""
        if not here.coming:
            return
        lap("exchange")
        for row, finite in self.staged.settled(wait=wait):
            timing = here.coming.pop(row)
            if not finite:
                here.refused[here.rows.index(row) + 1] = NOT_FINITE
                continue
            here.mask[row] = True
            here.timings.append(timing)
            if inspection:
                inspection.add(row)
        lap("decode")

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
