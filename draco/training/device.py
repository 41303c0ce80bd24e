"""The device that a process of a run computes on.

A job says `device: cuda`, and each of its workers takes a GPU by its place among the processes of its node: with as
many GPUs as processes each has its own, with fewer they share. What CUDA_VISIBLE_DEVICES hides is not there.
"""

import os
from collections.abc import Mapping
from typing import Any

import torch

from draco.errors import MissingError
from draco.job import Job

GPU = "cuda"  # what torch calls the device behind `cuda`
# How those who start ranks tell each which of its node's it is, from 0: mpirun, torchrun, srun.
_PLACES = ("OMPI_COMM_WORLD_LOCAL_RANK", "LOCAL_RANK", "SLURM_LOCALID")


def of_worker(job: Job, environ: Mapping[str, str] = os.environ) -> torch.device:
    """Return where this process's worker computes.

    Raises:
        MissingError: on a GPU, and this process sees none.
    """
    return torch.device("cpu") if job.device == "cpu" else _mine(environ, f"device: {job.device}")


def of_server(job: Job, environ: Mapping[str, str] = os.environ) -> torch.device:
    """Return where this process's server decodes, aggregates and steps.

    Raises:
        MissingError: on a GPU, and this process sees none.
    """
    if job.server_device == "cpu" or (job.server_device == "auto" and (job.device == "cpu" or not gpus())):
        return torch.device("cpu")
    return _mine(environ, f"server_device: {job.server_device}")


def gpus() -> int:
    """Return how many GPUs this process sees."""
    return int(of_gpus().device_count()) if of_gpus().is_available() else 0


def of_gpus() -> Any:
    """Return torch's module of streams, events and memory for GPUs: `torch.cuda`."""
    return torch.get_device_module(GPU)


def name(where: torch.device) -> str:
    """Return `cpu`, or what the driver calls a GPU."""
    return "cpu" if where.type == "cpu" else str(of_gpus().get_device_name(where))


def place(environ: Mapping[str, str]) -> int:
    """Return which of its node's processes this one is, from 0; 0 where nobody has said so."""
    return next((int(environ[name]) for name in _PLACES if environ.get(name, "").isdecimal()), 0)


def _mine(environ: Mapping[str, str], asked: str) -> torch.device:
    """Return this process's GPU."""
    count = gpus()
    if not count:
        raise MissingError(f"{asked}: torch sees no GPU here; cpu, or make setup TORCH=cuda")
    return torch.device(GPU, place(environ) % count)
