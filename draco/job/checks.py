"""What is wrong with a job whose single fields are right, and what a user may not have meant."""

import math
from collections.abc import Iterator
from typing import NamedTuple

from draco.job.fields import SECTIONS, Data, Job, Schedule, applies_to
from draco.job.messages import legal_values, properties, show
from draco.job.numbers import (
    DESIGNED,
    FALLIBLE,
    aggregator_f,
    bad,
    decoded,
    group_size,
    liars,
    partitions,
    structure,
)


class Fault(NamedTuple):
    """One thing that is wrong with a job."""

    path: str
    message: str
    about: tuple[str, ...] = ()  # the other fields that it takes into account


def check(job: Job) -> list[Fault]:
    """Return what is wrong with a job whose single fields are right."""
    found = [*_check_options(job), *_check_numbers(job), *_check_own(job), *_check_attack(job)]
    return [*found, *_check_training(job), *_check_tables(job)]


def _check_options(job: Job) -> Iterator[Fault]:
    """Yield the options that were given though they do not apply to the section's name."""
    for key, (kind, short) in SECTIONS.items():
        section = getattr(job, key)
        for option in kind.model_fields:
            names = applies_to(kind, option)
            if option in section.model_fields_set and names and getattr(section, short) not in names:
                message = f"applies to {', '.join(names)}; {key}.{short} is {getattr(section, short)}: leave it out"
                yield Fault(f"{key}.{option}", message, (f"{key}.{short}",))
    for step in job.aggregator.pre:
        for option in step.model_fields_set - {"name"}:
            if step.name not in (names := applies_to(type(step), option)):
                message = f"{option} applies to {', '.join(names)}, not to {step.name}: leave it out"
                yield Fault("aggregator.pre", message)


def _has_batch_norm(model: str) -> bool:
    return model.startswith("resnet") or model.endswith("_bn")


def _check_numbers(job: Job) -> Iterator[Fault]:
    """Yield what does not go together in n, s, r and B."""
    n, s = job.workers, job.scheme.adversaries
    about = ("workers", "scheme.name", "scheme.adversaries", "scheme.redundancy")
    needed = s if job.scheme.name == "uncoded" else 2 * s + 1
    if needed > n:
        yield Fault("scheme.adversaries", f"{s} needs at least {needed} workers, got {n}", about[:2])
    elif job.scheme.name == "repetition" and not needed <= group_size(job) <= n:
        message = f"must be from 2s+1 = {needed} to {n} workers, got {group_size(job)}"
        yield Fault("scheme.redundancy", message, about)
    k, per = partitions(job), 2 if _has_batch_norm(job.model) else 1
    if job.batch_size < per * k:
        why = f" and {job.model}'s batch norm at least 2 samples in each" if per == 2 else ""
        message = (
            f"must be at least {per * k}: {job.scheme.name} cuts it into {k} partitions{why}, got {job.batch_size}"
        )
        yield Fault("batch_size", message, (*about, "model"))
    if job.scheme.vote == "exact" and "tolerance" in job.scheme.model_fields_set:
        yield Fault(
            "scheme.tolerance", "does not apply to vote: exact, which compares bits: leave it out", ("scheme.vote",)
        )
    if job.scheme.inside is not None and job.scheme.name == "approximate" and job.scheme.code != "stochastic_block":
        yield Fault("scheme.inside", "applies to code: stochastic_block: leave it out", ("scheme.code", "scheme.name"))
    if job.scheme.name == "election" and job.wire.dtype != "float32":
        message = f"election sends bits, which {job.wire.dtype} cannot carry: must be float32"
        yield Fault("wire.dtype", message, ("scheme.name",))
    if job.scheme.name == "cyclic_dft" and job.wire.dtype != "float32":
        message = f"cyclic_dft sends complex numbers, which {job.wire.dtype} cannot carry: must be float32"
        yield Fault("wire.dtype", message, ("scheme.name",))


def _check_own(job: Job) -> Iterator[Fault]:
    """Yield what does not go together where workers have samples or momentum of their own."""
    data, local, scheme = job.data, job.local, job.scheme.name
    if data.split == "dirichlet" and data.alpha is None:
        legal = legal_values("alpha", properties(Data)["alpha"]).removesuffix(", or null")
        yield Fault("data.alpha", f"is missing; dirichlet needs {legal}", ("data.split",))
    if data.split != "dirichlet" and data.alpha is not None:
        yield Fault("data.alpha", f"applies to dirichlet; data.split is {data.split}: leave it out", ("data.split",))
    if scheme != "uncoded":
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
    attack, n = job.attack, job.workers
    if attack.name == "none":
        return
    about = (
        "workers", "attack.name", "attack.ranks", "attack.adversaries", "attack.fraction", "scheme.adversaries"
    )  # fmt: skip
    yield from _check_liars(job, about)
    yield from _check_attack_options(job, about)
    if attack.until_step is not None and attack.until_step < attack.from_step:
        message = f"must be at least attack.from_step = {attack.from_step}, got {attack.until_step}"
        yield Fault("attack.until_step", message, ("attack.from_step",))
    if attack.ranks is None:
        return
    ranks = show(list(attack.ranks))
    if len(set(attack.ranks)) < len(attack.ranks):
        yield Fault("attack.ranks", f"must be distinct, got {ranks}")
    if max(attack.ranks) > n:
        yield Fault("attack.ranks", f"must be from 1 to {n} workers, got {ranks}", ("workers",))
    if attack.adversaries not in (None, len(attack.ranks)):
        yield Fault("attack.ranks", f"must be attack.adversaries = {attack.adversaries} ranks, got {ranks}", about)
    if attack.who != "fixed":
        message = f"are fixed ranks and attack.who is {attack.who}: give one of the two"
        yield Fault("attack.ranks", message, ("attack.who",))


def _check_liars(job: Job, about: tuple[str, ...]) -> Iterator[Fault]:
    """Yield what does not go together in how many lie."""
    attack, n = job.attack, job.workers
    if attack.fraction is not None:
        for other in ("adversaries", "ranks"):
            if getattr(attack, other) is not None:
                yield Fault("attack.fraction", f"must be left out beside attack.{other}", about)
        if liars(job) == 0:
            message = f"must be at least 1/{n}, one worker of {n}, got {attack.fraction}"
            yield Fault("attack.fraction", message, about)
    elif liars(job) == 0:
        yield Fault("attack.adversaries", f"{attack.name} needs at least 1 liar, got scheme.adversaries = 0", about)
    if attack.adversaries is not None and attack.adversaries > n:
        yield Fault("attack.adversaries", f"{attack.adversaries} liars need as many workers, got {n}", about)


def _check_attack_options(job: Job, about: tuple[str, ...]) -> Iterator[Fault]:
    """Yield what an attack cannot do in this job. The tables of attacks import torch: load late."""
    from draco.attacks import PROJECTIONS, alie_z

    attack, count, scheme = job.attack, liars(job), job.scheme.name
    about = (*about, "scheme.name")
    if attack.name in ("alie", "alie_optimised", "ipm", "ipm_optimised", "mimic") and count >= job.workers:
        yield Fault("attack.name", f"{attack.name} needs an honest worker, {count} of {job.workers} lie", about)
    elif attack.name == "alie" and attack.z is None:
        try:
            alie_z(job.workers, count)
        except ValueError as e:
            yield Fault("attack.z", f"is missing: {e}", about)
    if attack.name == "orthogonal_to_projection" and scheme not in PROJECTIONS:
        known = " and ".join(PROJECTIONS)
        yield Fault("attack.name", f"orthogonal_to_projection knows {known}, which project; {scheme} does not", about)
    if attack.name == "tiny" and scheme == "uncoded":
        yield Fault("attack.name", "tiny hides below the tolerance of a code; uncoded has none", about)
    if attack.name == "silent" and (attack.who != "fixed" or attack.until_step is not None):
        message = (
            "silent is for good, as a worker that owes an answer gets no task: needs attack.who fixed and no "
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
    if job.optimizer.nesterov and job.optimizer.momentum == 0:
        yield Fault("optimizer.nesterov", "needs a momentum above 0, got 0", ("optimizer.momentum", "optimizer.name"))
    schedule = job.schedule
    for name, option in (("step", "step_size_steps"), ("multistep", "milestones"), ("exponential", "gamma")):
        given = option in schedule.model_fields_set and getattr(schedule, option) is not None
        if schedule.name == name and not given:
            legal = legal_values(option, properties(Schedule)[option])
            yield Fault(
                f"schedule.{option}", f"is missing; {name} needs {legal}".removesuffix(", or null"), ("schedule.name",)
            )
    stones = schedule.milestones or ()
    if list(stones) != sorted(set(stones)):
        yield Fault("schedule.milestones", f"must increase, got {show(list(stones))}")
    if job.steps is not None and schedule.warmup_steps >= job.steps and schedule.warmup_steps:
        message = f"must be fewer than the job's {job.steps} steps, got {schedule.warmup_steps}"
        yield Fault("schedule.warmup_steps", message, ("steps",))


def _check_tables(job: Job) -> Iterator[Fault]:
    """Yield what the tables of schemes, aggregators, models and data sets refuse. They import torch: load late."""
    from draco.data import DATASETS
    from draco.models import model_fault
    from draco.schemes import build

    if job.scheme.name in ("cyclic", "cyclic_dft") and 2 * job.scheme.adversaries < job.workers:
        try:  # the only schemes that refuse numbers for another reason than that they are too small: precision
            build(job.scheme.name, workers=job.workers, adversaries=job.scheme.adversaries)
        except ValueError as e:
            yield Fault("scheme.adversaries", str(e), ("workers", "scheme.name"))
    scheme, n, s = job.scheme.name, job.workers, job.scheme.adversaries
    possible = scheme != "repetition" or group_size(job) <= n
    if scheme in FALLIBLE or (scheme in (*DESIGNED, "solon") and 2 * s < n):
        try:
            build(scheme, workers=n, adversaries=s, **structure(job))
        except ValueError as e:
            possible = False
            options = [f"scheme.{key}" for key in ("redundancy", "design", "code", "inside", "stragglers", "parts")]
            yield Fault("scheme.name", str(e), ("workers", "scheme.adversaries", *options))
    if possible:
        yield from _check_aggregator(job)
    info = DATASETS[job.data.name]
    if job.data.augment and not info.augment:
        yield Fault("data.augment", f"{job.data.name} has no augmentation: must be false or left out", ("data.name",))
    if job.data.source is not None and not info.originals:
        yield Fault("data.source", f"{job.data.name} has no original files to take: leave it out", ("data.name",))
    fault = model_fault(job.model, info.shape)
    if fault is not None:
        yield Fault("model", f"{fault} ({job.data.name})", ("data.name",))
    if job.batch_size > info.train:
        message = f"must be at most the {info.train} training samples of {job.data.name}, got {job.batch_size}"
        yield Fault("batch_size", message, ("data.name",))


def _check_aggregator(job: Job) -> Iterator[Fault]:
    """Yield why the decoded gradients are not what the aggregator, or something before it, can work with."""
    from draco.aggregators import minimum_workers, remaining
    from draco.aggregators.smea import SUBSETS

    spec, m, f = job.aggregator, decoded(job), aggregator_f(job)
    about = ("workers", "scheme.name", "scheme.adversaries", "scheme.redundancy", "aggregator.f", "aggregator.pre")
    left = f"{job.scheme.name} leaves {m} of {job.workers} workers' replies"
    for step in spec.pre:
        if m < (needed := minimum_workers(step.name, f)):
            yield Fault("aggregator.pre", f"{step.name} with f = {f} needs at least {needed} gradients, {left}", about)
            return
        if (fewer := remaining(step.name, m, size=step.size)) < m:
            m, left = fewer, f"{left} and {step.name} {fewer}"
    if m < (needed := minimum_workers(spec.name, f)):
        yield Fault("aggregator.name", f"{spec.name} with f = {f} needs at least {needed} gradients, {left}", about)
        return
    for option, most, words in (("m", m - f, "m - f"), ("neighbours", m - f - 1, "m - f - 1")):
        value = getattr(spec, option)
        if value is not None and value > most:
            message = f"must be at most {words} = {most} of m = {m} gradients, got {value}"
            yield Fault(f"aggregator.{option}", message, (*about, "aggregator.name"))
    if spec.groups is not None and not 2 * f + 1 <= spec.groups <= m:
        message = f"must be from 2f + 1 = {2 * f + 1} to m = {m} gradients, got {spec.groups}"
        yield Fault("aggregator.groups", message, (*about, "aggregator.name"))
    if spec.name == "smea" and math.comb(m, f) > SUBSETS:
        message = f"smea with f = {f} looks at {math.comb(m, f)} subsets of {m} gradients; the most is {SUBSETS}"
        yield Fault("aggregator.name", message, about)
    if spec.nu and spec.backend == "hdmedians":
        yield Fault("aggregator.nu", "must be 0 with backend: hdmedians", ("aggregator.backend", "aggregator.name"))
    if spec.name == "monna" and (job.scheme.name != "uncoded" or spec.pre):
        message = "monna trusts the gradient of one worker: it needs scheme: uncoded and nothing in aggregator.pre"
        yield Fault("aggregator.name", message, ("scheme.name", "aggregator.pre"))
    if spec.name == "monna" and spec.trusted > job.workers:
        yield Fault("aggregator.trusted", f"must be one of {job.workers} workers, got {spec.trusted}", ("workers",))


def warnings(job: Job) -> list[str]:
    """Return a sentence for everything that is allowed but that a user may not have meant."""
    found: list[str] = []
    lie, s, scheme, rule = liars(job), job.scheme.adversaries, job.scheme.name, job.aggregator.name
    if scheme != "uncoded" and lie > s:
        found.append(f"attack: {lie} workers lie but {scheme} is built for {s}: steps may fail or be wrong")
    if scheme == "uncoded" and rule == "mean" and not job.aggregator.pre and (lie or s):
        found.append(f"scheme: uncoded with mean bears no adversary, and {max(lie, s)} are expected: nothing defends")
    if job.attack.name == "alie" and job.attack.z is None:
        from draco.attacks import alie_z

        if (z := alie_z(job.workers, lie)) <= 0:
            found.append(
                f"attack: alie's formula gives z = {z:.3g} for {lie} liars among {job.workers} workers, which does "
                "no harm: set attack.z, or let more lie"
            )
    if scheme == "uncoded" and rule != "mean" and lie > aggregator_f(job):
        found.append(f"attack: {lie} workers lie but {rule} is set to bear f = {aggregator_f(job)}")
    if scheme in FALLIBLE and aggregator_f(job) < bad(job):
        bears = "bears none" if rule == "mean" else f"is set to bear f = {aggregator_f(job)}"
        found.append(f"aggregator: liars may win or spoil {bad(job)} gradients after {scheme}, and {rule} {bears}")
    if rule != "mean" and decoded(job) == 1:
        found.append(f"aggregator: {scheme} leaves one gradient, so {rule} has nothing to choose from")
    if job.local.momentum and job.optimizer.momentum:
        found.append("local.momentum: optimizer.momentum averages over steps once more, at the server")
    if job.steps is not None and any(stone >= job.steps for stone in job.schedule.milestones or ()):
        found.append(f"schedule.milestones: some lie at or beyond the last step, {job.steps}, and change nothing")
    return found
