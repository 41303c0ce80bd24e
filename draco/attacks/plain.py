"""Attacks of a liar by itself: it knows its own reply, and sends something else.

An attack acts after encoding, so a reply is a gradient, a weighted sum of gradients, or the complex128 vector of the
paper's cyclic code.

Source of the first three: the experiments of Chen et al., DRACO, ICML 2018 (arXiv:1803.09877), and the original code,
which differs: its `--adversarial` was read and ignored, the magnitude being -100 in the code; its `--err-mode random`
sent the honest gradient; in its cyclic code the error was added to the honest reply, here it takes the reply's place.
Shapes: see `scene`.
"""

from __future__ import annotations

import math

from draco.attacks.scene import Scene, noise, size
from draco.lazy import Tensor, torch


def none(reply: Tensor, *, magnitude: float, generator: torch.Generator, scene: Scene) -> Tensor:
    """Return the honest reply: the worker counts as an adversary and does nothing, or nothing to its numbers."""
    return reply.clone()


def reverse_gradient(reply: Tensor, *, magnitude: float, generator: torch.Generator, scene: Scene) -> Tensor:
    """Return -magnitude times the reply; the original's rev_grad with magnitude 100."""
    return reply * -magnitude


def constant(reply: Tensor, *, magnitude: float, generator: torch.Generator, scene: Scene) -> Tensor:
    """Return -magnitude everywhere; the original's constant with magnitude 100."""
    return torch.full_like(reply, -magnitude)


def random(reply: Tensor, *, magnitude: float, generator: torch.Generator, scene: Scene) -> Tensor:
    """Return independent Gaussian values of mean 0 and standard deviation `magnitude`, other ones at every call.

    The Gaussian attack of Blanchard et al., NeurIPS 2017 (arXiv:1703.02757), there of standard deviation 200. Values of
    a complex reply have that standard deviation in the plane, so 1 / sqrt(2) of it in either part.
    """
    return noise(reply, generator) * magnitude


def sign_flip(reply: Tensor, *, magnitude: float, generator: torch.Generator, scene: Scene) -> Tensor:
    """Return minus the reply: of honest size, in the opposite direction."""
    return -reply


def gaussian(reply: Tensor, *, magnitude: float, generator: torch.Generator, scene: Scene) -> Tensor:
    """Return the reply with Gaussian noise `magnitude` times as large: additive noise (`random` is noise alone)."""
    return reply + noise(reply, generator) * (magnitude * size(reply))


def zero(reply: Tensor, *, magnitude: float, generator: torch.Generator, scene: Scene) -> Tensor:
    """Return zeros: a worker that does not work."""
    return torch.zeros_like(reply)


def nan(reply: Tensor, *, magnitude: float, generator: torch.Generator, scene: Scene) -> Tensor:
    """Return NaN everywhere."""
    return torch.full_like(reply, math.nan)


def inf(reply: Tensor, *, magnitude: float, generator: torch.Generator, scene: Scene) -> Tensor:
    """Return infinity everywhere."""
    return torch.full_like(reply, math.inf)


def tiny(reply: Tensor, *, magnitude: float, generator: torch.Generator, scene: Scene) -> Tensor:
    """Return the reply with an error in a random direction of `magnitude` times the tolerated relative size.

    Below 1 it cannot be told from what honest machines differ by, so a decoder may let it pass; the result is then off
    by no more than the scheme's amplification times the tolerance.
    """
    error = noise(reply, generator)
    return reply + error * (magnitude * scene.tolerance * size(reply) / size(error))


def label_flip(reply: Tensor, *, magnitude: float, generator: torch.Generator, scene: Scene) -> Tensor:
    """Return the honest reply for wrong labels, y -> C - 1 - y of C classes: poisoned data, computed honestly.

    As in Karimireddy et al., ICLR 2022 (arXiv:2006.09365), and others.
    """
    return scene.flipped().clone()
