"""The checks across the fields of a job: what does not go together, and what a user may not have meant."""

import math
from collections.abc import Iterator
from typing import NamedTuple

from draco.aggregators import AGGREGATORS, PRE_AGGREGATORS
from draco.data.datasets import DATASETS
from draco.declaration import OptionError, short
from draco.errors import OwnCodeError
from draco.job.fields import SECTIONS, Job
from draco.job.messages import legal_values, properties, show
from draco.job.numbers import WITHOUT_MPI, aggregator_f, attack, byzantine_count, in_rounds, sizes, structure
from draco.job.own_section import OwnSection
from draco.job.sections import BUILT_IN_LOGGERS, DataSection
from draco.job.unions import only_with
from draco.metrics import MODES
from draco.models import MODELS, model_fault
from draco.optimizers import OPTIMIZERS, SCHEDULES
from draco.schemes import SCHEMES

_SOME_STEPS = 100  # of a schedule that is tried, where the job counts epochs
SCHEME = ("workers", "scheme.name", "scheme.adversaries", "scheme.redundancy")  # what sizes follow from


class Fault(NamedTuple):
    """One thing that is wrong with a job."""

    path: str
    message: str
    about: tuple[str, ...] = ()  # the other fields that it takes into account


def check(job: Job) -> list[Fault]:
    """Return what is wrong with a job whose single fields are right."""
    found = list(_check_options(job))
    told = {fault.path for fault in found}
    others = (
        _check_scheme, _check_own, _check_attack, _check_training, _check_realism, _check_own_code, _check_task,
        _check_evaluation, _check_loggers, _check_launcher, _check_repeatable,
    )  # fmt: skip
    return [*found, *(fault for checked in others for fault in checked(job) if fault.path not in told)]


def _check_options(job: Job) -> Iterator[Fault]:
    """Yield the options that were given though another option has a value with which they do not apply."""
    for key in SECTIONS:
        section = getattr(job, key)
        if section is None:
            continue
        for option, field in type(section).model_fields.items():
            needed = only_with(type(section), option)
            if needed is None or getattr(section, option) == field.default:
                continue
            if getattr(section, needed.option) not in needed.values:
                message = f"applies only with {needed.option}: {' or '.join(needed.values)}: leave it out"
                yield Fault(f"{key}.{option}", message, (f"{key}.{needed.option}", f"{key}.name"))


def option_path(job: Job, key: str, option: str) -> str:
    """Return where an option of a section's entry stands; those of a user's own code stand in `options`."""
    section = getattr(job, key)
    own = isinstance(section, OwnSection) and option not in type(section).model_fields
    return f"{key}.options.{option}" if own else f"{key}.{option}"


def _check_scheme(job: Job) -> Iterator[Fault]:
    """Yield what does not go together in n, s, the scheme's options, B and the aggregator."""
    name, n, s = job.scheme.name, job.workers, job.scheme.adversaries
    scheme, needed = SCHEMES[name], SCHEMES[name].least(s, structure(job))
    about = (*SCHEME, *(f"scheme.{option}" for option in scheme.options))
    if job.wire.dtype != "float32" and scheme.dtype != "float32":
        message = f"{name}'s replies are {scheme.dtype}, which {job.wire.dtype} cannot carry: must be float32"
        yield Fault("wire.dtype", message, ("scheme.name",))
    if job.wire.compression != "none" and in_rounds(job):
        message = f"{name} sends vectors and digests in one message: must be none, got {job.wire.compression}"
        yield Fault("wire.compression", message, ("scheme.name", "scheme.uplink"))
    if scheme.replays:
        yield from _check_replay(job)
    if needed > n:
        yield Fault("scheme.adversaries", f"{s} needs at least {needed} workers, got {n}", SCHEME[:2])
        return
    try:
        k = sizes(job).partitions
    except OptionError as e:
        yield Fault(option_path(job, "scheme", e.option), e.message, about)
        return
    except ValueError as e:
        yield Fault("scheme.name", str(e), about)
        return
    per = 2 if job.model is not None and MODELS[job.model].batch_norm else 1
    if job.batch_size < per * k:
        why = f" and {job.model}'s batch norm at least 2 samples in each" if per == 2 else ""
        message = f"must be at least {per * k}: {name} cuts it into {k} partitions{why}, got {job.batch_size}"
        yield Fault("batch_size", message, (*about, "model"))
    yield from _check_aggregator(job)


def _check_replay(job: Job) -> Iterator[Fault]:
    """Yield what a server that replays cannot check."""
    name = job.scheme.name
    if job.autocast.dtype != "none":
        message = f"{name} takes products in float32: must be none, got {job.autocast.dtype}"
        yield Fault("autocast.dtype", message, ("scheme.name",))
    if job.device != "cpu":
        yield Fault("device", f"{name} replays on the server's CPU: must be cpu, got {job.device}", ("scheme.name",))
    if job.precision != "float32":
        message = f"{name} replays products in float32: must be float32, got {job.precision}"
        yield Fault("precision", message, ("scheme.name",))


def _check_repeatable(job: Job) -> Iterator[Fault]:
    """Yield what compares bits where GPUs need not repeat theirs."""
    if job.device == "cpu" or job.deterministic:
        return
    if SCHEMES[job.scheme.name].expels:
        message = (
            f"{job.scheme.name} expels who sends other bits, and GPUs repeat theirs only if it is true: leave it "
            "out, or take a scheme that votes within a tolerance, such as repetition"
        )
        yield Fault("deterministic", message, ("scheme.name", "device"))
    elif job.scheme.get("vote") == "exact":
        message = "compares bits, and GPUs repeat theirs only with deterministic: true: must be auto or tolerance"
        yield Fault("scheme.vote", message, ("deterministic", "device"))


def _check_launcher(job: Job) -> Iterator[Fault]:
    """Yield a transport that the launcher does not set up."""
    if job.launcher in WITHOUT_MPI and job.transport == "mpi":
        yield Fault("transport", f"{job.launcher} sets up no MPI: must be torch, or leave it out", ("launcher",))


def _check_own(job: Job) -> Iterator[Fault]:
    """Yield what does not go together where workers have samples or momentum of their own."""
    data, local, scheme = job.data, job.local, job.scheme.name
    individual = SCHEMES[scheme].individual
    if data.split == "dirichlet" and data.alpha is None:
        legal = legal_values("alpha", properties(DataSection)["alpha"]).removesuffix(", or null")
        yield Fault("data.alpha", f"is missing; dirichlet needs {legal}", ("data.split",))
    if not individual:
        common = f"{scheme} encodes gradients of partitions that all workers share"
        own = {"local.momentum": local.momentum > 0, "local.clip": local.clip is not None}
        if data.split != "iid":
            yield Fault("data.split", f"{common}: must be iid, or the scheme uncoded", ("scheme.name",))
        for path in (path for path, given in own.items() if given):
            yield Fault(path, f"{common}: leave it out, or the scheme must be uncoded", ("scheme.name",))
    if local.momentum and job.wire.dtype != "float32":
        message = (
            f"checkpoints keep worker momentum as it was received, and {job.wire.dtype} rounds it: must be float32"
        )
        yield Fault("wire.dtype", message, ("local.momentum",))


def _check_attack(job: Job) -> Iterator[Fault]:
    if attack(job) is None:
        return
    given, n = job.attack, job.workers
    about = (
        "workers", "attack.name", "attack.ranks", "attack.adversaries", "attack.fraction", "scheme.adversaries"
    )  # fmt: skip
    yield from _check_count(job, about)
    yield from _check_attack_needs(job, (*about, "scheme.name"))
    if given.until_step is not None and given.until_step < given.from_step:
        message = f"must be at least attack.from_step = {given.from_step}, got {given.until_step}"
        yield Fault("attack.until_step", message, ("attack.from_step",))
    if given.ranks is None:
        return
    ranks = show(list(given.ranks))
    if len(set(given.ranks)) < len(given.ranks):
        yield Fault("attack.ranks", f"must be distinct, got {ranks}")
    if max(given.ranks) > n:
        yield Fault("attack.ranks", f"must be from 1 to {n} workers, got {ranks}", ("workers",))
    if given.adversaries not in (None, len(given.ranks)):
        yield Fault("attack.ranks", f"must be attack.adversaries = {given.adversaries} ranks, got {ranks}", about)
    if given.who != "fixed":
        message = f"are fixed ranks and attack.who is {given.who}: give one of the two"
        yield Fault("attack.ranks", message, ("attack.who",))


def _check_count(job: Job, about: tuple[str, ...]) -> Iterator[Fault]:
    """Yield what does not go together in how many are Byzantine."""
    given, n = job.attack, job.workers
    if given.fraction is not None:
        for other in ("adversaries", "ranks"):
            if getattr(given, other) is not None:
                yield Fault("attack.fraction", f"must be left out beside attack.{other}", about)
        if byzantine_count(job) == 0:
            message = f"must be at least 1/{n}, one worker of {n}, got {given.fraction}"
            yield Fault("attack.fraction", message, about)
    elif byzantine_count(job) == 0:
        message = f"{given.name} needs at least 1 Byzantine worker, got scheme.adversaries = 0"
        yield Fault("attack.adversaries", message, about)
    if given.adversaries is not None and given.adversaries > n:
        message = f"{given.adversaries} Byzantine workers need as many workers, got {n}"
        yield Fault("attack.adversaries", message, about)


def _check_attack_needs(job: Job, about: tuple[str, ...]) -> Iterator[Fault]:
    """Yield what the attack cannot do in this job."""
    declared, given, count = attack(job), job.attack, byzantine_count(job)
    scheme = SCHEMES[job.scheme.name]
    assert declared is not None
    if declared.needs_honest and count >= job.workers:
        message = f"{given.name} needs an honest worker, {count} of {job.workers} are Byzantine"
        yield Fault("attack.name", message, about)
    elif declared.usual_strength and declared.strength and given.get(declared.strength) is None:
        try:
            declared.usual_strength(job.workers, count)
        except ValueError as e:
            yield Fault(option_path(job, "attack", declared.strength), f"is missing: {e}", about)
    if fault := declared.fault(scheme):
        yield Fault("attack.name", fault, about)
    if scheme.expels and given.who != "fixed":
        message = f"must be fixed: {job.scheme.name} expels who is proven to lie, got {given.who}"
        yield Fault("attack.who", message, ("scheme.name",))
    if scheme.rounds(job.scheme.given()) and given.ranks is None and given.who == "placed":
        message = "must be fixed, drawn or rotating: with scheme.uplink digest no worker has a row, got placed"
        yield Fault("attack.who", message, ("scheme.uplink", "attack.name"))
    if declared.lasting and (given.who != "fixed" or given.until_step is not None):
        message = (
            f"{given.name} is for good, as a worker that owes an answer gets no task: needs attack.who fixed and no "
            "attack.until_step"
        )
        yield Fault("attack.name", message, ("attack.who", "attack.until_step"))


def _check_training(job: Job) -> Iterator[Fault]:
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


def _check_realism(job: Job) -> Iterator[Fault]:
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


def _check_own_code(job: Job) -> Iterator[Fault]:
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


def _check_task(job: Job) -> Iterator[Fault]:
    """Yield what is given besides a task, or is missing without one."""
    if job.task is None:
        if job.model is None:
            yield Fault("model", f"is missing; must be one of {', '.join(MODELS)}, or give a task", ("task",))
        if job.data.name is None:
            path = "data" if job.data == DataSection() else "data.name"
            yield Fault(
                path, f"is missing; must be one of {', '.join(DATASETS)}, or give a task", ("task", "data.name")
            )
        else:
            yield from _check_data(job, job.data.name)
        return
    given: dict[str, object] = {"model": job.model, "data.name": job.data.name, "data.source": job.data.source}
    given |= {"data.augment": job.data.augment, "data.own": job.data.own or None}
    for path in (path for path, value in given.items() if value is not None):
        yield Fault(path, f"must be left out beside task, which has its own ({job.task.name})", ("task",))


def _check_evaluation(job: Job) -> Iterator[Fault]:
    """Yield what does not go together in the metrics that the job names, and in when it evaluates."""
    if job.stop_early and not job.eval_every:
        message = f"counts evaluations while training: needs eval_every of 1 or more, got {show(job.eval_every)}"
        yield Fault("stop_early", message, ("eval_every",))
    named = {"checkpoint_keep": (job.checkpoint_keep.metric, job.checkpoint_keep.mode)}
    if job.stop_early:
        named["stop_early"] = job.stop_early.metric, job.stop_early.mode
    for key, (metric, mode) in named.items():
        if metric is None and mode is not None:
            yield Fault(f"{key}.mode", "says what is best of a metric: give metric too, or leave it out")
        elif metric is not None and metric not in MODES:
            if job.task is None:
                message = f"must be one of {', '.join(MODES)} without a task of your own, got {show(metric)}"
                yield Fault(f"{key}.metric", message, ("task",))
            elif mode is None:
                message = f"is missing; must be min or max: whether less or more of {metric} is better"
                yield Fault(f"{key}.mode", message, (f"{key}.metric",))


def _check_loggers(job: Job) -> Iterator[Fault]:
    for logger in dict.fromkeys(job.loggers):
        if logger.options and logger.name in BUILT_IN_LOGGERS:
            yield Fault("loggers", f"{logger.name} has no options: leave them out")
        if job.loggers.count(logger) > 1:
            yield Fault("loggers", f"{logger.name} is there twice: give it once")


def _check_data(job: Job, name: str) -> Iterator[Fault]:
    """Yield what does not go together in data, model and batch."""
    info = DATASETS[name]
    if job.data.augment and not info.augment:
        yield Fault("data.augment", f"{name} has no augmentation: must be false or left out", ("data.name",))
    if job.data.source is not None and not info.originals:
        yield Fault("data.source", f"{name} has no original files to take: leave it out", ("data.name",))
    if job.data.own and job.data.source is None:
        yield Fault("data.own", "needs data.source, the folder of your files; or leave it out", ("data.source",))
    fault = None if job.model is None else model_fault(job.model, info.shape)
    if fault is not None:
        yield Fault("model", f"{fault} ({name})", ("data.name",))
    if job.batch_size > info.train:
        message = f"must be at most the {info.train} training samples of {name}, got {job.batch_size}"
        yield Fault("batch_size", message, ("data.name",))


def _check_aggregator(job: Job) -> Iterator[Fault]:
    """Yield why the decoded gradients are not what the aggregator, or something before it, can work with."""
    spec, rule, m, f = job.aggregator, AGGREGATORS[job.aggregator.name], sizes(job).gradients, aggregator_f(job)
    about = (*SCHEME, "aggregator.f", "aggregator.pre")
    left = f"{job.scheme.name} leaves {m} of {job.workers} workers' replies"
    for step in spec.pre:
        pre = PRE_AGGREGATORS[step.name]
        if m < (needed := pre.least(f)):
            yield Fault("aggregator.pre", f"{step.name} with f = {f} needs at least {needed} gradients, {left}", about)
            return
        if (fewer := pre.remaining(m, step.given())) < m:
            m, left = fewer, f"{left} and {step.name} {fewer}"
    if m < (needed := rule.least(f)):
        yield Fault("aggregator.name", f"{spec.name} with f = {f} needs at least {needed} gradients, {left}", about)
        return
    for option, message in rule.faults(m, f, spec.given()):
        yield Fault(option_path(job, "aggregator", option), message, (*about, "aggregator.name"))
    if rule.trusts:
        if not SCHEMES[job.scheme.name].individual or spec.pre:
            message = (
                f"{spec.name} trusts the gradient of one worker: it needs scheme: uncoded and nothing in aggregator.pre"
            )
            yield Fault("aggregator.name", message, ("scheme.name", "aggregator.pre"))
        if (trusted := spec.get("trusted")) > job.workers:
            message = f"must be one of {job.workers} workers, got {trusted}"
            yield Fault(option_path(job, "aggregator", "trusted"), message, ("workers",))


def warnings(job: Job) -> list[str]:
    """Return a sentence for everything that is allowed but that a user may not have meant."""
    found: list[str] = []
    optimizer = OPTIMIZERS[job.optimizer.name]
    if doubt := optimizer.doubt(optimizer.arguments(job.optimizer.given())):
        found.append(f"optimizer: {doubt}")
    s, scheme, rule, (_, m, bad) = job.scheme.adversaries, job.scheme.name, job.aggregator.name, sizes(job)
    individual, robust, f = SCHEMES[scheme].individual, AGGREGATORS[rule].robust, aggregator_f(job)
    count = byzantine_count(job)
    if not individual and count > s:
        found.append(f"attack: {count} workers are Byzantine but {scheme} is built for {s}: steps may fail or be wrong")
    if individual and not robust and not job.aggregator.pre and (count or s):
        expected = max(count, s)
        found.append(
            f"scheme: {scheme} with {rule} tolerates no adversary, and {expected} are expected: nothing defends"
        )
    given = attack(job)
    if given and given.strength and given.usual_strength and job.attack.get(given.strength) is None:
        strength = given.usual_strength(job.workers, count)
        if strength <= 0:
            found.append(
                f"attack: {given.name}'s formula gives {given.strength} = {strength:.3g} for {count} Byzantine workers "
                f"among {job.workers}, which does no harm: set attack.{given.strength}, or let more attack"
            )
    if individual and robust and count > f:
        found.append(f"attack: {count} workers are Byzantine but {rule} is set to tolerate f = {f}")
    if not individual and f < bad:
        tolerates = f"is set to tolerate f = {f}" if robust else "tolerates none"
        found.append(f"aggregator: adversaries may win or spoil {bad} gradients after {scheme}, and {rule} {tolerates}")
    if robust and m == 1:
        found.append(f"aggregator: {scheme} leaves one gradient, so {rule} has nothing to choose from")
    stop, every = job.stop_early, job.eval_every
    if stop and every and job.steps is not None and (least := (stop.patience + 1) * every) >= job.steps:
        found.append(
            f"stop_early: patience {stop.patience} and eval_every {every} end a run after {least} steps at the "
            f"earliest, and the job has {job.steps}"
        )
    if job.local.momentum and job.optimizer.get("momentum"):
        found.append("local.momentum: optimizer.momentum averages over steps once more, at the server")
    if job.ema and job.steps is not None and (span := 1 / (1 - job.ema)) > job.steps / 2:
        found.append(f"ema: averages over about {span:.0f} steps, and the job has {job.steps}: lower ema")
    if job.steps is not None and any(stone >= job.steps for stone in job.schedule.get("milestones") or ()):
        found.append(f"schedule.milestones: some lie at or beyond the last step, {job.steps}, and change nothing")
    return found
