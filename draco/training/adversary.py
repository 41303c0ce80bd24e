"""The adversary that a job simulates: which workers are Byzantine at which step, and what they are told.

Server and workers ask the same job, so they agree without a word between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from draco.attacks import attackers, placed_rows
from draco.job import Job, attack, byzantine_count
from draco.sampling import derive_seed


class Leak(NamedTuple):
    """The knowledge that informed Byzantine workers are presumed to have, as a task tells it."""

    past_seed: int  # of the last step's secret projections
    rows: tuple[int, ...]  # of workers 1..n at this step

    @classmethod
    def of(cls, numbers: Sequence[int]) -> Leak | None:
        """Return what the numbers in a task say; None where nothing is leaked."""
        return cls(numbers[0], tuple(numbers[1:])) if numbers else None


def informed(job: Job) -> bool:
    """Say whether the job's Byzantine workers are presumed to know what a `Leak` tells."""
    declared = attack(job)
    return declared is not None and declared.informed


def byzantine(
    job: Job, step: int, rows: Sequence[int] | None = None, groups: Sequence[int] | None = None
) -> tuple[int, ...]:
    """Return the ranks that are Byzantine at `step`, increasing.

    `rows[rank - 1]` is every worker's row and `groups` the scheme's. Only workers that are placed by row depend on
    them.
    """
    if not _active(job, step):
        return ()
    if job.attack.ranks is not None:
        return tuple(sorted(job.attack.ranks))
    if job.attack.who != "placed":
        return attackers(job.seed, step, job.workers, byzantine_count(job), job.attack.who)
    if rows is None:
        raise ValueError("Byzantine workers that are placed by row are not known without the workers' rows")
    placed = _placed(job, step, groups)
    return tuple(rank for rank, row in enumerate(rows, 1) if row in placed)


def is_byzantine(job: Job, step: int, rank: int, row: int, groups: Sequence[int] | None) -> bool:
    """Say whether the worker `rank`, which has `row`, is Byzantine at `step`; it need not know the others' rows."""
    if _active(job, step) and job.attack.who == "placed":
        return row in _placed(job, step, groups)
    return rank in byzantine(job, step)


def may_be_byzantine(job: Job, rank: int) -> bool:
    """Say whether the worker `rank` is Byzantine at any step, or may be."""
    if attack(job) is None:
        return False
    if job.attack.who != "fixed" and job.attack.ranks is None:
        return True
    return rank in byzantine(job, job.attack.from_step)


def leak(job: Job, secret: bytes, step: int, rows: Sequence[int]) -> tuple[int, ...]:
    """Return the numbers of a `Leak` for every task of a step; none where nobody is presumed to know them."""
    return (derive_seed(secret, "projections", step - 1), *rows) if informed(job) else ()


def _active(job: Job, step: int) -> bool:
    given = job.attack
    return attack(job) is not None and given.from_step <= step <= (given.until_step or step)


def _placed(job: Job, step: int, groups: Sequence[int] | None) -> tuple[int, ...]:
    declared, count = attack(job), byzantine_count(job)
    majorities = declared is not None and declared.placed == "majorities"
    return placed_rows(step, job.workers, groups, count, majorities=majorities)
