"""The words of a fault in a field: which values it allows, and which it got."""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from draco.job.fields import PRE_AGGREGATOR, SECTIONS, Job
from draco.job.plain_options import LEGAL as PLAIN
from draco.job.sections import BUILT_IN_LOGGERS, LOGGER
from draco.job.unions import Part, Section
from draco.metrics import NAME


@cache
def properties(kind: type[Section]) -> dict[str, Any]:
    """Return the JSON Schema of each field of a section or of the job."""
    fields: dict[str, Any] = kind.model_json_schema()["properties"]
    return fields


def field_message(keys: Sequence[str], tree: Mapping[str, Any]) -> str:
    """Say what is wrong with the one field `keys` of `tree`."""
    part = tree if len(keys) == 1 else tree[keys[0]]
    kind = Job if len(keys) == 1 else SECTIONS[keys[0]].kind(part)
    assert kind is not None  # wrong names are told of before
    key = keys[-1]
    legal = legal_values(key if len(keys) == 1 else "", properties(kind)[key])
    if key not in part:
        return f"is missing; must be {legal}"
    names = choices(properties(kind)[key])
    return f"must be {legal}, got {show(part[key])}{_slip(part[key], names)}"


def name_message(part: Part, values: Mapping[str, Any]) -> str:
    """Say what is wrong with the name of a section."""
    legal = f"one of {', '.join(part.kinds)}"
    if part.short not in values:
        return f"is missing; must be {legal}"
    name = values[part.short]
    slip = _slip(name, list(part.kinds))
    if part.own and not slip and isinstance(name, str) and {".", "/"} & {*name}:
        slip = "; your own is a file or a module, a colon and a name in it: my_rules.py:trimmed_krum"
    return f"must be {legal}, got {show(name)}{slip}"


def _slip(value: Any, names: Sequence[str]) -> str:
    near = nearest(value, names) if isinstance(value, str) else []
    return f"; did you mean {near[0]}?" if near else ""


_TYPES = {"integer": "a whole number", "number": "a number", "string": "text", "boolean": "true or false"}
_BOUNDS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}


def legal_values(key: str, schema: Mapping[str, Any]) -> str:
    """Say in words which values a field's JSON Schema allows; `key` is that of a field of the job, or empty."""
    if key in SECTIONS:
        return _legal_section(SECTIONS[key])
    if "oneOf" in schema:
        return _legal_section(PRE_AGGREGATOR)
    if "$ref" in schema:  # an item of `loggers`
        names = ", ".join(BUILT_IN_LOGGERS)
        return f"one of {names}, or a class of yours such as my_loggers.py:Wandb, or a mapping with name and options"
    if schema.get("type") == "object":
        return PLAIN
    if "anyOf" in schema:
        return ", or ".join("null" if part == {"type": "null"} else legal_values("", part) for part in schema["anyOf"])
    if "enum" in schema:
        return f"one of {', '.join(schema['enum'])}"
    if "prefixItems" in schema:
        return f"a list of {len(schema['prefixItems'])}, each {legal_values('', schema['prefixItems'][0])}"
    if "items" in schema:
        return f"a list, each {legal_values('', schema['items'])}"
    if "type" not in schema:
        return "given"
    if schema.get("pattern") == NAME:
        return "the name of a metric, such as loss"
    if schema.get("pattern") == LOGGER:
        return f"{', '.join(BUILT_IN_LOGGERS)}, or a file or a module and a class in it, such as my_loggers.py:Wandb"
    if "pattern" in schema and ":" in schema["pattern"]:
        return "a file or a module and a name in it, such as my_task.py:Digits"
    if "pattern" in schema:
        return f"lower-case words and numbers joined by hyphens, at most {schema['maxLength']} characters"
    bounds = [f"{words} {schema[bound]}" for bound, words in _BOUNDS.items() if bound in schema]
    return " ".join([_TYPES[schema["type"]], " and ".join(bounds)]).strip()


def choices(schema: Mapping[str, Any]) -> list[str]:
    """Return the names that a field's JSON Schema allows, null not counted."""
    return [name for each in (schema, *schema.get("anyOf", ())) for name in each.get("enum", ())]


def _legal_section(part: Part) -> str:
    keys = dict.fromkeys(key for kind in part.kinds.values() for key in kind.model_fields)
    names = list(part.kinds) if "" not in part.kinds else choices(properties(part.kinds[""])[part.short])
    either = f"one of {', '.join(names)}, or " if names else "text, or " if takes_text(part) else ""
    return f"{either}a mapping with the keys {', '.join(keys)}"


def takes_text(part: Part) -> bool:
    """Say whether the short form of a section is any text, such as the name of a file."""
    short = properties(part.kinds[""])[part.short] if "" in part.kinds else {}
    texts = [kind for kind in short.get("anyOf", [short]) if kind.get("type") == "string"]
    return any("enum" not in kind and "pattern" not in kind for kind in texts)


def show(value: Any) -> str:
    """Return a value as a user would write it, cut to what fits a line."""
    try:
        text = json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
    except ValueError:  # Python does not write out an int of thousands of digits
        text = "a huge number"
    return text if len(text) <= 60 else f"{text[:57]}..."


def nearest(word: str, legal: Sequence[str]) -> list[str]:
    """Return the legal word that `word` may be a slip of, if there is one."""
    import difflib  # only mistakes pay for it

    return difflib.get_close_matches(word, legal, n=1, cutoff=0.65)
