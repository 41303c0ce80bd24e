"""A worker: task -> gradients of its partitions -> encode -> (attack?) -> reply."""

import json
import platform
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from draco import data
from draco.attacks import INFORMED
from draco.job import Job
from draco.schemes import Scheme
from draco.training import build, wire
from draco.training.gradients import Remembered, StepVectors
from draco.training.simulated_byzantine import Liars, build_liars
from draco.training.transport import MpiWorker
from draco.training.worker_momentum import LocalSteps

PartitionVector = Callable[[int, int, Tensor], None]  # (step, partition, out (d,)): write the step vector into out


class Worker(NamedTuple):
    """One worker's part in every step."""

    rank: int
    job: Job
    scheme: Scheme
    vectors: StepVectors
    partition: PartitionVector  # vectors.partition, or a cache of it that simulated workers share
    fused: bool  # encode by one backward over the weighted losses
    wire: wire.Wire
    scratch: Tensor  # (most partitions of a row, d) float32
    liars: Liars | None  # None where nobody lies

    @property
    def momenta(self) -> Tensor:
        """The momenta (rows, p) that this worker keeps; the server hands it those to go on from."""
        local = self.vectors.local
        return torch.zeros(0) if local is None else local.of(build.followed(self.job, self.rank))

    def reply(self, step: int, row: int, model: Tensor, frame: Tensor, *told: int) -> int | None:
        """Compute what `row` sends at `step` into `frame`; return the frame's length in bytes, or None to send nothing.

        `told` is what liars know besides, see `assembly.told`.
        """
        self.vectors.load(model)
        began = time.perf_counter()
        mine = self.scheme.assignment[row].nonzero()[0].tolist()
        if self.fused:
            assert self.scheme.weights is not None
            vector = self.scratch[0]
            self.vectors.weighted(step, mine, self.scheme.weights[row, mine].tolist(), vector)
            computed = time.perf_counter()
        else:
            for out, partition in zip(self.scratch, mine, strict=False):
                self.partition(step, partition, out)
            computed = time.perf_counter()
            vector = self.scheme.encode(row, self.scratch[: len(mine)])
        encoded = time.perf_counter()
        timing = wire.Timing(compute=computed - began, encode=encoded - computed)
        if self.liars is None:
            return wire.pack(vector, self.wire, step, timing, frame)
        self.liars.follow(step, self.rank)
        if not self.liars.lies(step, self.rank, row):
            return wire.pack(vector, self.wire, step, timing, frame)
        if self.scheme.dtype == torch.uint8:
            vector = self.liars.unpacked(row, self.scratch[: len(mine)])
        lie = self.liars.packed(row, self.liars.lie(step, self.rank, row, told, vector))
        sent = self.liars.sent(wire.pack(lie, self.wire, step, timing, frame))
        return None if sent is None else sent + self._attach(step, row, frame[sent:])

    def _attach(self, step: int, row: int, rest: Tensor) -> int:
        """Write a simulated liar's momentum into the rest of its frame, for the server to keep; return its bytes."""
        if self.vectors.local is None or self.rank not in build.attaching(self.job, step):
            return 0
        own = self.vectors.local.of(range(row, row + 1))[0].view(torch.uint8)
        rest[: len(own)] = own
        return len(own)


def build_vectors(job: Job, scheme: Scheme, split: data.Split, followed: range = range(0)) -> tuple[StepVectors, bool]:
    """Return the gradient computation of one process and whether it encodes by one weighted backward.

    `followed`: the rows whose momenta this process keeps.
    """
    model = build.build_model(job, split.info)
    plan = build.build_plan(job, scheme, split.info)._replace(shards=build.build_shards(job, split.labels))
    vectors = StepVectors(model, split, plan, job.device)
    if job.local.momentum or job.local.clip is not None:
        vectors.local = LocalSteps(job.local, vectors.parameters, followed)
    return vectors, build.encodes_freely(job, scheme, model)


def simulated_workers(job: Job, scheme: Scheme, split: data.Split) -> list[Worker]:
    """Return all n workers for one process: one model, each partition's vector computed once a step and shared."""
    vectors, fused = build_vectors(job, scheme, split, range(job.workers))
    shared = job.attack.name in INFORMED or (scheme.assignment.sum(0).max() > 1 and not fused)
    remembered = Remembered(vectors, scheme.assignment.shape[1]) if shared else None
    partition = remembered.partition if remembered else vectors.partition
    scratch = _scratch(scheme, vectors, fused)
    format_ = build.build_wire(job, scheme, vectors.elements)
    liars = build_liars(job, scheme, vectors, remembered, sleep=None)
    return [
        Worker(rank, job, scheme, vectors, partition, fused, format_, scratch, liars)
        for rank in range(1, job.workers + 1)
    ]


def _scratch(scheme: Scheme, vectors: StepVectors, fused: bool) -> Tensor:
    return torch.zeros(1 if fused else build.load(scheme), vectors.elements)


def fingerprint(job: Job) -> bytes:
    """Describe what decides this process's rounding: two workers that say the same should agree bit for bit."""
    facts = {
        "torch": torch.__version__,
        "isa": torch.backends.cpu.get_cpu_capability(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "mkldnn": torch.backends.mkldnn.is_available(),  # type: ignore[no-untyped-call]
        "device": torch.cuda.get_device_name() if job.device == "cuda" else "cpu",
    }
    return json.dumps(facts, sort_keys=True).encode()


def serve(job: Job, rank: int, scheme: Scheme, split: data.Split, transport: MpiWorker) -> None:
    """Answer the server's tasks until it says that there are no more."""
    vectors, fused = build_vectors(job, scheme, split, build.followed(job, rank))
    format_ = build.build_wire(job, scheme, vectors.elements)
    scratch = _scratch(scheme, vectors, fused)
    liars = build_liars(job, scheme, vectors, None, time.sleep)
    worker = Worker(rank, job, scheme, vectors, vectors.partition, fused, format_, scratch, liars)
    model = torch.zeros(vectors.parameters)
    attached = 4 * vectors.parameters if job.local.momentum else 0
    frame = torch.zeros(format_.frame_bytes + attached, dtype=torch.uint8)
    transport.greet(fingerprint(job))
    if job.local.momentum:
        transport.take_momenta(worker.momenta)
    for step, row, *told in transport.tasks(model, build.told(job)):
        length = worker.reply(step, row, model, frame, *told)
        if length is not None:
            transport.reply(frame, length)
