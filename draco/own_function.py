"""A user's own function in the place of an entry of a table: its options are its signature's, its calls are watched.

A parameter beyond those that Draco hands over is an option. Its default is the option's, and where its annotation is a
plain type, such as `int` or `float | None`, values are checked against it.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, TypeVar

from draco import own
from draco.declaration import Declaration, Option, OptionError
from draco.determinism import UNREPEATABLE, without_form
from draco.errors import DracoError, OwnCodeError
from draco.lazy import Tensor, torch

_D = TypeVar("_D", bound=Declaration)
_PLAIN = (int, float, bool, str)
_BY_PLACE = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class Signature(NamedTuple):
    """What a user's own function takes."""

    options: Mapping[str, Option]
    handed: frozenset[str]  # those of the names that Draco can hand over that it takes

    def of(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return those of the arguments that the function takes: of what is handed over, and all options."""
        return {name: value for name, value in arguments.items() if name in self.handed or name in self.options}


def read(
    path: str, function: Any, what: str, places: int, handed: Collection[str], *, classes: bool = False
) -> Signature:
    """Return what a function takes.

    Args:
        path: names it in a job.
        function: the function.
        what: what it must be, in words: "an aggregator is a function of gradients (n, d) ...".
        places: the number of arguments that are handed over by their place.
        handed: names of arguments that are handed over where the function has them.
        classes: whether it may be the class of what it makes.

    Raises:
        OwnCodeError: it cannot be called so.
    """
    if isinstance(function, type) and not classes:
        raise OwnCodeError(f"{path}{defined(function)}: is a class; {what}")
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        raise OwnCodeError(f"{path}: is {_kind(function)}; {what}") from None
    kinds = [parameter.kind for parameter in parameters]
    first, rest = parameters[:places], parameters[places:]
    if inspect.Parameter.VAR_POSITIONAL in kinds[:places]:
        first, rest = [], parameters
    elif len(first) < places or any(each.kind not in _BY_PLACE for each in first):
        raise OwnCodeError(f"{path}{defined(function)}: takes {_counted(first)} by place; {what}")
    annotations = _annotations(function)
    options: dict[str, Option] = {}
    for each in rest:
        if each.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
            continue
        if each.kind is inspect.Parameter.POSITIONAL_ONLY:
            raise OwnCodeError(f"{path}{defined(function)}: {each.name} cannot be given by name; {what}")
        if each.name not in handed:
            options[each.name] = _option(path, each, annotations.get(each.name))
    anything = inspect.Parameter.VAR_KEYWORD in kinds
    names = {parameter.name for parameter in rest}
    return Signature(options, frozenset(name for name in handed if anything or name in names))


def declared(path: str, found: Any, kind: type[_D], what: str) -> _D | None:
    """Return a user's own declaration under its path; None where what was found is no declaration.

    Raises:
        OwnCodeError: it declares something else.
    """
    if not isinstance(found, Declaration):
        return None
    if not isinstance(found, kind):
        raise OwnCodeError(f"{path}: is {_kind(found)}; {what}, or {_kind(kind)} of one")
    return replace(found, name=path)


def default(function: Any, name: str) -> Any:
    """Return the default of a function's parameter; None: it has none, or there is no such parameter."""
    parameter = inspect.signature(function).parameters.get(name)
    return None if parameter is None or parameter.default is parameter.empty else parameter.default


def defined(function: Any) -> str:
    """Return where a user's own function or class is defined, as `, my_rules.py, line 3`; nothing where it is not."""
    function = inspect.unwrap(function) if callable(function) else function
    try:
        file = inspect.getsourcefile(function)
        line = inspect.getsourcelines(function)[1]
    except (TypeError, OSError):
        return ""
    return f", {own.shown(file)}, line {line}" if file and own.is_own(file) else ""


@contextmanager
def watched(path: str) -> Iterator[None]:
    """Turn what a user's own code raises into an OwnCodeError with its file and line.

    What Draco itself understands passes: its own errors, and the fault of an option.
    """
    try:
        yield
    except (DracoError, OptionError):
        raise
    except Exception as error:
        if operation := without_form(error):
            raise OwnCodeError(f"{path}{own.place(error)}: {operation} {UNREPEATABLE}") from error
        raise OwnCodeError(f"{path}{own.place(error)}: {type(error).__name__}: {error}") from error


@contextmanager
def unchanged(path: str, function: Any, what: str, given: Tensor) -> Iterator[None]:
    """Watch a call of a user's own function, which must leave a tensor as it was.

    It is seen by torch's count of changes in place, which costs nothing. What is changed behind torch's back is not.
    """
    before = _changes(given)
    with watched(path):
        yield
    if _changes(given) != before:
        raise OwnCodeError(f"{path}{defined(function)}: changes {what} in place; clone what you change")


def require_tensor(path: str, function: Any, made: Any, what: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Raise OwnCodeError unless what a function returned is a tensor of that shape and dtype."""
    if not isinstance(made, torch.Tensor):
        raise OwnCodeError(f"{path}{defined(function)}: returned {_kind(made)}; {what} is a tensor {shape} {dtype}")
    if tuple(made.shape) != shape or made.dtype != dtype:
        found = f"{tuple(made.shape)} {made.dtype}"
        raise OwnCodeError(f"{path}{defined(function)}: returned {found}; {what} is {shape} {dtype}")


def _changes(tensor: Tensor) -> int:
    """Return torch's count of changes in place; of tensors of an inference nothing is counted."""
    return 0 if tensor.is_inference() else tensor._version


def _option(path: str, parameter: inspect.Parameter, annotation: Any) -> Option:
    text = f"An argument of {path}."
    kind = annotation if _is_plain(annotation) else Any
    if parameter.default is parameter.empty:
        return Option(kind, None, text, required=True)
    nullable = parameter.default is not None and (kind is Any or NoneType in typing.get_args(kind))
    return Option(kind, parameter.default, text, nullable=nullable)


def _is_plain(annotation: Any) -> bool:
    """Say whether an annotation is of plain values, such as `int`, `float | None` or `Literal["a", "b"]`."""
    if annotation in _PLAIN:
        return True
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return all(isinstance(each, str) for each in inner)
    if origin in (UnionType, typing.Union):
        return all(each is NoneType or each in _PLAIN for each in inner)
    return False


def _annotations(function: Any) -> Mapping[str, Any]:
    """Return the annotations of a function or of a class's constructor, as far as they can be read."""
    annotated = function.__init__ if inspect.isclass(function) else inspect.unwrap(function)
    try:
        return typing.get_type_hints(annotated)
    except Exception:  # whatever evaluating a foreign annotation raises: it only means that nothing is checked by it
        return getattr(annotated, "__annotations__", {})


def _kind(value: Any) -> str:
    name = value.__name__ if isinstance(value, type) and issubclass(value, Declaration) else type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def _counted(parameters: list[inspect.Parameter]) -> str:
    return f"{len(parameters)} argument{'' if len(parameters) == 1 else 's'}"
