"""What a call of a user's code may not change: the global random generators, and settings of torch.

The generators are torch's default one, that of each CUDA device in use, numpy's and Python's.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def generators() -> dict[str, Any]:
    """Return the states of the global generators by name, to be compared."""
    numpy: dict[str, Any] = np.random.get_state(legacy=False)
    states: dict[str, Any] = {
        "torch's": torch.get_rng_state().numpy().tobytes(),
        "numpy's": (numpy["state"]["key"].tobytes(), numpy["state"]["pos"], numpy["has_gauss"]),
        "Python's": random.getstate(),
    }
    if _cuda():
        for place in range(torch.cuda.device_count()):
            states[f"CUDA device {place}'s"] = torch.cuda.get_rng_state(place).numpy().tobytes()
    return states


def settings() -> dict[str, Any]:
    """Return torch's global settings by name, to be compared."""
    return {
        "torch.get_default_dtype()": torch.get_default_dtype(),
        "torch.get_num_threads()": torch.get_num_threads(),
        "torch.is_grad_enabled()": torch.is_grad_enabled(),
        "torch.get_default_device()": torch.get_default_device(),
    }


def changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Return the names whose values differ."""
    return [name for name in after if name in before and before[name] != after[name]]


@contextmanager
def kept() -> Iterator[None]:
    """Leave every global generator and setting as it was."""
    own, numpy = random.getstate(), np.random.get_state()
    dtype, threads, grad = torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()
    device = torch.get_default_device()
    devices = range(torch.cuda.device_count()) if _cuda() else ()
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(own)
        np.random.set_state(numpy)
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(grad)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        if torch.get_default_device() != device:
            torch.set_default_device(device)


def _cuda() -> bool:
    """Say whether this process has used a GPU; if it has not, its generators cannot have moved."""
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
