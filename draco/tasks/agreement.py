"""What a process sees of a task, in one line, and what follows where processes see different things.

Every worker says in its greeting what it sees, and the server compares that with what it sees itself. A worker may lie.
So what up to s workers say is told and no more; they can send what they like anyway. More than s cannot all be
Byzantine, and the run is not begun.

Shapes: N samples, p trained parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from draco.sampling import generator
from draco.tasks.first_check.bits import digest, leaves
from draco.tasks.task import Task, count

# What is seen -> what it means where it differs; the last two do no harm by themselves.
WORDS = {
    "count": "another number of training samples",
    "samples": "other training samples",
    "frozen": "other frozen weights",
    "weights": "other initial weights",
    "random": "other random numbers from the same seed (another version of torch)",
}
GRAVE = ("count", "samples", "frozen", "random")  # the server sends what is trained, and so the weights differ no more
_KEYED = 6  # samples that are looked at besides the first and the last
_LONGEST = 16  # digits of a value


def digest_of(task: Task, seed: int, train: object, model: nn.Module) -> str:
    """Return in one line what this process sees: `count=5000 samples=... frozen=... weights=... random=...`.

    It reads eight training samples, and all of the model.

    Args:
        task: whose `batch` fetches the samples.
        seed: the job's, which chooses the samples.
        train: what `samples("train")` returned.
        model: with its initial weights.
    """
    size = count(train)
    source = generator(seed, "agreement")
    places = sorted({0, size - 1, *torch.randint(max(size, 1), (_KEYED,), generator=source).tolist()})
    seen = [value for place in places for _, value in leaves(task.batch(train, torch.tensor([place])))]
    parameters = [*model.parameters()]
    values = {
        "count": str(size),
        "samples": digest(seen),
        "frozen": digest(each for each in parameters if not each.requires_grad),
        "weights": digest(each for each in parameters if each.requires_grad),
        "random": digest([torch.rand(64, generator=source), torch.randn(64, generator=source)]),
    }
    return " ".join(f"{name}={value}" for name, value in values.items())


def differing(own: str, other: str) -> list[str]:
    """Return which of `WORDS` differ between two lines of `digest_of`; none where one of them says nothing."""
    if not own or not other:
        return []
    first, second = _read(own), _read(other)
    return [name for name in WORDS if first.get(name) != second.get(name)]


def compare(own: str, greetings: Mapping[int, str]) -> list[str]:
    """Return a sentence for each way in which workers see something else than the server, with their ranks.

    Args:
        own: what the server sees.
        greetings: rank -> what that worker says it sees; nothing where it has not said so.
    """
    groups: dict[tuple[str, ...], list[int]] = {}
    for rank, said in sorted(greetings.items()):
        if names := differing(own, said):
            groups.setdefault(tuple(names), []).append(rank)
    told = {names: " and ".join(WORDS[name] for name in names) for names in groups}
    return [f"{_who(ranks)} {told[names]} than the server" for names, ranks in groups.items()]


def disagreeing(own: str, greetings: Mapping[int, str]) -> list[int]:
    """Return the ranks whose gradients would be of something else than the server trains."""
    return [rank for rank, said in sorted(greetings.items()) if {*differing(own, said)} & {*GRAVE}]


def verdict(own: str, greetings: Mapping[int, str], adversaries: int) -> tuple[list[str], bool]:
    """Return the sentences of `compare`, and whether the run may begin: at most s workers see something else."""
    return compare(own, greetings), len(disagreeing(own, greetings)) <= adversaries


def advice(own: str, greetings: Mapping[int, str]) -> str:
    """Return what to look at where too many workers see something else, by what they agree on among themselves."""
    others = [greetings[rank] for rank in disagreeing(own, greetings)]
    if len(others) > 1 and len(set(others)) == 1 and len(others) == len([said for said in greetings.values() if said]):
        return "all workers see the same, and the server something else: look at the files of its machine"
    if len(others) > 1 and len(set(others)) == len(others):
        return (
            "no two of them see the same: samples() or model() depends on the process, by a generator without a seed, "
            "the time, or the order of a set or of a folder's files"
        )
    return "look at the files and the packages of their machines"


def _read(line: str) -> dict[str, str]:
    """Return the values of a line; of one that a worker made up, what can be read of it."""
    pairs = (part.partition("=") for part in line.split()[: 2 * len(WORDS)])
    return {name: value[:_LONGEST] for name, _, value in pairs}


def _who(ranks: Sequence[int]) -> str:
    shown = ", ".join(map(str, ranks[:5])) + (f" and {len(ranks) - 5} more" if len(ranks) > 5 else "")
    return f"worker {shown} sees" if len(ranks) == 1 else f"workers {shown} see"
