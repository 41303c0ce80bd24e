"""A worker that lies: what it knows, what it makes of its honest reply, and how it sends that.

A liar that knows everything needs no messages for it but its task: every partition's gradient follows from (seed, step,
partition) and the model, so it computes them all itself, with the same bits wherever it runs.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from draco.attacks import ATTACKS, Scene, sent_bytes
from draco.errors import DecodeError
from draco.job import Job, aggregator_f
from draco.sampling import derive_seed, generator
from draco.schemes import Scheme
from draco.training import build
from draco.training.gradients import Remembered, StepVectors


class Liars:
    """What the workers of one process share to lie; nothing is computed before an attack asks for it."""

    def __init__(
        self,
        job: Job,
        scheme: Scheme,
        vectors: StepVectors,
        remembered: Remembered,
        aggregate: build.Aggregate,
        sleep: Callable[[float], None] | None,
    ) -> None:
        """`sleep` is None where nothing is waited for; see `attacks.conduct`."""
        self._job, self._scheme, self._vectors = job, scheme, vectors
        self._remembered, self._aggregate, self._sleep = remembered, aggregate, sleep
        self._relabelled = vectors.relabelled()
        self._groups = scheme.groups()
        self._packs = scheme.dtype == torch.uint8
        self._honest: tuple[int, Tensor] | None = None  # of which step

    def lies(self, step: int, rank: int, row: int) -> bool:
        """Say whether a worker lies at `step`."""
        return build.lies(self._job, step, rank, row, self._groups)

    def follow(self, step: int, rank: int) -> None:
        """Keep up with every worker's momentum, at every step, where a liar is to know what the others send."""
        if len(build.followed(self._job, rank)) > 1:
            self._remembered.every(step)

    def lie(self, step: int, rank: int, row: int, told: Sequence[int], reply: Tensor) -> Tensor:
        """Return what is sent in place of `reply`; `told` is what came with the task, see `assembly.told`."""
        job = self._job
        source = generator(job.seed, "attack", step, rank)
        scene = self._scene(step, rank, row, told)
        return ATTACKS[job.attack.name](reply, magnitude=build.magnitude(job), generator=source, scene=scene)

    def sent(self, length: int) -> int | None:
        """Return how much of a frame is sent, when it is time; None: nothing comes in time, or ever."""
        attack, job = self._job.attack, self._job
        if attack.name == "slow":
            patience = job.reply_timeout_s if job.patience_s is None else job.patience_s
            if self._sleep is None and attack.delay_s >= patience:
                return None
            if self._sleep is not None:
                self._sleep(attack.delay_s)
        return sent_bytes(attack.name, length)

    def _scene(self, step: int, rank: int, row: int, told: Sequence[int]) -> Scene:
        past_seed, *rows = told or [0]
        ranks = build.byzantine(self._job, step, rows, self._groups) if rows else ()
        return Scene(
            step=step,
            rank=rank,
            row=row,
            liars=tuple(sorted(rows[liar - 1] for liar in ranks)) or (row,),
            scheme=self._scheme,
            tolerance=build.tolerance(self._job),
            past_seed=past_seed,
            shared=lambda: generator(self._job.seed, "attack", step),
            gradients=lambda: self._remembered.every(step),
            honest=lambda: self._replies(step),
            flipped=lambda: self._poisoned(step, row),
            served=lambda replies: self._served(step, rows, replies),
        )

    def _replies(self, step: int) -> Tensor:
        if self._honest is None or self._honest[0] != step:
            gradients = self._remembered.every(step)
            loads = [torch.from_numpy(row) for row in self._scheme.assignment]
            replies = [self.unpacked(row, gradients[load]) for row, load in enumerate(loads)]
            self._honest = step, torch.stack(replies)
        return self._honest[1]

    def _poisoned(self, step: int, row: int) -> Tensor:
        mine = self._scheme.assignment[row].nonzero()[0].tolist()
        gradients = torch.empty(len(mine), self._vectors.elements)
        for out, partition in zip(gradients, mine, strict=True):
            self._relabelled.partition(step, partition, out)
        return self.unpacked(row, gradients)

    def unpacked(self, row: int, gradients: Tensor) -> Tensor:
        """Return the honest reply (e,), or, where replies are bytes, of which there is no reverse, what they are of."""
        return gradients.mean(0) if self._packs else self._scheme.encode(row, gradients)

    def packed(self, row: int, lie: Tensor) -> Tensor:
        """Return what is sent for a lie in place of `unpacked`."""
        if not self._packs:
            return lie
        load = int(self._scheme.assignment[row].sum())
        return self._scheme.encode(row, lie.expand(load, -1))

    def _served(self, step: int, rows: Sequence[int], replies: Tensor) -> Tensor | None:
        """Return what the server would make of these replies, but for its state: centered clipping begins anew."""
        trusted = self._job.aggregator.trusted
        try:
            if self._packs:
                replies = torch.stack([self.packed(row, reply) for row, reply in enumerate(replies)])
            decoded = self._scheme.decode(replies, seed=derive_seed(self._job.seed, "attack", step))
        except DecodeError:
            return None
        gradients = decoded.gradients[:, : self._vectors.parameters]
        if len(gradients) == 1:
            return gradients[0]
        place = rows[trusted - 1] if trusted and rows else None
        return self._aggregate(gradients, aggregator_f(self._job), step, place, None)


def build_liars(
    job: Job, scheme: Scheme, vectors: StepVectors, remembered: Remembered | None, sleep: Callable[[float], None] | None
) -> Liars | None:
    """Return what one process needs to lie; None where the job has no attack."""
    if job.attack.name == "none":
        return None
    aggregate = build.build_aggregate(job, vectors.model)
    remembered = remembered or Remembered(vectors, scheme.assignment.shape[1])
    return Liars(job, scheme, vectors, remembered, aggregate, sleep)
