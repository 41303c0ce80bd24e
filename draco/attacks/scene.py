"""What an attack is, and what a liar may know.

Shapes: n workers, k partitions, f liars at the step, e elements of a reply (d of a step vector unless the scheme says
otherwise), p parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

from draco.lazy import Tensor, torch
from draco.schemes import Scheme


class Scene(NamedTuple):
    """What a liar knows of one step: the worst case, an adversary that sees everything but the step's own secret.

    What is a function costs nothing unless it is called; nothing that one returns may be changed.
    """

    step: int
    rank: int
    row: int
    liars: tuple[int, ...]  # rows of the step's liars, increasing; of an attack that is not in INFORMED, `row` alone
    scheme: Scheme
    tolerance: float  # relative difference between honest replies that the server puts up with
    past_seed: int  # of the last step's secret projections; 0 for an attack that is not in INFORMED
    shared: Callable[[], torch.Generator]  # a fresh generator, the same for all liars of the step
    gradients: Callable[[], Tensor]  # (k, d): every partition's honest step vector
    honest: Callable[[], Tensor]  # (n, e): every row's honest reply
    flipped: Callable[[], Tensor]  # (e,): the row's honest reply had every label y been C - 1 - y
    # What the server would make of the replies (n, e), (p,); None: it would refuse them. The secret is another one.
    served: Callable[[Tensor], Tensor | None]


class Attack(Protocol):
    """One attack: a pure function."""

    def __call__(self, reply: Tensor, *, magnitude: float, generator: torch.Generator, scene: Scene) -> Tensor:
        """Return what the liar sends in place of `reply`, (e,) -> (e,): a new tensor of its dtype on its device.

        Args:
            reply: what an honest worker would send; it is not changed.
            magnitude: `attack.magnitude` of the job; z of alie, epsilon of ipm.
            generator: the liar's own, fresh at every step.
            scene: what else it may know.
        """


def size(vectors: Tensor) -> float:
    """Return the root mean square of the elements."""
    count = max(vectors.numel(), 1)
    return float(torch.linalg.vector_norm(vectors, dtype=_double(vectors.dtype))) / math.sqrt(count)


def noise(reply: Tensor, generator: torch.Generator) -> Tensor:
    """Return independent Gaussian values of mean 0 and standard deviation 1, in the plane where `reply` is complex."""
    drawn = torch.randn(reply.shape, dtype=reply.dtype, device=generator.device, generator=generator)
    return drawn.to(reply.device)


def _double(dtype: torch.dtype) -> torch.dtype:
    return torch.complex128 if dtype.is_complex else torch.float64
