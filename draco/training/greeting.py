"""What each worker says of itself before the first step: what it runs on, what it sees, or why it cannot take part.

A Byzantine worker can say anything here. What follows from it must be right whoever lies (server.py says what does).
"""

from __future__ import annotations

import json
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from draco.determinism import differences, fingerprint
from draco.errors import TrainingError
from draco.job import Job
from draco.plain import plain
from draco.replay.likeness import likeness
from draco.schemes import SCHEMES
from draco.training import device

_FAULT_CHARACTERS = 300  # a greeting has 1024 bytes, and a character up to 6 in JSON
_PLATFORM_CHARACTERS = 2 * _FAULT_CHARACTERS


class Greeting(NamedTuple):
    """One worker's own words, made harmless."""

    platform: str = ""  # what decides its rounding: two workers that say the same should agree bit for bit
    sees: str = ""  # what its task's samples and frozen parameters are, as a digest
    fault: str = ""  # why it cannot take part


def platform_of(job: Job, where: torch.device | None = None) -> str:
    """Describe what decides this process's rounding on a device, that of its worker where none is given.

    Of a GPU that is its fingerprint, settings and results of a little work too: it is taken after `repeatable.settle`.

    Raises:
        MissingError: workers compute on GPUs, and this process sees none.
    """
    where = where or device.of_worker(job)
    if where.type != "cpu":
        found = {**fingerprint(where), "machine": platform.machine()}
        return json.dumps(found, sort_keys=True, separators=(",", ":"))  # a greeting is short
    facts: dict[str, Any] = {
        "torch": torch.__version__,
        "isa": torch.backends.cpu.get_cpu_capability(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "mkldnn": torch.backends.mkldnn.is_available(),  # type: ignore[no-untyped-call]
        "device": "cpu",
    }
    if SCHEMES[job.scheme.name].replays:
        facts["likeness"] = likeness()
    return json.dumps(facts, sort_keys=True)


def of_server(job: Job) -> dict[str, str]:
    """Return what decides the server's rounding as a run's chain has it, `server`: of a job on GPUs only."""
    if job.device == "cpu" and job.server_device != "cuda":
        return {}
    where = device.of_server(job)
    return {"server": "cpu" if where.type == "cpu" else platform_of(job, where)}


def write(greeting: Greeting) -> bytes:
    """Return a greeting as it is sent."""
    return json.dumps(greeting._replace(fault=greeting.fault[:_FAULT_CHARACTERS])._asdict()).encode()


def read(text: bytes) -> Greeting | None:
    """Return what a worker said, made harmless; None where it has not said anything."""
    if not text:
        return None
    try:
        found: Any = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, Mapping) or not all(isinstance(found.get(key, ""), str) for key in Greeting._fields):
        return Greeting(plain(text.decode(errors="replace"), 200))  # which no other platform is like
    return Greeting(*(plain(found.get(key, ""), _PLATFORM_CHARACTERS) for key in Greeting._fields))


def require_all(greetings: Sequence[Greeting | None], adversaries: int) -> None:
    """Refuse to start where more workers than the adversaries that a job tolerates cannot take part.

    Raises:
        TrainingError: says which workers, and their reasons.
    """
    faults = [said.fault for said in greetings if said and said.fault]
    if len(faults) > adversaries:
        raise TrainingError(f"workers cannot take part: {'; '.join(faulty(greetings))}")


def faulty(greetings: Sequence[Greeting | None]) -> list[str]:
    """Return for each reason why workers cannot take part which ones they are: `workers 2, 5: no such file`."""
    reasons: dict[str, list[int]] = {}
    for rank, said in enumerate(greetings, start=1):
        if said and said.fault:
            reasons.setdefault(said.fault, []).append(rank)
    return [f"worker{'s' if len(ranks) > 1 else ''} {_list(ranks)}: {why}" for why, ranks in reasons.items()]


def _list(ranks: Sequence[int]) -> str:
    shown = ", ".join(map(str, ranks[:5]))
    return f"{shown} and {len(ranks) - 5} more" if len(ranks) > 5 else shown


def unlike(greetings: Sequence[Greeting | None], server: str | None = None) -> set[int]:
    """Return the ranks of workers that do not run on what most run on, or the `server` does, or have not said what."""
    kinds = Counter(said.platform for said in greetings if said and not said.fault)
    most = server or (kinds.most_common(1)[0][0] if kinds else None)
    return {rank for rank, said in enumerate(greetings, start=1) if not said or said.fault or said.platform != most}


def unlikeness(greetings: Sequence[Greeting | None]) -> str:
    """Return in words in what the platforms of workers differ, where they say it readably; else all they say."""
    said = {rank: each.platform for rank, each in enumerate(greetings, start=1) if each and not each.fault}
    facts = {rank: _facts(text) for rank, text in said.items()}
    if all(facts.values()):
        told = differences(facts, "worker")
        return "; ".join(plain(f"{name}: {values}", 200) for name, values in [*told.items()][:3])
    return "; ".join(plain(kind, 200) for kind in sorted({*said.values()})[:3])


def apart(theirs: str, ours: str) -> str:
    """Return in words how the platform of a run differs from this one; of two GPUs only what differs."""
    there, here = _facts(theirs), _facts(ours)
    if there and here:
        names = [*differences({1: there, 2: here})][:3]
        return "; ".join(f"{name} was {there.get(name, 'none')} and is {here.get(name, 'none')}" for name in names)
    if there or here:
        theirs, ours = there.get("device", "cpu"), here.get("device", "cpu")
    return f"the run was on {theirs}, this is {ours}"


def _facts(text: str) -> dict[str, str]:
    """Return the facts of a platform that is a GPU's, as text; nothing where it is no such thing."""
    try:
        found: Any = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(found, Mapping) or "results" not in found:
        return {}
    return {str(name): str(value) for name, value in found.items()}
