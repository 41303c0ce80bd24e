"""The step vectors that a worker computes: a flat float32 vector per partition, or per weighted sum of partitions.

The step vector of partition j, d = p + b + 1 elements, is

    [ gradient of the p parameters | b BatchNorm batch statistics | loss ]  *  k |P_j| / B

where partition j has |P_j| of the B samples of the global batch. So the mean over the k partitions is exactly the mean
over the batch, whatever the partitions' sizes.

The statistics and the loss travel in the same vector as the gradient, so what protects one protects all. No BatchNorm
statistic and no reported loss comes from a single worker alone.

Samples, augmentation and dropout masks are keyed by (seed, step, partition): every worker that computes a partition
computes the same vector.
"""

import copy
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from draco.errors import OwnCodeError
from draco.models import batch_norm
from draco.models.dropout import SeededDropout, set_dropout
from draco.models.flat import flatten, trained
from draco.own import blamed
from draco.sampling import batch_indices, generator, partition_bounds
from draco.tasks import Task
from draco.tasks.batch import joined, moved
from draco.training.worker_momentum import LocalSteps


class Plan(NamedTuple):
    """How each step's batch is cut and seeded."""

    seed: int
    batch_size: int  # B
    partitions: int  # k
    samples: int  # N, of the training split
    shards: Sequence[Tensor] | None = None  # k of them: whose samples partition j draws from; None: all draw from all


class StepVectors:
    """Computes step vectors with one model and one training set. Not safe for use by several threads at once."""

    def __init__(self, task: Task, model: nn.Module, samples: Any, plan: Plan, device: str = "cpu") -> None:
        self._task, self._samples = task, samples
        self.model = model.to(device).train()
        self._flat = flatten(self.model)
        batch_norm.measure_batch_statistics(self.model)
        self._parameters = trained(self.model)
        self._drops = any(isinstance(module, SeededDropout) for module in self.model.modules())
        self._plan, self._device = plan, device
        self._flips = False
        self._loaded = 0  # the step whose parameters the model has
        self._batch = 0, torch.empty(0)  # step -> its samples, (B,)
        self._bounds = partition_bounds(plan.batch_size, plan.partitions)
        self._statistics = batch_norm.statistics_size(model)
        self._cleared = torch.zeros(self._statistics, device=device)
        self._scale = plan.partitions / plan.batch_size
        self.parameters = self._flat.numel()  # p
        self.elements = self.parameters + self._statistics + 1  # d
        self._staging = None if device == "cpu" else torch.empty(self.elements, device=device)
        self.local: LocalSteps | None = None  # clipping and momentum of partition j, which worker j + 1 computes

    def load(self, step: int, parameters: Tensor) -> None:
        """Take the server's parameters (p,) of a step, once where several workers share this."""
        if self._loaded != step:
            self._flat.copy_(parameters)
            self._loaded = step

    def partition(self, step: int, partition: int, out: Tensor) -> None:
        """Write the step vector of one partition into `out` (d,)."""
        vector = out if self._staging is None else self._staging
        if self._statistics:
            batch_norm.write_statistics(self.model, self._cleared)  # a NaN of an earlier step would stay for ever
        self._backward(step, [partition], [1.0], vector)
        if self._statistics:
            start, stop = self._bounds[partition]
            statistics = vector[self.parameters : -1]
            batch_norm.read_statistics(self.model, statistics)
            statistics *= self._scale * (stop - start)
        if self._staging is not None:
            out.copy_(self._staging)
        if self.local:
            self.local(step, partition, out)

    def relabelled(self) -> "StepVectors":
        """Return the same computation with false labels, as `Task.flipped` makes them; model and memory are shared."""
        other = copy.copy(self)
        other._flips = True
        return other

    def weighted(self, step: int, partitions: Sequence[int], weights: Sequence[float], out: Tensor) -> None:
        """Write sum_j weights[j] * (step vector of partitions[j]) into `out` (d,), from one backward pass.

        By linearity the gradient of the weighted sum of losses is the weighted sum of gradients. So encoding a real
        linear code costs nothing. That holds only where no sample of a batch influences another one's loss.
        """
        if self._statistics:
            raise ValueError("one backward over several partitions would mix their BatchNorm statistics")
        self._backward(step, partitions, weights, out if self._staging is None else self._staging)
        if self._staging is not None:
            out.copy_(self._staging)

    def _backward(self, step: int, partitions: Sequence[int], weights: Sequence[float], out: Tensor) -> None:
        parts = [self._batch_of(step, j) for j in partitions]
        sizes = [stop - start for start, stop in (self._bounds[j] for j in partitions)]
        whole = joined(parts)
        if whole is None:  # they do not fit together: one after the other, to the same sum
            return self._one_by_one(step, parts, partitions, weights, out)
        self._seed_dropout(step, partitions, sizes)
        loss = self._loss(whole, sizes, weights)
        gradients = torch.autograd.grad(loss, self._parameters, materialize_grads=True)
        views = torch.split(out[: self.parameters], [p.numel() for p in self._parameters])
        torch._foreach_copy_(list(views), [g.reshape(-1) for g in gradients])
        out[-1] = loss.detach()
        return None

    def _one_by_one(
        self, step: int, parts: Sequence[Any], partitions: Sequence[int], weights: Sequence[float], out: Tensor
    ) -> None:
        out.zero_()
        views = torch.split(out[: self.parameters], [p.numel() for p in self._parameters])
        for part, partition, weight in zip(parts, partitions, weights, strict=True):
            start, stop = self._bounds[partition]
            self._seed_dropout(step, [partition], [stop - start])
            loss = self._loss(part, [stop - start], [weight])
            gradients = torch.autograd.grad(loss, self._parameters, materialize_grads=True)
            torch._foreach_add_(list(views), [g.reshape(-1) for g in gradients])
            out[-1] += loss.detach()

    def _seed_dropout(self, step: int, partitions: Sequence[int], sizes: Sequence[int]) -> None:
        if self._drops:
            seeds = [generator(self._plan.seed, "dropout", step, j) for j in partitions]
            set_dropout(self.model, list(zip(sizes, seeds, strict=True)))

    def _loss(self, batch: Any, sizes: Sequence[int], weights: Sequence[float]) -> Tensor:
        """Return the weighted sum of the losses of a batch of whole partitions, scaled by k / B, as one number."""
        with blamed(f"{type(self._task).__name__}.loss()"):
            losses = self._task.loss(self.model, batch)
        if not self._task.per_sample:  # one partition, of which it is the mean
            return losses * (weights[0] * self._scale * sizes[0])
        repeated = [weight for weight, size in zip(weights, sizes, strict=True) for _ in range(size)]
        per_sample = torch.tensor(repeated).to(self._device) * self._scale
        return losses @ per_sample

    def indices(self, step: int, partition: int) -> Tensor:
        """Return the samples of a partition: a slice of the step's batch, or as many of its shard's next ones."""
        plan, (start, stop) = self._plan, self._bounds[partition]
        if plan.shards is None:
            if self._batch[0] != step:  # all partitions are slices of one batch
                self._batch = step, batch_indices(plan.seed, step, plan.batch_size, plan.samples)
            return self._batch[1][start:stop]
        shard = plan.shards[partition]
        return shard[batch_indices(plan.seed, step, stop - start, len(shard), partition)]

    def _batch_of(self, step: int, partition: int) -> Any:
        """Return the samples of a partition as a batch, augmented, on the device."""
        source = generator(self._plan.seed, "augmentation", step, partition)
        name = type(self._task).__name__
        with blamed(f"{name}: the samples of partition {partition} at step {step}"):
            batch = self._task.drawn(self._samples, self.indices(step, partition), source)
        if self._flips:
            with blamed(f"{name}.flipped()"):
                batch = self._task.flipped(batch)
            if batch is None:
                raise OwnCodeError(f"{name}: label_flip needs false labels: add {name}.flipped()")
        return moved(batch, self._device)


class Remembered:
    """The step vectors of all k partitions, each computed once a step."""

    def __init__(self, vectors: StepVectors, partitions: int) -> None:
        self._vectors = vectors
        self._steps = [0] * partitions

    @cached_property
    def _kept(self) -> Tensor:  # no memory before it is needed
        return torch.empty(len(self._steps), self._vectors.elements)

    def every(self, step: int) -> Tensor:
        """Return those of all partitions (k, d), valid until the next step; they may not be changed."""
        for partition in range(len(self._steps)):
            self._compute(step, partition)
        return self._kept

    def some(self, step: int, partitions: Sequence[int]) -> Tensor:
        """Return those of some partitions (number, d), valid until the next step; they may not be changed."""
        for partition in partitions:
            self._compute(step, partition)
        first = partitions[0]
        return self._kept[first : first + 1] if len(partitions) == 1 else self._kept[list(partitions)]

    def _compute(self, step: int, partition: int) -> None:
        if self._steps[partition] != step:
            self._vectors.partition(step, partition, self._kept[partition])
            self._steps[partition] = step
