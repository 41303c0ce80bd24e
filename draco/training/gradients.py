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
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from draco import data
from draco.data import batches
from draco.models import batch_norm
from draco.models.dropout import SeededDropout, set_dropout
from draco.models.flat import flatten
from draco.sampling import batch_indices, generator, partition_bounds
from draco.training.worker_momentum import LocalSteps


class Plan(NamedTuple):
    """How each step's batch is cut and seeded."""

    seed: int
    batch_size: int  # B
    partitions: int  # k
    augment: bool
    shards: Sequence[Tensor] | None = None  # k of them: whose samples partition j draws from; None: all draw from all


class StepVectors:
    """Computes step vectors with one model and one training set. Not safe for use by several threads at once."""

    def __init__(self, model: nn.Module, split: data.Split, plan: Plan, device: str = "cpu") -> None:
        self.model = model.to(device).train()
        self._flat = flatten(self.model)
        batch_norm.measure_batch_statistics(self.model)
        self._parameters = list(self.model.parameters())
        self._drops = any(isinstance(module, SeededDropout) for module in self.model.modules())
        self._split, self._plan, self._device = split, plan, device
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
        """Return the same computation with the label C - 1 - y in place of every y; model and memory are shared."""
        other = copy.copy(self)
        other._split = self._split._replace(labels=self._split.info.classes - 1 - self._split.labels)
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
        inputs, labels, sizes = self._samples(step, partitions)
        if self._drops:
            seeds = [generator(self._plan.seed, "dropout", step, j) for j in partitions]
            set_dropout(self.model, list(zip(sizes, seeds, strict=True)))
        repeated = [weight for weight, size in zip(weights, sizes, strict=True) for _ in range(size)]
        per_sample = torch.tensor(repeated).to(self._device) * self._scale
        loss = F.cross_entropy(self.model(inputs), labels, reduction="none") @ per_sample
        gradients = torch.autograd.grad(loss, self._parameters)
        views = torch.split(out[: self.parameters], [p.numel() for p in self._parameters])
        torch._foreach_copy_(list(views), [g.reshape(-1) for g in gradients])
        out[-1] = loss.detach()

    def indices(self, step: int, partition: int) -> Tensor:
        """Return the samples of a partition: a slice of the step's batch, or as many of its shard's next ones."""
        plan, (start, stop) = self._plan, self._bounds[partition]
        if plan.shards is None:
            if self._batch[0] != step:  # all partitions are slices of one batch
                self._batch = step, batch_indices(plan.seed, step, plan.batch_size, len(self._split.labels))
            return self._batch[1][start:stop]
        shard = plan.shards[partition]
        return shard[batch_indices(plan.seed, step, stop - start, len(shard), partition)]

    def _samples(self, step: int, partitions: Sequence[int]) -> tuple[Tensor, Tensor, list[int]]:
        plan = self._plan
        parts = []
        for j in partitions:
            augment = generator(plan.seed, "augmentation", step, j) if plan.augment else None
            parts.append(batches.batch(self._split, self.indices(step, j), augment))
        inputs, labels = parts[0] if len(parts) == 1 else (torch.cat(each) for each in zip(*parts, strict=True))
        return inputs.to(self._device), labels.to(self._device), [len(y) for _, y in parts]


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
