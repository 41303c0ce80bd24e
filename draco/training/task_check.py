"""The server's look at a job's own task: before step 1, at every start, and where a step came to nothing.

Draco's own models and data sets are not looked at: they are tested.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch

from draco import own
from draco.errors import OwnCodeError, TrainingError
from draco.job import Job, attack, sizes
from draco.runs import events
from draco.runs.events import EventLog
from draco.tasks import agreement
from draco.tasks.first_check import Found, Setting, blame_not_finite, first_check
from draco.training import checkpoint, device, repeatable
from draco.training.build import Built, build_scheme
from draco.training.greeting import Greeting, faulty

_BLAME_S = 20.0


def setting_of(job: Job, *, again: bool = True) -> Setting:
    """Return what a job with a task of its own says that the task is checked against."""
    assert job.task is not None
    chosen = attack(job)
    explicit = job.scheme.get("encoding") == "explicit"
    scheme = build_scheme(job)
    linear = scheme.weights is not None and int(scheme.assignment.sum(1).max()) > 1
    joined = (linear and not explicit and job.autocast.dtype == "none") or job.micro_batch is not None
    return Setting(
        name=job.task.name,
        seed=job.seed,
        batch_size=job.batch_size,
        partitions=sizes(job).partitions,
        joined=joined,
        device=str(_device(job)),
        labels_for="" if job.data.split == "iid" else f"data.split: {job.data.split}",
        flipped_for=f"attack: {chosen.name}" if chosen is not None and chosen.relabels else "",
        again=again,
        wide=job.precision == "float64_rounded",
        repeats=job.device == "cpu" or job.deterministic,
        drawn=("*",) if job.weights.file is None else tuple(job.weights.fresh),
    )


def _device(job: Job) -> torch.device:
    """Return the workers' kind of device where this machine has one; else the CPU, as the server's need not."""
    return device.of_worker(job) if job.device == "cpu" or device.gpus() else torch.device("cpu")


def look(built: Built, run: Path, log: EventLog, *, again: bool) -> str:
    """Check the task unless training has begun; return what this process sees of it, as workers say in greetings.

    Args:
        built: the job's parts; its samples and model are those that are looked at.
        run: the run directory; it has no checkpoint where training has not begun.
        log: gets an event `checked`.
        again: fetch the training samples twice. Where workers fetch them too, their greetings tell as much.

    Raises:
        OwnCodeError: the task breaks its contract, or sees something else than when the run began.
    """
    job = built.job
    if job.task is None:
        return ""
    begun = checkpoint.is_begun(run / "checkpoints")
    found = None if begun else check(built, again=again)
    sees = seen(built)
    if found is not None:
        log.write("checked", **about(found), sees=sees)
    elif names := agreement.differing(_seen_before(run), sees):
        grave = [agreement.WORDS[name] for name in names if name in agreement.GRAVE]
        if grave:
            raise OwnCodeError(
                f"{job.task.name}: sees {' and '.join(grave)} than when this run began; put back what it was, or "
                "start anew"
            )
    return sees


def check(built: Built, *, again: bool = True) -> Found:
    """Return what the first check sees of a job's own task.

    Raises:
        OwnCodeError: a line for each fault.
    """
    with repeatable.settled(built.job, _device(built.job)):  # which need not be the server's
        return first_check(
            built.task,
            setting_of(built.job, again=again),
            samples=lambda split: built.train if split == "train" else built.test,
            model=lambda: built.model,
        )


def seen(built: Built) -> str:
    """Return what this process sees of a job's own task; of Draco's own nothing, as their files are known.

    Raises:
        OwnCodeError: the task fails to make a batch.
    """
    if built.job.task is None:
        return ""
    with own.blamed(f"{built.job.task.name}: batch()"):
        return agreement.digest_of(built.task, built.job.seed, built.train, built.model)


def about(found: Found) -> dict[str, object]:
    """Return what the event `checked` says."""
    return {name: value for name, value in vars(found).items() if name not in ("faults", "cause")}


def require_agreement(job: Job, sees: str, greetings: Sequence[Greeting | None], log: EventLog) -> None:
    """Compare what the server sees with what the workers say that they see.

    What up to s workers say, or that they cannot take part, is an event, `doubt`.

    Raises:
        TrainingError: more than s of them see something else.
    """
    said = {rank: each.sees for rank, each in enumerate(greetings, start=1) if each and not each.fault}
    sentences, begins = agreement.verdict(sees, said, job.scheme.adversaries)
    if not begins:
        assert job.task is not None
        raise TrainingError(f"{job.task.name}: {'; '.join(sentences)}; {agreement.advice(sees, said)}")
    if sentences or faulty(greetings):
        log.write("doubt", sentences=[*faulty(greetings), *sentences])


def blame(built: Built, step: int) -> str:
    """Return whose loss of a job's own task is not finite at a step, and why; nothing where none is found.

    It computes the loss of each partition once more and stops at the first that is not finite, or after `_BLAME_S`.
    """
    job = built.job
    if job.task is None:
        return ""
    where = next(built.model.parameters()).device
    setting, until = setting_of(job)._replace(device=str(where)), time.monotonic() + _BLAME_S
    plan = built.plan
    for partition in range(setting.partitions):
        try:
            with own.blamed(f"{setting.name}: step {step}"):
                batch, places = plan.drawn(built.task, built.train, step, partition), plan.indices(step, partition)
                why = blame_not_finite(built.task, setting, built.model, batch, places=places.tolist(), step=step)
        except OwnCodeError as error:
            return str(error)
        if why or time.monotonic() > until:
            return why
    return ""


def _seen_before(run: Path) -> str:
    """Return what this run's server saw when it began; nothing where that is not on record."""
    for event in events.read(run / "events.jsonl"):
        if event["event"] == "checked":
            return str(event.get("sees", ""))
    return ""
