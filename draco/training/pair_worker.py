"""Workers of steps in several rounds: an honest one, and a Byzantine one, who lies about pairs (step, partition).

A worker keeps the models of this step and of the one before, and what it has computed of both: it may be asked for the
digest of a pair and later for its vector, and to verify a pair of the step before.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from draco.errors import OwnCodeError
from draco.job import Job
from draco.protocols.rounds import DENIED, RECORDED, Ask
from draco.protocols.sketch import sketch
from draco.replay import record
from draco.training import adversary, copies, pairs
from draco.training.build import Built
from draco.training.gradients import StepVectors
from draco.training.replayed import replayed
from draco.training.simulated_byzantine import ByzantineWorker, Knowledge
from draco.training.transport import Task
from draco.training.wire import DTYPES, Timing, Wire
from draco.training.worker import build_worker


class PairVectors:
    """The vectors of pairs as this process computes them, each once; as they travel, in the job's `wire.dtype`.

    They are kept in host memory, where digests and sketches of them are taken; models stay on the device.
    """

    def __init__(self, vectors: StepVectors, format_: Wire, ragged: bool | None = None, keeps: bool = False) -> None:
        """`ragged`: partitions may have other shapes from step to step; None: nobody asks for transcripts.

        `keeps`: vectors travel with what proves them: they are made as their transcripts are recorded, which are kept
        for the step.
        """
        self.vectors, self.format, self.keeps = vectors, format_, keeps
        self._transcripts: dict[tuple[int, int], Tensor] = {}
        self._models: dict[int, Tensor] = {}
        self._computed: dict[tuple[int, int], Tensor] = {}
        self._digests: dict[tuple[int, int], bytes] = {}
        self._out = torch.zeros(vectors.elements, device=vectors.device)
        self._used = 0  # the step whose parameters `vectors` has
        # The most numbers of a transcript. Partition 0 is the largest, and every process finds the same.
        self.products = 0 if ragged is None else (1 + ragged) * self._measured()

    def load(self, step: int, model: Tensor) -> None:
        """Take the parameters (p,) of a step; what was computed with others of the same step is forgotten."""
        held, model = self._models.get(step), model.to(self.vectors.device)
        if held is not None and torch.equal(held, model):
            return  # shared by simulated workers
        keeps = {step, step - 1} if held is None else {step - 1}
        self._models = {known: kept for known, kept in self._models.items() if known == step - 1}
        self._models[step] = model.clone()
        self._used = 0
        self._transcripts = {}
        self._computed = {pair: kept for pair, kept in self._computed.items() if pair[0] in keeps}
        self._digests = {pair: kept for pair, kept in self._digests.items() if pair[0] in keeps}

    def vector(self, step: int, partition: int) -> Tensor:
        """Return the vector of a pair in host memory, of the wire's dtype, not to be changed."""
        pair = step, partition
        if pair not in self._computed:
            if self.keeps:
                self.transcript(step, partition)
                return self._computed[pair]
            self.use(step)
            self.vectors.partition(step, partition, self._out)
            self._computed[pair] = copies.on_host(self._out, DTYPES[self.format.dtype])
        return self._computed[pair]

    def digest(self, step: int, partition: int) -> bytes:
        """Return the digest of the vector of a pair."""
        pair = step, partition
        if pair not in self._digests:
            self._digests[pair] = pairs.digest(self.vector(step, partition))
        return self._digests[pair]

    def transcript(self, step: int, partition: int) -> Tensor:
        """Return the products of which the vector of a pair is made, float32, not to be changed."""
        pair = step, partition
        if pair in self._transcripts:
            return self._transcripts[pair]
        self.use(step)
        _, transcript = record(
            lambda: self.vectors.partition(step, partition, self._out), room=max(self.products, 1 << 10)
        )
        if self.products and len(transcript) > self.products:
            raise OwnCodeError(
                f"step {step}: partition {partition} has {len(transcript):,} products, and room is made for "
                f"{self.products:,}, twice those of the first; take samples of like shapes, or another scheme"
            )
        if self.keeps:
            self._transcripts[pair] = transcript
            self._computed[pair] = copies.on_host(self._out, DTYPES[self.format.dtype])
        return transcript

    def _measured(self) -> int:
        """Return how many numbers the transcript of the first pair has."""
        self._models[1] = torch.zeros(self.vectors.parameters)
        self.products = 0
        length = len(self.transcript(1, 0))
        del self._models[1]
        self._used, self._transcripts, self._computed = 0, {}, {}
        return length

    def use(self, step: int) -> None:
        """Let `vectors` have the parameters of a step that is kept."""
        if self._used != step:
            self.vectors.load(step, self._models[step], anew=True)
            self._used = step


class PairWorker:
    """An honest worker."""

    def __init__(self, rank: int, source: PairVectors) -> None:
        self.rank, self.source = rank, source
        self.momenta = torch.zeros(0)  # it keeps none

    def room(self, task: Task) -> int:
        """Return the bytes of the largest reply to a task."""
        return pairs.room(pairs.asks_of(self.rank, task.asks), self.source.format, self.source.products)

    def reply(self, task: Task, model: Tensor, frame: Tensor) -> int | None:
        """Answer the asks of a task into `frame`; return its length in bytes."""
        if task.loads:
            self.source.load(task.step, model)
        began = time.perf_counter()
        asks = pairs.in_order(pairs.asks_of(self.rank, task.asks))
        transcripts = {ask: self.transcript(ask, task) for ask in asks if ask.send in RECORDED}
        verdicts = self._verdicts(asks, task)
        for ask in asks:  # the rest is packing
            if ask.send in ("vector", "digest", "sketch"):
                self.vector(ask, task)
        computed = time.perf_counter()
        items = [
            pairs.sized(transcripts[ask])
            if ask in transcripts
            else _tensor(verdicts[ask])
            if ask in verdicts
            else self._item(ask, task)
            for ask in asks
        ]
        timing = Timing(computed - began, time.perf_counter() - computed)
        return pairs.pack(items, self.source.format, task.step, timing, frame)

    def vector(self, ask: Ask, task: Task) -> Tensor:
        """Return the vector that this worker says is right."""
        del task
        return self.source.vector(ask.step, ask.partition)

    def digest(self, ask: Ask, task: Task) -> bytes:
        """Return the digest of it."""
        del task
        return self.source.digest(ask.step, ask.partition)

    def sketch(self, ask: Ask, task: Task) -> tuple[float, ...]:
        """Return the projections of it that the ask draws."""
        return sketch(self.vector(ask, task).float(), ask.seed)

    def transcript(self, ask: Ask, task: Task) -> Tensor:
        """Return the products of which it is made."""
        del task
        return self.source.transcript(ask.step, ask.partition)

    def commitment(self, ask: Ask, task: Task) -> bytes:
        """Return the digest of those."""
        del task
        return pairs.digest(self.source.transcript(ask.step, ask.partition))

    def verdict(self, ask: Ask, task: Task, transcript: Tensor) -> bytes:
        """Return the digest of the vector that another worker's transcript makes, or DENIED."""
        del task
        made = replayed(self.source, ask.step, ask.partition, transcript)
        return DENIED if isinstance(made, str) else pairs.digest(made.to(DTYPES[self.source.format.dtype]))

    def _verdicts(self, asks: Sequence[Ask], task: Task) -> dict[Ask, bytes]:
        mine = [ask for ask in asks if ask.send == "verdict"]
        if not mine:
            return {}
        assert task.enclosed is not None
        transcripts = pairs.disclosed(task.enclosed)
        return {ask: self.verdict(ask, task, transcript) for ask, transcript in zip(mine, transcripts, strict=True)}

    def _item(self, ask: Ask, task: Task) -> Tensor:
        if ask.send == "vector":
            return pairs.as_bytes(self.vector(ask, task))
        if ask.send == "digest":
            return _tensor(self.digest(ask, task))
        if ask.send == "commitment":
            return _tensor(self.commitment(ask, task))
        if ask.send == "sketch":
            return pairs.as_bytes(torch.tensor(self.sketch(ask, task), dtype=torch.float64))
        raise ValueError(f"{ask.send} is none of what a worker sends")


def _tensor(raw: bytes) -> Tensor:
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8)


class LyingPairWorker(PairWorker):
    """A worker that is honest until the job says that it is not. Its claims fit the vectors that it sends."""

    def __init__(
        self,
        job: Job,
        rank: int,
        source: PairVectors,
        lie: Callable[[Task, Tensor], Tensor],
        conduct: Callable[[int, Timing], int | None],
    ) -> None:
        """`lie` makes a false vector of (task, true vector); `conduct` says how much of a frame is sent, and waits.

        A task's `row` is the partition there.
        """
        super().__init__(rank, source)
        self._job, self._lie, self._conduct = job, lie, conduct
        self._lies: dict[tuple[int, int], Tensor] = {}

    def reply(self, task: Task, model: Tensor, frame: Tensor) -> int | None:
        """See PairWorker; None: it sends nothing."""
        self._lies = {pair: lie for pair, lie in self._lies.items() if pair[0] >= task.step - 1}
        if task.loads:
            self._lies = {pair: lie for pair, lie in self._lies.items() if pair[0] != task.step}
        began = time.perf_counter()
        length = super().reply(task, model, frame)
        if length is None or not self._is_lying(task.step):
            return length
        return self._conduct(length, Timing(time.perf_counter() - began, 0.0))

    def vector(self, ask: Ask, task: Task) -> Tensor:
        """See PairWorker."""
        if not self._is_lying(ask.step):
            return super().vector(ask, task)
        pair = ask.step, ask.partition
        if pair not in self._lies:
            true = self.source.vector(*pair).float()
            self.source.use(ask.step)  # for what the attack may ask for
            false = self._lie(Task(ask.step, ask.partition, task.leak), true)
            self._lies[pair] = false.to(DTYPES[self.source.format.dtype], copy=True)
        return self._lies[pair]

    def digest(self, ask: Ask, task: Task) -> bytes:
        """See PairWorker."""
        if not self._is_lying(ask.step):
            return super().digest(ask, task)
        return pairs.digest(self.vector(ask, task))

    def transcript(self, ask: Ask, task: Task) -> Tensor:
        """Return products of which the first is off by what the attack does to the vector; see PairWorker."""
        true = super().transcript(ask, task)
        if not self._is_lying(ask.step) or ask.send != "transcript":  # beside a vector it is that which is false
            return true
        length = min(len(true), self.source.vectors.elements)
        head = torch.zeros(self.source.vectors.elements)
        head[:length] = true[:length]
        false = self._lie(Task(ask.step, ask.partition, task.leak), head)
        return torch.cat([false[:length].float(), true[length:]])

    def verdict(self, ask: Ask, task: Task, transcript: Tensor) -> bytes:
        """Confirm what a Byzantine worker has sent of the pair; so the work of others is said to be false."""
        if not self._is_lying(ask.step):
            return super().verdict(ask, task, transcript)
        return pairs.digest(self.vector(ask, task))

    def _is_lying(self, step: int) -> bool:
        return self.rank in adversary.byzantine(self._job, step)


def build_pair_workers(
    built: Built, vectors: StepVectors, ranks: Sequence[int], sleep: Callable[[float], None] | None
) -> list[PairWorker]:
    """Return the workers of a process, which share what they compute. `sleep` is None where nothing is waited for."""
    job = built.job
    assert built.protocol is not None
    sends = {*built.protocol.sends}
    recorded = bool(sends & {*RECORDED})
    ragged = job.task is not None if recorded else None
    source = PairVectors(vectors, built.format, ragged, keeps=recorded and "vector" in sends)
    workers: list[PairWorker] = []
    knowledge: Knowledge | None = None
    remembered: Any = _Remembered(source, built.plan.partitions)
    for rank in ranks:
        if not adversary.may_be_byzantine(job, rank):
            workers.append(PairWorker(rank, source))
            continue
        knowledge = knowledge or Knowledge(built, vectors, remembered)
        inner = ByzantineWorker(job, build_worker(built, rank, vectors, remembered), knowledge, sleep)
        workers.append(LyingPairWorker(job, rank, source, inner.lie_about, inner.sent))
    return workers


class _Remembered:
    """The vectors of pairs in the form in which attacks ask for them; see `gradients.Remembered`."""

    def __init__(self, source: PairVectors, partitions: int) -> None:
        self._source, self._partitions = source, partitions

    def every(self, step: int) -> Tensor:
        return self.some(step, range(self._partitions))

    def some(self, step: int, partitions: Sequence[int]) -> Tensor:
        return torch.stack([self._source.vector(step, partition).float() for partition in partitions])
