"""What a process builds from its job: scheme, model, batch plan, wire format, aggregator, optimizer and schedule.

Server and workers build from the same job, so they agree without a word between them.
Shapes: n workers, k partitions, p parameters, b BatchNorm statistics, d = p + b + 1 elements of a step vector.
"""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from draco import data, models, schemes
from draco.aggregators import AGGREGATORS, PRE_AGGREGATORS, aggregate, per_layer
from draco.data import shards
from draco.job import Job, structure
from draco.models import batch_norm
from draco.optimizers import OPTIMIZERS, SCHEDULES
from draco.sampling import derive_seed, generator
from draco.schemes import SCHEMES, Scheme
from draco.training import wire
from draco.training.gradients import Plan

# (gradients (m, p), f, step, place of the trusted gradient, centre (p,)) -> (p,)
Aggregate = Callable[[Tensor, int, int, int | None, Tensor | None], Tensor]

# Rounding to the wire format comes on top; a decoder that calls it an attack would never finish.
_ROUNDINGS_TOLERATED = 4


class Built:
    """A job's parts, each built when it is first asked for and then kept."""

    def __init__(self, job: Job, split: data.Split, vote: str | None = None) -> None:
        """`vote` is that of `build_scheme`."""
        self.job, self.split, self.vote = job, split, vote

    @cached_property
    def scheme(self) -> Scheme:
        """The scheme."""
        return build_scheme(self.job, self.vote)

    @cached_property
    def model(self) -> nn.Module:
        """The model with its initial weights."""
        return build_model(self.job, self.split.info)

    @cached_property
    def shards(self) -> list[Tensor] | None:
        """The training samples that each worker owns; None where all draw from one batch."""
        return build_shards(self.job, self.split.labels)

    @property
    def plan(self) -> Plan:
        """How each step's batch is cut and seeded."""
        job, augment = self.job, self.split.info.augment
        augment = augment if job.data.augment is None else job.data.augment
        return Plan(job.seed, job.batch_size, self.scheme.assignment.shape[1], augment, self.shards)

    @property
    def elements(self) -> int:
        """d, the length of a step vector."""
        return sum(p.numel() for p in self.model.parameters()) + batch_norm.statistics_size(self.model) + 1

    @property
    def wire(self) -> wire.Wire:
        """How a reply travels.

        The job rounds float32; a scheme whose replies are complex, or bits, keeps them as they are.
        """
        scheme, asked = self.scheme, self.job.wire
        dtype = asked.dtype if scheme.dtype == torch.float32 else str(scheme.dtype).removeprefix("torch.")
        return wire.Wire(scheme.elements(self.elements), dtype, asked.compression)

    @cached_property
    def aggregate(self) -> Aggregate:
        """The rule after its pre-aggregators."""
        return build_aggregate(self.job, self.model)

    @property
    def load(self) -> int:
        """The most partitions that one worker computes."""
        return int(self.scheme.assignment.sum(1).max())

    @property
    def build_aggregate(job: Job, model: nn.Module) -> Aggregate:
    """Return the job's rule after its pre-aggregators, over the whole vector or layer by layer as the original did.

    What is random in it is drawn from (seed, step): the same in every run of the job, interrupted or not.
    """
    spec, rule = job.aggregator, AGGREGATORS[job.aggregator.name]
    fixed = rule.arguments(spec.given())
    pre = [(step.name, PRE_AGGREGATORS[step.name].arguments(step.given())) for step in spec.pre]

    def whole(gradients: Tensor, *, f: int, **options: Any) -> Tensor:
        return aggregate(gradients, spec.name, f=f, pre=pre, **fixed, **options)

    def reduce(gradients: Tensor, f: int, step: int, trusted: int | None, centre: Tensor | None) -> Tensor:
        options: dict[str, Any] = {"generator": generator(job.seed, "aggregate", step)}
        if rule.trusts:
            options["reference"] = trusted
        if rule.remembers:
            options["centre"] = centre
        return (per_layer(whole, bounds) if spec.get("per_layer") else whole)(gradients, f=f, **options)

    stops = torch.tensor([p.numel() for p in model.parameters()]).cumsum(0).tolist()
    bounds = list(zip([0, *stops[:-1]], stops, strict=True))
    return reduce


def build_optimizer(job: Job, parameters: nn.Parameter) -> torch.optim.Optimizer:
    """Return the job's optimizer over the flat parameter vector; all of them work element by element."""
    optimizer = OPTIMIZERS[job.optimizer.name]
    built: torch.optim.Optimizer = optimizer([parameters], **optimizer.arguments(job.optimizer.given()))
    return built


def build_schedule(job: Job, optimizer: torch.optim.Optimizer, steps: int) -> LRScheduler:
    """Return the job's learning-rate schedule over `steps` optimizer steps, after its linear warm-up."""
    schedule, warmup = SCHEDULES[job.schedule.name], job.schedule.warmup_steps
    given = schedule.arguments(job.schedule.given())

    def after() -> LRScheduler:
        built: LRScheduler = schedule(optimizer, steps=max(steps - warmup, 1), warmup=warmup, **given)
        return built

    if not warmup:
        return after()
    rise = lr_scheduler.LinearLR(optimizer, start_factor=1 / (warmup + 1), total_iters=warmup)
    return lr_scheduler.SequentialLR(optimizer, [rise, after()], milestones=[warmup])
