"""What an aggregation rule and a pre-aggregator declare: options, least n, and what they need beside the gradients.

Shapes: n gradients (m of a job's, after decoding), d parameters, f declared Byzantine rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from draco.declaration import Declaration
from draco.lazy import Tensor

Faults = Iterator[tuple[str, str]]  # (option, what is wrong with its value): ("neighbours", "must be at most ...")


def _none(n: int, f: int, given: Mapping[str, Any]) -> Faults:
    return iter(())


@dataclass(frozen=True, kw_only=True)
class RuleDeclaration(Declaration):
    """What a rule declares. Its function maps (gradients (n, d), *, f, options) to (d,)."""

    least: Callable[[int], int]  # f -> least n
    faults: Callable[[int, int, Mapping[str, Any]], Faults] = _none  # (n, f, options): what does not go together
    robust: bool = True  # it takes f; the mean does not
    whole_rows: bool = False  # it looks at whole gradients, so that applied layer by layer it is another rule
    remembers: bool = False  # it starts at `centre` (d,), the last step's gradient, which a checkpoint then holds
    trusts: bool = False  # it takes `reference`, the place of the gradient of the worker that option `trusted` names
    by_coordinate: bool = False  # it looks at every coordinate by itself
    weighing: Callable[..., Any] | None = None  # (n, f, **options) -> the weights of rows by their inner products

    def __call__(self, gradients: Tensor, **arguments: Any) -> Tensor:
        """Reduce the gradients (n, d) to one (d,)."""
        reduced: Tensor = self.function(gradients, **arguments)
        return reduced


def _all(n: int, given: Mapping[str, Any]) -> int:
    return n


@dataclass(frozen=True, kw_only=True)
class PreAggregatorDeclaration(Declaration):
    """What a pre-aggregator declares. Its function maps (gradients (n, d), *, f, options) to (rows, d)."""

    least: Callable[[int], int]  # f -> least n
    remaining: Callable[[int, Mapping[str, Any]], int] = _all  # (n, options) -> rows that are left of n finite ones
    draws: bool = False  # it takes a `generator`
    mixing: Callable[..., Any] | None = None  # (n, generator, **options) -> its mixing matrix; None: it does not mix

    def __call__(self, gradients: Tensor, **arguments: Any) -> Tensor:
        """Mix or clip the gradients (n, d)."""
        mixed: Tensor = self.function(gradients, **arguments)
        return mixed
