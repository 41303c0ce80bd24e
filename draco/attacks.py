"""Attacks: what an adversary sends instead of its honest reply, and who is an adversary at which step.

`ATTACKS[name](reply, magnitude=..., generator=...)` maps what an honest worker would send, (d,), to what is sent: a new
tensor of the same dtype on the same device. An attack acts after encoding, so a reply is a gradient, a weighted sum of
gradients, or the complex128 vector of the paper's cyclic code.

Source: the experiments of Chen et al., DRACO, ICML 2018 (arXiv:1803.09877), and the original code, which differs: its
`--adversarial` was read and ignored, the magnitude being -100 in the code; its `--err-mode random` sent the honest
gradient; in its cyclic code the error was added to the honest reply, here it takes the reply's place.

Shapes: n workers, d parameters.
"""

from typing import Protocol

import torch
from torch import Tensor

from draco import sampling


class Attack(Protocol):
    """One attack."""

    def __call__(self, reply: Tensor, *, magnitude: float, generator: torch.Generator) -> Tensor:
        """Return what the adversary sends in place of `reply`, (d,) -> (d,); `reply` is not changed."""


def none(reply: Tensor, *, magnitude: float, generator: torch.Generator) -> Tensor:
    """Return the honest reply: the worker counts as an adversary and does nothing."""
    return reply.clone()


def reverse_gradient(reply: Tensor, *, magnitude: float, generator: torch.Generator) -> Tensor:
    """Return -magnitude times the reply; the original's rev_grad with magnitude 100."""
    return reply * -magnitude


def constant(reply: Tensor, *, magnitude: float, generator: torch.Generator) -> Tensor:
    """Return -magnitude everywhere; the original's constant with magnitude 100."""
    return torch.full_like(reply, -magnitude)


def random(reply: Tensor, *, magnitude: float, generator: torch.Generator) -> Tensor:
    """Return independent Gaussian values of mean 0 and standard deviation `magnitude`, other ones at every call.

    Those of a complex reply have that standard deviation in the plane, so 1 / sqrt(2) of it in either part.
    """
    noise = torch.randn(reply.shape, dtype=reply.dtype, device=generator.device, generator=generator)
    return noise.to(reply.device) * magnitude


def attackers(seed: int, step: int, workers: int, count: int, who: str) -> tuple[int, ...]:
    """Return the ranks of step `step`'s adversaries, `count` of 1..n in increasing order.

    Args:
        seed: of the job.
        step: counted from 1; it plays no part where the adversaries are fixed.
        workers: n.
        count: adversaries.
        who: "fixed" for the same ranks at every step, "drawn" for fresh ones; either way they depend on `seed`.

    Raises:
        ValueError: `count` is not in 0..n, or `who` is unknown.
    """
    if not 0 <= count <= workers:
        raise ValueError(f"{count} attackers among {workers} workers; it must be 0 to {workers}")
    if who not in ("fixed", "drawn"):
        raise ValueError(f"who attacks is {who!r}; it must be fixed or drawn")
    key = ("attackers",) if who == "fixed" else ("attackers", step)
    drawn = torch.randperm(workers, generator=sampling.generator(seed, *key))[:count]
    return tuple(sorted((drawn + 1).tolist()))


ATTACKS: dict[str, Attack] = {
    "none": none,
    "reverse_gradient": reverse_gradient,
    "constant": constant,
    "random": random,
}
