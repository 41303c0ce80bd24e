"""The ways from a `Job` to YAML and to a line of words, and the JSON Schema of job files."""

import io
from typing import Any

from draco.aggregators import AGGREGATORS
from draco.declaration import short
from draco.job.fields import OLD_WORD, PRE_AGGREGATOR, SECTIONS, Job
from draco.job.messages import choices, properties, show, takes_text
from draco.job.numbers import attack
from draco.job.own_section import PATH, OwnSection
from draco.job.sections import LoggerSection
from draco.job.unions import Part, Section, only_with
from draco.schemes import SCHEMES

_EITHER = ("task", "model", "steps", "epochs")  # of which some stand for others, and are left out where null


def to_dict(job: Job) -> dict[str, Any]:
    """Return the job as plain values, defaults written out, options that do not apply left out."""
    values: dict[str, Any] = job.model_dump(mode="json")
    for key in SECTIONS:
        section = getattr(job, key)
        if section is None:
            continue
        values[key] = {option: value for option, value in values[key].items() if _applies(section, option)}
    return {key: value for key, value in values.items() if not (key in _EITHER and value is None)}


def to_words(job: Job) -> str:
    """Say in a line what the job sets against what: `uncoded s=2, nnm, krum, 15 workers, split=by_class; alie (z=1)`.

    Every option of the scheme, the rule, the attack, the data, the workers and the wire that is not the usual is said.
    """
    rules = [f"{short(step.name)}{_options(step)}" for step in job.aggregator.pre]
    if rules or AGGREGATORS[job.aggregator.name].robust or SCHEMES[job.scheme.name].individual:
        rules.append(f"{short(job.aggregator.name)}{_options(job.aggregator, 'pre')}")
    scheme = f"{short(job.scheme.name)} s={job.scheme.adversaries}{_options(job.scheme, 'adversaries')}"
    more = [*_unusual(job.data, "root", "source"), *_unusual(job.local), *_unusual(job.wire)]
    told = f"{short(job.attack.name)}{_options(job.attack)}" if attack(job) else "no attack"
    return f"{', '.join([scheme, *rules, f'{job.workers} workers', *more])}; {told}"


def _options(section: Section, *but: str) -> str:
    told = _unusual(section, *but)
    return f" ({' '.join(told)})" if told else ""


def _unusual(section: Section, *but: str) -> list[str]:
    """Return `option=value` for every option of a section that is not what it is unless given, but for some."""
    values, fields = section.model_dump(mode="json"), type(section).model_fields
    told = {
        option: value
        for option, value in values.items()
        if option not in (*but, "name") and getattr(section, option) != fields[option].default
    }
    told |= told.pop("options", {}) if isinstance(section, OwnSection) else {}
    return [f"{option}={value if isinstance(value, str) else show(value)}" for option, value in told.items()]


def _applies(section: Section, option: str) -> bool:
    needed = only_with(type(section), option)
    return needed is None or getattr(section, needed.option) in needed.values


def to_yaml(job: Job) -> str:
    """Return the job as YAML, every value written out, such that `parse(to_yaml(job), ...) == job`."""
    from ruamel.yaml import YAML

    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    out = io.StringIO()
    yaml.dump(to_dict(job), out)
    return out.getvalue()


def schema() -> dict[str, Any]:
    """Return the JSON Schema of a job file, for editors; most checks across fields are only in `parse`."""
    out = Job.model_json_schema()
    parts = [*SECTIONS.values(), PRE_AGGREGATOR]
    for kind in (kind for part in parts for kind in _kinds(part)):
        conditions = [
            {"if": {"required": [option]}, "then": _needs(kind, *needed)}
            for option in kind.model_fields
            if (needed := only_with(kind, option))
        ]
        if conditions:  # JSON Schema has no empty allOf
            out["$defs"][kind.__name__]["allOf"] = conditions
    for part in parts:
        for name, kind in part.kinds.items():
            if name and name != part.default:  # only one of the kinds may be given without its name
                out["$defs"][kind.__name__].setdefault("required", []).insert(0, "name")
    for key, part in SECTIONS.items():
        _shorten(out["properties"][key], part)
    for kind in _kinds(SECTIONS["aggregator"]):
        _shorten(out["$defs"][kind.__name__]["properties"]["pre"]["items"], PRE_AGGREGATOR)
    loggers = out["properties"]["loggers"]["items"]
    path = {"type": "string", "pattern": properties(LoggerSection)["name"]["pattern"]}
    loggers["anyOf"] = [path, {"$ref": loggers.pop("$ref")}]
    for values in (out, *out["$defs"].values()):
        for field in values["properties"].values():
            field.pop("title", None)
            field.pop("only_with", None)
    for key, part in {**SECTIONS, "aggregator.pre": PRE_AGGREGATOR}.items():
        _share(out["$defs"], key, [out["$defs"][kind.__name__]["properties"] for kind in _kinds(part)])
    old = "The old word for a logger of that name."
    out["properties"][OLD_WORD] = {"type": "boolean", "deprecated": True, "description": old}
    out["oneOf"] = [{"required": ["steps"]}, {"required": ["epochs"]}]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **out, "title": "Draco job"}


def _kinds(part: Part) -> list[type[Section]]:
    """Return the kinds of a section, and that of a user's own code."""
    return [*part.kinds.values(), *([part.own] if part.own else [])]


def _share(definitions: dict[str, Any], key: str, kinds: list[dict[str, Any]]) -> None:
    """Write an option once that several kinds of the section `key` have alike, and refer to it from each."""
    for option in dict.fromkeys(option for kind in kinds for option in kind):
        having = [kind for kind in kinds if option in kind]
        most = max(having, key=lambda kind: sum(kind[option] == other[option] for other in having))[option]
        alike = [kind for kind in having if kind[option] == most]
        if len(alike) > 1:
            definitions[f"{key}.{option}"] = most
            for kind in alike:
                kind[option] = {"$ref": f"#/$defs/{key}.{option}"}


def _needs(kind: type[Section], other: str, values: tuple[str, ...]) -> dict[str, Any]:
    """Return the schema of a section whose option `other` has one of the values, which it must be given for."""
    default = kind.model_fields[other].default
    needed = [] if default in values else [other]
    return {"properties": {other: {"enum": list(values)}}, **({"required": needed} if needed else {})}


def _shorten(whole: dict[str, Any], part: Part) -> None:
    """Let a section also be given by its name alone."""
    only = properties(part.kinds[""])[part.short] if "" in part.kinds else {}
    names = choices(only) if only else list(part.kinds)
    forms: list[dict[str, Any]] = [{"enum": names}] if names else []
    if "pattern" in only or part.own:
        forms.append({"type": "string", "pattern": only.get("pattern", PATH)})
    if takes_text(part):
        forms.append({"type": "string"})
    whole.pop("discriminator", None)
    whole.pop("default", None)
    sections = whole.pop("oneOf", None) or whole.pop("anyOf", None) or [{"$ref": whole.pop("$ref")}]
    whole["anyOf"] = [*forms, *sections]
