"""The capacity of this machine: how many cells run at a time, and the least time that all of them take."""

import os
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F

from draco.data import DATASETS
from draco.job import Job, sizes, total_steps
from draco.models import build_model

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
    info = DATASETS[job.data.name]
    model = build_model(job.model, info.shape, info.classes, job.seed)
    return int(_BASE_BYTES + _COPIES * job.workers * sum(p.numel() for p in model.parameters()) * 4)


def _distinct(jobs: Sequence[Job]) -> list[Job]:
    """Return one job of each size."""
    return list({(job.model, job.data.name, job.workers): job for job in jobs}.values())


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
    return total_steps(job, DATASETS[job.data.name].train)


def gradient_seconds(jobs: Sequence[Job]) -> float:
    """Return how long the plain gradients of all steps of all jobs take, one after the other: the least there is to do.

    One partition of random samples is timed for each model, data set and size of partition.
    """
    known: dict[tuple[object, ...], float] = {}
    whole = 0.0
    for job in jobs:
        k = sizes(job).partitions
        key = (job.model, job.data.name, job.batch_size, k, job.threads)
        if key not in known:
            known[key] = k * _time_partition(job, -(-job.batch_size // k))
        whole += known[key] * steps(job)
    return whole


def _time_partition(job: Job, samples: int) -> float:
    """Return the seconds of one gradient of so many samples: of three the fastest, which was disturbed the least."""
    info = DATASETS[job.data.name]
    model = build_model(job.model, info.shape, info.classes, job.seed).eval()  # dropout's masks have no seed here
    source = torch.Generator().manual_seed(0)
    x, y = torch.randn(samples, *info.shape, generator=source), torch.zeros(samples, dtype=torch.int64)
    before = torch.get_num_threads()
    torch.set_num_threads(job.threads)
    try:
        taken = []
        for _ in range(3):
            began = time.perf_counter()
            F.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
            taken.append(time.perf_counter() - began)
    finally:
        torch.set_num_threads(before)
    return min(taken)
