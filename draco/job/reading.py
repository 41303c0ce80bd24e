"""The way from YAML to a `Job`, or to a `JobError` that lists every fault at once.

A fault reads `source: dotted.path: what is wrong, what it must be`. Faults of single fields are found first. The fields
at fault then get their defaults, and the checks across fields run. Their faults are left out where they are about a
field that is already at fault.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from draco import own
from draco.errors import JobError
from draco.job.checks import check
from draco.job.fault import Fault
from draco.job.fields import OLD_WORD, ORIGINAL_OPTIONS, PRE_AGGREGATOR, SECTIONS, STAND_INS, Job, renewed
from draco.job.messages import field_message, name_message, nearest, properties, show
from draco.job.own_checks import check_own
from draco.job.own_section import OwnSection
from draco.job.unions import Section


def parse(text: str, source: str, overrides: Sequence[str] = (), *, checked: bool = False) -> Job:
    """Return the job that `text` describes.

    Args:
        text: the YAML of one job.
        source: where it came from, for the messages.
        overrides: `a.b=value`, applied in order on top; the value is read as YAML.
        checked: the text is `to_yaml` of a job that was parsed before; whether its fields go together is not asked
            again.

    Raises:
        JobError: every fault at once, one sentence each.
    """
    tree, faults = _read(text)
    if tree is None:
        raise _error(source, faults)
    for override in overrides:
        faults += _override(tree, override)
    job, found, at_fault = _fields(tree)
    faults += found
    if not checked:
        job, found, wrong = check_own(job)
        faults += (fault for fault in found if fault.path not in at_fault)
        at_fault |= wrong
    for fault in () if checked else _checked(job):
        if not any(_is_under(path, hidden) for path in (fault.path, *fault.about) for hidden in at_fault):
            faults.append(fault)
    if faults:
        raise _error(source, faults)
    return job


def _checked(job: Job) -> list[Fault]:
    """Return what does not go together in a job; what a user's own declaration raises meanwhile is a fault too."""
    try:
        return check(job)
    except Exception as error:
        if not (place := own.place(error)):
            raise
        return [Fault("", f"your own code failed while the job was checked{place}: {type(error).__name__}: {error}")]


def _error(source: str, faults: Sequence[Fault]) -> JobError:
    return JobError([": ".join(filter(None, (source, fault.path, fault.message))) for fault in faults])


def _is_under(path: str, ancestor: str) -> bool:
    return path == ancestor or path.startswith(f"{ancestor}.")


def load_yaml(text: str) -> tuple[Any, list[Fault]]:
    """Return the value of a YAML text (None where it cannot be read) and what is wrong with it as YAML."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    def loader() -> YAML:
        yaml = YAML(typ="safe", pure=True)
        yaml.allow_duplicate_keys = True  # `_repeated_keys` reports all of them, each with both lines
        return yaml

    try:
        root = loader().compose(text)
        anchors = list(_anchors(root, set()))
        return (None, anchors) if anchors else (loader().load(text), list(_repeated_keys(root, "")))
    except MarkedYAMLError as e:
        line = f"line {e.problem_mark.line + 1}" if e.problem_mark else ""
        return None, [Fault(line, f"not valid YAML: {e.problem or e.context}")]
    except (YAMLError, ValueError, OverflowError) as e:
        return None, [Fault("", f"not valid YAML: {str(e).splitlines()[0]}")]
    except RecursionError:
        return None, [Fault("", "not valid YAML: nested too deeply")]


def _anchors(node: Any, seen: set[int]) -> Iterator[Fault]:
    """Yield a fault for every anchor: with them gone, a composed YAML document is a tree and stays small."""
    if node is None or id(node) in seen:
        return
    seen.add(id(node))
    if node.anchor:
        yield Fault(f"line {node.start_mark.line + 1}", f"anchor &{node.anchor}: not used in jobs; write the value out")
    if node.id != "scalar":
        for child in node.value:
            for part in child if isinstance(child, tuple) else (child,):
                yield from _anchors(part, seen)


def _repeated_keys(node: Any, path: str) -> Iterator[Fault]:
    if node is None or node.id == "scalar":
        return
    if node.id == "sequence":
        for child in node.value:
            yield from _repeated_keys(child, path)
        return
    first: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        here = f"{path}.{key.value}" if path else f"{key.value}"
        if here in first:
            yield Fault(f"line {line}", f"{here}: duplicate key, first on line {first[here]}")
        first.setdefault(here, line)
        yield from _repeated_keys(value, here)


def _read(text: str) -> tuple[dict[str, Any] | None, list[Fault]]:
    """Return the top-level mapping of a job, shorthands written out, and what is wrong with the YAML."""
    value, faults = load_yaml(text)
    if isinstance(value, dict):
        return {str(key): _expand(str(key), item) for key, item in value.items()}, faults
    keys = ", ".join(key for key in STAND_INS if key != "task")
    return None, faults or [Fault("", f"must be a mapping with the keys {keys}, got {show(value)}")]


def _expand(key: str, value: Any) -> Any:
    """Write out the shorthand of a section: `scheme: cyclic` is `scheme: {name: cyclic}`."""
    if key in SECTIONS and isinstance(value, str):
        return {SECTIONS[key].short: value}
    if key in SECTIONS and isinstance(value, dict):
        return {str(inner): item for inner, item in value.items()}
    return value


def _override(tree: dict[str, Any], override: str) -> list[Fault]:
    """Set one `a.b=value` in `tree`; return what is wrong with its form. Unknown keys are found later."""
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    where = f"--set {override}"
    if not equals or not all(keys):
        return [Fault(where, "must look like key=value or section.key=value, such as scheme.adversaries=2")]
    value, faults = load_yaml(text)
    if faults:
        return [Fault(where, fault.message) for fault in faults]
    if len(keys) == 1:
        tree[keys[0]] = _expand(keys[0], value)
    elif len(keys) == 2 and isinstance(tree.setdefault(keys[0], {}), dict):
        tree[keys[0]][keys[1]] = value
    elif len(keys) == 3 and keys[1] == "options" and _is_open(tree, keys[0]):
        tree[keys[0]]["options"] = {**tree[keys[0]].get("options", {}), keys[2]: value}
    else:
        return [Fault(where, f"unknown key {path}; keys are {', '.join(Job.model_fields)} and their sections' keys")]
    return []


def _is_open(tree: Mapping[str, Any], key: str) -> bool:
    """Say whether single options of a user's own code can be set in the section `key`."""
    section = tree.get(key)
    return isinstance(section, dict) and isinstance(section.get("options", {}), dict)


def _fields(tree: dict[str, Any]) -> tuple[Job, list[Fault], set[str]]:
    """Return a job of what is right in `tree`, the faults of single fields, and the paths left out for them."""
    tree = {key: dict(value) if isinstance(value, dict) else value for key, value in renewed(tree).items()}
    wrong: set[str] = set()
    faults = list(_wrong_names(tree, wrong))
    if OLD_WORD in tree:
        faults.append(
            Fault(OLD_WORD, f"must be true or false, got {show(tree.pop(OLD_WORD))}; loggers is its new word")
        )
    unknown, meant = _drop_unknown(tree, wrong)
    faults += unknown
    while True:
        try:
            return Job.model_validate(tree), faults, wrong | meant
        except ValidationError as e:
            for error in e.errors(include_url=False, include_context=False, include_input=False):
                keys = _keys(error["loc"])
                path = ".".join(keys)
                if path in wrong:
                    continue  # one sentence per field, though several items of a list may be wrong
                wrong.add(path)
                misspelt = error["type"] == "missing" and any(_is_under(other, path) for other in meant)
                if not misspelt:
                    faults.append(Fault(path, field_message(keys, tree)))
                _leave_out(tree, keys)


def _keys(location: Sequence[int | str]) -> list[str]:
    """Return the field that an error is about; pydantic names the kind of a section between its key and the option."""
    key, *inner = map(str, location)
    if key not in SECTIONS:
        return [key]
    return [key, *inner[0 if "" in SECTIONS[key].kinds else 1 :][:1]]


def _wrong_names(tree: dict[str, Any], wrong: set[str]) -> Iterator[Fault]:
    """Yield the names of sections that no table has, and put a stand-in where one was; add their paths to `wrong`."""
    for key, part in SECTIONS.items():
        values = tree.get(key)
        if not isinstance(values, dict) or part.kind(values) is not None:
            continue
        yield Fault(f"{key}.{part.short}", name_message(part, values))
        wrong.add(f"{key}.{part.short}")
        # What is given besides is checked as an option of the name that has most of it.
        name = max(part.kinds, key=lambda name: sum(option in part.kinds[name].model_fields for option in values))
        tree[key] = {**values, part.short: name}


def _drop_unknown(tree: dict[str, Any], wrong: set[str]) -> tuple[list[Fault], set[str]]:
    """Take unknown keys out of `tree`; return a fault for each, and the known paths that they seem to be meant as."""
    faults: list[Fault] = []
    meant: set[str] = set()
    parts: list[tuple[str, dict[str, Any], type[Section]]] = [("", tree, Job)]
    for key, part in SECTIONS.items():
        if isinstance(values := tree.get(key), dict) and (kind := part.kind(values)) is not None:
            parts.append((f"{key}.", values, kind))
    for prefix, values, kind in parts:
        for key in [key for key in values if key not in kind.model_fields]:
            own = SECTIONS[prefix[:-1]] if prefix else None
            if issubclass(kind, OwnSection):
                message = f"unknown key; the options of your own code are in {prefix}options, such as {{{key}: ...}}"
                faults.append(Fault(f"{prefix}{key}", message))
                del values[key]
                continue
            if own and (names := own.having(key)):
                if f"{prefix}{own.short}" not in wrong:
                    name = values.get(own.short, own.default)
                    message = f"applies to {', '.join(names)}; {prefix}{own.short} is {name}: leave it out"
                    faults.append(Fault(f"{prefix}{key}", message))
            else:
                guesses = _guesses(prefix, key, kind)
                known = f"the keys are {', '.join(kind.model_fields)}"
                legal = f"did you mean {' or '.join(guesses)}?" if guesses else known
                faults.append(Fault(f"{prefix}{key}", f"unknown key; {legal}"))
                meant.update(guess for guess in guesses if not _has(tree, guess.split(".")))
            del values[key]
    faults += _drop_from_pre(tree)
    return faults, meant


def _drop_from_pre(tree: dict[str, Any]) -> Iterator[Fault]:
    """Yield the options of pre-aggregators that others have, and take them out."""
    steps = tree["aggregator"].get("pre") if isinstance(tree.get("aggregator"), dict) else None
    if not isinstance(steps, list):
        return
    tree["aggregator"]["pre"] = steps = [dict(step) if isinstance(step, dict) else step for step in steps]
    for step in steps:
        kind = PRE_AGGREGATOR.kind(step)
        for key in [key for key in step if kind and key not in kind.model_fields and PRE_AGGREGATOR.having(key)]:
            message = f"{key} applies to {', '.join(PRE_AGGREGATOR.having(key))}, not to {step['name']}: leave it out"
            yield Fault("aggregator.pre", message)
            del step[key]


def _has(tree: Mapping[str, Any], keys: Sequence[str]) -> bool:
    for key in keys:
        if not isinstance(tree, dict) or key not in tree:
            return False
        tree = tree[key]
    return True


def _guesses(prefix: str, key: str, kind: type[Section]) -> list[str]:
    """Return the keys that `key` may be meant as: the original's option, a near one, the same in another section."""
    plain = key.lower().replace("-", "_")
    if not prefix and plain in ORIGINAL_OPTIONS:
        return [ORIGINAL_OPTIONS[plain]]
    close = nearest(plain, list(kind.model_fields))
    same = [
        f"{section}.{plain}"
        for section, part in SECTIONS.items()
        if any(plain in other.model_fields for other in part.kinds.values())
    ]
    same += [plain] * (plain in Job.model_fields)
    return [prefix + key for key in close] or same


def _leave_out(tree: dict[str, Any], keys: Sequence[str]) -> None:
    """Take the field `keys` out of `tree`; put a stand-in where it is required."""
    stand_in: Any = STAND_INS
    for key in keys:
        stand_in = stand_in.get(key) if isinstance(stand_in, dict) else None
    part = tree if len(keys) == 1 else tree[keys[0]]
    part.pop(keys[-1], None)
    if stand_in is None and len(keys) == 2:
        stand_in = _stand_in(SECTIONS[keys[0]].kind(part), keys[1])
    if stand_in is not None:
        part[keys[-1]] = dict(stand_in) if isinstance(stand_in, dict) else stand_in


def _stand_in(kind: type[Section] | None, option: str) -> Any:
    """Return a value for an option that a kind of section requires, so that the rest can be checked; else None."""
    if kind is None or option not in kind.model_fields or not kind.model_fields[option].is_required():
        return None
    return [1] if "items" in properties(kind)[option] else 1
