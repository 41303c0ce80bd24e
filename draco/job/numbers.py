"""The numbers that follow from a job's fields: partitions, gradients, how many of them may be bad, and steps.

Letters as in `fields`: n workers, s adversaries, k partitions, m gradients after decoding, f bad ones.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal

from draco.aggregators import AGGREGATORS
from draco.attacks import ATTACKS
from draco.attacks.attack import AttackDeclaration
from draco.job.fields import Job
from draco.job.named_sections import AttackSection
from draco.schemes import SCHEMES, Sizes

WITHOUT_MPI = ("torchrun", "slurm")  # launchers whose processes cannot talk by MPI


def structure(job: Job) -> dict[str, Any]:
    """Return the options of the job's scheme that `draco.schemes.build` takes."""
    return SCHEMES[job.scheme.name].arguments(job.scheme.given())


def sizes(job: Job) -> Sizes:
    """Return k, m and how many of the m the scheme's adversaries may make bad.

    Raises:
        ValueError: there is no such scheme for the job's numbers; `check` reports it.
    """
    return _sizes(job, SCHEMES[job.scheme.name].sizes)


@lru_cache(maxsize=256)
def _sizes(job: Job, of: Callable[..., Sizes]) -> Sizes:
    return of(job.workers, job.scheme.adversaries, **structure(job))


def in_rounds(job: Job) -> bool:
    """Say whether a step of the job's scheme takes several rounds, as it has a protocol instead of a code."""
    return SCHEMES[job.scheme.name].in_rounds(job.scheme.given())


def keeps_rows(job: Job) -> bool:
    """Say whether worker i has row i - 1 at every step: its samples or its momentum are its own."""
    return job.data.split != "iid" or job.local.momentum > 0


def aggregator_f(job: Job) -> int:
    """Return f, the number of bad ones among the m decoded gradients that the aggregator must tolerate."""
    if not AGGREGATORS[job.aggregator.name].robust and not job.aggregator.pre:
        return 0
    given = job.aggregator.get("f")
    return sizes(job).bad if given is None else int(given)


def transport(job: Job) -> Literal["mpi", "torch"]:
    """Return what the processes of a job talk by."""
    return job.transport or ("torch" if job.launcher in WITHOUT_MPI else "mpi")


def attack(job: Job) -> AttackDeclaration | None:
    """Return what the job's attack declares; None: nobody attacks."""
    return ATTACKS[job.attack.name] if isinstance(job.attack, AttackSection) else None


def byzantine_count(job: Job) -> int:
    """Return the number of workers that are made Byzantine at each step."""
    if attack(job) is None:
        return 0
    given = job.attack
    if given.adversaries is not None:
        return given.adversaries
    if given.fraction is not None:
        return math.floor(given.fraction * job.workers + 1e-9)  # 0.29 * 100 is 28.999...
    return len(given.ranks) if given.ranks is not None else job.scheme.adversaries


def total_steps(job: Job, train_size: int) -> int:
    """Return the number of the last step; the last batch of `epochs` is filled up from the epoch after."""
    if job.steps is not None:
        return job.steps
    assert job.epochs is not None
    return math.ceil(job.epochs * train_size / job.batch_size)
