"""Attacks of one's own: a part of the honest reply, and the same lie from all Byzantine workers.

    make train JOB=examples/own_attack.yaml SIMULATE=1

An attack is a function of the honest reply (e,), after encoding. It takes what it needs of `magnitude`, an option of
every job, `generator`, a fresh one at each step, and `scene`, which is all that a worker may know: its row, the scheme,
everybody's honest reply (draco/attacks/scene.py). What else it takes is an option of its own.
"""

import torch

from draco.attacks import Scene


def shrink(reply: torch.Tensor, *, magnitude: float = 0.5) -> torch.Tensor:
    """Return `magnitude` times the reply: of honest direction, and wrong."""
    return reply * magnitude


def against_the_rest(reply: torch.Tensor, *, scene: Scene, strength: float = 1.0) -> torch.Tensor:
    """Return -strength times the mean of what honest workers send; all Byzantine workers send the same."""
    mean = scene.once("mean", lambda: scene.others().mean(0))
    return mean * -strength
