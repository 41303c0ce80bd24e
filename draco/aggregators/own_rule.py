"""A user's own aggregators and pre-aggregators, named by their path: a plain function, or a declaration as ours are.

What they return is looked at: its shape and dtype, whether it is finite, and whether the gradients are as they were.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from draco.aggregators.rows import is_finite
from draco.aggregators.rule import PreAggregatorDeclaration, RuleDeclaration
from draco.errors import OwnCodeError
from draco.lazy import Tensor
from draco.own_function import declared, defined, read, require_tensor, unchanged

RULE = "an aggregator is a function (gradients (m, d), *, f, options) -> (d,)"
PRE_AGGREGATOR = "a pre-aggregator is a function (gradients (m, d), *, f, options) -> (m, d)"
_HANDED = ("f", "generator")


def adapt_rule(path: str, found: Any) -> RuleDeclaration:
    """Return the declaration of a user's own aggregator.

    A function that takes `f` is robust. One that takes `generator` draws from it alone. How many gradients it needs is
    for itself to say, by a ValueError.

    Raises:
        OwnCodeError: it is none.
    """
    rule = declared(path, found, RuleDeclaration, RULE)
    if rule is not None:
        return replace(rule, function=_checked(path, rule.function, rule.function, _require_gradient))
    signature = read(path, found, RULE, 1, _HANDED)

    def function(gradients: Tensor, **arguments: Any) -> Any:
        return found(gradients, **signature.of(arguments))

    return RuleDeclaration(
        name=path,
        function=_checked(path, found, function, _require_gradient),
        text=f"your own: {path}",
        options=signature.options,
        least=lambda f: 1,
        robust="f" in signature.handed,
        whole_rows=True,
        draws="generator" in signature.handed,
    )


def adapt_pre_aggregator(path: str, found: Any) -> PreAggregatorDeclaration:
    """Return the declaration of a user's own pre-aggregator; a function gives as many rows as it gets.

    Raises:
        OwnCodeError: it is none.
    """
    pre = declared(path, found, PreAggregatorDeclaration, PRE_AGGREGATOR)
    if pre is not None:
        return replace(pre, function=_checked(path, pre.function, pre.function, _require_columns))
    signature = read(path, found, PRE_AGGREGATOR, 1, _HANDED)

    def function(gradients: Tensor, **arguments: Any) -> Any:
        return found(gradients, **signature.of(arguments))

    return PreAggregatorDeclaration(
        name=path,
        function=_checked(path, found, function, _require_rows),
        text=f"your own: {path}",
        options=signature.options,
        least=lambda f: 1,
        draws="generator" in signature.handed,
    )


def _checked(
    path: str, source: Any, function: Callable[..., Any], require: Callable[[str, Any, Tensor, Any], None]
) -> Callable[..., Tensor]:
    """Return a function that is watched; `source` is the user's own, which messages name."""

    def called(gradients: Tensor, **arguments: Any) -> Tensor:
        may_change = arguments.get("overwrite", False)
        given = gradients.detach()
        if may_change:
            made = function(given, **arguments)
        else:
            with unchanged(path, source, "the gradients", given):
                made = function(given, **arguments)
        require(path, source, given, made)
        result: Tensor = made.detach()
        return result

    return called


def _require_gradient(path: str, source: Any, gradients: Tensor, made: Any) -> None:
    shape = (gradients.shape[1],)
    require_tensor(path, source, made, "the gradient", shape, gradients.dtype)
    if not is_finite(made) and is_finite(gradients):
        raise OwnCodeError(f"{path}{defined(source)}: made NaN or infinity of gradients that are all finite")


def _require_rows(path: str, source: Any, gradients: Tensor, made: Any) -> None:
    require_tensor(path, source, made, "what comes before an aggregator", tuple(gradients.shape), gradients.dtype)


def _require_columns(path: str, source: Any, gradients: Tensor, made: Any) -> None:
    """Take any number of rows, which a declaration's `remaining` says."""
    rows = made.shape[0] if hasattr(made, "shape") and len(made.shape) else 0
    shape = (rows, gradients.shape[1])
    require_tensor(path, source, made, "what comes before an aggregator", shape, gradients.dtype)
