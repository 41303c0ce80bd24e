"""The driver of a step in several rounds: it asks workers what the protocol's coroutine wants, and tells it what came.

The coroutine knows no worker's process, no bytes and no clock. This knows nothing of claims and proofs. A worker that
is late beyond the server's patience (`patience.py`), or gone, has not answered: the protocol is told no more.
"""

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from draco.errors import TrainingError
from draco.job import Job
from draco.protocols.court import Court
from draco.protocols.rounds import SERVER, Answer, Ask, Protocol, Rejected, Rounds, Upload
from draco.training import pairs, staging, wire
from draco.training.patience import Patience
from draco.training.transport import ServerTransport, Task, new_frames, ranks
from draco.training.wire import DTYPES

T = TypeVar("T")
Lap = Callable[[str], None]  # charges the time since the last call to a part of the step
Leaked = Callable[[Sequence[int]], tuple[int, ...]]
# (step, partition, transcript, whether every product is compared whole) -> vector, or what is wrong with it
Check = Callable[[int, int, Tensor, bool], Tensor | str]


@dataclass
class Told:
    """What is told of the rounds of one step."""

    rounds: int = 0
    bytes_received: int = 0
    timings: list[wire.Timing] = field(default_factory=list)
    # step -> (worker, partition, whether that was to be computed, and not only replayed) that were asked
    pairs: dict[int, set[tuple[int, int, bool]]] = field(default_factory=dict)
    late: dict[int, float] = field(default_factory=dict)  # rank -> seconds that it alone was waited for
    suspects: set[int] = field(default_factory=set)  # who lied at this step, as the protocol says
    silent: set[int] = field(default_factory=set)  # were asked and did not answer
    refused: dict[int, str] = field(default_factory=dict)  # rank -> why what it sent was no answer
    failed: dict[int, str] = field(default_factory=dict)  # rank -> what it says of its own failure


class Driver:
    """Drives the steps of one run."""

    def __init__(
        self, job: Job, protocol: Protocol, transport: ServerTransport, format_: wire.Wire,
        where: torch.device, check: Check | None = None, products: int = 0,
    ) -> None:  # fmt: skip
        """`check` makes vectors of transcripts, which have up to `products` numbers; vectors are to go to `where`."""
        self.job, self.protocol, self.transport, self.wire = job, protocol, transport, format_
        self.check, self.products = check, products
        self.patience = Patience(job.workers, job.scheme.adversaries, job.reply_timeout_s, job.patience_s)
        self.frames = new_frames(job.workers, 0)
        self.unlike: set[int] = set()  # workers that compute other bits, which are never asked
        self._holds: dict[int, set[int]] = {}  # rank -> the steps whose models it has
        self._pace_s = 0.0  # of the last first round
        # The vectors of this step and of the one before (2, k, d), and which rows of them are taken.
        size = (2, protocol.partitions, format_.elements)
        self._kept = staging.host_vectors(where, 2 * protocol.partitions, format_.elements).view(size)
        self._taken: list[set[int]] = [set(), set()]
        # (worker, partition) of this step -> its transcript, as it came
        self._deposits: dict[tuple[int, int], Tensor] = {}

    def run(
        self, rounds: Rounds[T], court: Court, step: int, model: Tensor, leak: Leaked,
        lap: Lap, *, loads: bool = True,
    ) -> tuple[T, Told]:  # fmt: skip
        """Return what the coroutine of a step comes to, and what is told of its rounds.

        Args:
            rounds: of the protocol.
            court: its absent and lacking workers are kept up to date.
            step: the step that workers take part in.
            model: the parameters (p,) of it.
            leak: partition that each worker is asked for (-1: none) -> what simulated Byzantine workers are told.
            lap: takes the time.
            loads: the model is sent; False: workers who have it go on with that.

        Raises:
            WorkerError: nobody is left who could be asked.
            TrainingError: more workers lie, or fail, than the job tolerates.
        """
        if loads:  # what an earlier try of this step has brought is of no use
            self._taken[step % 2] = set()
        self._deposits = {}
        told, loaded = Told(), {*range(1, self.job.workers + 1)} if not loads else set[int]()
        self._meet(court, step if not loads else step - 1)
        pipelined = loads and self.protocol.close is not None
        idle = {*court.present} if pipelined and court.lies else set()  # who computes nothing now may verify later
        answers: Mapping[Ask, Answer] | None = None  # a coroutine that has not begun is sent None
        while True:
            try:
                asks = rounds.send(answers)  # type: ignore[arg-type]
            except StopIteration as end:
                lap("exchange" if answers is None else "decode")
                told.late = self.patience.note(self._pace_s, told.late) if self.transport.concurrent else {}
                return end.value, told
            answers = self._round(asks, step, model, leak, lap, told, loaded, idle)
            idle = set()
            self._meet(court, step if not loads else step - 1)

    def _meet(self, court: Court, before: int) -> None:
        """Tell the court who can be asked now, and who has not the model of the step before."""
        everybody = {*range(1, self.job.workers + 1)}
        court.absent = everybody - self.transport.ready() | self.unlike
        court.lacking = {rank for rank in everybody if before not in self._holds.get(rank, ())}

    def _round(
        self, asks: Sequence[Ask], step: int, model: Tensor, leak: Leaked, lap: Lap,
        told: Told, loaded: set[int], idle: set[int],
    ) -> Mapping[Ask, Answer]:  # fmt: skip
        """Ask, wait, and return every answer."""
        first, told.rounds = told.rounds == 0, told.rounds + 1
        answers: dict[Ask, Answer] = {ask: self._replayed(ask) for ask in asks if ask.worker == SERVER}
        lap("decode")
        asks = [ask for ask in asks if ask not in answers]
        mine: dict[int, list[Ask]] = {rank: [] for rank in idle}
        for ask in asks:
            mine.setdefault(ask.worker, []).append(ask)
            told.pairs.setdefault(ask.step, set()).add((ask.worker, ask.partition, ask.send != "verdict"))
        if not mine:
            return answers
        main = [next((ask.partition for ask in mine.get(rank, ())), -1) for rank in range(1, self.job.workers + 1)]
        known = leak(main)
        tasks: list[Task | None] = [None] * self.job.workers
        for rank, own in mine.items():
            mine[rank] = own = pairs.in_order(own)
            enclosed = [self._deposits[ask.of, ask.partition] for ask in own if ask.send == "verdict"]
            tasks[rank - 1] = Task(
                step, rank - 1, known, pairs.numbers_of(own), loads=rank not in loaded,
                enclosed=pairs.enclosed(enclosed) if enclosed else None,
            )  # fmt: skip
        self._make_room(max(pairs.room(own, self.wire, self.products) for own in mine.values()))
        answers |= dict.fromkeys(asks)
        answered = self._exchange(tasks, mine, step, model, lap, told, answers, first)
        for rank in answered:
            if rank not in loaded:
                self._holds[rank] = {step, *(held for held in self._holds.get(rank, ()) if held == step - 1)}
        loaded |= answered
        told.silent |= mine.keys() - answered
        if len(told.failed) > self.job.scheme.adversaries:
            why = next(iter(told.failed.values())).removeprefix(f"{wire.FAILED}: ")
            raise TrainingError(f"step {step}: the code of {ranks(told.failed)} failed: {why}")
        return answers

    def _exchange(
        self, tasks: Sequence[Task | None], mine: Mapping[int, list[Ask]], step: int, model: Tensor, lap: Lap,
        told: Told, answers: dict[Ask, Answer], first: bool,
    ) -> set[int]:  # fmt: skip
        """Fill `answers` until all have answered whom it is worth to wait for; return who has."""
        spare, waiting, answered = self.job.scheme.adversaries, {*mine}, set[int]()
        least_s = 0.0 if first else self._pace_s  # the pace of few workers says nothing: it is no less than the step's
        began, pace_s = time.monotonic(), least_s if len(waiting) <= spare else None
        busy_s = 0.0  # the server's own work, which is nobody's delay
        with contextlib.closing(self.transport.exchange(tasks, model, self.frames)) as arrivals:
            for arrival in arrivals:
                now = time.monotonic()
                waited = now - began - busy_s
                if arrival is not None:
                    rank, length = arrival
                    lap("exchange")
                    self._note(rank, length, mine[rank], step, told, answers)
                    lap("decode")
                    busy_s += time.monotonic() - now
                    waiting.discard(rank)
                    answered.add(rank)
                    if pace_s is not None:
                        told.late[rank] = told.late.get(rank, 0.0) + max(waited - max(pace_s, least_s), 0.0)
                    elif len(waiting) <= spare:
                        pace_s = waited
                    continue
                if waited > self.patience.limit_s:
                    break
                missing = waiting - self.transport.gone().keys()
                if pace_s is None or not missing:
                    continue
                beyond = waited - max(pace_s, least_s)
                if beyond > self.patience.spare_s(missing, max(pace_s, least_s)):
                    told.late |= {rank: told.late.get(rank, 0.0) + beyond for rank in missing}
                    break
        lap("exchange")
        if first:
            self._pace_s = time.monotonic() - began - busy_s if pace_s is None else pace_s
        return answered

    def _note(
        self, rank: int, length: int | str, own: list[Ask], step: int, told: Told, answers: dict[Ask, Answer]
    ) -> None:
        """Check what a worker sent."""
        frame = self.frames[rank - 1]
        if isinstance(length, str):
            told.refused[rank] = length
            answers.update({ask: Rejected(length) for ask in own})
            return
        told.bytes_received += length
        if fault := pairs.fault_of(frame, length):
            told.failed[rank] = fault
            return
        found = pairs.unpack(frame, length, own, self.wire, step)
        if isinstance(found, str):
            told.refused[rank] = found
            answers.update({ask: Rejected(found) for ask in own})
            return
        timing, items = found
        told.timings.append(timing)
        for item in items:
            answers[item.ask] = self._answer(item, frame)

    def _answer(self, item: pairs.Item, frame: Tensor) -> Answer:
        if item.ask.send == "vector":
            out = self._row(item.ask)
            return Upload(pairs.take_vector(item, frame, self.wire, out), out)
        if item.ask.send in pairs.DIGESTS:
            return pairs.bytes_of(frame, item)
        if item.ask.send == "sketch":
            return pairs.sketch_of(item, frame)
        if item.ask.send == "deposit":
            self._deposits[item.ask.worker, item.ask.partition] = pairs.deposit_of(item, frame)
            return b""
        transcript = pairs.transcript_of(item, frame)
        commitment = pairs.digest(transcript) if item.ask.send == "opening" else b""
        return self._made(item.ask, transcript, commitment)

    def _replayed(self, ask: Ask) -> Answer:
        """Replay a deposit, for the last time, with every product compared whole."""
        (transcript,) = pairs.disclosed(self._deposits.pop((ask.of, ask.partition)))
        return self._made(ask, transcript)

    def _made(self, ask: Ask, transcript: Tensor, commitment: bytes = b"") -> Answer:
        """Return the vector of a transcript, with the digest that it has as it travels; its memory is used up."""
        assert self.check is not None
        made = self.check(ask.step, ask.partition, transcript, ask.send == "replay")
        if isinstance(made, str):
            return Rejected(made)
        return Upload(pairs.digest(made.to(DTYPES[self.wire.dtype])), made, commitment)

    def _row(self, ask: Ask) -> Tensor:
        """Return memory (d,) for a vector: the row of its partition, where no other vector of the pair has that."""
        taken = self._taken[ask.step % 2]
        if ask.partition in taken:
            return torch.empty(self.wire.elements)
        taken.add(ask.partition)
        return self._kept[ask.step % 2, ask.partition]

    def gradients(self, step: int, uploads: Sequence[Upload]) -> Tensor:
        """Return the vectors of a step as one matrix (k, d), without a copy where all are in their rows."""
        rows = self._kept[step % 2]
        for row, upload in zip(rows, uploads, strict=True):
            if row.data_ptr() != upload.vector.data_ptr():
                row.copy_(upload.vector)
        return rows

    def _make_room(self, size: int) -> None:
        """Have receive buffers of `size` bytes or more. One that an old answer is still written to stays with it."""
        if size > self.frames.shape[1]:
            self.frames = new_frames(self.job.workers, -(-size // 64) * 64)


def finite(uploads: Sequence[Upload]) -> bool:
    """Say whether all numbers of some vectors are."""
    return all(bool(torch.isfinite(upload.vector).all()) for upload in uploads)
