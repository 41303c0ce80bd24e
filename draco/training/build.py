"""What the words of a job stand for: its scheme, wire format, batch plan, aggregator, optimizer and schedule.

Server and workers build these from the same job, so they agree without a word between them.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from draco import data, models, schemes
from draco.aggregators import aggregate, per_layer
from draco.data import shards
from draco.job import DESIGNED, Job, structure
from draco.sampling import derive_seed, generator
from draco.schemes import Scheme
from draco.schemes.cyclic_dft import TOLERANCE as DFT_TOLERANCE
from draco.training import wire
from draco.training.gradients import Plan

# (gradients (m, p), f, step, place of the trusted gradient, centre (p,)) -> (p,)
Aggregate = Callable[[Tensor, int, int, int | None, Tensor | None], Tensor]

# By how much honest replies may differ, relatively. A vote compares recomputations of one gradient, which differ by
# 1.2e-7 to 4.8e-7 between thread counts and instruction sets. Rows of the cyclic code may each come from a backward
# over other samples: they missed the code by up to 1.0e-6 in 130 steps of LeNet on MNIST, more so as the gradients of
# a trained model cancel, and the decoder sees them through few random projections, which may triple it.
TOLERANCES = {
    "repetition": 2e-6, "cyclic": 1e-5, "detox": 2e-6, "placement": 2e-6, "approximate": 2e-6, "solon": 1e-5,
}  # fmt: skip
VOTING = ("repetition", "detox", "placement", "approximate")  # schemes that take scheme.vote and scheme.redundancy
# Rounding to the wire format comes on top; a decoder that calls it an attack would never finish.
_ROUNDINGS_TOLERATED = 4


# The options of a job that are a rule's or pre-aggregator's own, under the same names.
_RULE_OPTIONS = {
    "median_of_means": ("groups",),
    "geometric_median": ("backend", "nu"),
    "krum": ("neighbours",),
    "multi_krum": ("m", "neighbours"),
    "centered_clipping": ("tau", "iterations"),
    "bucketing": ("size",),
    "clipping": ("c",),
}


def build_scheme(job: Job, vote: str | None = None) -> Scheme:
    """Return the job's scheme; `vote` replaces `auto` once the workers have said what they run on."""
    spec = job.scheme
    options = structure(job)
    if spec.name in VOTING:
        options["vote"] = vote or ("exact" if spec.vote == "auto" else spec.vote)
    if spec.name in DESIGNED:
        options["seed"] = derive_seed(job.seed, "design")
    if spec.name == "election":  # its signs are of the gradient only
        info = data.DATASETS[job.data.name]
        options["tail"] = models.statistics_size(build_model(job, info)) + 1
    if spec.name in TOLERANCES:
        options["tolerance"] = tolerance(job)
    return schemes.build(spec.name, workers=job.workers, adversaries=spec.adversaries, **options)


def tolerance(job: Job) -> float:
    """Return the relative difference between honest replies that the job's decoder puts up with; 0: it has none."""
    spec = job.scheme
    if spec.name not in TOLERANCES:
        return DFT_TOLERANCE if spec.name == "cyclic_dft" else 0.0
    given = TOLERANCES[spec.name] if spec.tolerance is None else spec.tolerance
    return max(given, _ROUNDINGS_TOLERATED * wire.ROUNDING[job.wire.dtype])


def build_model(job: Job, info: data.DatasetInfo) -> nn.Module:
    """Return the job's model with its initial weights, which depend on the seed only."""
    return models.build_model(job.model, info.shape, info.classes, job.seed)


def build_plan(job: Job, scheme: Scheme, info: data.DatasetInfo) -> Plan:
    """Return how each step's batch is cut and seeded."""
    augment = info.augment if job.data.augment is None else job.data.augment
    return Plan(job.seed, job.batch_size, scheme.assignment.shape[1], augment)


def build_shards(job: Job, labels: Tensor) -> list[Tensor] | None:
    """Return the training samples that each worker owns, of labels (N,); None where all draw from one batch."""
    if job.data.split == "by_class":
        return shards.by_class(labels, job.workers)
    if job.data.split == "dirichlet":
        assert job.data.alpha is not None
        return shards.dirichlet(labels, job.workers, job.data.alpha, job.seed)
    return None


def encodes_freely(job: Job, scheme: Scheme, model: nn.Module) -> bool:
    """Say whether one backward over weighted losses encodes: a real-linear code, no cross-sample statistics."""
    linear = scheme.weights is not None and load(scheme) > 1
    return job.scheme.encoding == "auto" and linear and not models.has_batch_statistics(model)


def load(scheme: Scheme) -> int:
    """Return the most partitions that one worker computes."""
    return int(scheme.assignment.sum(1).max())


def build_wire(job: Job, scheme: Scheme, elements: int) -> wire.Wire:
    """Return how the replies for step vectors of d = `elements` travel.

    The job rounds float32; a scheme whose replies are complex, or bits, keeps them as they are.
    """
    dtype = job.wire.dtype if scheme.dtype == torch.float32 else str(scheme.dtype).removeprefix("torch.")
    return wire.Wire(scheme.elements(elements), dtype, job.wire.compression)


def build_aggregate(job: Job, model: nn.Module) -> Aggregate:
    """Return the job's rule after its pre-aggregators, over the whole vector or layer by layer as the original did.

    What is random in it is drawn from (seed, step): the same in every run of the job, interrupted or not.
    """
    spec = job.aggregator
    fixed = {option: getattr(spec, option) for option in _RULE_OPTIONS.get(spec.name, ())}
    pre = [
        (step.name, {option: getattr(step, option) for option in _RULE_OPTIONS.get(step.name, ())}) for step in spec.pre
    ]

    def whole(gradients: Tensor, *, f: int, **options: Any) -> Tensor:
        return aggregate(gradients, spec.name, f=f, pre=pre, **fixed, **options)

    def reduce(gradients: Tensor, f: int, step: int, trusted: int | None, centre: Tensor | None) -> Tensor:
        options: dict[str, Any] = {"generator": generator(job.seed, "aggregate", step)}
        if spec.name == "monna":
            options["reference"] = trusted
        if spec.name == "centered_clipping":
            options["centre"] = centre
        return (per_layer(whole, bounds) if spec.per_layer else whole)(gradients, f=f, **options)

    stops = torch.tensor([p.numel() for p in model.parameters()]).cumsum(0).tolist()
    bounds = list(zip([0, *stops[:-1]], stops, strict=True))
    return reduce


def build_optimizer(job: Job, parameters: nn.Parameter) -> torch.optim.Optimizer:
    """Return the job's optimizer over the flat parameter vector; all of them work element by element."""
    spec = job.optimizer
    if spec.name == "sgd":
        return torch.optim.SGD(
            [parameters], lr=spec.lr, momentum=spec.momentum, nesterov=spec.nesterov, weight_decay=spec.weight_decay
        )
    kind: type[torch.optim.Adam] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[spec.name]
    return kind([parameters], lr=spec.lr, betas=spec.betas, eps=spec.eps, weight_decay=spec.weight_decay)


def build_schedule(job: Job, optimizer: torch.optim.Optimizer, steps: int) -> LRScheduler:
    """Return the job's learning-rate schedule over `steps` optimizer steps, after its linear warm-up."""
    spec, warmup = job.schedule, job.schedule.warmup_steps
    builders: dict[str, Callable[[], LRScheduler]] = {
        "constant": lambda: lr_scheduler.ConstantLR(optimizer, factor=1.0),
        "step": lambda: lr_scheduler.StepLR(optimizer, spec.step_size_steps or 1, spec.gamma),
        "multistep": lambda: lr_scheduler.MultiStepLR(
            optimizer, [m - warmup for m in spec.milestones or ()], spec.gamma
        ),
        "exponential": lambda: lr_scheduler.ExponentialLR(optimizer, spec.gamma),
        "cosine": lambda: lr_scheduler.CosineAnnealingLR(optimizer, max(steps - warmup, 1), spec.eta_min),
    }
    if not warmup:
        return builders[spec.name]()
    rise = lr_scheduler.LinearLR(optimizer, start_factor=1 / (warmup + 1), total_iters=warmup)
    return lr_scheduler.SequentialLR(optimizer, [rise, builders[spec.name]()], milestones=[warmup])
