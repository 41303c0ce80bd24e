"""Attacks of one Byzantine worker by itself: it knows its own reply, and sends something else.

An attack acts after encoding, so a reply is a gradient, a weighted sum of gradients, or the complex128 vector of the
paper's cyclic code.

Source of the first three: the experiments of Chen et al., DRACO, ICML 2018 (arXiv:1803.09877), and the original code.
That differs in three ways. Its `--adversarial` was read and ignored, the magnitude being -100 in the code. Its
`--err-mode random` sent the honest gradient. In its cyclic code the error was added to the honest reply; here it takes
the reply's place. Shapes: see `scene`.
"""

from __future__ import annotations

import math

from draco.attacks.attack import AttackDeclaration, magnitude
from draco.attacks.scene import Scene, noise, size
from draco.lazy import Tensor, torch
from draco.schemes import SchemeDeclaration


def none(reply: Tensor, *, magnitude: float, generator: torch.Generator, scene: Scene) -> Tensor:
    """Return the honest reply: the worker counts as an adversary and does nothing, or nothing to its numbers."""
    return reply.clone()


NONE = AttackDeclaration(name="none", function=none, text="the honest reply: no attack", truthful=True)


def reverse_gradient(reply: Tensor, *, magnitude: float, generator: torch.Generator, scene: Scene) -> Tensor:
    """Return -magnitude times the reply; the original's rev_grad with magnitude 100."""
    return reply * -magnitude


REVERSE_GRADIENT = AttackDeclaration(
    name="reverse_gradient",
    function=reverse_gradient,
    text="the reply, reversed and magnified",
    options=magnitude(100.0, "-magnitude times the reply is sent."),
    strength="magnitude",
)


def constant(reply: Tensor, *, magnitude: float, generator: torch.Generator, scene: Scene) -> Tensor:
    """Return -magnitude everywhere; the original's constant with magnitude 100."""
    return torch.full_like(reply, -magnitude)


CONSTANT = AttackDeclaration(
    name="constant",
    function=constant,
    text="one number everywhere",
    options=magnitude(100.0, "-magnitude is sent everywhere."),
    strength="magnitude",
    own=False,
)


def random(reply: Tensor, *, magnitude: float, generator: torch.Generator, scene: Scene) -> Tensor:
    """Return independent Gaussian values of mean 0 and standard deviation `magnitude`, other ones at every call.

    The Gaussian attack of Blanchard et al., NeurIPS 2017 (arXiv:1703.02757), there of standard deviation 200. Values of
    a complex reply have that standard deviation in the plane, so 1 / sqrt(2) of it in either part.
    """
    return noise(reply, generator) * magnitude


RANDOM = AttackDeclaration(
    name="random",
    function=random,
    text="Gaussian noise in place of the reply",
    options=magnitude(100.0, "Standard deviation of the noise."),
    strength="magnitude",
    own=False,
)


def sign_flip(reply: Tensor, *, magnitude: float, generator: torch.Generator, scene: Scene) -> Tensor:
    """Return minus the reply: of honest size, in the opposite direction."""
    return -reply


SIGN_FLIP = AttackDeclaration(name="sign_flip", function=sign_flip, text="minus the reply")


def gaussian(reply: Tensor, *, magnitude: float, generator: torch.Generator, scene: Scene) -> Tensor:
    """Return the reply with Gaussian noise `magnitude` times as large: additive noise (`random` is noise alone)."""
    return reply + noise(reply, generator) * (magnitude * size(reply))


GAUSSIAN = AttackDeclaration(
    name="gaussian",
    function=gaussian,
    text="the reply with Gaussian noise on top",
    options=magnitude(1.0, "Size of the noise, as a multiple of the reply's."),
    strength="magnitude",
)


def zero(reply: Tensor, *, magnitude: float, generator: torch.Generator, scene: Scene) -> Tensor:
    """Return zeros: a worker that does not work."""
    return torch.zeros_like(reply)


ZERO = AttackDeclaration(name="zero", function=zero, text="zeros", own=False)


def nan(reply: Tensor, *, magnitude: float, generator: torch.Generator, scene: Scene) -> Tensor:
    """Return NaN everywhere."""
    return torch.full_like(reply, math.nan)


NAN = AttackDeclaration(name="nan", function=nan, text="NaN everywhere", own=False)


def inf(reply: Tensor, *, magnitude: float, generator: torch.Generator, scene: Scene) -> Tensor:
    """Return infinity everywhere."""
    return torch.full_like(reply, math.inf)


INF = AttackDeclaration(name="inf", function=inf, text="infinity everywhere", own=False)


def tiny(reply: Tensor, *, magnitude: float, generator: torch.Generator, scene: Scene) -> Tensor:
    """Return the reply with an error in a random direction of `magnitude` times the tolerated relative size.

    Below 1 it cannot be told from what honest machines differ by, so a decoder may let it pass; the result is then off
    by no more than the scheme's amplification times the tolerance.
    """
    error = noise(reply, generator)
    return reply + error * (magnitude * scene.tolerance * size(reply) / size(error))


def _needs_a_tolerance(scheme: SchemeDeclaration) -> str | None:
    return None if scheme.tolerance > 0 else f"tiny hides below the tolerance of a code; {scheme.name} has none"


TINY = AttackDeclaration(
    name="tiny",
    function=tiny,
    text="the reply with an error below the scheme's tolerance",
    options=magnitude(0.9, "Size of the error, as a multiple of the tolerance."),
    strength="magnitude",
    fault=_needs_a_tolerance,
)


def label_flip(reply: Tensor, *, magnitude: float, generator: torch.Generator, scene: Scene) -> Tensor:
    """Return the honest reply for wrong labels, y -> C - 1 - y of C classes: poisoned data, computed honestly.

    As in Karimireddy et al., ICLR 2022 (arXiv:2006.09365), and others.
    """
    return scene.flipped().clone()


LABEL_FLIP = AttackDeclaration(
    name="label_flip",
    function=label_flip,
    text="the honest reply for wrong labels: y -> C - 1 - y of C classes",
    own=False,
    relabels=True,
)
