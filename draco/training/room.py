"""The room that a run needs: on the disk for its checkpoints, and on the server's GPU for all that lives there."""

import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch
from rich.filesize import decimal

from draco.aggregators import AGGREGATORS, PRE_AGGREGATORS
from draco.aggregators.compose import fuses
from draco.errors import MissingError, TrainingError
from draco.job import Job
from draco.job.numbers import aggregator_f, sizes
from draco.job.space import space_of
from draco.models import Size
from draco.models.flat import trained_size
from draco.optimizers import OPTIMIZERS
from draco.schemes import SCHEMES
from draco.training import device
from draco.training.build import Built, build_scheme, has_court
from draco.training.state import Training


class FullError(TrainingError):
    """The server's GPU is full in the midst of a step, so that what it holds may be half of one."""


# What decoders and rules take at a time, and the libraries of a GPU for themselves: blocks of columns, workspaces.
SCRATCH = 768 << 20


def require_on_gpu(built: Built) -> None:
    """Refuse to begin a run whose server does not fit on its GPU; others that use it are seen by what they have taken.

    Raises:
        MissingError: says what is needed and what is free.
    """
    where = built.server_device
    if where.type == "cpu":
        return
    need = on_gpu(built)
    free, _ = device.of_gpus().mem_get_info(where)
    if free < (whole := need.pop("in all")):
        parts = ", ".join(f"{name} {decimal(size)}" for name, size in need.items() if size)
        raise MissingError(
            f"{device.name(where)}: the server needs {decimal(whole)} there ({parts}), and "
            f"{decimal(free)} is free: server_device=cpu, or a GPU that fewer workers share"
        )


def on_gpu(built: Built) -> dict[str, int]:
    """Return the bytes that a server needs on its GPU, by what for, and `in all`."""
    job, p, d = built.job, trained_size(built.model), built.elements
    vector = 4 * p
    state = sum(each.nbytes for each in (*built.model.parameters(), *built.model.buffers()))
    given = job.optimizer.given()
    kept = vector * OPTIMIZERS[job.optimizer.name].vectors(given)
    several = built.protocol is not None  # rounds: replies are checked in host memory, k vectors come here
    scheme = None if several and has_court(job) else build_scheme(job, built.vote, built.tail)
    if scheme is None or several:
        assert built.protocol is not None
        replies = 4 * d * built.protocol.partitions
    else:
        replies = scheme.elements(d) * scheme.dtype.itemsize * job.workers
    decoded = 4 * d * scheme.assignment.shape[1] if scheme is not None and scheme.bad else 0  # a copy, at worst
    again = replies if SCHEMES[job.scheme.name].copies else 0
    undone = state + kept if several and built.protocol is not None and built.protocol.close is not None else 0
    need = {
        "replies": replies,
        "decoded gradients": decoded + again,
        "mixed gradients": vector * _mixed(job),
        "model": state + vector,  # for a moment its parameters are there twice
        "gradient": 3 * 4 * d + (vector if job.clip_norm is not None else 0),
        "optimizer": kept,
        "average": vector if job.ema else 0,
        "the rule's centre": vector if AGGREGATORS[job.aggregator.name].remembers else 0,
        "workers' momenta": job.workers * vector if job.local.momentum else 0,
        "a step to undo": undone,
        "scratch": SCRATCH,
    }
    return {"in all": sum(need.values()), **need}


def _mixed(job: Job) -> int:
    """Return how many vectors are made of the decoded gradients before the rule: by others, or of groups by itself."""
    spec, rule = job.aggregator, AGGREGATORS[job.aggregator.name]
    if spec.pre:
        steps = [PRE_AGGREGATORS[step.name] for step in spec.pre]
        made = steps[0].remaining(sizes(job).gradients, spec.pre[0].given())
        return 0 if fuses(rule, steps, rule.arguments(spec.given())) else made
    return rule.makes(aggregator_f(job), spec.given())


def watched(training: Training) -> AbstractContextManager[None]:
    """Say what can be done where a step fills the server's GPU: by a FullError."""
    remedy = "server_device=cpu, fewer workers on it, or a smaller batch_size"
    return _told(training, FullError, f"step {training.step + 1}", remedy)


def evaluating(training: Training) -> AbstractContextManager[None]:
    """Say what can be done where an evaluation fills it: by a TrainingError, as its last step was taken whole."""
    remedy = "a smaller eval_batch_size, or server_device=cpu"
    return _told(training, TrainingError, f"evaluation after step {training.step}", remedy)


@contextmanager
def _told(training: Training, kind: type[TrainingError], when: str, remedy: str) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        if training.device.type == "cpu":
            raise
        said = str(error).split(". ")[0]
        raise kind(f"{when}: {device.name(training.device)} is full ({said}): {remedy}") from error


def require(run: Path, training: Training) -> None:
    """Refuse to begin a run that will not fit on its disk.

    Raises:
        MissingError: says what is needed and what is free.
    """
    need = space_of(training.job, training.steps, Size(training.flat.numel(), training.statistics.numel()))
    there = sum(path.stat().st_size for path in (run / "checkpoints").glob("step-*") if path.is_file())
    more, free = max(need.whole - there, 0), shutil.disk_usage(run).free
    said = f"{need.checkpoints} checkpoints of {decimal(need.each)} and {decimal(need.events)} of events"
    if free < more:
        raise MissingError(
            f"{run}: {decimal(more)} is needed, and {decimal(free)} is free ({said}): free "
            "some, keep fewer checkpoints (checkpoint_keep), or keep runs on another disk with --runs DIR"
        )
