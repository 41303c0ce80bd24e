"""The declarations of aggregation rules and pre-aggregators: options, least n, and their needs beside the gradients.

Shapes: n gradients (m of a job's, after decoding), d parameters, f declared Byzantine rows.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, get_args, get_origin

import numpy as np
import numpy.typing as npt

from draco.declaration import Declaration, Option, OptionError
from draco.given import as_count, as_tensor
from draco.lazy import Tensor, torch

Matrix = npt.NDArray[np.float64]
# (gram (n, n), f, precise) -> the weights (n,) of the rows in the result, and whether float32 products settle them.
Weighing = Callable[[Matrix, int, bool], tuple[Matrix, bool]]
# (gram (n, n), f) -> the weights (rows, n) in the mixed rows, and whether float32 products settle them.
Mixing = Callable[[Matrix, int], tuple[Matrix, bool]]
Faults = Iterator[tuple[str, str]]  # (option or "name", what is wrong): ("neighbours", "must be at most ...")

_BOUNDS = {
    "ge": ("at least", operator.ge), "gt": ("above", operator.gt), "le": ("at most", operator.le),
    "lt": ("below", operator.lt),
}  # fmt: skip


def majority(f: int) -> int:
    """Return the least n of which f are fewer than half."""
    return 2 * f + 1


def _none(n: int, f: int, given: Mapping[str, Any]) -> Faults:
    return iter(())


@dataclass(frozen=True, kw_only=True)
class RowsDeclaration(Declaration):
    """What rules and pre-aggregators both declare."""

    least: Callable[[int], int]  # f -> least n
    faults: Callable[[int, int, Mapping[str, Any]], Faults] = _none  # (n, f, options): what does not go together

    def __call__(self, gradients: Tensor, **arguments: Any) -> Tensor:
        """Apply the function to gradients (n, d): a tensor, an array or a list of rows; what comes out is a tensor.

        Raises:
            ValueError: the gradients are nothing of the kind, f is no whole number, or what the function raises.
        """
        gradients, f = self.taken(gradients, arguments.pop("f", 0), arguments)
        made: Tensor = self.function(gradients, f=f, **arguments)
        return made

    def taken(self, gradients: Any, f: Any, options: Mapping[str, Any]) -> tuple[Tensor, int]:
        """Return the gradients as a tensor and f, as every call gets them, once the options are of their kinds.

        Raises:
            ValueError: one of them is of no such kind.
        """
        self.require_kinds(options)
        rows = as_tensor(self.name, "gradients", gradients)
        self.require_rows(rows)
        return rows, as_count(self.name, "f", f)

    def require(self, f: Any, options: Mapping[str, Any]) -> int:
        """Return f as a whole number, where it and the options are legal for some gradients.

        Raises:
            ValueError: they are legal for none.
        """
        self.require_kinds(options)
        if (count := as_count(self.name, "f", f)) < 0:
            raise ValueError(f"{self.name}: f = {count}; it must be 0 or more")
        for option, message in _out_of_bounds(self.options, options):
            raise OptionError(self.name, option, message)
        return count

    def require_rows(self, gradients: Tensor) -> None:
        """Raise ValueError unless `gradients` is (n, d >= 1), float32 or float64."""
        if gradients.dim() != 2 or not gradients.shape[1] or gradients.dtype not in (torch.float32, torch.float64):
            found = f"gradients are {tuple(gradients.shape)} {gradients.dtype}"
            raise ValueError(f"{self.name}: {found}; they must be (n, d), float32 or float64")

    def check_options(self, n: int, f: int, **given: Any) -> None:
        """Raise OptionError where an option is out of its bounds or does not go with n rows of which f are Byzantine.

        Raises:
            OptionError: as above.
            ValueError: the rule itself cannot take so many rows.
        """
        for option, message in chain(_out_of_bounds(self.options, given), self.faults(n, f, given)):
            if option in self.options:
                raise OptionError(self.name, option, message)
            raise ValueError(message)


def _out_of_bounds(options: Mapping[str, Option], given: Mapping[str, Any]) -> Faults:
    """Yield the given options that are no legal values by themselves, or that need another one."""
    for name, value in given.items():
        option = options.get(name)
        if option is None or value is None:
            continue
        if get_origin(option.kind) is Literal and value not in get_args(option.kind):
            yield name, f"must be one of {', '.join(get_args(option.kind))}, got {value!r}"
        if not all(_BOUNDS[bound][1](value, limit) for bound, limit in option.bounds.items()):
            legal = " and ".join(f"{_BOUNDS[bound][0]} {limit}" for bound, limit in option.bounds.items())
            yield name, f"must be {legal}, got {value}"
        needs = option.only_with
        if needs is not None and value != option.default:
            other = given.get(needs.option, options[needs.option].default)
            if other not in needs.values:
                yield name, f"must be {option.default} with {needs.option} {other}, got {value}"


@dataclass(frozen=True, kw_only=True)
class RuleDeclaration(RowsDeclaration):
    """What a rule declares. Its function maps (gradients (n, d), *, f, options) to (d,)."""

    robust: bool = True  # it takes f; the mean does not
    # It looks at whole gradients and at nothing beside them: applied layer by layer it is another rule, which a job may
    # ask for. Rules that remember or trust are not for single layers.
    whole_rows: bool = False
    remembers: bool = False  # it starts at `centre` (d,), the last step's gradient, which a checkpoint then holds
    trusts: bool = False  # it takes `reference`, the place of the gradient of the worker that option `trusted` names
    by_coordinate: bool = False  # it looks at every coordinate by itself
    draws: bool = False  # it takes a `generator`
    # (n, f, **options) -> the weights of rows by their inner products; for options it does not take, rows are needed.
    weighing: Callable[..., Weighing] | None = None
    makes: Callable[[int, Mapping[str, Any]], int] = lambda f, given: 0  # (f, options) -> rows that it makes, at most


def _all(n: int, given: Mapping[str, Any]) -> int:
    return n


@dataclass(frozen=True, kw_only=True)
class PreAggregatorDeclaration(RowsDeclaration):
    """What a pre-aggregator declares. Its function maps (gradients (n, d), *, f, options) to (rows, d)."""

    remaining: Callable[[int, Mapping[str, Any]], int] = _all  # (n, options) -> rows that are left of n finite ones
    draws: bool = False  # it takes a `generator`
    mixing: Callable[..., Mixing] | None = None  # (n, generator, **options) -> its mixing; None: it does not mix
    compares: bool = False  # its mixing depends on the rows' inner products

    def __call__(self, gradients: Tensor, **arguments: Any) -> Tensor:
        """Mix or clip the gradients (n, d); see `RowsDeclaration`."""
        if self.draws and arguments.get("generator") is None:
            raise ValueError(f"{self.name}: draws at random and needs a generator")
        return super().__call__(gradients, **arguments)
