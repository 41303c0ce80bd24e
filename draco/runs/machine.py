"""The machine and the versions that a run's server ran on, for the events of its launches and for the report."""

import os
import platform
from pathlib import Path

import numpy as np
import torch

from draco import __version__


def describe() -> dict[str, str | int]:
    """Return the versions of Draco, Python, torch and numpy, the operating system, the CPU and its cores.

    `cores` counts those that this process may use, which a container or a pinning makes fewer than the machine has.
    """
    return {
        "draco": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "system": f"{platform.system()} {platform.release()}",
        "cpu": cpu_name(Path("/proc/cpuinfo")),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }


def cpu_name(cpuinfo: Path) -> str:
    """Return what Linux calls the processor, or its architecture where `cpuinfo` is missing or does not tell."""
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name" and value.strip():
                return value.strip()
    return platform.machine()
