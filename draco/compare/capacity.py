"""The capacity of this machine: how many cells run at a time, and the least time that all of them take."""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from draco.data import DATASETS
from draco.job import Job, sizes, total_steps
from draco.models.flat import trained_size
from draco.tasks import Task, count
from draco.tasks.building import build_task, task_model, task_samples

# Measured (peak resident set) with n = 9 to 15 workers and LeNet, FC and ResNet-18: 0.38 GB for torch and the data,
# and 1.6 to 2.9 times n * d * 4 bytes; the process that looks after the run takes 0.05 GB.
_BASE_BYTES = 500_000_000
_COPIES = 3.5
_SHARE = Path("/sys/fs/cgroup/cpu.max")  # of a container: microseconds of processor time in so many; else not there


def processes(jobs: Sequence[Job]) -> int:
    """Return how many of the jobs can go on at a time, 1 at least: a core for each thread, and memory for all."""
    cores = _available_cores() // max(job.threads for job in jobs)
    room = _available_bytes() // max(map(needed_bytes, _distinct(jobs)))
    return max(min(cores, room, len(jobs)), 1)


def needed_bytes(job: Job) -> int:
    """Return about how much memory a simulated run of the job takes."""
    model = task_model(build_task(job), job.seed)
    return int(_BASE_BYTES + _COPIES * job.workers * trained_size(model) * 4)


def _distinct(jobs: Sequence[Job]) -> list[Job]:
    """Return one job of each size."""
    return list({(job.model, job.data.name, job.task, job.workers): job for job in jobs}.values())


def _available_cores() -> int:
    """Return the cores that this process may use: those it may run on, or as many as its container's share allows."""
    cores = len(os.sched_getaffinity(0))
    if not _SHARE.exists():
        return cores
    quota, period = _SHARE.read_text().split()
    return cores if quota == "max" else min(cores, max(int(quota) // int(period), 1))


def _available_bytes() -> int:
    """Return the memory that can be had without swapping."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("/proc/meminfo has no MemAvailable")


def steps(job: Job) -> int:
    """Return the number of the job's last step."""
    if job.steps is not None:
        return job.steps
    if job.data.name is not None:
        return total_steps(job, DATASETS[job.data.name].train)
    return total_steps(job, count(task_samples(build_task(job), "train", job.seed)))


def gradient_seconds(jobs: Sequence[Job]) -> float:
    """Return how long the plain gradients of all steps of all jobs take, one after the other: the least there is to do.

    One partition, of random samples for the built-in models, is timed for each task and size of partition.
    """
    known: dict[tuple[object, ...], float] = {}
    whole = 0.0
    for job in jobs:
        k = sizes(job).partitions
        key = (job.model, job.data.name, job.task, job.batch_size, k, job.threads)
        if key not in known:
            known[key] = k * _time_partition(job, -(-job.batch_size // k))
        whole += known[key] * steps(job)
    return whole


def _time_partition(job: Job, samples: int) -> float:
    """Return the seconds of one gradient of so many samples: of three the fastest, which was disturbed the least."""
    task = build_task(job)
    model = task_model(task, job.seed).eval()  # dropout's masks have no seed here
    batch = _some(job, task, samples)
    before = torch.get_num_threads()
    torch.set_num_threads(job.threads)
    try:
        taken = []
        for _ in range(3):
            began = time.perf_counter()
            task.loss(model, batch).mean().backward()  # type: ignore[no-untyped-call]
            taken.append(time.perf_counter() - began)
    finally:
        torch.set_num_threads(before)
    return min(taken)


def _some(job: Job, task: Task, samples: int) -> Any:
    """Return a batch of so many samples; the data set of a built-in model need not be there yet."""
    if job.data.name is not None:
        source, shape = torch.Generator().manual_seed(0), DATASETS[job.data.name].shape
        return torch.randn(samples, *shape, generator=source), torch.zeros(samples, dtype=torch.int64)
    return task.batch(task_samples(task, "train", job.seed), torch.arange(samples))
