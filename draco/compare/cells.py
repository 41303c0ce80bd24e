"""The cells of a grid: one validated job for every combination of levels that the rules keep."""

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from draco.compare.grid import Grid, expanded, is_kept
from draco.declaration import short
from draco.errors import JobError
from draco.job import Job, parse
from draco.job.fields import SECTIONS
from draco.job.messages import show

SEED, ATTACK = "seed", "attack"
_NAMED = 3  # cells that a fault names before it counts the others
_NAME_LIMIT = 200  # characters of a cell's folder; file systems take 255 bytes


class Cell(NamedTuple):
    """One combination of levels, and its job."""

    name: str  # of its folder
    levels: Mapping[str, str]  # axis -> its level, as tables and plots show it
    job: Job

    @property
    def attack(self) -> str:
        """The attack's column in tables and its panel in plots: all axes that are about the attack."""
        shown = [_with_key(axis, level) for axis, level in self.levels.items() if is_about_attack(axis)]
        return " ".join(shown) or short(self.job.attack.name)

    @property
    def setting(self) -> str:
        """The row in tables and the line in plots: all axes but those about the attack and the seed."""
        shown = [
            _with_key(axis, level) for axis, level in self.levels.items() if axis != SEED and not is_about_attack(axis)
        ]
        return " ".join(shown) or short(self.job.scheme.name)


def is_about_attack(axis: str) -> bool:
    """Say whether an axis varies the attack."""
    return axis.partition(".")[0] == ATTACK


def _with_key(axis: str, level: str) -> str:
    """Return a level that can stand beside others: `cyclic`, but `lr=0.1`."""
    key = axis.rpartition(".")[2]
    return level if axis in SECTIONS or key == "name" else f"{key}={level}"


def expand(grid: Grid, base: str, source: str) -> list[Cell]:
    """Return the cells of the grid, the last axis varying fastest; `base` is the YAML of the base job.

    Raises:
        JobError: what is wrong with any cell's job, each fault once, with the names of the cells that have it.
    """
    combinations = [
        combination
        for levels in itertools.product(*grid.axes.values())
        if is_kept(grid, combination := dict(zip(grid.axes, levels, strict=True)))
    ]
    if not combinations:
        raise JobError([f"{source}: only, exclude: no cell is left; every combination of the axes is left out"])
    names = [cell_name(combination) for combination in combinations]
    faults = [
        f"{source}: axes: two cells would be in the same folder, {name}; write the values otherwise"
        for name in dict.fromkeys(names)
        if names.count(name) > 1
    ]
    faults += [f"{source}: axes: the name {name[:60]}... is too long" for name in names if len(name) > _NAME_LIMIT]
    labels = {axis: _labels(axis, levels) for axis, levels in grid.axes.items()}
    cells: list[Cell] = []
    found: dict[str, list[str]] = {}  # fault -> cells that have it
    for name, combination in zip(names, combinations, strict=True):
        try:
            job = _job(grid, base, name, combination)
        except JobError as error:
            for fault in error.faults:
                found.setdefault(fault, []).append(name)
            continue
        shown = {axis: labels[axis][grid.axes[axis].index(level)] for axis, level in combination.items()}
        cells.append(Cell(name, shown, job))
    faults += [f"{source}: {_which(cells_at_fault, len(names))}: {fault}" for fault, cells_at_fault in found.items()]
    if found and cells:
        faults.append(
            f"{source}: a combination that cannot be is left out with exclude, such as {_example(found, grid)}"
        )
    if faults:
        raise JobError(faults)
    return cells


def _which(names: Sequence[str], among: int) -> str:
    """Name the cells that have a fault."""
    if len(names) == among:
        return f"all {among} cells" if among > 1 else names[0]
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _example(found: Mapping[str, Sequence[str]], grid: Grid) -> str:
    """Return an `exclude` rule for the first cell at fault, without its seed."""
    at_fault = next(iter(found.values()))[0]
    for levels in itertools.product(*grid.axes.values()):
        combination = dict(zip(grid.axes, levels, strict=True))
        if cell_name(combination) == at_fault:
            return json.dumps({axis: level for axis, level in combination.items() if axis != SEED}, default=str)
    raise AssertionError(at_fault)


def _job(grid: Grid, base: str, name: str, combination: Mapping[str, Any]) -> Job:
    """Return one cell's job, validated in full."""
    given = {**grid.changes, **combination}
    in_order = sorted(given.items(), key=lambda item: "." in item[0])  # whole sections first; a stable sort
    title = re.sub(r"[^a-z0-9]+", "-", f"{grid.name}-{name}".lower())[:80].strip("-")
    changes = [f"{key}={json.dumps(value, default=str)}" for key, value in in_order]  # JSON is YAML
    job = parse(base, "", [f'name="{title}"', "launcher=simulate", *changes])
    if job.eval_every == 0:
        raise JobError(["eval_every: 0 leaves no evaluation to compare; null evaluates at the end, 20 every 20 steps"])
    return job


def cell_name(combination: Mapping[str, Any]) -> str:
    """Return the name of a cell's folder: its levels with all that they say, joined by hyphens.

    >>> cell_name({"scheme": {"name": "cyclic", "adversaries": 2}, "optimizer.lr": 0.1, "seed": 1})
    'cyclic.adversaries2-lr0.1-seed1'
    """
    return "-".join(_slug(axis, level) for axis, level in combination.items())


def _slug(axis: str, level: Any) -> str:
    level = expanded(axis, level)
    if axis in SECTIONS and isinstance(level, dict):
        short = SECTIONS[axis].short
        parts = [_plain(level.get(short, axis)), *(f"{k}{_plain(v)}" for k, v in level.items() if k != short)]
        return ".".join(parts)
    key = axis.rpartition(".")[2]
    return _plain(level) if key == "name" else f"{key}{_plain(level)}"


def _plain(value: Any) -> str:
    """Write a value with characters only that no shell or file system minds."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return re.sub(r"[^A-Za-z0-9_.+]+", "_", text).strip("_")


def _labels(axis: str, levels: Sequence[Any]) -> list[str]:
    """Return what tables show of an axis's levels: names where they tell the levels apart, else with the options."""
    whole = [expanded(axis, level) for level in levels]
    names = [
        level.get(SECTIONS[axis].short) if axis in SECTIONS and isinstance(level, dict) else None for level in whole
    ]
    names = _shortened(names)
    out = []
    for level, name in zip(whole, names, strict=True):
        if name is None:
            out.append(level if isinstance(level, str) else show(level))
        elif names.count(name) == 1:
            out.append(str(name))
        else:
            given = {key: value for key, value in level.items() if key != SECTIONS[axis].short}
            given |= given.pop("options") if isinstance(given.get("options"), dict) else {}
            options = [f"{key}={show(value)}" for key, value in given.items()]
            out.append(" ".join([str(name), *options]))
    return out


def _shortened(names: Sequence[Any]) -> list[Any]:
    """Return the names with paths as what they name, where no other name is that."""
    shorts = [short(name) if isinstance(name, str) else name for name in names]
    whole = {each: {name for name, other in zip(names, shorts, strict=True) if other == each} for each in {*shorts}}
    return [each if len(whole[each]) == 1 else name for each, name in zip(shorts, names, strict=True)]
