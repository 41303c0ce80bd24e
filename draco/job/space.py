"""The space that a run of a job takes on the disk, reckoned before it starts, without torch."""

import math
from typing import NamedTuple

from draco.aggregators import AGGREGATORS
from draco.data.datasets import DATASETS
from draco.job.fields import Job
from draco.job.numbers import total_steps
from draco.models import Size, model_size
from draco.optimizers import OPTIMIZERS

# Of a checkpoint besides its numbers: the job, and a few hundred bytes for each tensor. The tests compare all this with
# what runs really write.
_REST, _SHARE = 1 << 16, 0.02
_EVENT_BYTES, _WORKER_BYTES = 600, 12  # of a line for each step, and for each worker in it
_LOGGED_BYTES = {"csv": 200, "tensorboard": 900}  # of a step in the files of a logger


class Space(NamedTuple):
    """What a run takes, at most."""

    checkpoints: int  # at a time
    each: int  # bytes of one
    events: int  # bytes, with those of its loggers

    @property
    def whole(self) -> int:
        """Bytes of everything."""
        return self.checkpoints * self.each + self.events


def space(job: Job) -> Space | None:
    """Return the space that a run of the job takes; None where only its own task could tell."""
    if job.model is None or job.data.name is None:
        return None
    info = DATASETS[job.data.name]
    return space_of(job, total_steps(job, info.train), model_size(job.model, info.shape, info.classes))


def space_of(job: Job, steps: int, size: Size) -> Space:
    """Return the space that a run of so many steps takes, with a model of that size."""
    logged = sum(_LOGGED_BYTES.get(logger.name, 0) for logger in job.loggers)
    events = steps * (_EVENT_BYTES + logged + _WORKER_BYTES * job.workers)
    return Space(_most_checkpoints(job, steps), checkpoint_bytes(job, size), events)


def checkpoint_bytes(job: Job, size: Size) -> int:
    """Return about how large a checkpoint is: model, optimizer, worker momenta, and where a rule goes on from."""
    vectors = 1 + OPTIMIZERS[job.optimizer.name].vectors(job.optimizer.given())
    vectors += AGGREGATORS[job.aggregator.name].remembers
    vectors += job.workers if job.local.momentum else 0
    return math.ceil((1 + _SHARE) * 4 * (vectors * size.parameters + size.statistics)) + _REST


def _most_checkpoints(job: Job, steps: int) -> int:
    """Return how many there are at most at a time, where each is evaluated: one is written before another goes."""
    written = math.ceil(steps / job.checkpoint_every) if job.checkpoint_every else 1
    keep = job.checkpoint_keep
    if keep.name == "all":
        return written
    evaluated = written // keep.every if keep.every else 0
    return min(written, keep.last + 1 + keep.best + evaluated)
