"""Grids: what a grid file may say, which cells it makes, and that every fault is told before anything starts."""

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from draco.cli import compare
from draco.compare.cells import Cell, expand
from draco.compare.grid import Grid, is_kept, is_meant, parse_grid
from draco.errors import JobError
from draco.job import parse

GRIDS = sorted((Path(__file__).parents[2] / "jobs" / "compare").glob("*.yaml"))
BASE = """
name: base
workers: 7
model: lenet
data: synthetic
batch_size: 14
steps: 3
scheme: {name: cyclic, adversaries: 1}
"""
GRID = """
name: small
base: base.yaml
set: {steps: 2}
axes:
  scheme: [{name: uncoded, adversaries: 2}, {name: repetition, adversaries: 2}]
  aggregator: [mean, median]
  attack: [none, constant]
  seed: [1, 2]
exclude:
  - {scheme: repetition, aggregator: median}
"""


def cells_of(text: str, base: str = BASE) -> list[Cell]:
    return expand(parse_grid(text, "g"), base, "g")


def faults_of(text: str, base: str = BASE) -> list[str]:
    with pytest.raises(JobError) as error:
        cells_of(text, base)
    return list(error.value.faults)


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_a_grid_file_is_right_is_named_after_its_comparison_and_asks_a_question(path: Path) -> None:
    grid, cells = compare.read(path)
    assert grid.name == path.stem
    assert cells
    first = path.read_text().splitlines()[0]
    assert first.startswith("# ")
    assert first.endswith("?")


def test_a_cell_has_the_base_job_with_its_levels_and_a_folder_that_says_them() -> None:
    cells = cells_of(GRID)
    assert len(cells) == 12
    cell = cells[0]
    assert cell.name == "uncoded.adversaries2-mean-none-seed1"
    assert cell.levels == {"scheme": "uncoded", "aggregator": "mean", "attack": "none", "seed": "1"}
    assert (cell.setting, cell.attack) == ("uncoded mean", "none")
    expected = parse(
        BASE, "", ["name=small-uncoded-adversaries2-mean-none-seed1", "launcher=simulate", "steps=2", "seed=1",
                   "scheme={name: uncoded, adversaries: 2}"],
    )  # fmt: skip
    assert cell.job == expected


AXES = {
    "scheme": ["uncoded", {"name": "uncoded", "adversaries": 1}, {"name": "repetition", "adversaries": 1}],
    "attack": ["none", {"name": "constant", "adversaries": 1}],
    "seed": [1, 2, 3],
}
NAMES = {"scheme": ["uncoded", "repetition"], "attack": ["none", "constant"], "seed": [1, 2, 3]}
rules = st.dictionaries(st.sampled_from(list(AXES)), st.integers(0, 2), min_size=1, max_size=3).map(
    lambda picks: {axis: NAMES[axis][pick % len(NAMES[axis])] for axis, pick in picks.items()}
)


@given(only=st.lists(rules, max_size=2), exclude=st.lists(rules, max_size=2))
def test_the_rules_keep_what_a_slow_reading_of_them_keeps(only: list[dict], exclude: list[dict]) -> None:
    grid = Grid.model_validate({"name": "g", "base": "b", "axes": AXES, "only": only, "exclude": exclude})

    def name(level: object) -> object:
        return level["name"] if isinstance(level, dict) else level

    for levels in itertools.product(*AXES.values()):
        names = {axis: name(level) for axis, level in zip(AXES, levels, strict=True)}
        hits = [all(names[axis] == value for axis, value in rule.items()) for rule in only]
        misses = [all(names[axis] == value for axis, value in rule.items()) for rule in exclude]
        wanted = (any(hits) or not only) and not any(misses)
        assert is_kept(grid, dict(zip(AXES, levels, strict=True))) == wanted


def test_the_last_axis_varies_fastest_and_a_list_in_a_rule_means_any_of_it() -> None:
    text = GRID.replace("  - {scheme: repetition, aggregator: median}", "  - {scheme: repetition, seed: [1, 2]}")
    pairs = [(cell.levels["attack"], cell.levels["seed"]) for cell in cells_of(text)]
    assert pairs == list(itertools.product(["none", "constant"], ["1", "2"])) * 2


@pytest.mark.parametrize(
    ("level", "wanted", "meant"),
    [
        ({"name": "cyclic", "adversaries": 2}, "cyclic", True),
        ({"name": "cyclic", "adversaries": 2}, {"adversaries": 2}, True),
        ({"name": "cyclic", "adversaries": 2}, {"adversaries": 1}, False),
        ("cyclic", {"name": "cyclic", "adversaries": 2}, False),
        ("cyclic", "uncoded", False),
    ],
)
def test_a_rule_means_a_level_by_name_or_by_some_of_its_options(level: object, wanted: object, meant: bool) -> None:
    assert is_meant("scheme", level, wanted) == meant


def test_options_are_set_after_whole_sections() -> None:
    text = "{name: g, base: b, set: {scheme.adversaries: 2, attack: constant}, axes: {scheme: [uncoded, repetition]}}"
    assert [cell.job.scheme.adversaries for cell in cells_of(text)] == [2, 2]
    assert [cell.name for cell in cells_of(text)] == ["uncoded", "repetition"]
    text = "{name: g, base: b, axes: {scheme.adversaries: [1, 2], optimizer.lr: [0.1], scheme: [repetition]}}"
    assert [cell.job.scheme.adversaries for cell in cells_of(text)] == [1, 2]
    assert [cell.setting for cell in cells_of(text)] == [f"adversaries={s} lr=0.1 repetition" for s in (1, 2)]


def test_levels_of_one_name_are_told_apart_by_their_options() -> None:
    text = "{name: g, base: b, axes: {attack: [none, {name: constant, magnitude: 1.0}, {name: constant}]}}"
    cells = cells_of(text)
    assert [cell.attack for cell in cells] == ["none", "constant magnitude=1.0", "constant"]
    assert [cell.name for cell in cells] == ["none", "constant.magnitude1.0", "constant"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "must be a mapping with the keys name, base, set, axes, only, exclude"),
        ("{name: g, base: b}", "axes: is missing"),
        ("{name: G!, base: b, axes: {seed: [1]}}", "name: must be lower-case words"),
        ("{name: g, base: 3, axes: {seed: [1]}}", "base: must be a job file"),
        ("{name: g, base: b, axes: {seed: 1}}", "seed is 1"),
        ("{name: g, base: b, axes: {seed: []}}", "seed is []"),
        ("{name: g, base: b, axes: {}}", "axes: must be"),
        ("{name: g, base: b, axes: {seed: [1]}, excludes: []}", "did you mean exclude?"),
        ("{name: g, base: b, axes: {seed: [1]}, exclude: [3]}", "exclude: must be a list of mappings"),
        ("{name: g, base: b, axes: {seed: [1]}, exclude: [{}]}", "exclude: must be a list of mappings"),
        ("{name: g, base: b, axes: {seed: [1, 1]}}", "seed: 1 is there twice"),
        ("{name: g, base: b, axes: {scheme: [uncoded, {name: uncoded}]}}", "is there twice"),
        ("{name: g, base: b, axes: {seed: [1]}, set: {seed: 2}}", "set: seed is an axis as well"),
        ("{name: g, base: b, axes: {launcher: [mpi]}}", "launcher is given by the comparison"),
        ("{name: g, base: b, axes: {a.b.c: [1]}}", "unknown key a.b.c"),
        ("{name: g, base: b, axes: {seed: [1]}, only: [{sed: 1}]}", "sed is no axis; the axes are seed"),
        ("{name: g, base: b, axes: {seed: [1]}, only: [{seed: 2}]}", "only: seed: 2 is none of the axis's values"),
        ("{name: g, base: b, axes: {seed: [1]}, exclude: [{seed: 1}]}", "no cell is left"),
        ("{name: g, base: b, axes: {data.root: [a/b, a_b]}}", "two cells would be in the same folder"),
        ("{name: g, base: b, axes: {data.root: [%s]}}" % ("x" * 201), "is too long"),
        ("{name: g, base: b, axes: {seed: [1], seed: [2]}}", "duplicate key"),
        (
            "{name: g, base: b, axes: {scheme: [{name: cyclic, adversaries: 1}]}, set: {scheme.adversaries: 2}}",
            "scheme.adversaries is given by a value of the axis scheme as well",
        ),
        ("{name: g, base: b, axes: {sceme: [uncoded]}}", "sceme: unknown key; did you mean scheme?"),
        ("{name: g, base: b, axes: {seed: [1]}, set: {eval_every: 0}}", "leaves no evaluation to compare"),
        ("{name: g, base: b, axes: {seed: [1]}, metric: mae}", "mode: is missing; must be min or max"),
        ("{name: g, base: b, axes: {seed: [1]}, mode: min}", "mode: says what is best of a metric"),
        ("{name: g, base: b, axes: {seed: [1]}, metric: no name}", "metric: must be the name of a metric"),
    ],
)
def test_a_fault_of_a_grid_says_where_and_what(text: str, words: str) -> None:
    faults = faults_of(text)
    assert all(fault.startswith("g: ") for fault in faults)
    assert any(words in fault for fault in faults), faults


def test_all_faults_of_a_grid_are_told_at_once() -> None:
    assert len(faults_of("{name: G, base: 3, axes: {seed: [1]}, wrong: 1}")) == 3


def test_faults_of_cells_are_told_once_each_with_the_cells_that_have_them() -> None:
    text = (
        "{name: g, base: b, set: {steps: 0}, axes: {scheme: [uncoded, cyclic], aggregator: [mean, krum], seed: [1, 2]}}"
    )
    faults = faults_of(text)
    assert [fault for fault in faults if "all 8 cells: steps: must be" in fault]
    (krum,) = [fault for fault in faults if "krum with f = 0 needs" in fault]
    assert krum.startswith("g: cyclic-krum-seed1, cyclic-krum-seed2: aggregator.name: ")
    assert len(faults) == 2
    text = text.replace("set: {steps: 0}, ", "")
    assert faults_of(text)[-1].endswith('exclude, such as {"scheme": "cyclic", "aggregator": "krum"}')


def test_a_base_that_is_not_there_and_a_base_written_out(tmp_path: Path) -> None:
    grid = tmp_path / "g.yaml"
    grid.write_text(GRID)
    with pytest.raises(JobError, match="cannot be read"):
        compare.read(grid)
    (tmp_path / "base.yaml").write_text(BASE)
    from_file = compare.read(grid)[1]
    inline = "{workers: 7, model: lenet, data: synthetic, batch_size: 14, scheme: {name: cyclic, adversaries: 1}}"
    grid.write_text(GRID.replace("base: base.yaml", f"base: {inline}"))
    assert compare.read(grid)[1] == from_file
