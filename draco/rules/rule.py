"""What the classes of rules and pre-aggregators share, and the call of a rule by its name.

Shapes: n gradients, d parameters, f declared Byzantine rows, m rows that a pre-aggregator leaves.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, overload

import numpy.typing as npt

from draco import aggregators
from draco.aggregators.rule import PreAggregatorDeclaration, RowsDeclaration, RuleDeclaration
from draco.given import of_its_kind
from draco.lazy import Tensor

Array = npt.NDArray[Any]
Pre = Sequence[str | tuple[str, Mapping[str, Any]]]


class _WithOptions:
    """A rule or pre-aggregator with its options, which are checked when it is made."""

    declaration: ClassVar[RowsDeclaration]

    def __init_subclass__(cls) -> None:
        """Let the class tell all that its function tells: source, arguments, errors."""
        super().__init_subclass__()
        declared = cls.__dict__.get("declaration")
        told = inspect.getdoc(declared.function) if declared else None
        if cls.__doc__ and told:
            cls.__doc__ = f"{inspect.cleandoc(cls.__doc__)}\n{told.partition(chr(10))[2]}"

    def __init__(self, f: int, **options: Any) -> None:
        self.f = self.declaration.require(f, options)
        self.options = {name: value for name, value in options.items() if value is not None}

    def __repr__(self) -> str:
        given = "".join(f", {name}={value!r}" for name, value in self.options.items())
        return f"{type(self).__name__}(f={self.f}{given})"

    def least(self) -> int:
        """Return the least n with which f Byzantine rows are tolerated."""
        return self.declaration.least(self.f)


class Rule(_WithOptions):
    """What makes one gradient of many: `rule(gradients)`, (n, d) -> (d,).

    Each aggregator of Draco is a subclass, such as `draco.Krum`; a rule has no state, and may be used again.

    Attributes:
        f: declared Byzantine rows.
        options: the other options that were given, by name.
    """

    declaration: ClassVar[RuleDeclaration]

    @overload
    def __call__(self, gradients: Tensor | Sequence[Tensor]) -> Tensor: ...
    @overload
    def __call__(self, gradients: Array | Sequence[Array]) -> Array: ...
    @overload
    def __call__(self, gradients: Sequence[Sequence[float]]) -> list[float]: ...
    def __call__(self, gradients: Any) -> Any:
        """Return one gradient (d,) of the gradients (n, d), in the kind that they are given in.

        Args:
            gradients: a tensor or an array (n, d), float32 or float64, or a list of n tensors, arrays or lists of d
                numbers. They are not changed.

        Returns:
            A tensor for tensors, an array for arrays, a list of floats for lists of numbers. Tensors and arrays are of
            the dtype of `gradients`, float64 for whole numbers, and on their device; they take no gradient.

        Raises:
            ValueError: n is below `least()`, the gradients are nothing of the kind, or the rule itself refuses them.
        """
        return of_its_kind(gradients, self.declaration(gradients, f=self.f, **self.options))


class PreRule(_WithOptions):
    """What mixes or clips gradients before a rule reduces them: `pre(gradients)`, (n, d) -> (m, d).

    Each pre-aggregator of Draco is a subclass, such as `draco.NNM`. `draco.aggregate` takes them by name in `pre`,
    lowers f as they drop rows, and mostly makes no mixed rows.

    Attributes:
        f: declared Byzantine rows.
        options: the other options that were given, by name.
    """

    declaration: ClassVar[PreAggregatorDeclaration]

    @overload
    def __call__(self, gradients: Tensor | Sequence[Tensor]) -> Tensor: ...
    @overload
    def __call__(self, gradients: Array | Sequence[Array]) -> Array: ...
    @overload
    def __call__(self, gradients: Sequence[Sequence[float]]) -> list[list[float]]: ...
    def __call__(self, gradients: Any) -> Any:
        """Return the mixed or clipped gradients (m, d), in the kind that they are given in; see `Rule.__call__`.

        Raises:
            ValueError: n is below `least()`, or the gradients are nothing of the kind.
        """
        return of_its_kind(gradients, self.declaration(gradients, f=self.f, **self.options))


@overload
def aggregate(
    gradients: Tensor | Sequence[Tensor], rule: str, *, f: int = 0, pre: Pre = (), generator: Any = None, **options: Any
) -> Tensor: ...
@overload
def aggregate(
    gradients: Array | Sequence[Array], rule: str, *, f: int = 0, pre: Pre = (), generator: Any = None, **options: Any
) -> Array: ...
@overload
def aggregate(
    gradients: Sequence[Sequence[float]],
    rule: str,
    *,
    f: int = 0,
    pre: Pre = (),
    generator: Any = None,
    **options: Any,
) -> list[float]: ...
def aggregate(gradients: Any, rule: str, *, f: int = 0, pre: Pre = (), generator: Any = None, **options: Any) -> Any:
    """Return what an aggregator makes of gradients, (n, d) -> (d,), in the kind that they are given in.

    `draco.aggregate(x, "krum", f=2)`, `draco.aggregate(x, "median", f=2, pre=["nnm"])`. Sources: docs/library.md, and
    the class of each rule, `help(draco.Krum)`.

    Args:
        gradients: a tensor or an array (n, d), float32 or float64, or a list of n tensors, arrays or lists of d
            numbers. They are not changed.
        rule: the aggregator's name in jobs, such as "krum"; an unknown one is answered with all. Or the path of a
            function of your own, such as "my_rules.py:trimmed_krum".
        f: declared Byzantine rows; the rows that hold NaN or Inf are among them.
        pre: pre-aggregators that come first, by name, or as (name, options): `["nnm", ("bucketing", {"size": 2})]`.
        generator: the torch.Generator that "bucketing", and rules of your own, draw from.
        options: the rule's own, as in its class: `neighbours=3`.

    Returns:
        A tensor for tensors, an array for arrays, a list of floats for lists of numbers; see `Rule.__call__`.

    Raises:
        ValueError: an unknown name, an option out of its bounds, too few rows for f, or gradients of no such kind.
        TypeError: an option that the rule does not have.
        OwnCodeError: your own rule is missing, or breaks its contract.
    """
    steps = [(each, {}) if isinstance(each, str) else each for each in pre]
    made = aggregators.aggregate(gradients, rule, f=f, pre=steps, generator=generator, **options)
    return of_its_kind(gradients, made)
