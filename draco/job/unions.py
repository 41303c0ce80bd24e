"""The sections of a job, and how they are made from tables: a kind of section for every entry, told apart by name.

`scheme`, for example, is a part of a job. Its kinds are the sections of `repetition`, of `cyclic` and so on. A
declaration's options become the fields of its kind, with their types, bounds and words.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NamedTuple, Union, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, create_model

from draco.declaration import Declaration, OnlyWith, Option
from draco.own import is_path

# A list of ranks and the like: YAML gives a list, a frozen value holds a tuple.
AS_TUPLE = BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)

OWN = "own"  # the kind of section that a path is, where pydantic names kinds


class Section(BaseModel):
    """A group of a job's options, and the job itself: frozen, strict about types, without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def get(self, option: str) -> Any:
        """Return the value of an option, or None where the section's name has no such option."""
        return getattr(self, option, None)

    def given(self) -> dict[str, Any]:
        """Return every option with its value; a declaration's `arguments` picks those that its function takes."""
        return {option: getattr(self, option) for option in type(self).model_fields}


class NamedSection(Section):
    """A section whose name, such as that of a scheme, decides which other options it has."""

    name: str


class Part(NamedTuple):
    """A part of a job that is a section: which kinds of section it may be, and its short form.

    `scheme: cyclic` is the short form of `scheme: {name: cyclic}`.
    """

    short: str  # the option that the short form gives
    kinds: Mapping[str, type[Section]]  # by that option's value; under "" the only kind, whatever the value is
    default: str | None = None  # the name where none is given
    own: type[Section] | None = None  # the kind of a user's own code, whose name is its path

    def kind(self, values: Any) -> type[Section] | None:
        """Return the kind of section that `values` are meant as; None: their name is none of the part's."""
        if "" in self.kinds:
            return self.kinds[""]
        name = values.get(self.short, self.default) if isinstance(values, Mapping) else None
        if self.own is not None and is_path(name):
            return self.own
        return self.kinds.get(name) if isinstance(name, str) else None

    def having(self, option: str) -> list[str]:
        """Return the names whose sections have an option."""
        return [name for name, kind in self.kinds.items() if option in kind.model_fields]


def described(default: Any, text: str, *, only_with: OnlyWith | None = None, **bounds: Any) -> Any:
    """Return a field of a section."""
    extra: Any = {"only_with": only_with} if only_with else None
    return Field(default, description=text, json_schema_extra=extra, **bounds)


def kinds(
    title: str,
    entries: Mapping[str, Declaration],
    base: type[NamedSection],
    more: Callable[[Any], Mapping[str, Any]] = lambda entry: {},
) -> dict[str, type[NamedSection]]:
    """Return one kind of section for every entry of a table, by name.

    Args:
        title: starts the kinds' names.
        entries: the table.
        base: holds the fields that all kinds have.
        more: (entry) -> {field: (type, described)} that it has besides its own options.
    """
    made: dict[str, type[NamedSection]] = {}
    for name, entry in entries.items():
        fields: dict[str, Any] = {"name": (Literal[name], described(name, _sentence(entry.text)))}
        fields |= {option: field(declared) for option, declared in entry.options.items()}
        fields |= more(entry)
        made[name] = create_model(f"{title}_{name}", __base__=base, __doc__=_sentence(entry.text), **fields)
    return made


def union(of: Mapping[str, type[NamedSection]], own: type[NamedSection], default: str | None = None) -> Any:
    """Return the type of a field that holds one of the kinds, or that of a path, `own`.

    `default` is the name where none is given.
    """

    def tag(value: Any) -> Any:
        name = value.get("name", default) if isinstance(value, Mapping) else getattr(value, "name", None)
        return OWN if is_path(name) else name

    def named(value: Any) -> Any:
        if isinstance(value, Mapping) and "name" not in value and default is not None:
            return {"name": default, **value}
        return value

    kinds = [Annotated[kind, Tag(name)] for name, kind in [*of.items(), (OWN, own)]]
    return Annotated[Union[tuple(kinds)], Discriminator(tag), BeforeValidator(named)]  # noqa: UP007


def only_with(kind: type[BaseModel], option: str) -> OnlyWith | None:
    """Return with which values of another option alone an option may be given."""
    extra = kind.model_fields[option].json_schema_extra
    given = extra.get("only_with") if isinstance(extra, dict) else None
    return given if isinstance(given, OnlyWith) else None


def field(option: Option) -> tuple[Any, Any]:
    """Return the type and the field of an option, with its bounds."""
    default = ... if option.required else option.default
    if get_origin(option.kind) is tuple:
        item, *others = option.kind.__args__
        items = Annotated[item, Field(**option.bounds)]  # type: ignore[valid-type]
        some = Annotated[tuple[items, ...], Field(min_length=1)]
        kind = some if others == [...] else tuple[(items,) * (1 + len(others))]  # type: ignore[misc]
        return Annotated[kind, AS_TUPLE], described(default, option.text)
    return option.kind, described(default, option.text, only_with=option.only_with, **option.bounds)


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def written_out(value: Any) -> Any:
    """Write out the shorthand of a list of sections: `[nnm]` is `[{name: nnm}]`."""
    if not isinstance(value, list | tuple):
        return value
    return tuple({"name": item} if isinstance(item, str) else item for item in value)
