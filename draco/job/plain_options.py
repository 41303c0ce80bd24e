"""The options of a user's own code, as a job gives them: a frozen mapping of names to plain values.

A plain value is null, true or false, a whole number, a finite number, text, or a list or mapping of plain values. Text
is printable, with line ends and tabs. Draco does not know what the values mean: a job carries them from YAML to the
code that takes them, and back, unchanged.
"""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import core_schema

DEEPEST = 8  # lists and mappings in each other, the options themselves the first
MOST = 10_000  # values in all
LONGEST = 1 << 16  # characters of a text
LEGAL = "a mapping of names to plain values: numbers, text, true, false, null, lists and mappings of them"

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")  # of an argument of a function


class PlainOptions(Mapping[str, Any]):
    """Options by name, frozen and hashable; what is taken out of them is a copy.

    Two are equal where they are written alike: 1, 1.0 and true are three values.
    """

    __slots__ = ("_text", "_values")

    def __init__(self, values: Mapping[str, Any] | None = None) -> None:
        """Copy the values.

        Raises:
            ValueError: one of them is no plain value, or there are too many; says which.
        """
        given = {} if values is None else dict(values)
        for name in given:
            if not isinstance(name, str) or not _NAME.fullmatch(name):
                raise ValueError(f"{name!r} is no name of an option: letters, digits and _ only")
        _count(given, "", 1)
        self._values = _copied(given)
        self._text = json.dumps(self._values, sort_keys=True)

    def __getitem__(self, name: str) -> Any:
        """Return a copy of an option's value."""
        return copy.deepcopy(self._values[name])

    def __iter__(self) -> Iterator[str]:
        """Yield the names in the order in which they were given."""
        return iter(self._values)

    def __len__(self) -> int:
        """Return the number of options."""
        return len(self._values)

    def __eq__(self, other: object) -> bool:
        """Say whether two have the same names and values."""
        return self._text == other._text if isinstance(other, PlainOptions) else NotImplemented

    def __hash__(self) -> int:
        """Return a hash of the names and values."""
        return hash(self._text)

    def __repr__(self) -> str:
        """Return the options as a mapping is written."""
        return repr(self._values)

    def __deepcopy__(self, memo: Any) -> PlainOptions:
        """Return the options themselves, which do not change."""
        return self

    def plain(self) -> dict[str, Any]:
        """Return a copy as a dict of plain values."""
        return copy.deepcopy(self._values)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        """Take a mapping of plain values where a field of a job is declared as this type; write a dict of them."""
        del source, handler
        written = core_schema.plain_serializer_function_ser_schema(lambda given: given.plain())
        return core_schema.no_info_plain_validator_function(cls._taken, serialization=written)

    @classmethod
    def __get_pydantic_json_schema__(cls, core: core_schema.CoreSchema, handler: GetJsonSchemaHandler) -> Any:
        """Return the JSON Schema of the options."""
        del core, handler
        return {"type": "object", "propertyNames": {"pattern": f"^{_NAME.pattern}$"}}

    @classmethod
    def _taken(cls, value: Any) -> PlainOptions:
        if isinstance(value, cls):
            return value
        if not isinstance(value, Mapping):
            raise ValueError(f"must be {LEGAL}")
        return cls(value)


def _count(value: Any, where: str, depth: int) -> int:
    """Return the number of values in a value.

    Raises:
        ValueError: it is no plain value, or holds too many.
    """
    if value is None or isinstance(value, bool):
        return 1
    if isinstance(value, int) and abs(value) < 2**63:
        return 1
    if isinstance(value, float) and math.isfinite(value):
        return 1
    if isinstance(value, str) and len(value) <= LONGEST and _is_visible(value):
        return 1
    if not isinstance(value, list | tuple | dict):
        raise ValueError(f"{where or 'it'} is no plain value")
    if depth > DEEPEST:
        raise ValueError(f"{where} is nested more than {DEEPEST} deep")
    if isinstance(value, dict):
        if not all(isinstance(name, str) and name and _is_visible(name) for name in value):
            raise ValueError(f"{where} has a key that is no text")
        inner = [(f"{where}.{name}".lstrip("."), each) for name, each in value.items()]
    else:
        inner = [(f"{where}.{place}", each) for place, each in enumerate(value)]
    count = 1
    for name, each in inner:
        count += _count(each, name, depth + 1)
        if count > MOST:
            raise ValueError(f"{where or 'it'} holds more than {MOST} values")
    return count


def _is_visible(text: str) -> bool:
    """Say whether YAML and JSON give a text back as it was: nothing in it but printable characters, ends of lines."""
    return text.replace("\n", "").replace("\t", "").isprintable()


def _copied(value: Any) -> Any:
    """Return a copy in which every list is a list; a tuple is what a frozen value may hold in its place."""
    if isinstance(value, dict):
        return {name: _copied(each) for name, each in value.items()}
    return [_copied(each) for each in value] if isinstance(value, list | tuple) else value
