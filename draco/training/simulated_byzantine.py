"""A simulated Byzantine worker: an honest worker inside, its knowledge, and its attack on the honest reply.

A worker that knows everything needs no message but its task. Every partition's gradient follows from (seed, step,
partition) and the model. So it computes them itself, with the same bits wherever it runs. Nothing is computed that the
attack does not ask for, and nothing twice in a step by the Byzantine workers of one process.

On a GPU gradients are computed and encoded there, as honest ones are, and have their bits. Attacks get copies in host
memory, and are carried out on the CPU.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from draco.attacks import Scene
from draco.errors import DecodeError
from draco.job import Job, aggregator_f, attack, byzantine_count
from draco.sampling import derive_seed, generator
from draco.schemes import SCHEMES
from draco.training import adversary, build, wire
from draco.training.adversary import Leak
from draco.training.build import Built
from draco.training.gradients import Remembered, StepVectors
from draco.training.patience import Patience
from draco.training.transport import Task
from draco.training.wire import Timing
from draco.training.worker import Worker
from draco.training.worker_momentum import Attached, followed

_JUST_LESS = 0.9  # of the time that the server would wait, as far as a worker can tell


class Knowledge:
    """The common knowledge of the Byzantine workers of one process; nothing is computed before an attack asks."""

    def __init__(self, built: Built, vectors: StepVectors, remembered: Remembered | None = None) -> None:
        """`remembered`: the process's own cache of step vectors, if it has one."""
        scheme = built.scheme
        self._job, self._scheme, self._vectors = built.job, scheme, vectors
        self._remembered = remembered or Remembered(vectors, scheme.assignment.shape[1])
        self._aggregate = built.aggregate
        self._relabelled = Remembered(vectors.relabelled(), scheme.assignment.shape[1])
        self._packs = scheme.dtype == torch.uint8
        self._dtype = torch.float32 if self._packs else scheme.dtype
        self._elements = vectors.elements if self._packs else scheme.elements(vectors.elements)
        # What the colluders know in common, by name; it holds for one step, and for one draw of their rows.
        self._common: tuple[tuple[int, Sequence[int]], dict[str, Any]] = (0, ()), {}
        self.groups = scheme.groups()

    def follow(self, step: int) -> None:
        """Keep up with every worker's momentum."""
        self._remembered.every(step)

    def scene(self, rank: int, task: Task) -> Scene:
        """Return what the worker `rank` may know of its task's step."""
        step, row = task.step, task.row
        leak = Leak.of(task.leak)
        ranks = adversary.byzantine(self._job, step, leak.rows, self.groups) if leak else ()
        theirs = {leak.rows[rank - 1] for rank in ranks} if leak else set()
        byzantine = tuple(sorted({row, *(each for each in theirs if each >= 0)}))  # -1: it has none in this round
        if self._common[0] != (step, byzantine):
            self._common = (step, byzantine), {}
        known = self._common[1]
        every = range(self._scheme.workers)
        scene = Scene(
            step=step,
            rank=rank,
            row=row,
            byzantine=byzantine,
            scheme=self._scheme,
            tolerance=build.tolerance(self._job),
            projections=lambda elements: self._projections(leak, elements),
            shared=lambda: generator(self._job.seed, "attack", step),
            gradients=lambda: self._remembered.every(step).cpu(),
            honest=lambda: scene.once("honest", lambda: self._replies(step, every)),
            others=lambda: scene.once("others", lambda: self._replies(step, [i for i in every if i not in byzantine])),
            flipped=lambda: self._poisoned(step, row),
            served=lambda replies: self._served(step, leak, replies),
            known=known,
        )
        return scene

    def unpacked(self, row: int, gradients: Tensor) -> Tensor:
        """Return the honest reply (e,), or the mean gradient (d,) where replies are bytes, which have no reverse."""
        return gradients.mean(0) if self._packs else self._scheme.encode(row, gradients)

    def packed(self, row: int, vector: Tensor) -> Tensor:
        """Return what is sent for a vector that takes the place of `unpacked`."""
        if not self._packs:
            return vector
        load = int(self._scheme.assignment[row].sum())
        return self._scheme.encode(row, vector.expand(load, -1))

    def unseen(self) -> Tensor:
        """Return what stands for an honest reply (e,) that nobody computes: NaN, in no memory of its own."""
        return torch.full((1,), math.nan, dtype=self._dtype).expand(self._elements)

    def _projections(self, leak: Leak | None, elements: int) -> Tensor:
        project = SCHEMES[self._scheme.name].project
        if project is None or leak is None:
            raise ValueError(f"{self._scheme.name} has no projections that are known")
        return project(leak.past_seed, elements)

    def _replies(self, step: int, rows: Sequence[int]) -> Tensor:
        """Return the honest replies (number of rows, e) of some rows."""
        replies = torch.empty(len(rows), self._elements, dtype=self._dtype)
        for out, row in zip(replies, rows, strict=True):
            out.copy_(self.unpacked(row, self._remembered.some(step, self._partitions(row))))
        return replies

    def _poisoned(self, step: int, row: int) -> Tensor:
        return self.unpacked(row, self._relabelled.some(step, self._partitions(row))).cpu()

    def _partitions(self, row: int) -> list[int]:
        mine: list[int] = self._scheme.assignment[row].nonzero()[0].tolist()
        return mine

    def _served(self, step: int, leak: Leak | None, replies: Tensor) -> Tensor | None:
        """Return what the server would make of these replies, without its state: centered clipping begins anew."""
        trusted = self._job.aggregator.get("trusted")
        try:
            if self._packs:
                replies = torch.stack([self.packed(row, reply) for row, reply in enumerate(replies)])
            decoded = self._scheme.decode(replies, seed=derive_seed(self._job.seed, "attack", step))
        except DecodeError:
            return None
        gradients = decoded.gradients[:, : self._vectors.parameters]
        if len(gradients) == 1:
            return gradients[0]
        place = leak.rows[trusted - 1] if trusted and leak else None
        return self._aggregate(gradients, aggregator_f(self._job), step, place, None)


class ByzantineWorker:
    """A worker that is honest until the job says that it is not."""

    def __init__(
        self, job: Job, honest: Worker, knowledge: Knowledge, sleep: Callable[[float], None] | None = None
    ) -> None:
        """`sleep` is None where nothing is waited for; see `attacks.conduct`."""
        self._job, self._honest, self._knowledge, self._sleep = job, honest, knowledge, sleep
        declared = attack(job)
        assert declared is not None
        self._attack = declared
        self._others = declared.others(job.attack.given())
        self._magnitude = declared.magnitude(job.attack.given(), job.workers, byzantine_count(job))
        # A momentum goes on beneath the lies.
        self._lies_blindly = not declared.own and not job.local.momentum
        self._attached = Attached(job, honest.vectors.parameters)
        self._patience = Patience(job.workers, byzantine_count(job), job.reply_timeout_s, job.patience_s)
        self._follows = len(followed(job, honest.rank)) > 1
        self.rank, self.momenta, self.vectors, self.wire = honest.rank, honest.momenta, honest.vectors, honest.wire

    def room(self, task: Task) -> int:
        """Return the bytes of the largest reply to a task."""
        return self._honest.room(task) + self._attached.room

    def reply(self, task: Task, model: Tensor, frame: Tensor) -> int | None:
        """Compute what is sent into `frame`; return its length in bytes, or None to send nothing."""
        lies = adversary.is_byzantine(self._job, task.step, self.rank, task.row, self._knowledge.groups)
        if lies and self._lies_blindly:
            self.vectors.load(task.step, model)  # for what the attack may ask for
            vector, timing = self._knowledge.unseen(), Timing(compute=0.0, encode=0.0)
        else:
            vector, timing = self._honest.compute(task, model, self._knowledge.unpacked if lies else None)
            vector = vector.cpu() if lies else vector
        if self._follows:
            self._knowledge.follow(task.step)
        if not lies:
            return wire.pack(vector, self.wire, task.step, timing, frame)
        source = generator(self._job.seed, "attack", task.step, self.rank)
        false = self._knowledge.packed(task.row, self._false(task, vector, source))
        self.vectors.wait()  # for the model, which whoever sends the next one may overwrite
        sent = self.sent(wire.pack(false, self.wire, task.step, timing, frame), timing)
        if sent is None:
            return None
        return sent + self._attached.write(task.step, self.rank, self.vectors.local, frame[sent:])

    def lie_about(self, task: Task, true: Tensor) -> Tensor:
        """Return what takes the place of the vector (d,) of a pair: the same for all who are asked about it."""
        return self._false(task, true, generator(self._job.seed, "attack", task.step, "pair", task.row))

    def _false(self, task: Task, reply: Tensor, source: torch.Generator) -> Tensor:
        """Return what takes the place of the honest reply, before it is packed into bytes."""
        scene = self._knowledge.scene(self.rank, task)
        return self._attack(reply, magnitude=self._magnitude, generator=source, scene=scene, **self._others)

    def sent(self, length: int, timing: wire.Timing) -> int | None:
        """Return how much of a frame is sent, when it is time; None: nothing comes in time, or ever."""
        if self._attack.delays:
            job, fixed = self._job, self._job.attack.get("delay") == "fixed"
            patience = job.reply_timeout_s if job.patience_s is None else job.patience_s
            if self._sleep is not None:
                self._sleep(self._delay_s(timing))
            elif fixed and self._job.attack.get("delay_s") >= patience:
                return None
        return self._attack.sent_bytes(length)

    def _delay_s(self, timing: wire.Timing) -> float:
        """Return by how much an answer comes later.

        A worker that knows the server's rule keeps the server's book of it. It takes its own time for the pace of all.
        """
        if self._job.attack.get("delay") == "fixed":
            return float(self._job.attack.get("delay_s"))
        pace = timing.compute + timing.encode
        delay = _JUST_LESS * self._patience.spare_s([self.rank], pace)
        self._patience.note(pace, {self.rank: delay})
        return delay
