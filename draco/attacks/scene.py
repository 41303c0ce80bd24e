"""The scene of an attack: what a Byzantine worker may know of one step.

Shapes: n workers, k partitions, f Byzantine workers at the step, e elements of a reply (d of a step vector unless the
scheme says otherwise), p parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from draco.lazy import Tensor, torch
from draco.schemes import Scheme

_T = TypeVar("_T")


class Scene(NamedTuple):
    """The worst case: an adversary that knows everything but the step's own secret.

    What is a function costs nothing unless it is called; nothing that one returns may be changed. To attacks that are
    not informed, `byzantine` is `row` alone, and they call none of `projections`, `gradients`, `honest`, `others`,
    `served` and `once`.
    """

    step: int
    rank: int
    row: int
    byzantine: tuple[int, ...]  # rows of the step's Byzantine workers, increasing
    scheme: Scheme
    tolerance: float  # relative difference between honest replies that the server tolerates
    projections: Callable[[int], Tensor]  # e -> (number, e): the secret projections of the last step
    shared: Callable[[], torch.Generator]  # a fresh generator, the same for all Byzantine workers of the step
    gradients: Callable[[], Tensor]  # (k, d): every partition's honest step vector
    honest: Callable[[], Tensor]  # (n, e): every row's honest reply
    others: Callable[[], Tensor]  # (n - f, e): the replies of the honest rows
    flipped: Callable[[], Tensor]  # (e,): the row's honest reply had every label y been C - 1 - y
    # What the server would make of the replies (n, e), (p,); None: it would refuse them. The secret is another one.
    served: Callable[[Tensor], Tensor | None]
    known: dict[str, Any]  # what the Byzantine workers of the step have worked out together; see `once`

    def once(self, what: str, compute: Callable[[], _T]) -> _T:
        """Return what `compute` returns, which the first Byzantine worker of the step calls for all of them.

        It must depend neither on whose scene this is nor on the attack's strength, and nobody may change what it
        returned. `what` names it among all that the attack works out.
        """
        if what not in self.known:
            self.known[what] = compute()
        found: _T = self.known[what]
        return found


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
