"""Do steps, optimizer, schedule, weights and precision go together, and does a user's own code do what it must?"""

import math
from collections.abc import Iterator

from draco.aggregators import AGGREGATORS
from draco.declaration import short
from draco.errors import OwnCodeError
from draco.job.fault import Fault
from draco.job.fields import Job
from draco.job.messages import show
from draco.job.own_section import OwnSection
from draco.optimizers import OPTIMIZERS, SCHEDULES

_SOME_STEPS = 100  # of a schedule that is tried, where the job counts epochs


def of_training(job: Job) -> Iterator[Fault]:
    """Yield what does not go together in steps, optimizer and schedule."""
    if job.steps is None and job.epochs is None:
        yield Fault("steps", "is missing; must be a whole number at least 1, or give epochs", ("epochs",))
    if job.steps is not None and job.epochs is not None:
        yield Fault(
            "epochs", f"must be left out beside steps, got steps {job.steps} and epochs {job.epochs}", ("steps",)
        )
    if job.optimizer.get("nesterov") and not job.optimizer.get("momentum"):
        yield Fault("optimizer.nesterov", "needs a momentum above 0, got 0", ("optimizer.momentum", "optimizer.name"))
    stones, warmup = job.schedule.get("milestones") or (), job.schedule.warmup_steps
    if list(stones) != sorted(set(stones)):
        yield Fault("schedule.milestones", f"must increase, got {show(list(stones))}")
    if job.steps is not None and warmup >= job.steps and warmup:
        message = f"must be fewer than the job's {job.steps} steps, got {warmup}"
        yield Fault("schedule.warmup_steps", message, ("steps",))


def of_realism(job: Job) -> Iterator[Fault]:
    """Yield what does not go together in initial weights, autocast and precision."""
    for option in ("sha256", "prefix", "fresh", "unused"):
        if getattr(job.weights, option) and job.weights.file is None:
            yield Fault(f"weights.{option}", "needs weights.file, or leave it out", ("weights.file",))
    mantissa, _ = math.frexp(job.autocast.loss_scale)
    if mantissa != 0.5:
        message = f"must be a power of two, which is taken off without rounding, got {job.autocast.loss_scale:g}"
        yield Fault("autocast.loss_scale", message)
    if job.precision != "float32" and job.autocast.dtype != "none":
        message = f"computes in fewer bits, and precision {job.precision} in more: leave one of the two out"
        yield Fault("autocast.dtype", message, ("precision",))


def of_own_code(job: Job) -> Iterator[Fault]:
    """Yield what does not go together in the fields beside a user's own code, and what its trial showed."""
    spec = job.aggregator
    if isinstance(spec, OwnSection):
        rule = AGGREGATORS[spec.name]
        if spec.get("f") is not None and not rule.robust:
            yield Fault("aggregator.f", f"{short(spec.name)} takes no f: leave it out", ("aggregator.name",))
        if spec.get("per_layer") and not rule.whole_rows:
            yield Fault("aggregator.per_layer", f"{short(spec.name)} is not for single layers: leave it out")
    optimizer, schedule = OPTIMIZERS[job.optimizer.name], SCHEDULES[job.schedule.name]
    arguments = optimizer.arguments(job.optimizer.given())
    try:
        optimizer.doubt(arguments)
    except OwnCodeError as e:
        yield Fault("optimizer.name", str(e), ("optimizer.options",))
        return
    warmup = job.schedule.warmup_steps
    steps = max((job.steps or _SOME_STEPS) - warmup, 1)
    try:
        given = schedule.arguments(job.schedule.given())
        schedule.tried(lambda parameter: optimizer([parameter], **arguments), steps, warmup, given)
    except OwnCodeError as e:
        yield Fault("schedule.name", str(e), ("schedule.options", "optimizer.name"))
