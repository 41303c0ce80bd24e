"""The grid file: which base job, and which of its values take which levels. Pure: from YAML to a frozen `Grid`.

Levels are values as a job file would have them. A level of a section is its name or a mapping, and replaces the base
job's whole section: `scheme: [uncoded, {name: cyclic, adversaries: 2}]`. A level of one option changes only that:
`scheme.adversaries: [1, 2]`. Whole sections are set first, then single options, from `set` and from axes alike.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError

from draco.errors import JobError
from draco.job.fields import SECTIONS
from draco.job.messages import nearest, show
from draco.job.reading import load_yaml
from draco.job.unions import Section
from draco.metrics import MODES, NAME, Mode

_AS_TUPLE = BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)
Partial = dict[str, Any]  # axis -> value or list of values
Levels = Annotated[tuple[Any, ...], _AS_TUPLE, Field(min_length=1)]
Partials = Annotated[tuple[Annotated[Partial, Field(min_length=1)], ...], _AS_TUPLE]

_OURS = ("name", "launcher")  # which a comparison gives to each cell itself
_WHAT = {
    "name": "lower-case words and numbers joined by hyphens, at most 40 characters",
    "base": "a job file, from the grid file's folder, or a mapping with the keys of a job",
    "set": "a mapping from a job's keys, such as steps or scheme.adversaries, to values",
    "axes": "a mapping from a job's keys, such as scheme, optimizer.lr or seed, to lists of values",
    "only": "a list of mappings from axes to a value or a list of values",
    "exclude": "a list of mappings from axes to a value or a list of values",
    "metric": "the name of a metric of the test samples, such as loss",
    "mode": "min or max",
}


class Grid(Section):
    """What is compared."""

    name: str = Field(
        description="Name of the comparison; its runs are in runs/NAME.",
        pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$",
        max_length=40,
    )
    base: str | dict[str, Any] = Field(description="Job file, relative to this file, or a job written out.")
    changes: dict[str, Any] = Field({}, alias="set", description="Values of the base job that are other in all cells.")
    axes: dict[str, Levels] = Field(description="Key of a job -> the values it takes.", min_length=1)
    only: Partials = Field((), description="Keep only cells that match one of these; empty: all.")
    exclude: Partials = Field((), description="Leave out cells that match one of these.")
    metric: str | None = Field(
        None, description="By which settings are ranked; null: top1 where all cells have it, else loss.", pattern=NAME
    )
    mode: Mode | None = Field(None, description="Whether its least or its most is best; known of loss, top1, top5.")


def parse_grid(text: str, source: str) -> Grid:
    """Return the grid that `text` describes.

    Raises:
        JobError: every fault at once, one sentence each, `source` before it.
    """
    tree, found = load_yaml(text)
    faults = [": ".join(filter(None, (fault.path, fault.message))) for fault in found]
    if not isinstance(tree, dict):
        faults = faults or [f"must be a mapping with the keys {', '.join(_WHAT)}, got {show(tree)}"]
    else:
        faults += _unknown(tree)
        try:
            grid = Grid.model_validate({key: tree[key] for key in _WHAT if key in tree})
        except ValidationError as e:
            wrong = dict.fromkeys(str(error["loc"][0]) for error in e.errors(include_url=False))
            faults += [f"{key}: {_fault(key, tree)}" for key in wrong]
        else:
            faults += _check(grid)
            if not faults:
                return grid
    raise JobError([f"{source}: {fault}" for fault in faults])


def _unknown(tree: Mapping[Any, Any]) -> Iterator[str]:
    for key in tree:
        if key not in _WHAT:
            near = nearest(str(key), list(_WHAT))
            yield f"{key}: unknown key; " + (f"did you mean {near[0]}?" if near else f"the keys are {', '.join(_WHAT)}")


def _fault(key: str, tree: Mapping[str, Any]) -> str:
    if key not in tree:
        return f"is missing; must be {_WHAT[key]}"
    value = tree[key]
    if key == "axes" and isinstance(value, dict) and value:  # name the axis
        bad = [
            f"{axis} is {show(levels)}" for axis, levels in value.items() if not isinstance(levels, list) or not levels
        ]
        if bad:
            return f"each must have a list of at least one value; {'; '.join(bad)}"
    return f"must be {_WHAT[key]}, got {show(value)}"


def _check(grid: Grid) -> Iterator[str]:
    """Yield what is wrong with a grid whose single keys are right."""
    for part, keys in (("set", grid.changes), ("axes", grid.axes)):
        for key in keys:
            if key in _OURS:
                yield f"{part}: {key} is given by the comparison: leave it out"
            elif not _is_key(key.split(".")):
                yield f"{part}: unknown key {key}; keys look like steps or scheme.adversaries"
    if grid.mode and not grid.metric:
        yield "mode: says what is best of a metric: give metric too, or leave it out"
    if grid.metric and not grid.mode and grid.metric not in MODES:
        yield f"mode: is missing; must be min or max: whether less or more of {grid.metric} is better"
    for axis, levels in grid.axes.items():
        seen: list[Any] = []
        for level in levels:
            if any(expanded(axis, level) == other for other in seen):
                yield f"axes: {axis}: {show(level)} is there twice"
            seen.append(expanded(axis, level))
        if axis in grid.changes:
            yield f"set: {axis} is an axis as well: give it once"
        yield from _given_twice(grid, axis)
    for part, rules in (("only", grid.only), ("exclude", grid.exclude)):
        for rule in rules:
            yield from _check_rule(grid, part, rule)


def _is_key(words: Sequence[str]) -> bool:
    """Say whether words look like a key of a job, an option of a section, or one of a user's own code there."""
    return all(words) and (len(words) < 3 or (len(words) == 3 and words[1] == "options"))


def _given_twice(grid: Grid, axis: str) -> Iterator[str]:
    """Yield the single options that an axis over whole sections gives too: they would be set over."""
    levels = [expanded(axis, level) for level in grid.axes[axis]]
    given = {key for level in levels if isinstance(level, dict) for key in level}
    for part, keys in (("set", grid.changes), ("axes", grid.axes)):
        for key in keys:
            if key.partition(".")[0] == axis and key.partition(".")[2] in given:
                yield f"{part}: {key} is given by a value of the axis {axis} as well: give it once"


def _check_rule(grid: Grid, part: str, rule: Partial) -> Iterator[str]:
    for axis, wanted in rule.items():
        if axis not in grid.axes:
            near = nearest(axis, list(grid.axes))
            yield f"{part}: {axis} is no axis; the axes are {', '.join(grid.axes)}" + (
                f"; did you mean {near[0]}?" if near else ""
            )
            continue
        for value in wanted if isinstance(wanted, list) else [wanted]:
            if not any(is_meant(axis, level, value) for level in grid.axes[axis]):
                yield f"{part}: {axis}: {show(value)} is none of the axis's values"


def expanded(key: str, value: Any) -> Any:
    """Write out the shorthand of a section: `cyclic` is `{name: cyclic}`."""
    return {SECTIONS[key].short: value} if key in SECTIONS and isinstance(value, str) else value


def is_meant(axis: str, level: Any, wanted: Any) -> bool:
    """Say whether `wanted`, from a rule, means that level: it is equal, or a mapping with all that `wanted` gives.

    >>> is_meant("scheme", {"name": "cyclic", "adversaries": 2}, "cyclic")
    True
    """
    level, wanted = expanded(axis, level), expanded(axis, wanted)
    if isinstance(level, dict) and isinstance(wanted, dict):
        return all(key in level and level[key] == value for key, value in wanted.items())
    return bool(level == wanted)


def matches(combination: Mapping[str, Any], rule: Partial) -> bool:
    """Say whether a combination, axis -> level, has one of the wanted values on every axis that the rule names."""
    return all(
        any(is_meant(axis, combination[axis], each) for each in (wanted if isinstance(wanted, list) else [wanted]))
        for axis, wanted in rule.items()
    )


def is_kept(grid: Grid, combination: Mapping[str, Any]) -> bool:
    """Say whether the rules let a combination be a cell."""
    if grid.only and not any(matches(combination, rule) for rule in grid.only):
        return False
    return not any(matches(combination, rule) for rule in grid.exclude)
