"""An honest worker: task -> gradients of its partitions -> encode -> reply.

On a GPU all of it but the reply's bytes is there. What is sent is converted to the wire's format there too, and comes
to the host in one piece (wire.py). Times are taken when the GPU has done what they are the time of.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from draco.job import Job
from draco.schemes import Scheme
from draco.training import device, wire
from draco.training.build import Built
from draco.training.gradients import Remembered, StepVectors
from draco.training.transport import Task
from draco.training.wire import Timing
from draco.training.worker_momentum import LocalSteps, followed

Encode = Callable[[int, Tensor], Tensor]  # (row, its step vectors (load, d)) -> what it sends (e,)


class Worker(NamedTuple):
    """One worker's part in every step."""

    rank: int
    scheme: Scheme
    vectors: StepVectors
    remembered: Remembered | None  # all step vectors of a step, where simulated workers share them
    fused: bool  # encode by one backward over the weighted losses
    wire: wire.Wire
    scratch: Tensor  # (most partitions of a row, d) float32 on its device; fewer rows where they are not needed
    momenta: Tensor  # (rows, p), there too: those that it keeps; the server hands it what to go on from

    def room(self, task: Task) -> int:
        """Return the bytes of the largest reply to a task."""
        del task
        return self.wire.frame_bytes

    def reply(self, task: Task, model: Tensor, frame: Tensor) -> int:
        """Compute what the task asks for into `frame`; return the frame's length in bytes."""
        vector, timing = self.compute(task, model)
        return wire.pack(vector, self.wire, task.step, timing, frame)

    def compute(self, task: Task, model: Tensor, encode: Encode | None = None) -> tuple[Tensor, Timing]:
        """Return the encoded reply (e,), not to be changed, and how long it took; `encode` replaces the scheme's.

        It is on the worker's device, or on the CPU, as the encoder leaves it.
        """
        self.vectors.load(task.step, model)
        began = time.perf_counter()
        mine = self.scheme.assignment[task.row].nonzero()[0].tolist()
        if self.fused:
            assert self.scheme.weights is not None
            vector = self.scratch[0]
            self.vectors.weighted(task.step, mine, self.scheme.weights[task.row, mine].tolist(), vector)
            self.vectors.wait()
            computed = time.perf_counter()
        else:
            gradients = self._gradients(task.step, mine)
            self.vectors.wait()
            computed = time.perf_counter()
            vector = (encode or self.scheme.encode)(task.row, gradients)
            self.vectors.wait()
        return vector, Timing(compute=computed - began, encode=time.perf_counter() - computed)

    def _gradients(self, step: int, partitions: Sequence[int]) -> Tensor:
        if self.remembered:
            return self.remembered.some(step, partitions)
        for out, partition in zip(self.scratch, partitions, strict=False):
            self.vectors.partition(step, partition, out)
        return self.scratch[: len(partitions)]


def build_vectors(built: Built, kept: range = range(0)) -> StepVectors:
    """Return the gradient computation of one process, which keeps the momenta of the rows `kept`.

    Raises:
        MissingError: the job's workers compute on GPUs, and this process sees none.
    """
    local = built.job.local
    vectors = StepVectors(built.task, built.model, built.train, built.plan, device.of_worker(built.job))
    if local.momentum or local.clip is not None:
        vectors.local = LocalSteps(local, vectors.parameters, kept, vectors.device)
    return vectors


def build_worker(built: Built, rank: int, vectors: StepVectors, remembered: Remembered | None = None) -> Worker:
    """Return the honest worker of a rank, which computes with `vectors`."""
    fused = built.encodes_freely
    rows = 1 if fused else 0 if remembered else built.load
    return Worker(
        rank=rank,
        scheme=built.scheme,
        vectors=vectors,
        remembered=remembered,
        fused=fused,
        wire=built.format,
        scratch=torch.zeros(rows, vectors.elements, device=vectors.device),
        momenta=momenta_of(built.job, rank, vectors),
    )


def momenta_of(job: Job, rank: int, vectors: StepVectors) -> Tensor:
    """Return those of the process's momenta that the worker `rank` keeps, (rows, p)."""
    return torch.zeros(0, device=vectors.device) if vectors.local is None else vectors.local.of(followed(job, rank))
