"""A task and its model, built from what a job says, the same in every process.

What is built is a function of the seed: torch's, numpy's and Python's global generators are seeded around each call of
a user's code that builds something, and are put back afterwards.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from draco import own
from draco.errors import OwnCodeError
from draco.job import Job
from draco.lazy import torch
from draco.models import dropout, frozen
from draco.sampling import derive_seed
from draco.tasks.task import Task

if TYPE_CHECKING:
    from torch import nn


@contextmanager
def seeded(seed: int, *key: int | str) -> Iterator[None]:
    """Seed the global generators by (seed, *key), and put them back as they were afterwards."""
    number = derive_seed(seed, *key)
    python, array = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(number)  # torch.manual_seed would reseed other devices' too
        random.seed(number)
        np.random.seed(number % 2**32)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(array)


def build_task(job: Job) -> Task:
    """Return what the job trains.

    Raises:
        OwnCodeError: it is the job's own, and cannot be loaded or made.
    """
    if job.task is not None:
        return own_task(job.task.name, job.task.options.plain(), job.seed)
    from draco.tasks.images import ImageClassification

    assert job.model is not None
    assert job.data.name is not None
    augment, own = job.data.augment, job.data.own
    return ImageClassification(job.model, job.data.name, Path(job.data.root), job.seed, augment=augment, own=own)


def own_task(path: str, options: Mapping[str, Any], seed: int) -> Task:
    """Return the task that a path names: a class, which is called with the options, or a task made already.

    Raises:
        OwnCodeError: it cannot be loaded, is no task, or does not take these options.
    """
    found = own.load(path)
    if not isinstance(found, Task):
        if not callable(found):
            raise OwnCodeError(f"{path}: must be a subclass of draco.Task, and is a {type(found).__name__}")
        with own.blamed(f"{path}: cannot be made with options {dict(options)}"), seeded(seed, "task"):
            found = found(**options)
    elif options:
        raise OwnCodeError(f"{path}: is a task that was made already, so it takes no options: leave them out")
    if not isinstance(found, Task):
        raise OwnCodeError(f"{path}: must be a subclass of draco.Task, and makes a {type(found).__name__}")
    return found


def task_model(task: Task, seed: int) -> nn.Module:
    """Return the task's model in training mode, with weights that depend on the seed alone.

    Modules of it that the task has put into evaluation mode, such as frozen BatchNorm, stay in that.

    Raises:
        OwnCodeError: the task fails to build it, or it is no torch module.
    """
    name = type(task).__name__
    with own.blamed(f"{name}.model()"), seeded(seed, "weights"), torch.device("cpu"):
        model = task.model()
    if not isinstance(model, torch.nn.Module):
        raise OwnCodeError(f"{name}.model() must return a torch.nn.Module, and returns a {type(model).__name__}")
    dropout.replace_dropout(model)
    frozen.keep_frozen(model)
    return model.train()


def task_samples(task: Task, split: str, seed: int) -> Any:
    """Return the task's samples of "train" or "test".

    Raises:
        OwnCodeError: the task fails to fetch them.
    """
    with own.blamed(f'{type(task).__name__}.samples("{split}")'), seeded(seed, "samples", split):
        return task.samples(split)
