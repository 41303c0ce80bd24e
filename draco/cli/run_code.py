"""`draco validate --run-code`: builds a job's own task in this process, takes its first check, and says what it saw."""

from __future__ import annotations

import resource
import time
from typing import TYPE_CHECKING

from draco.cli import console

if TYPE_CHECKING:
    from draco.job import Job
    from draco.tasks.first_check import Found
    from draco.training.build import Built


def show(job: Job) -> None:
    """Check a job's own task and print what is trained, on what, and what a step takes.

    Raises:
        OwnCodeError: its code cannot be loaded, or breaks its contract; a line for each fault.
    """
    import torch

    from draco.training import task_check
    from draco.training.build import Built

    if job.task is None:
        console.say("no task of your own: there is no code to run")
        return
    torch.set_num_threads(job.threads)
    began = time.perf_counter()
    built = Built(job)
    found = task_check.check(built)
    took = time.perf_counter() - began
    for line in _lines(job, built, found, took):
        console.say(line)
    for warning in found.warnings:
        console.warn(warning)


def _lines(job: Job, built: Built, found: Found, took: float) -> list[str]:
    assert job.task is not None
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    per_sample = "a loss for each sample" if built.task.per_sample else "one loss for each batch"
    encoding = "one backward pass encodes" if built.encodes_freely else "a backward pass for each partition"
    return [
        f"{job.task.name}: {found.trained:,} parameters are trained, {found.frozen:,} are frozen, "
        f"{found.statistics:,} BatchNorm statistics",
        f"samples: {found.train:,} train, {found.test:,} test; {per_sample}",
        f"partition 0 of {built.plan.partitions}: {found.batch}",
        f"a pass over a partition: {found.seconds * 1e3:.3g} ms here; a worker computes {built.load}; {encoding}",
        f"a reply: {built.format.payload_bytes / 1e6:.3g} MB; memory of this process: {held / 1e6:.0f} MB at most",
        f"first check: passed in {took:.2g} s",
    ]
