"""Declarations: the options of a scheme, rule, attack or optimizer, stated beside its function.

A table such as `SCHEMES` maps names to declarations, and a declaration is called like its function. Jobs take their
options, bounds, JSON Schema and messages from these tables, so that what is new is one file and one line in a table.
Modules that declare load no torch (`draco.lazy`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, NamedTuple, get_args, get_origin

from draco import own


class OptionError(ValueError):
    """A value that does not go with the others: `repetition: redundancy must be from 2s+1 = 3 to 9 workers, got 2`."""

    def __init__(self, owner: str, option: str, message: str) -> None:
        super().__init__(f"{owner}: {option} {message}")
        self.option, self.message = option, message


class OnlyWith(NamedTuple):
    """Another option, and those of its values with which alone an option may be given."""

    option: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Option:
    """One option: its type, its default, its meaning and its bounds. The bounds of a tuple are those of each item."""

    kind: Any  # as in an annotation: int, float | None, Literal["a", "b"], tuple[int, ...]
    default: Any
    text: str  # one or two sentences for the schema and the reference
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    only_with: OnlyWith | None = None
    required: bool = False  # it must be given; the default is not used
    argument: bool = True  # False: the trainer reads it, and the function does not take it
    nullable: bool = False  # None is a value that the function takes, and not the same as leaving it out

    @property
    def bounds(self) -> dict[str, float]:
        """The bounds that are given, by name."""
        named = {"ge": self.ge, "gt": self.gt, "le": self.le, "lt": self.lt}
        return {name: value for name, value in named.items() if value is not None}

    def other_kind(self, value: Any) -> str | None:
        """Return what a number must be, where it is not of this option's kind; choices are judged with the bounds."""
        kinds = get_args(self.kind) if get_origin(self.kind) is UnionType else (self.kind,)
        if value is None and NoneType in kinds:
            return None
        whole = isinstance(value, Integral) and not isinstance(value, bool)
        if int in kinds and not whole:
            return "must be a whole number"
        if float in kinds and not (whole or (isinstance(value, Real) and not isinstance(value, bool))):
            return "must be a number"
        return None


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """What every entry of a table declares."""

    name: str
    function: Callable[..., Any]
    text: str  # half a sentence for the schema and the reference
    options: Mapping[str, Option] = field(default_factory=dict)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        return self.function(*args, **kwargs)

    def require_kinds(self, given: Mapping[str, Any]) -> None:
        """Raise OptionError where a number that the function takes is given as something else."""
        for name, value in given.items():
            option = self.options.get(name)
            if option is not None and option.argument and (words := option.other_kind(value)):
                raise OptionError(self.name, name, f"{words}, got {value!r}")

    def arguments(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return those of the given options that the function takes; None stands for the function's own default."""
        return {
            name: given[name]
            for name, option in self.options.items()
            if option.argument and name in given and (given[name] is not None or option.nullable)
        }


class Table(dict[str, Any]):
    """Declarations by name, and by path: `table["my_rules.py:trimmed_krum"]` is one made of the user's own code.

    Only the entries that Draco has are counted, listed and asked for by `in`.
    """

    def __init__(self, entries: Mapping[str, Any], adapt: Callable[[str, Any], Any]) -> None:
        """`adapt` makes a declaration of a path and of what it names; it raises OwnCodeError where it cannot."""
        super().__init__(entries)
        self._adapt = adapt
        self._own: dict[str, tuple[Any, Any]] = {}  # path -> what it named, and the declaration made of it

    def __missing__(self, name: str) -> Any:
        """Return the declaration of what a path names.

        Raises:
            KeyError: the name is no path.
            OwnCodeError: the user's own code cannot be imported, or is not of the kind.
        """
        if not own.is_path(name):
            raise KeyError(name)
        found = own.load(name)
        known = self._own.get(name)
        if known is None or known[0] is not found:  # a notebook may have defined it anew
            known = self._own[name] = found, self._adapt(name, found)
        return known[1]


def table(adapt: Callable[[str, Any], Any], *entries: Any) -> Any:
    """Return the table of the entries; `adapt` makes one of a user's own code, see `Table`."""
    return Table({entry.name: entry for entry in entries}, adapt)


def is_known(entries: Mapping[str, Any], name: str) -> bool:
    """Say whether a name is an entry's, or a path, which only loading it shows to be good."""
    return name in entries or own.is_path(name)


def short(name: str) -> str:
    """Return the name of an entry as tables and figures show it: of a path, what it names."""
    return name.rpartition(":")[2] if own.is_path(name) else name
