"""The sections of a job that name a user's own code by its path: `{name: my_rules.py:krum, options: {keep: 3}}`.

What such code takes is known once it is loaded. So its options stand in one mapping, and are checked against its
declaration: as those of our own entries are, by their types and bounds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from draco.declaration import Declaration, Option, short
from draco.job.plain_options import PlainOptions
from draco.job.unions import NamedSection, described, field

PATH = r"^[^:\s][^:]*:[A-Za-z_][A-Za-z0-9_]*$"
# (an option, the JSON Schema of its legal values where that is to be told, what is wrong)
OptionFault = tuple[str, Mapping[str, Any] | None, str]

_CONFIG = ConfigDict(strict=True, allow_inf_nan=False)


class OwnSection(NamedSection):
    """A user's own code, by its path, with its options."""

    table: ClassVar[Mapping[str, Declaration]]  # which makes declarations of paths

    name: str = described(..., "Path of your own: a file or a module, and a name in it.", pattern=PATH, max_length=4096)
    options: PlainOptions = described(PlainOptions(), "Its options by name.")

    @cached_property
    def values(self) -> dict[str, Any]:
        """Every option of the user's own code: as it is given, else its default.

        Raises:
            OwnCodeError: the code cannot be loaded.
            ValidationError: an option is wrong; `option_faults` says it before.
        """
        declared = self.table[self.name].options
        given = self.options.plain()
        return {
            name: adapter(option).validate_python(given[name]) if name in given else option.default
            for name, option in declared.items()
        }

    def get(self, option: str) -> Any:
        """Return the value of an option, of the section's or of the user's own; None where neither has it."""
        return getattr(self, option) if option in type(self).model_fields else self.values.get(option)

    def given(self) -> dict[str, Any]:
        """Return every option with its value, the section's and the user's own."""
        return {**super().given(), **self.values}


def adapter(option: Option) -> TypeAdapter[Any]:
    """Return what takes the value of an option: its type and its bounds."""
    kind, info = field(option)
    return TypeAdapter(kind if kind is Any else Annotated[kind, info], config=_CONFIG)


def option_faults(section: OwnSection) -> Iterator[OptionFault]:
    """Yield what is wrong with the options that are given to a user's own code.

    Raises:
        OwnCodeError: the code cannot be loaded.
    """
    declared, given = section.table[section.name].options, section.options.plain()
    for name in given:
        if name not in declared:
            known = ", ".join(declared) or "none"
            yield name, None, f"{short(section.name)} has no such option; its options are: {known}"
    for name, option in declared.items():
        accepts = adapter(option)
        if name in given:
            try:
                accepts.validate_python(given[name])
            except ValidationError:
                yield name, accepts.json_schema(), "must be"
                continue
            needed = option.only_with
            if needed and given[name] != option.default:
                other = given.get(needed.option, declared[needed.option].default)
                if other not in needed.values:
                    message = f"applies only with {needed.option}: {' or '.join(needed.values)}: leave it out"
                    yield name, None, message
        elif option.required:
            yield name, accepts.json_schema(), "is missing; must be"
