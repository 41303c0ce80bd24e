"""The rehearsal of a job's own attack: it is called once, with small numbers, before a run starts.

A simulated Byzantine worker that fails in its attack is a worker that is lost, and a code does without it: the run
would go on as if nobody attacked. So the server, which needs no worker for that, lets the attack show that it works.
"""

from __future__ import annotations

import torch
from torch import Tensor

from draco import own
from draco.attacks import Scene
from draco.errors import DecodeError
from draco.job import attack, byzantine_count
from draco.sampling import derive_seed, generator
from draco.schemes import SCHEMES
from draco.training import build
from draco.training.build import Built

_ELEMENTS = 1 << 16  # of a step vector, at most: an attack is told nothing of what they are


def rehearse(built: Built) -> None:
    """Call the job's attack as a worker would, where it is the user's own.

    Raises:
        OwnCodeError: it fails, or returns nothing that can be sent; says where.
    """
    job, declared = built.job, attack(built.job)
    if declared is None or not own.is_path(job.attack.name):
        return
    count, seed = byzantine_count(job), job.seed
    reply, scene = _scene(built, count)
    magnitude = declared.magnitude(job.attack.given(), job.workers, count)
    source = generator(seed, "attack", 0, 1)
    declared(reply, magnitude=magnitude, generator=source, scene=scene, **declared.others(job.attack.given()))


def _scene(built: Built, count: int) -> tuple[Tensor, Scene]:
    """Return an honest reply (e,) and what the worker of row 0 is told, of gradients that are drawn."""
    job, scheme = built.job, built.scheme
    partitions, elements = scheme.assignment.shape[1], min(built.elements, _ELEMENTS)
    source = generator(job.seed, "attack", 0)
    gradients = torch.randn(partitions, elements, generator=source)
    packs = scheme.dtype == torch.uint8  # of bytes there is no reverse, so an attack gets the mean gradient

    def reply(row: int) -> Tensor:
        own_gradients = gradients[scheme.assignment[row]]
        return own_gradients.mean(0) if packs else scheme.encode(row, own_gradients)

    def served(replies: Tensor) -> Tensor | None:
        try:
            return replies.mean(0) if packs else scheme.decode(replies, seed=1).gradients.mean(0)
        except DecodeError:
            return None

    def projections(length: int) -> Tensor:
        project = SCHEMES[scheme.name].project
        if project is None:
            raise ValueError(f"{scheme.name} has no projections that are known")
        return project(derive_seed(job.seed, "projections", 0), length)

    rows = range(scheme.workers)
    scene = Scene(
        step=1,
        rank=1,
        row=0,
        byzantine=tuple(range(count)),
        scheme=scheme,
        tolerance=build.tolerance(job),
        projections=projections,
        shared=lambda: generator(job.seed, "attack", 0),
        gradients=lambda: gradients,
        honest=lambda: torch.stack([reply(row) for row in rows]),
        others=lambda: torch.stack([reply(row) for row in rows[count:]]),
        flipped=lambda: reply(0),
        served=served,
        known={},
    )
    return reply(0), scene
