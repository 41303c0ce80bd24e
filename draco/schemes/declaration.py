"""What a scheme declares: its options, what follows from n and s before it is built, and what the trainer supplies.

Shapes: n workers, s adversaries, k partitions, m gradients after decoding, e elements of a reply.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from draco.declaration import Declaration
from draco.lazy import Tensor
from draco.protocols.rounds import Protocol
from draco.schemes.scheme import Scheme


class Sizes(NamedTuple):
    """The numbers of a scheme that follow from its options, before it is built."""

    partitions: int  # k
    gradients: int  # m, after decoding
    bad: int = 0  # as in `Scheme`


@dataclass(frozen=True, kw_only=True)
class SchemeDeclaration(Declaration):
    """What a scheme declares. Its function builds the `Scheme`; of one that `expels` it says that there is none."""

    # (workers, adversaries, **arguments) -> its numbers; a ValueError says why there is no such scheme.
    sizes: Callable[..., Sizes]
    least: Callable[[int, Mapping[str, Any]], int] = lambda s, given: 2 * s + 1  # (s, options) -> least n
    tolerance: float = 0.0  # by which honest replies may differ, relatively, unless an option says otherwise
    dtype: str = "float32"  # of a reply
    individual: bool = False  # row i sends the gradient of partition i as it is, and nobody else computes it
    grouped: bool = False  # rows fall into groups of s + 1 equal votes, so that s adversaries are counted in each
    supplied: tuple[str, ...] = ()  # arguments that the trainer knows: "seed" (of drawn designs), "tail"
    project: Callable[[int, int], Tensor] | None = None  # (seed, e) -> (number, e): what its decoder projects on
    # (workers, adversaries, all options) -> the protocol of its steps; None: a step is one round, and a code
    protocol: Callable[..., Protocol | None] | None = None
    expels: bool = False  # it has no code: its steps take several rounds, and who is proven to lie is out
    rounds: Callable[[Mapping[str, Any]], bool] = lambda given: False  # (options) -> a step takes several, by an option
    copies: bool = False  # its decoder copies the replies that are right
    replays: bool = False  # the server makes vectors of products in float32, and workers must compute in that

    def in_rounds(self, given: Mapping[str, Any]) -> bool:
        """Say whether a step takes several rounds with these options: then it has a protocol instead of a code."""
        return self.expels or self.rounds(given)

    def __call__(self, **arguments: Any) -> Scheme:
        """Build the scheme."""
        built: Scheme = self.function(**arguments)
        return built


def require_workers(name: str, workers: int, adversaries: int) -> None:
    """Raise a ValueError unless n >= 2s + 1: with fewer, s adversaries can pass for the honest workers."""
    if workers < (least := 2 * adversaries + 1):
        raise ValueError(f"{name}: {adversaries} adversaries need at least {least} workers, got {workers}")
