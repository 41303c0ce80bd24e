"""The GPUs of a cluster's nodes, as the nodes' drivers describe them."""

import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from draco.cluster.backend import BACKENDS, Cluster
from draco.plain import plain

LIST = ("nvidia-smi", "--list-gpus")
_QUERY = ("nvidia-smi", "--query-gpu=name,memory.used,memory.total,utilization.gpu", "--format=csv,noheader,nounits")
_PATIENCE_S = 10.0
_LONGEST_NAME = 40


class Gpu(NamedTuple):
    """One GPU at this moment; None where the driver does not tell."""

    name: str
    used_mib: int | None
    total_mib: int | None
    busy: int | None  # percent of the last second or so in which it computed


def listed(text: str) -> int:
    r"""Return how many GPUs `nvidia-smi --list-gpus` names.

    >>> listed("GPU 0: NVIDIA A10G (UUID: GPU-1)\n")
    1
    """
    return sum(line.startswith("GPU ") for line in text.splitlines())


def read(text: str) -> tuple[Gpu, ...]:
    """Return the GPUs in a node's answer; lines of another form count for nothing."""
    lines = [[part.strip() for part in line.rsplit(",", 3)] for line in text.splitlines()]
    return tuple(
        Gpu(plain(line[0], _LONGEST_NAME), *(int(part) if part.isdigit() else None for part in line[1:]))
        for line in lines if len(line) == 4
    )  # fmt: skip


def asked(cluster: Cluster, folder: Path, nodes: Sequence[str]) -> dict[str, tuple[Gpu, ...]]:
    """Ask nodes that should have GPUs for them, all at once; nothing of a node that does not answer in time."""
    wanted = [node for node in nodes if cluster.details.get("gpus", {}).get(node)]
    backend = BACKENDS[cluster.backend]
    processes = {
        node: subprocess.Popen(
            backend.command(cluster, folder, node, _QUERY),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )
        for node in wanted
    }  # fmt: skip
    deadline, found = time.monotonic() + _PATIENCE_S, {}
    for node, process in processes.items():
        try:
            said, _ = process.communicate(timeout=max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            said = ""
        found[node] = read(said)
    return found


def words(gpus: Sequence[Gpu]) -> str:
    """Return the GPUs of one node in words.

    >>> words([Gpu("NVIDIA A10G", 512, 23028, 40), Gpu("NVIDIA A10G", 512, 23028, 60)])
    '2 x NVIDIA A10G, 1.0 of 45.0 GiB, 50 % busy'
    """
    if not gpus:
        return "no answer"
    parts = [f"{len(gpus)} x {gpus[0].name}"]
    memory = [(gpu.used_mib, gpu.total_mib) for gpu in gpus]
    if all(None not in pair for pair in memory):
        used, total = (sum(filter(None, column)) / 1024 for column in zip(*memory, strict=True))
        parts.append(f"{used:.1f} of {total:.1f} GiB")
    busy = [gpu.busy for gpu in gpus if gpu.busy is not None]
    if busy:
        parts.append(f"{sum(busy) / len(busy):.0f} % busy")
    return ", ".join(parts)
