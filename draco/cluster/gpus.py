"""The GPUs of a cluster's nodes, as the nodes' drivers describe them."""

import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from draco.cluster.backend import BACKENDS, Cluster
from draco.errors import MissingError
from draco.plain import plain

LIST = ("nvidia-smi", "--list-gpus")
_QUERY = ("nvidia-smi", "--query-gpu=name,memory.used,memory.total,utilization.gpu", "--format=csv,noheader,nounits")
_PATIENCE_S = 10.0
_LONGEST = 40  # of what is taken from an answer
_FAULTS = re.compile(r"err|lost|reset", re.IGNORECASE)  # ERR!, [Unknown Error], [GPU is lost], [GPU requires reset]


class Gpu(NamedTuple):
    """One GPU at this moment; None where the driver does not tell."""

    name: str
    used_mib: int | None
    total_mib: int | None
    busy: int | None  # percent of the last second or so in which it computed
    fault: str = ""  # what the driver says instead, of one that has failed


def listed(text: str) -> int:
    r"""Return how many GPUs `nvidia-smi --list-gpus` names; one that has failed is not among them.

    >>> listed("GPU 0: NVIDIA A10G (UUID: GPU-1)\nUnable to determine the device handle for gpu 0000:02:00.0\n")
    1
    """
    return sum(line.startswith("GPU ") for line in text.splitlines())


def read(text: str) -> tuple[Gpu, ...]:
    """Return the GPUs in a node's answer; lines of another form count for nothing."""
    lines = [[part.strip() for part in line.rsplit(",", 3)] for line in text.splitlines()]
    return tuple(_gpu(*line) for line in lines if len(line) == 4)


def _gpu(name: str, *rest: str) -> Gpu:
    used, total, busy = (int(part) if part.isdigit() else None for part in rest)
    fault = next((plain(part.strip("[]"), _LONGEST) for part in rest if _FAULTS.search(part)), "")
    return Gpu(plain(name, _LONGEST), used, total, busy, fault)


def asked(cluster: Cluster, folder: Path, nodes: Sequence[str]) -> dict[str, tuple[Gpu, ...]]:
    """Ask nodes that should have GPUs for them, all at once; nothing of a node that does not answer in time."""
    wanted = [node for node in nodes if cluster.details.get("gpus", {}).get(node)]
    backend = BACKENDS[cluster.backend]
    answers = _answers({node: backend.command(cluster, folder, node, _QUERY) for node in wanted})
    return {node: read(answer or "") for node, answer in answers.items()}


def counted(commands: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Return how many GPUs each node's driver lists, by the command that asks it there; 0 where there is no driver.

    Raises:
        MissingError: a driver does not answer, which it does not where a GPU has failed badly.
    """
    answers = _answers(commands)
    if silent := [node for node, answer in answers.items() if answer is None]:
        raise MissingError(
            "\n".join(
                f"{node}: nvidia-smi does not answer within {_PATIENCE_S:.0f} s: restart that machine, or leave its "
                "GPUs alone (draco_gpus: 0 in an inventory)"
                for node in silent
            )
        )
    return {node: listed(answer or "") for node, answer in answers.items()}


def _answers(commands: Mapping[str, Sequence[str]]) -> dict[str, str | None]:
    """Return what commands print that are run all at once; None of one that does not end in time."""
    processes = {
        node: subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        for node, command in commands.items()
    }  # fmt: skip
    deadline, found = time.monotonic() + _PATIENCE_S, dict[str, str | None]()
    for node, process in processes.items():
        try:
            found[node] = process.communicate(timeout=max(0.1, deadline - time.monotonic()))[0]
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            found[node] = None
    return found


def numbers(counts: Mapping[str, int]) -> str:
    """Return how many GPUs nodes have, in words; nothing where none has any.

    >>> numbers({"head": 0, "worker-01": 2})
    'GPUs: head 0, worker-01 2'
    """
    return "GPUs: " + ", ".join(f"{node} {count}" for node, count in counts.items()) if any(counts.values()) else ""


def words(gpus: Sequence[Gpu]) -> str:
    """Return the GPUs of one node in words.

    >>> words([Gpu("NVIDIA A10G", 512, 23028, 40), Gpu("NVIDIA A10G", 512, 23028, 60)])
    '2 x NVIDIA A10G, 1.0 of 45.0 GiB, 50 % busy'
    """
    if not gpus:
        return "nvidia-smi does not answer there"
    well = [gpu for gpu in gpus if not gpu.fault]
    parts = [f"{len(well)} x {(well or gpus)[0].name}"]
    memory = [(gpu.used_mib, gpu.total_mib) for gpu in well]
    if well and all(None not in pair for pair in memory):
        used, total = (sum(filter(None, column)) / 1024 for column in zip(*memory, strict=True))
        parts.append(f"{used:.1f} of {total:.1f} GiB")
    busy = [gpu.busy for gpu in well if gpu.busy is not None]
    if busy:
        parts.append(f"{sum(busy) / len(busy):.0f} % busy")
    if failed := len(gpus) - len(well):
        parts.append(f"{failed} failed: {next(gpu.fault for gpu in gpus if gpu.fault)}")
    return ", ".join(parts)
