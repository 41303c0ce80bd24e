"""The parts that a process builds from its job: scheme, model, batch plan, wire format, aggregator and optimizer.

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

from draco import schemes
from draco.aggregators import AGGREGATORS, PRE_AGGREGATORS, aggregate, per_layer
from draco.data import shards
from draco.errors import OwnCodeError
from draco.job import Job, structure
from draco.models import batch_norm
from draco.models.flat import trained, trained_size
from draco.optimizers import OPTIMIZERS, SCHEDULES
from draco.protocols.rounds import Protocol
from draco.sampling import derive_seed, generator
from draco.schemes import SCHEMES, Scheme
from draco.tasks import Task, count
from draco.tasks.building import build_task, task_model, task_samples
from draco.training import device, initial_weights, wire
from draco.training.autocast import Autocast
from draco.training.gradients import Plan

# (gradients (m, p), f, step, place of the trusted gradient, centre (p,)) -> (p,)
Aggregate = Callable[[Tensor, int, int, int | None, Tensor | None], Tensor]

# The least tolerance of a decoder, in roundings of the wire format: it must not take rounding for an attack.
_ROUNDINGS_TOLERATED = 4

# The tolerance of a vote between workers that round float64: four elements may always differ by a quantum each
# (rounding.py), as a quantum is at most 2^-23 of a vector's length.
TIES = 2.0**-22

# The tolerance of a vote between workers on GPUs that need not have equal bits. Where the last layers' ReLUs are at
# zero but for rounding, two honest gradients differ by some 1e-3 to 1e-2 (docs/numerics.md has what was measured).
ON_GPUS = 1e-2


class Built:
    """A job's parts, each built when it is first asked for and then kept."""

    def __init__(self, job: Job, task: Task | None = None, vote: str | None = None) -> None:
        """`task`: one that was built already, for this job; `vote` is that of `build_scheme`."""
        self.job, self._task, self.vote = job, task, vote

    @cached_property
    def task(self) -> Task:
        """What is trained."""
        return self._task or build_task(self.job)

    @cached_property
    def train(self) -> Any:
        """The training samples."""
        return task_samples(self.task, "train", self.job.seed)

    @cached_property
    def test(self) -> Any:
        """The test samples."""
        return task_samples(self.task, "test", self.job.seed)

    def again(self) -> "Built":
        """Return the same parts for somebody else in this process: with another model, of the same samples."""
        other = Built(self.job, self.task, self.vote)
        other.train = self.train
        return other

    @cached_property
    def scheme(self) -> Scheme:
        """The scheme; where steps take several rounds, that of k workers who each send their partition's vector."""
        if self.protocol is not None and has_court(self.job):
            return schemes.build("uncoded", workers=self.protocol.partitions, adversaries=0)
        return build_scheme(self.job, self.vote, self.tail)

    @cached_property
    def protocol(self) -> Protocol | None:
        """The protocol of steps that take several rounds; None where each takes one."""
        spec = self.job.scheme
        options = {name: value for name, value in spec.given().items() if name in SCHEMES[spec.name].options}
        options |= _vote_options(self.job, self.vote)
        return schemes.build_protocol(spec.name, workers=self.job.workers, adversaries=spec.adversaries, **options)

    @cached_property
    def model(self) -> nn.Module:
        """The model with its initial weights."""
        model = task_model(self.task, self.job.seed)
        initial_weights.load_into(model, self.job.weights)
        return model

    @cached_property
    def server_device(self) -> torch.device:
        """Where the server decodes, aggregates and steps; this process's own GPU, if it is one.

        Raises:
            MissingError: on a GPU, and this process sees none.
        """
        where = device.of_server(self.job)
        if where.type != "cpu":
            device.of_gpus().set_device(where)
        return where

    @cached_property
    def shards(self) -> list[Tensor] | None:
        """The training samples that each worker owns; None where all draw from one batch."""
        return build_shards(self.job, self.task, self.train)

    @property
    def plan(self) -> Plan:
        """How each step's batch is cut and seeded."""
        job = self.job
        return Plan(
            job.seed, job.batch_size, self.scheme.assignment.shape[1], count(self.train), self.shards,
            job.micro_batch, Autocast(job.autocast.dtype, job.autocast.loss_scale), job.recompute, job.precision,
        )  # fmt: skip

    @property
    def elements(self) -> int:
        """d, the length of a step vector."""
        return trained_size(self.model) + self.tail

    @property
    def tail(self) -> int:
        """The numbers at the end of a step vector that are no gradient: statistics and loss."""
        return batch_norm.statistics_size(self.model) + 1

    @property
    def format(self) -> wire.Wire:
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
    def encodes_freely(self) -> bool:
        """Whether one backward pass over weighted losses encodes.

        It does for a real-linear code, where neither statistics nor the loss mix the samples of a batch. Under autocast
        a sample's gradient depends on what else is in the batch, by far more than a decoder tolerates.
        """
        linear = self.scheme.weights is not None and self.load > 1
        explicit = self.job.scheme.get("encoding") == "explicit"
        alone = self.task.per_sample and self.job.autocast.dtype == "none"
        return linear and alone and not explicit and not batch_norm.has_batch_statistics(self.model)


def has_court(job: Job) -> bool:
    """Say whether the job's scheme expels workers that are proven to lie."""
    return SCHEMES[job.scheme.name].expels


def build_scheme(job: Job, vote: str | None = None, tail: int = 1) -> Scheme:
    """Return the job's scheme.

    `vote` replaces `auto` once the workers have said what they run on. The last `tail` numbers of a step vector are no
    gradient: statistics and loss.
    """
    scheme, options = SCHEMES[job.scheme.name], structure(job) | _vote_options(job, vote)
    if "seed" in scheme.supplied:  # of a design that is drawn
        options["seed"] = derive_seed(job.seed, "design")
    if "tail" in scheme.supplied:  # the statistics and the loss, which are no gradient, travel as numbers
        options["tail"] = tail
    return schemes.build(scheme.name, workers=job.workers, adversaries=job.scheme.adversaries, **options)


def _vote_options(job: Job, vote: str | None) -> dict[str, Any]:
    """Return the options of the scheme's vote, if it has one; `vote` is that of `build_scheme`."""
    scheme, options = SCHEMES[job.scheme.name], dict[str, Any]()
    if "vote" in scheme.options:
        options["vote"] = vote or ("exact" if job.scheme.get("vote") == "auto" else job.scheme.get("vote"))
    if "tolerance" in scheme.options:
        options["tolerance"] = tolerance(job)
    return options


def tolerance(job: Job) -> float:
    """Return the relative difference between honest replies that the job's decoder tolerates; 0: none."""
    scheme, given = SCHEMES[job.scheme.name], job.scheme.get("tolerance")
    if not scheme.tolerance:
        return 0.0
    if "vote" in scheme.options:
        given = given or (TIES if job.precision == "float64_rounded" else ON_GPUS if job.device != "cpu" else None)
    return max(given or scheme.tolerance, _ROUNDINGS_TOLERATED * wire.ROUNDING[job.wire.dtype])


def build_shards(job: Job, task: Task, samples: Any) -> list[Tensor] | None:
    """Return the training samples that each worker owns; None where all draw from one batch.

    Raises:
        OwnCodeError: they are dealt out by class, and the task's samples have none.
    """
    if job.data.split == "iid":
        return None
    labels = task.labels(samples)
    if labels is None:
        name = type(task).__name__
        raise OwnCodeError(f"{name}: data.split {job.data.split} deals samples out by class: add {name}.labels()")
    if job.data.split == "by_class":
        return shards.by_class(labels, job.workers)
    assert job.data.alpha is not None
    return shards.dirichlet(labels, job.workers, job.data.alpha, job.seed)


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

    stops = torch.tensor([p.numel() for p in trained(model)]).cumsum(0).tolist()
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
