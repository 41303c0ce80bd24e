"""Rules, schemes, attacks, optimizers and schedules of a user's own, in training: the same promises as of ours."""

import copy
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Trained

import draco.own
from draco import own_function
from draco.aggregators import AGGREGATORS, PRE_AGGREGATORS, aggregate
from draco.attacks import ATTACKS
from draco.errors import DecodeError, OwnCodeError
from draco.job import Job, parse
from draco.optimizers import OPTIMIZERS
from draco.runs import events
from draco.schemes import SCHEMES, Sizes, build
from draco.training import checkpoint, checkpoint_check, state
from draco.training.build import Built
from draco.training.rehearsal import rehearse

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(ROOT.glob("examples/own_*.yaml"))
EXAMPLE = "examples/own_scheme.yaml"
SMALL = ("model=fc", "steps=3", "batch_size=18", "checkpoint_every=1", "eval_every=0")
CODE = """
import math

import numpy as np
import torch

from draco.schemes import Decoded, Scheme


def middle(gradients, *, f):
    return gradients.median(0).values


def drawn(gradients, *, generator):
    return gradients[torch.randint(len(gradients), (), generator=generator)].clone()


def short(gradients):
    return gradients.mean(0)[:-1]


def not_finite(gradients):
    return gradients.mean(0) * math.nan


def in_place(gradients):
    gradients.mul_(2)
    return gradients.mean(0)


def listed(gradients):
    return gradients.mean(0).tolist()


def double(gradients):
    return gradients.double().mean(0)


def raising(gradients, *, f):
    raise ValueError(f"needs {2 * f + 3} gradients")


def fewer(gradients):
    return gradients[:-1]


def scaled(gradients, *, factor=0.5):
    return gradients * factor


def lie_in_place(reply):
    return reply.mul_(-1)


def lie_short(reply):
    return reply[:-1]


def lie_wrongly(reply, *, scene):
    return scene.others().mean(0) + scene.nothing


def curious(reply, *, scene, generator, magnitude):
    assert len(scene.honest()) == len(scene.others()) + len(scene.byzantine) == scene.scheme.workers
    assert torch.equal(scene.honest()[scene.row], reply)
    assert scene.gradients().shape[0] == scene.scheme.assignment.shape[1]
    assert scene.flipped().shape == reply.shape
    served = scene.served(scene.honest())
    assert served is None or served.dtype == torch.float32
    return torch.randn(reply.shape, dtype=reply.dtype, generator=generator) * magnitude


def scheme(*, workers, adversaries, **parts):
    kept = {"encoder": lambda row, gradients: gradients[0], "weights": np.ones((workers, 1)), "workers": workers,
            "decoder": lambda replies, here, seed, inspection: Decoded(replies[:1], ())}
    return Scheme(**{
        "name": "all", "adversaries": adversaries, "redundancy": 1, "assignment": np.ones((workers, 1), bool),
        "inspect": None, "dtype": torch.float32, "amplification": None, "summary": "all", **kept, **parts,
    })


def everybody(*, workers, adversaries):
    return scheme(workers=workers, adversaries=adversaries)


def strange(*, workers, adversaries, how: str):
    parts = {
        "weights": {"weights": np.full((workers, 1), 2.0)},
        "encoder": {"encoder": lambda row, gradients: gradients},
        "decoder": {"decoder": lambda replies, here, seed, inspection: replies},
        "suspects": {"decoder": lambda replies, here, seed, inspection: Decoded(replies[:1], (workers,))},
        "narrow": {"decoder": lambda replies, here, seed, inspection: Decoded(replies[:1, :-1], ())},
        "complex": {"dtype": torch.complex64},
        "workers": {"workers": workers + 1},
        "assignment": {"assignment": np.zeros((workers, 1), bool)},
        "in_place": {"decoder": lambda replies, here, seed, inspection: Decoded(replies.zero_()[:1], ())},
        "raises": {"decoder": lambda replies, here, seed, inspection: Decoded(replies[workers], ())},
    }
    return scheme(**{"workers": workers, "adversaries": adversaries, **parts[how]}) if how != "nothing" else None


class Heavy(torch.optim.Optimizer):
    def __init__(self, parameters, lr=0.1, drag: float = 0.9):
        super().__init__(parameters, {"lr": lr, "drag": drag, "taken": 0})

    @torch.no_grad()
    def step(self):
        (group,) = self.param_groups
        group["taken"] += 1
        (p,) = group["params"]
        held = self.state[p].setdefault("held", torch.zeros_like(p))
        held.mul_(group["drag"]).add_(p.grad)
        if group["taken"] > 1:  # another form from the second step on
            self.state[p]["norms"] = [*self.state[p].get("norms", []), float(p.grad.norm())][-2:]
        if group["taken"] == 5:
            raise RuntimeError("too heavy")
        p.sub_(group["lr"] * held)


def falling(optimizer, *, steps, warmup, power: float = 1.0):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (1 - step / (steps + 1)) ** power)
"""
Train = Callable[..., Trained]
Make = Callable[..., Job]


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mine.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def example(path: Path, data_root: Path, *overrides: str) -> Job:
    given = [f"data.root={data_root}", "data.name=synthetic", "launcher=simulate", *SMALL, *overrides]
    return parse(path.read_text(), path.name, given)


def test_there_is_an_example_of_each() -> None:
    assert [path.stem for path in EXAMPLES] == ["own_attack", "own_rule", "own_scheme"]
    for path in EXAMPLES:
        text = path.with_suffix(".py").read_text()
        assert len(text.splitlines()) <= 60
        assert f"make train JOB=examples/{path.name}" in text


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_trains(path: Path, data_root: Path, train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    done = train(example(path, data_root))
    assert done.status.state == "succeeded"
    steps = [event for event in events.read(done.run / "events.jsonl") if event["event"] == "step"]
    assert all(event["byzantine"] for event in steps)
    if path.stem != "own_rule":
        assert all(event["suspects"] == event["byzantine"] for event in steps)


@pytest.mark.usefixtures("forks")
def test_own_code_of_every_kind_trains_to_the_same_bits_over_mpi_and_simulated(
    tmp_path: Path, data_root: Path, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    (tmp_path / "mine.py").write_text(CODE)
    (tmp_path / "data").symlink_to(data_root)
    changes = (
        *SMALL, "data=synthetic", "workers=3", "scheme.options.groups=1",
        "aggregator={name: 'mine.py:middle', pre: ['mine.py:scaled']}",
        "attack={name: 'examples/own_attack.py:against_the_rest', adversaries: 1, options: {strength: 3}}",
        "checkpoint_every=0", "schedule={name: 'mine.py:falling', warmup_steps: 1}",
    )  # fmt: skip
    given = [word for change in changes for word in ("--set", change)]
    command = [sys.executable, "-m", "draco", "train", EXAMPLE, *given, "--new"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = (tmp_path / "runs").iterdir()
    monkeypatch.chdir(tmp_path)
    simulated = train(parse((tmp_path / EXAMPLE).read_text(), "own", [*changes, "launcher=simulate"]))
    assert torch.equal(Trained(run).model, simulated.model)
    for one in (run, simulated.run):
        told = list(events.read(one / "events.jsonl"))
        assert (
            told[0]["setting"]
            == "quorum s=1 (groups=1), scaled, middle, 3 workers; against_the_rest (adversaries=1 strength=3)"
        )
        steps = [event for event in told if event["event"] == "step"]
        assert [event["suspects"] == event["byzantine"] != [] for event in steps] == [True] * 3


OWN = (
    "optimizer={name: 'mine.py:Heavy', options: {drag: 0.5}}",
    "schedule={name: 'mine.py:falling', options: {power: 2.0}, warmup_steps: 1}",
)


@pytest.fixture
def own_job(mine: Path, make_job: Make) -> Job:
    return make_job("workers=2", "batch_size=4", "model=fc", "steps=4", *OWN)


def fresh(job: Job) -> state.Training:
    return state.Training(Built(job))


def step(training: state.Training, number: int) -> None:
    training.update(torch.randn(training.elements, generator=torch.Generator().manual_seed(number)) * 0.01)


@pytest.mark.parametrize("at", [0, 1, 3])
def test_an_own_optimizer_and_schedule_go_on_from_a_checkpoint_with_the_same_bits(
    own_job: Job, at: int, tmp_path: Path
) -> None:
    before, after = fresh(own_job), fresh(own_job)
    for number in range(at):
        step(before, number)
    path = checkpoint.save(tmp_path, at, before.contents())
    limit = checkpoint_check.limit(own_job, after.model.state_dict(), after.flat.numel())
    after.restore(at, checkpoint.load(path, limit))
    for training in (before, after):
        step(training, at)
    assert torch.equal(before.flat, after.flat)
    assert before.schedule.get_last_lr() == after.schedule.get_last_lr()


STRANGE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "optimizer.state.0.held: holds numbers that are not finite": lambda c: c["optimizer"]["state"][0]["held"].fill_(
        float("nan")
    ),
    "optimizer.state.0.more: has 9999999 numbers": lambda c: c["optimizer"]["state"][0].update(
        more=torch.zeros(1).expand(9999999)
    ),
    "optimizer.state.0.more: is object": lambda c: c["optimizer"]["state"][0].update(more=object()),
    "optimizer.param_groups: is not a list of 1": lambda c: c["optimizer"].update(param_groups=[]),
    "optimizer.param_groups: is not a list of dicts": lambda c: c["optimizer"].update(param_groups=3),
    "optimizer: is not a dict of state, param_groups": lambda c: c.update(optimizer={}),
    "schedule: is not a dict": lambda c: c.update(schedule=[]),
    "schedule: is not that of step 2": lambda c: c["schedule"].update(last_epoch=7),
}


@pytest.mark.parametrize("why", STRANGE)
def test_what_is_no_state_of_an_own_optimizer_is_not_restored(own_job: Job, why: str) -> None:
    before, after = fresh(own_job), fresh(own_job)
    for number in range(2):
        step(before, number)
    contents, unchanged = copy.deepcopy(before.contents()), after.flat.clone()
    STRANGE[why](contents)
    with pytest.raises(checkpoint.CheckpointError, match=re.escape(why)):
        after.restore(2, contents)
    assert torch.equal(after.flat, unchanged)


def test_a_run_with_own_code_resumes_with_the_same_bits(mine: Path, make_job: Make, train: Train) -> None:
    job = make_job(
        "model=fc", "steps=4", "checkpoint_every=1", *OWN, "aggregator={name: 'mine.py:drawn', pre: ['mine.py:scaled']}"
    )
    whole, parted = train(job), train(job)
    for path in (parted.run / "checkpoints").glob("step-0000000[34].*"):
        path.unlink()
    assert torch.equal(train(job, parted.run).model, whole.model)
    assert [event["step"] for event in events.read(parted.run / "events.jsonl") if event["event"] == "resume"] == [2]


def line_of(word: str) -> int:
    return next(number for number, line in enumerate(CODE.splitlines(), start=1) if word in line)


RULES = {
    "short": (r"returned \(\d+,\) torch.float32; the gradient is \(\d+,\) torch.float32", "def short"),
    "not_finite": ("made NaN or infinity of gradients that are all finite", "def not_finite"),
    "in_place": ("changes the gradients in place; clone what you change", "def in_place"),
    "listed": ("returned a list; the gradient is a tensor", "def listed"),
    "double": (r"returned \(\d+,\) torch.float64; the gradient is \(\d+,\) torch.float32", "def double"),
    "raising": ("ValueError: needs 3 gradients", "raise ValueError"),
}


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_that_breaks_its_promise_ends_the_run_with_its_name_file_and_line(
    mine: Path, make_job: Make, train: Train, rule: str
) -> None:
    job = make_job("model=fc", f"aggregator=mine.py:{rule}")
    what, where = RULES[rule]
    said = rf"mine.py:{rule}, mine.py, line {line_of(where)}: {what}"
    with pytest.raises(OwnCodeError, match=said):
        train(job)
    (run,) = (mine / "runs").iterdir()
    assert Trained(run).status.state == "failed"
    assert re.match(said, Trained(run).status.message)
    assert checkpoint.newest(run / "checkpoints") is not None


@pytest.mark.parametrize(
    ("name", "what", "where"),
    [
        ("lie_in_place", "changes the reply in place", "def lie_in_place"),
        ("lie_short", r"returned \(\d+,\) torch.float32; what is sent is", "def lie_short"),
        ("lie_wrongly", "AttributeError: 'Scene' object has no attribute 'nothing'", "scene.nothing"),
    ],
)
def test_an_attack_that_breaks_its_promise_is_told_of_before_the_first_step(
    mine: Path, make_job: Make, train: Train, name: str, what: str, where: str
) -> None:
    job = make_job("model=fc", f"attack={{name: 'mine.py:{name}', adversaries: 1}}")
    with pytest.raises(OwnCodeError, match=rf"mine.py:{name}, mine.py, line {line_of(where)}: {what}"):
        train(job)
    (run,) = (mine / "runs").iterdir()
    assert not [event for event in events.read(run / "events.jsonl") if event["event"] == "step"]


SCHEMED = ("uncoded", "repetition", "cyclic", "cyclic_dft", "detox", "placement", "approximate", "election", "solon")


@pytest.mark.parametrize("scheme", SCHEMED)
def test_an_attack_is_rehearsed_with_every_scheme(mine: Path, make_job: Make, scheme: str) -> None:
    adversaries = 0 if scheme in ("uncoded", "approximate") else 1
    job = make_job(
        "model=fc", "workers=15", "batch_size=60", f"scheme={{name: {scheme}, adversaries: {adversaries}}}",
        "attack={name: 'mine.py:curious', adversaries: 1}",
    )  # fmt: skip
    rehearse(Built(job))


def test_an_optimizer_that_fails_later_is_named_and_what_was_done_is_kept(
    mine: Path, make_job: Make, train: Train
) -> None:
    job = make_job("model=fc", "steps=6", "optimizer=mine.py:Heavy")
    with pytest.raises(
        OwnCodeError, match=rf"Heavy: step\(\), mine.py, line {line_of('too heavy')}: RuntimeError: too"
    ):
        train(job)
    (run,) = (mine / "runs").iterdir()
    assert (Trained(run).status.state, Trained(run).status.step) == ("failed", 4)


@pytest.mark.parametrize(
    ("how", "what"),
    [
        ("weights", "row 0's reply is not what its weights say"),
        ("encoder", r".*row 0's reply is \(16,\)"),
        ("decoder", "its decoder must return Decoded"),
        ("suspects", r"its decoder's suspects are \(5,\); must be rows, 0 to 4"),
        ("narrow", "its decoder leaves 15 of 16 numbers of each gradient"),
        ("complex", "replies are torch.complex64, must be float32"),
        ("workers", "is for 6 workers and 1 adversaries, not as asked for"),
        ("assignment", "assignment must give every one of n rows a partition"),
        ("in_place", "changes the replies in place"),
        ("raises", "IndexError"),
        ("nothing", "returned NoneType; a scheme is a function"),
    ],
)
def test_a_scheme_that_breaks_its_promise_is_told_of_before_it_is_used(mine: Path, how: str, what: str) -> None:
    with pytest.raises(OwnCodeError, match=rf"mine.py:strange.*: {what}"):
        build("mine.py:strange", workers=5, adversaries=1, how=how)


def test_a_declared_scheme_must_build_what_it_declares(monkeypatch: pytest.MonkeyPatch) -> None:
    declared = replace(SCHEMES["repetition"], sizes=lambda workers, adversaries, **options: Sizes(2, 2))
    monkeypatch.setitem(draco.own.GIVEN, "<given>:declared", declared)
    with pytest.raises(OwnCodeError, match=r"sizes are \(2, 2, 0\) as declared, and \(3, 3, 0\) as built"):
        build("<given>:declared", workers=9, adversaries=1)
    monkeypatch.setitem(draco.own.GIVEN, "<given>:declared", SCHEMES["repetition"])
    assert build("<given>:declared", workers=9, adversaries=1).name == "<given>:declared"


def test_the_library_takes_paths_too(mine: Path) -> None:
    rows = torch.tensor([[1.0, 2.0], [2.0, 3.0], [9.0, 9.0]])
    assert aggregate(rows, "mine.py:middle", f=1).tolist() == [2.0, 3.0]
    assert aggregate(rows, "median", f=1, pre=[("mine.py:scaled", {"factor": 2.0})]).tolist() == [4.0, 6.0]
    assert aggregate(rows.tolist(), "mine.py:middle", f=1).tolist() == [2.0, 3.0]
    with pytest.raises(ValueError, match="draws at random and needs a generator"):
        aggregate(rows, "mine.py:drawn")
    drawn = [aggregate(rows, "mine.py:drawn", generator=torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(*drawn)
    with pytest.raises(OwnCodeError, match=r"fewer.*what comes before an aggregator"):
        aggregate(rows, "mean", pre=[("mine.py:fewer", {})])
    assert build("mine.py:everybody", workers=3, adversaries=0).decode(rows).gradients.tolist() == [[1.0, 2.0]]
    with pytest.raises(ValueError, match=r"aggregator 'nothing' is not one of mean"):
        aggregate(rows, "nothing")
    with pytest.raises(OwnCodeError, match="has no nothing; it defines"):
        aggregate(rows, "mine.py:nothing")


def test_tables_list_what_draco_has_alone(mine: Path) -> None:
    for table in (AGGREGATORS, PRE_AGGREGATORS, ATTACKS, SCHEMES, OPTIMIZERS):
        with pytest.raises(KeyError):
            table["nothing"]
    before = [*AGGREGATORS]
    assert AGGREGATORS["mine.py:middle"] is AGGREGATORS["mine.py:middle"]
    assert [*AGGREGATORS] == before
    assert "mine.py:middle" not in AGGREGATORS


def test_what_a_notebook_defines_anew_is_taken_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.ones(3, 2)
    for value in (1.0, 2.0):
        monkeypatch.setitem(draco.own.GIVEN, "<given>:rule", lambda gradients, value=value: gradients[0] * value)
        assert aggregate(rows, "<given>:rule").tolist() == [value, value]


def test_files_of_the_same_name_in_two_folders_are_two(mine: Path) -> None:
    for folder, factor in (("a", 1.0), ("b", 2.0), ("c", 3.0)):
        (mine / folder).mkdir()
        (mine / folder / "same_name.py").write_text(f"def rule(gradients):\n    return gradients[0] * {factor}\n")
    rows = torch.ones(3, 2)
    assert [aggregate(rows, f"{folder}/same_name.py:rule")[0].item() for folder in "abc"] == [1.0, 2.0, 3.0]


def test_a_decode_error_of_an_own_scheme_stays_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    made = build("examples/own_scheme.py:quorum", workers=3, adversaries=1)
    with pytest.raises(DecodeError, match="1 equal replies, needs 2"):
        made.decode(torch.eye(3))
    assert SCHEMES["examples/own_scheme.py:quorum"].sizes(9, 1, groups=3) == (3, 3, 0)
    assert np.array_equal(made.assignment, np.ones((3, 1), bool))


def test_the_example_of_a_rule_is_that_of_a_library_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    rows = torch.cat([torch.randn(5, 4, generator=torch.Generator().manual_seed(1)), torch.full((2, 4), 1e3)])
    assert aggregate(rows, "examples/own_rule.py:near_median", f=2).norm() < 3
    with pytest.raises(OwnCodeError, match=r"own_rule.py, line 17: ValueError: f = 4 needs at least 9 gradients"):
        aggregate(rows, "examples/own_rule.py:near_median", f=4)


def test_an_operation_that_cannot_repeat_its_bits_is_named_with_what_to_do() -> None:
    said = r"^my.py:rule, .*: median CUDA with indices output has no form that repeats its bits on this device"
    with pytest.raises(OwnCodeError, match=said), own_function.watched("my.py:rule"):
        raise RuntimeError(
            "median CUDA with indices output does not have a deterministic implementation, but you set "
            "'torch.use_deterministic_algorithms(True)'. You can turn off determinism ..."
        )


def test_the_jobs_of_the_examples_are_in_plain_yaml() -> None:
    for path in EXAMPLES:
        assert json.dumps(path.read_text()).isascii()
        assert path.read_text().startswith("# ")
