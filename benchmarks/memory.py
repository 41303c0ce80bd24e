"""The memory that our rules take beyond the gradients and the result: peaks of the resident size of a new process.

Linux keeps the peak and lets a process reset it. The variables below, read when a process starts, make the allocator
return every block at once. So memory that one call leaves behind cannot serve the next one unseen.
"""

import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.contests import CONTESTS, gradients_of, ours, tolerated
from draco.launch.environment import launch_environment

ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536", "THP_MEM_ALLOC_ENABLE": "0", "NUMPY_MADVISE_HUGEPAGE": "0"}
CHECKOUT = {"PYTHONPATH": str(Path(__file__).parents[1])}  # a new process does not look into the working folder
RESET = Path("/proc/self/clear_refs")


def measured(n: int, d: int, f: int) -> dict[str, int]:
    """Return the bytes that every contest's rule takes at this size; none where the system does not tell."""
    if not RESET.exists():
        return {}
    argv = [sys.executable, "-c", f"from benchmarks.memory import main; main({n}, {d}, {f})"]
    result = subprocess.run(
        argv, env=launch_environment(os.environ, ENVIRONMENT | CHECKOUT), stdout=subprocess.PIPE, text=True, check=True
    )
    found: dict[str, int] = json.loads(result.stdout.splitlines()[-1])
    return found


def main(n: int, d: int, f: int) -> None:
    """Print {title: bytes} of every contest's rule as JSON, each after one call of it at a small size."""
    torch.set_num_threads(1)
    gradients = gradients_of(n, d)
    found = {}
    for contest in CONTESTS:
        run = ours(contest, n, tolerated(contest.rule, n, f))
        if isinstance(run, str):
            continue
        run(gradients[:, :100])
        gc.collect()
        before = _resident("VmRSS")
        RESET.write_text("5")  # forget the peak
        result = run(gradients)
        assert isinstance(result, torch.Tensor)
        found[contest.title] = max(_resident("VmHWM") - before - result.numel() * result.element_size(), 0)
        del result
    print(json.dumps(found))


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024
