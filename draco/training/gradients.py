"""The step vectors that a worker computes: a flat float32 vector per partition, or per weighted sum of partitions.

The step vector of partition j, d = p + b + 1 elements, is

    [ gradient of the p parameters | b BatchNorm batch statistics | loss ]  *  k |P_j| / B

where partition j has |P_j| of the B samples of the global batch. So the mean over the k partitions is exactly the mean
over the batch, whatever the partitions' sizes.

The statistics and the loss travel in the same vector as the gradient, so what protects one protects all. No BatchNorm
statistic and no reported loss comes from a single worker alone.

Samples, augmentation and dropout masks are keyed by (seed, step, partition): every worker that computes a partition
computes the same vector.

With `precision: float64_rounded` all of it is computed in float64, from float32 parameters and samples, and rounded to
float32 once, at the end (rounding.py). Workers on unlike processors then send the same bits nearly always.

Vectors are made where the model is. On a GPU samples and dropout masks are drawn by the CPU, so that the same are drawn
everywhere, and nothing is waited for: whoever reads a vector on the host, or takes the time, waits (copies.py).
"""

import copy
from collections.abc import Sequence
from functools import cached_property, lru_cache
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
from draco.tasks.batch import cut, joined, widened
from draco.training import copies, recompute, repeatable
from draco.training.autocast import Autocast
from draco.training.rounding import round_blocks
from draco.training.worker_momentum import LocalSteps


class Plan(NamedTuple):
    """How each step's batch is cut and seeded."""

    seed: int
    batch_size: int  # B
    partitions: int  # k
    samples: int  # N, of the training split
    shards: Sequence[Tensor] | None = None  # k of them: whose samples partition j draws from; None: all draw from all
    micro_batch: int | None = None  # samples that are computed at a time; None: a partition, or several
    autocast: Autocast = Autocast()
    recompute: Sequence[str] = ()  # modules whose activations are not kept, as globs
    precision: str = "float32"  # or "float64_rounded"

    @property
    def dtype(self) -> torch.dtype:
        """The format in which step vectors are computed, before they are rounded to float32."""
        return torch.float64 if self.precision == "float64_rounded" else torch.float32

    @property
    def bounds(self) -> list[tuple[int, int]]:
        """Where each partition begins and ends in the batch."""
        return _bounds(self.batch_size, self.partitions)

    def indices(self, step: int, partition: int) -> Tensor:
        """Return the samples of a partition: a slice of the step's batch, or as many of its shard's next ones."""
        start, stop = self.bounds[partition]
        if self.shards is None:  # all partitions are slices of one batch
            return _batch(self.seed, step, self.batch_size, self.samples)[start:stop]
        shard = self.shards[partition]
        return shard[batch_indices(self.seed, step, stop - start, len(shard), partition)]

    def drawn(self, task: Task, samples: Any, step: int, partition: int) -> Any:
        """Return the batch of a partition on the CPU, augmented."""
        source = generator(self.seed, "augmentation", step, partition)
        return task.drawn(samples, self.indices(step, partition), source)


_bounds = lru_cache(maxsize=8)(partition_bounds)
_batch = lru_cache(maxsize=2)(batch_indices)


def piece_sizes(samples: int, most: int | None) -> list[int]:
    """Return the sizes of the fewest pieces of a partition of at most so many samples; they differ by 1 at most."""
    return [stop - start for start, stop in partition_bounds(samples, -(-samples // (most or samples)))]


def in_format(loss: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a loss in the format of the step vectors.

    Raises:
        OwnCodeError: float64 is asked for, and the loss was computed in fewer bits.
    """
    if dtype == torch.float64 and loss.dtype != dtype:
        name = str(loss.dtype).removeprefix("torch.")
        raise OwnCodeError(
            f"loss() returns {name}, and precision: float64_rounded needs float64: make no tensor of a fixed format "
            "in it, such as by .float()"
        )
    return loss.to(dtype)


class StepVectors:
    """Computes step vectors with one model and one training set. Not safe for use by several threads at once."""

    def __init__(
        self, task: Task, model: nn.Module, samples: Any, plan: Plan, device: torch.device | str = "cpu"
    ) -> None:
        """`device`: where the model goes, and vectors are made."""
        device = torch.device(device)
        self._task, self._samples = task, samples
        self._dtype = plan.dtype
        self.model = model.to(device).train()
        if self._dtype == torch.float64:
            self.model.double()
        self._flat = flatten(self.model, self._dtype)
        batch_norm.measure_batch_statistics(self.model)
        recompute.wrap(self.model, plan.recompute)
        self._parameters = trained(self.model)
        self._sizes = [parameter.numel() for parameter in self._parameters]
        self._drops = any(isinstance(module, SeededDropout) for module in self.model.modules())
        self._plan, self.device = plan, device
        self._flips = False
        self._loaded = 0  # the step whose parameters the model has
        self._bounds = plan.bounds
        self._statistics = batch_norm.statistics_size(model)
        self._statistic_sizes = [n for each in batch_norm.batch_norm_layers(model) for n in 2 * [each.num_features]]
        self._cleared = torch.zeros(self._statistics, dtype=self._dtype, device=device)
        self._scale = plan.partitions / plan.batch_size
        self.parameters = self._flat.numel()  # p
        self.elements = self.parameters + self._statistics + 1  # d
        direct = self._dtype == torch.float32
        self._staging = None if direct else torch.empty(self.elements, dtype=self._dtype, device=device)
        self.local: LocalSteps | None = None  # clipping and momentum of partition j, which worker j + 1 computes

    def load(self, step: int, parameters: Tensor, *, anew: bool = False) -> None:
        """Take the server's parameters (p,) of a step, once where several workers share this, or `anew`.

        On a GPU they must stay as they are until something of the step was waited for.
        """
        if anew or self._loaded != step:
            copies.to_device(parameters, self._flat)
            self._loaded = step

    def wait(self) -> None:
        """Wait until the device has done all of it."""
        copies.wait(self.device)

    def partition(self, step: int, partition: int, out: Tensor) -> None:
        """Write the step vector of one partition into `out` (d,), which is on the same device."""
        vector = out if self._staging is None else self._staging
        if self._statistics:
            batch_norm.write_statistics(self.model, self._cleared)  # a NaN of an earlier step would stay for ever
        self._backward(step, [partition], [1.0], vector)
        if self._statistics and not self._plan.micro_batch:
            start, stop = self._bounds[partition]
            statistics = vector[self.parameters : -1]
            batch_norm.read_statistics(self.model, statistics)
            statistics *= self._scale * (stop - start)
        self._hand_over(out)
        if self.local:
            self.local(step, partition, out)

    def relabelled(self) -> "StepVectors":
        """Return the same computation with false labels, as `Task.flipped` makes them; model and memory are shared."""
        other = copy.copy(self)
        other._flips = True
        return other

    def weighted(self, step: int, partitions: Sequence[int], weights: Sequence[float], out: Tensor) -> None:
        """Write sum_j weights[j] * (step vector of partitions[j]) into `out` (d,), there too, by one backward pass.

        By linearity the gradient of the weighted sum of losses is the weighted sum of gradients. So encoding a real
        linear code costs nothing. That holds only where no sample of a batch influences another one's loss.
        """
        if self._statistics:
            raise ValueError("one backward over several partitions would mix their BatchNorm statistics")
        self._backward(step, partitions, weights, out if self._staging is None else self._staging)
        self._hand_over(out)

    def _hand_over(self, out: Tensor) -> None:
        """Write what was computed in another format into `out` (d,)."""
        if self._staging is None:
            return
        for part, sizes in self._groups():
            round_blocks(torch.split(self._staging[part], sizes), torch.split(out[part], sizes))

    def _groups(self) -> list[tuple[slice, list[int]]]:
        """Return gradient, statistics and loss with the sizes of their tensors: they are not of one scale."""
        p, statistics = self.parameters, self._statistic_sizes
        found = [(slice(p), self._sizes), (slice(p, -1), statistics), (slice(-1, None), [1])]
        return [(part, sizes) for part, sizes in found if sizes]

    def _backward(self, step: int, partitions: Sequence[int], weights: Sequence[float], out: Tensor) -> None:
        if self._plan.micro_batch:
            return self._in_pieces(step, partitions, weights, out)
        parts = [self._batch_of(step, j) for j in partitions]
        sizes = [stop - start for start, stop in (self._bounds[j] for j in partitions)]
        whole = joined(parts)
        if whole is None:  # they do not fit together: one after the other, to the same sum
            return self._in_pieces(step, partitions, weights, out, parts)
        self._seed_dropout(step, partitions, sizes)
        loss, gradients = self._gradients(whole, sizes, weights)
        torch._foreach_copy_(self._views(out), gradients)
        self._plan.autocast.unscale(out[: self.parameters])
        out[-1] = loss
        return None

    def _in_pieces(
        self,
        step: int,
        partitions: Sequence[int],
        weights: Sequence[float],
        out: Tensor,
        batches: Sequence[Any] | None = None,
    ) -> None:
        """Do the same one piece of a partition after the other, with the statistics in the place of theirs in `out`.

        Which pieces a partition has depends on its size and the micro-batch alone, and a partition's generator of
        dropout masks goes on from piece to piece. So whoever computes it computes the same.
        """
        out.zero_()
        views, statistics = self._views(out), out[self.parameters : -1]
        for place, (partition, weight) in enumerate(zip(partitions, weights, strict=True)):
            batch = self._batch_of(step, partition) if batches is None else batches[place]
            source = generator(self._plan.seed, "dropout", step, partition)
            start, stop = self._bounds[partition]
            sizes = piece_sizes(stop - start, self._plan.micro_batch)
            for size, piece in zip(sizes, cut(batch, sizes), strict=True):
                if self._drops:
                    set_dropout(self.model, [(size, source)])
                if self._statistics:
                    batch_norm.write_statistics(self.model, self._cleared)
                loss, gradients = self._gradients(piece, [size], [weight])
                torch._foreach_add_(views, gradients)
                out[-1] += loss
                if self._statistics:
                    measured = batch_norm.read_statistics(self.model, torch.empty_like(statistics))
                    statistics += measured * (self._scale * size)
        self._plan.autocast.unscale(out[: self.parameters])

    @property
    def _name(self) -> str:
        return type(self._task).__name__

    def _views(self, out: Tensor) -> list[Tensor]:
        return list(torch.split(out[: self.parameters], self._sizes))

    def _gradients(self, batch: Any, sizes: Sequence[int], weights: Sequence[float]) -> tuple[Tensor, list[Tensor]]:
        """Return the weighted loss of a batch, and its gradient by each parameter, flat and still scaled."""
        loss = self._loss(batch, sizes, weights)
        with repeatable.needed(f"the gradient of {self._name}.loss()"):
            gradients = torch.autograd.grad(self._plan.autocast.scaled(loss), self._parameters, materialize_grads=True)
        return loss.detach(), [g.reshape(-1) for g in gradients]

    def _seed_dropout(self, step: int, partitions: Sequence[int], sizes: Sequence[int]) -> None:
        if self._drops:
            seeds = [generator(self._plan.seed, "dropout", step, j) for j in partitions]
            set_dropout(self.model, list(zip(sizes, seeds, strict=True)))

    def _loss(self, batch: Any, sizes: Sequence[int], weights: Sequence[float]) -> Tensor:
        """Return the weighted sum of the losses of a batch of whole partitions, scaled by k / B, as one number."""
        called = f"{self._name}.loss()"
        with blamed(called), repeatable.needed(called), self._plan.autocast.on(self.device.type):
            losses = in_format(self._task.loss(self.model, batch), self._dtype)
        if not self._task.per_sample:  # one partition, of which it is the mean
            return losses * (weights[0] * self._scale * sizes[0])
        repeated = [weight for weight, size in zip(weights, sizes, strict=True) for _ in range(size)]
        per_sample = torch.tensor(repeated, dtype=self._dtype) * self._scale
        sent: Tensor = copies.moved(per_sample, self.device)
        return losses @ sent

    def _batch_of(self, step: int, partition: int) -> Any:
        """Return the samples of a partition as a batch, augmented, on the device."""
        name = self._name
        with blamed(f"{name}: the samples of partition {partition} at step {step}"):
            batch = self._plan.drawn(self._task, self._samples, step, partition)
        if self._flips:
            with blamed(f"{name}.flipped()"):
                batch = self._task.flipped(batch)
            if batch is None:
                raise OwnCodeError(f"{name}: label_flip needs false labels: add {name}.flipped()")
        batch = copies.moved(batch, self.device)
        return widened(batch) if self._dtype == torch.float64 else batch


class Remembered:
    """The step vectors of all k partitions, each computed once a step, and kept where they were computed."""

    def __init__(self, vectors: StepVectors, partitions: int) -> None:
        self._vectors = vectors
        self._steps = [0] * partitions

    @cached_property
    def _kept(self) -> Tensor:  # no memory before it is needed
        return torch.empty(len(self._steps), self._vectors.elements, device=self._vectors.device)

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
