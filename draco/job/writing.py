"""From a `Job` to YAML and to a line of words, and the JSON Schema of job files."""

import io
from typing import Any, get_args

from draco.job.fields import LISTED, SECTIONS, Job, PreAggregator, Section, applies_to, options
from draco.job.messages import show


def to_dict(job: Job) -> dict[str, Any]:
    """Return the job as plain values, defaults written out, options that do not apply left out."""
    values: dict[str, Any] = job.model_dump(mode="json")
    for key, (_, short) in SECTIONS.items():
        values[key] = options(getattr(job, key), short)
    values["aggregator"]["pre"] = [options(step) for step in job.aggregator.pre]
    if values["scheme"].get("vote") == "exact":
        del values["scheme"]["tolerance"]
    return {key: value for key, value in values.items() if not (key in ("steps", "epochs") and value is None)}


def to_words(job: Job) -> str:
    """Say in a line what the job sets against what: `uncoded s=2, nnm, krum, 15 workers, split=by_class; alie (z=1)`.

    Every option of the scheme, the rule, the attack, the data, the workers and the wire that is not the usual is said.
    """
    rules = [f"{step.name}{_options(step)}" for step in job.aggregator.pre]
    if rules or job.aggregator.name != "mean" or job.scheme.name == "uncoded":
        rules.append(f"{job.aggregator.name}{_options(job.aggregator, 'pre')}")
    scheme = f"{job.scheme.name} s={job.scheme.adversaries}{_options(job.scheme, 'adversaries')}"
    more = [*_unusual(job.data, "root", "source"), *_unusual(job.local), *_unusual(job.wire)]
    attack = "no attack" if job.attack.name == "none" else f"{job.attack.name}{_options(job.attack)}"
    return f"{', '.join([scheme, *rules, f'{job.workers} workers', *more])}; {attack}"


def _options(section: Section, *but: str) -> str:
    told = _unusual(section, *but)
    return f" ({' '.join(told)})" if told else ""


def _unusual(section: Section, *but: str) -> list[str]:
    """Return `option=value` for every option of a section that is not what it is unless given, but for some."""
    name = getattr(section, "name", None)
    usual = type(section)() if name is None else type(section).model_validate({"name": name})
    values = options(section).items() if name is not None else section.model_dump(mode="json").items()
    return [
        f"{option}={value if isinstance(value, str) else show(value)}"
        for option, value in values
        if option not in but and getattr(section, option) != getattr(usual, option)
    ]


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
    for kind, short in [*SECTIONS.values(), *((kind, "name") for kind in LISTED.values())]:
        section = out["$defs"][kind.__name__]
        rules = [
            {"if": {"required": [option]}, "then": {"properties": {short: {"enum": list(only)}}, "required": [short]}}
            for option in kind.model_fields
            if (only := applies_to(kind, option))
        ]
        if rules:  # JSON Schema has no empty allOf
            section["allOf"] = rules
    wholes = [(out["properties"][key], kind, short) for key, (kind, short) in SECTIONS.items()]
    wholes.append((out["$defs"]["Aggregator"]["properties"]["pre"]["items"], PreAggregator, "name"))
    for whole, kind, short in wholes:
        reference = {"$ref": whole.pop("$ref")}
        names = list(get_args(kind.model_fields[short].annotation))
        whole["anyOf"] = [*([{"enum": names}] if names else []), reference]
    for part in (out, *out["$defs"].values()):
        for field in part["properties"].values():
            field.pop("title", None)
            field.pop("applies_to", None)
    out["oneOf"] = [{"required": ["steps"]}, {"required": ["epochs"]}]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **out, "title": "Draco job"}
