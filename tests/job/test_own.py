"""What a job names by its path: its form, its checks, its words, and that it comes back from YAML as it was."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from draco.compare.cells import expand
from draco.compare.grid import parse_grid
from draco.errors import JobError
from draco.job import Job, aggregator_f, parse, schema, sizes, to_dict, to_words, to_yaml, warnings
from draco.job.plain_options import DEEPEST, MOST, PlainOptions
from draco.job.space import checkpoint_bytes
from draco.models import Size

JOB = """
name: own
workers: 9
model: lenet
data: synthetic
batch_size: 90
steps: 20
scheme: uncoded
"""
CODE = """
import numpy as np
import torch
from typing import Any
from draco.aggregators import RuleDeclaration
from draco.declaration import Option, OptionError
from draco.schemes import Decoded, Scheme, SchemeDeclaration, Sizes


def nearest(gradients, *, f, keep: int = 3, weights=None):
    return gradients.median(0).values


def plain(gradients):
    return gradients.mean(0)


def required(gradients, *, f, keep: int, mode: "Literal['a']" = None):
    return gradients.mean(0)


def rows(gradients, *, f, factor: float = 0.5):
    return gradients * factor


def faults(n, f, given):
    if given["keep"] > n - f:
        yield "keep", f"must be at most {n - f}, got {given['keep']}"


DECLARED = RuleDeclaration(
    name="declared", function=nearest, text="declared", options={"keep": Option(int, 3, "Rows kept.", ge=1)},
    least=lambda f: 2 * f + 1, faults=faults,
)


SLOPPY = RuleDeclaration(name="sloppy", function=nearest, text="sloppy", least=lambda f: {}["missing key"])


def shrink(reply, *, magnitude=0.5, generator, twist: bool = False):
    return reply * magnitude


def pairs(*, workers, adversaries, groups: int = 1):
    if workers % groups:
        raise ValueError(f"{workers} workers are not in {groups} equal groups")
    if groups > 4:
        raise OptionError("pairs", "groups", f"must be at most 4, got {groups}")
    assignment = np.arange(workers)[:, None] % groups == np.arange(groups)
    return Scheme(
        name="pairs", workers=workers, adversaries=adversaries, redundancy=1, assignment=assignment,
        weights=assignment.astype(float), encoder=lambda row, gradients: gradients[0],
        decoder=lambda replies, here, seed, inspection: Decoded(replies[:groups], ()), inspect=None,
        dtype=torch.float32, amplification=None, summary="pairs",
    )


def falling(optimizer, *, steps, power: float = 1.0):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (1 - step / (steps + 1)) ** power)


class Heavy(torch.optim.Optimizer):
    def __init__(self, parameters, lr=0.1, drag: float = 0.9):
        super().__init__(parameters, {"lr": lr, "drag": drag})
        self.hidden = 0.0

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                held = self.state[p].setdefault("held", torch.zeros_like(p))
                held.mul_(group["drag"]).add_(p.grad)
                p.sub_(group["lr"] * held)


class Forgetful(Heavy):
    def step(self):
        super().step()
        self.hidden += 1
        with torch.no_grad():
            self.param_groups[0]["params"][0].add_(self.hidden)


class ByNorm(Heavy):
    @torch.no_grad()
    def step(self):
        for p in self.param_groups[0]["params"]:
            p.sub_(self.param_groups[0]["lr"] * p.grad / p.grad.norm())


NUMBER = 3
"""


def line_of(word: str) -> int:
    return next(number for number, line in enumerate(CODE.splitlines(), start=1) if word in line)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mine.py").write_text(CODE)
    (tmp_path / "script.py").write_text("import sys\nsys.exit(3)\n")
    (tmp_path / "broken.py").write_text("x = 1\nimport no_such_module\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def job(*overrides: str) -> Job:
    return parse(JOB, "x.yaml", overrides)


def faults(*overrides: str) -> list[str]:
    with pytest.raises(JobError) as caught:
        job(*overrides)
    return [fault.removeprefix("x.yaml: ") for fault in caught.value.faults]


EVERYTHING = (
    "scheme={name: 'mine.py:pairs', options: {groups: 3}, adversaries: 1}",
    "aggregator={name: 'mine.py:nearest', f: 1, options: {keep: 2}, pre: ['mine.py:rows', nnm]}",
    "attack={name: 'mine.py:shrink', options: {magnitude: 0.25}, ranks: [2]}",
    "optimizer={name: 'torch.optim:RMSprop', options: {lr: 0.01}}",
    "schedule={name: 'mine.py:falling', options: {power: 2.0}, warmup_steps: 2}",
)


def test_every_part_can_be_named_by_its_path(folder: Path) -> None:
    made = job(*EVERYTHING)
    assert sizes(made) == (3, 3, 0)
    assert aggregator_f(made) == 1
    assert made.aggregator.get("keep") == 2
    assert made.attack.given()["magnitude"] == 0.25
    assert made.attack.get("twist") is False
    assert warnings(made) == []
    assert to_words(made) == (
        "pairs s=1 (groups=3), rows, nnm, nearest (f=1 keep=2), 9 workers; shrink (ranks=[2] magnitude=0.25)"
    )


def test_the_short_form_is_the_path_alone(folder: Path) -> None:
    assert job("aggregator=mine.py:nearest") == job("aggregator={name: 'mine.py:nearest'}")
    assert job("aggregator=mine.py:nearest", "aggregator.options.keep=4").aggregator.get("keep") == 4


def test_a_job_comes_back_from_yaml_as_it_was(folder: Path) -> None:
    made = job(*EVERYTHING)
    again = parse(to_yaml(made), "again", checked=True)
    assert again == made
    assert hash(again) == hash(made)
    assert Job.model_validate(to_dict(made)) == made
    assert parse(to_yaml(made), "again") == made


TEXTS = st.text().filter(lambda text: text.replace("\n", "").replace("\t", "").isprintable())
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(1 - 2**63, 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS.filter(len), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
OPTIONS = st.dictionaries(st.from_regex(r"[A-Za-z_][A-Za-z0-9_]*", fullmatch=True), VALUES, max_size=4)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(OPTIONS)
def test_options_of_any_plain_values_come_back_as_they_were(options: dict[str, Any]) -> None:
    values = {**to_dict(job()), "aggregator": {"name": "nowhere.py:rule", "options": options}}
    made = Job.model_validate(values)
    again = parse(to_yaml(made), "again", checked=True)
    assert again == made
    assert hash(again) == hash(made)
    assert json.dumps(again.aggregator.options.plain()) == json.dumps(options)


def test_options_are_alike_only_where_they_are_written_alike() -> None:
    kinds = [PlainOptions({"a": value}) for value in (1, 1.0, True, "1", None, [1], {"b": 1})]
    assert len({*kinds}) == len(kinds)
    assert PlainOptions({"a": 1, "b": 2}) == PlainOptions({"b": 2, "a": 1})


def test_options_do_not_change_with_what_is_taken_out_of_them() -> None:
    options = PlainOptions({"a": [1, {"b": 2}]})
    options["a"][1]["b"] = 3
    options.plain()["a"].append(4)
    assert options.plain() == {"a": [1, {"b": 2}]}


def deep(levels: int) -> Any:
    return [] if levels == 1 else [deep(levels - 1)]


@pytest.mark.parametrize(
    "options",
    [{"a": 2**63}, {"a": float("inf")}, {"a": object()}, {"a-b": 1}, {1: 1}, {"a": {1: 2}}, {"a": "\x85"},
     {"a": deep(DEEPEST)}, {"a": [0] * MOST}, {"a": {"": 1}}],
    ids=["large", "infinite", "object", "hyphen", "number", "key", "control", "deep", "many", "empty"],
)  # fmt: skip
def test_other_values_are_refused(options: Any) -> None:
    with pytest.raises(ValueError, match=r"plain|name|key|deep|values"):
        PlainOptions(options)


def test_options_may_be_as_deep_and_as_many_as_is_said() -> None:
    assert PlainOptions({"a": deep(DEEPEST - 1)})
    assert PlainOptions({"a": [0] * (MOST - 2)})


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("aggregator=mine.py:nothing", "aggregator.name: mine.py:nothing: mine.py has no nothing; it defines"),
        ("aggregator=none.py:rule", "aggregator.name: none.py: there is no such file in"),
        ("aggregator=broken.py:rule", "aggregator.name: broken.py: cannot be imported, broken.py, line 2: ModuleNotFo"),
        ("aggregator=mine.py:NUMBER", "aggregator.name: mine.py:NUMBER: is an int; an aggregator is a function"),
        ("aggregator=mine.py:Heavy",
         f"aggregator.name: mine.py:Heavy, mine.py, line {line_of('class Heavy')}: is a class; an aggregator is"),
        ("aggregator=script.py:rule",
         "aggregator.name: script.py: cannot be imported, script.py, line 2: SystemExit: 3"),
        ("attack={name: 'mine.py:DECLARED', adversaries: 1}",
         "attack.name: mine.py:DECLARED: is a RuleDeclaration; an attack is a function"),
        ("aggregator={name: 'mine.py:nearest', options: {kep: 3}}",
         "aggregator.options.kep: nearest has no such option; its options are: keep, weights"),
        ("aggregator={name: 'mine.py:nearest', options: {keep: x}}",
         "aggregator.options.keep: must be a whole number, got 'x'"),
        ("aggregator=mine.py:required", "aggregator.options.keep: is missing; must be a whole number"),
        ("aggregator={name: 'mine.py:nearest', keep: 3}",
         "aggregator.keep: unknown key; the options of your own code are in aggregator.options, such as {keep: ...}"),
        ("aggregator={name: 'mine.py:nearest', options: [3]}",
         "aggregator.options: must be a mapping of names to plain values"),
        ("aggregator={name: 'mine.py:plain', f: 1}", "aggregator.f: plain takes no f: leave it out"),
        ("aggregator={name: 'mine.py:DECLARED', options: {keep: 0}}",
         "aggregator.options.keep: must be a whole number at least 1, got 0"),
        ("aggregator={name: 'mine.py:DECLARED', options: {keep: 9}, f: 2}",
         "aggregator.options.keep: must be at most 7, got 9"),
        ("aggregator={name: 'mine.py:DECLARED', f: 5}",
         "aggregator.name: mine.py:DECLARED with f = 5 needs at least 11 gradients"),
        ("aggregator={name: mean, pre: [{name: 'mine.py:rows', options: {factr: 1}}]}",
         "aggregator.pre: mine.py:rows: options.factr: rows has no such option"),
        ("scheme={name: 'mine.py:pairs', options: {groups: 2}}",
         f"scheme.name: mine.py:pairs, mine.py, line {line_of('raise ValueError')}: ValueError: 9 workers are"),
        ("scheme={name: 'mine.py:pairs', options: {groups: 9}}",
         "scheme.options.groups: must be at most 4, got 9"),
        ("aggregator=mine.py:SLOPPY",
         f"your own code failed while the job was checked, mine.py, line {line_of('missing key')}: KeyError: 'missing"),
        ("optimizer=torch.optim:LBFGS", "optimizer.name: torch.optim:LBFGS: step(): TypeError: LBFGS.step() missing"),
        ("optimizer=torch.optim:Muon", "optimizer.name: torch.optim:Muon: ValueError: Muon only supports 2D"),
        ("optimizer=mine.py:Forgetful",
         "optimizer.name: mine.py:Forgetful: does not go on from its state_dict as if it had not stopped"),
        ("optimizer=mine.py:nearest", "optimizer.options.f: is missing; must be given"),
        ("schedule=torch.optim.lr_scheduler:ReduceLROnPlateau",
         "schedule.name: torch.optim.lr_scheduler:ReduceLROnPlateau: step(): TypeError"),
        ("schedule=torch.optim.lr_scheduler:StepLR", "schedule.options.step_size: is missing"),
        ("aggregator=mine.py", "aggregator.name: must be one of mean, "),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_its_key(folder: Path, override: str, expected: str) -> None:
    said = faults(override)
    assert [fault for fault in said if fault.startswith(expected)], said
    assert len(said) == 1


def test_all_faults_are_told_at_once(folder: Path) -> None:
    said = faults(
        "workers=0", "aggregator=none.py:rule", "attack={name: 'broken.py:lie', adversaries: 1}",
        "optimizer={name: 'torch.optim:RMSprop', options: {lrr: 1, alpha: x}}", "schedule.warmup_steps=99",
    )  # fmt: skip
    assert [fault.partition(":")[0] for fault in said] == [
        "workers", "aggregator.name", "attack.name", "optimizer.options.lrr", "optimizer.options.alpha",
        "schedule.warmup_steps",
    ]  # fmt: skip


def test_a_name_that_looks_like_a_file_is_told_of_the_form(folder: Path) -> None:
    (said,) = faults("aggregator=mine.py")
    assert said.endswith("a colon and a name in it: my_rules.py:trimmed_krum")


def test_an_optimizer_that_looks_at_the_whole_vector_is_warned_of(folder: Path) -> None:
    (said,) = warnings(job("optimizer=mine.py:ByNorm"))
    assert said.startswith("optimizer: mine.py:ByNorm does not treat every number by itself")
    assert warnings(job("optimizer=mine.py:Heavy")) == []


def test_space_counts_the_vectors_that_an_own_optimizer_keeps(folder: Path) -> None:
    size = Size(1000, 0)
    taken = {name: checkpoint_bytes(job(f"optimizer={name}"), size) for name in ("mine.py:Heavy", "mine.py:ByNorm")}
    momentum = checkpoint_bytes(job("optimizer={name: sgd, momentum: 0.9}"), size)
    assert taken == {"mine.py:Heavy": momentum, "mine.py:ByNorm": checkpoint_bytes(job(), size)}


def test_the_schema_takes_what_a_job_may_hold(folder: Path) -> None:
    made = schema()
    check = Draft202012Validator(made)
    values = {key: value for key, value in to_dict(job(*EVERYTHING)).items() if value is not None}
    assert list(check.iter_errors(values)) == []
    values["aggregator"] = "mine.py:nearest"
    assert list(check.iter_errors(values)) == []
    values["aggregator"] = {"name": "mine.py:nearest", "keep": 3}
    assert list(check.iter_errors(values))
    values["aggregator"] = "nearest"
    assert list(check.iter_errors(values))


def test_a_grid_compares_own_rules_by_their_short_names(folder: Path) -> None:
    text = "{name: g, base: x, axes: {aggregator: [mean, 'mine.py:nearest', 'mine.py:plain'], attack: [none, "
    text += "{name: 'mine.py:shrink', adversaries: 1, options: {magnitude: 0.1}}]}}"
    cells = expand(parse_grid(text, "g"), JOB, "g")
    assert [(cell.setting, cell.attack) for cell in cells] == [
        (rule, attack) for rule in ("mean", "nearest", "plain") for attack in ("none", "shrink")
    ]
    assert cells[3].job.attack.get("magnitude") == 0.1
    assert not any("/" in cell.name or ":" in cell.name for cell in cells)


def test_an_option_of_an_own_rule_can_be_an_axis(folder: Path) -> None:
    text = "{name: g, base: x, set: {aggregator: 'mine.py:nearest'}, axes: {aggregator.options.keep: [1, 2]}}"
    cells = expand(parse_grid(text, "g"), JOB, "g")
    assert [(cell.name, cell.setting, cell.job.aggregator.get("keep")) for cell in cells] == [
        ("keep1", "keep=1", 1), ("keep2", "keep=2", 2)
    ]  # fmt: skip


def test_a_job_without_paths_imports_neither_torch_nor_anybodys_code(folder: Path) -> None:
    code = f"import sys; from draco.job import parse; parse({JOB!r}, 'x'); print('torch._C' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "False"
