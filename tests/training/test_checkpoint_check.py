"""The check of checkpoints: only a job's own are restored, wholly or not at all."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from draco.job import Job, parse, to_dict
from draco.runs import events
from draco.training import checkpoint, checkpoint_check, state
from draco.training.build import Built

JOB = """
name: test
workers: 2
launcher: simulate
model: lenet
data: synthetic
batch_size: 4
scheme: uncoded
optimizer: {name: sgd, lr: 0.05, momentum: 0.9}
steps: 4
checkpoint_every: 1
eval_every: 0
"""
Make = Callable[..., Job]
Change = Callable[[dict[str, Any]], object]
SMALL = (
    "workers=2", "batch_size=4", "model=lenet", "steps=4", "checkpoint_every=1", "checkpoint_keep=all",
    "data.name=synthetic",
)  # fmt: skip
OPTIMIZERS = {
    "momentum": (),
    "plain": ("optimizer={name: sgd}",),
    "adam": ("optimizer={name: adam}",),
    "warmup": ("schedule={name: cosine, warmup_steps: 2}",),
    "multistep": ("schedule={name: multistep, milestones: [2, 3], gamma: 0.5}",),
    "clipping": ("aggregator=centered_clipping",),
    "adamw": ("optimizer={name: adamw}", "schedule={name: exponential, gamma: 0.9}"),
    "average": ("ema=0.9", "optimizer={name: sgd}"),
    "worker momentum": ("optimizer={name: sgd}", "local={momentum: 0.9}"),
}


def fresh(job: Job) -> state.Training:
    return state.Training(Built(job))


def flat(value: Any) -> list[Any]:
    """Return everything in nested contents, tensors as lists of numbers."""
    if isinstance(value, dict):
        return [item for key in sorted(value, key=str) for item in (key, *flat(value[key]))]
    if isinstance(value, list | tuple):
        return [item for inner in value for item in flat(inner)]
    return value.flatten().tolist() if isinstance(value, torch.Tensor) else [value]


@pytest.fixture(scope="module")
def trained(data_root: Path) -> Callable[..., state.Training]:
    """Return `trained(job, step)`: a training that has taken steps with some gradients."""

    def make(job: Job, step: int) -> state.Training:
        training = fresh(job)
        generator = torch.Generator().manual_seed(1)
        for _ in range(step):
            training.update(torch.randn(training.elements, generator=generator) * 0.01)
        training.ledger.note({1}, {1, 2})
        return training

    return make


@pytest.mark.parametrize("options", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("step", [0, 1, 4])
def test_what_a_job_saves_fits_it_and_restores_it_to_the_bit(
    make_job: Make, trained, options: tuple[str, ...], step: int, tmp_path: Path
) -> None:
    job = make_job(*SMALL, *options)
    before = trained(job, step)
    path = checkpoint.save(tmp_path, step, before.contents())
    after = fresh(job)
    limit = checkpoint_check.limit(job, after.model.state_dict(), after.flat.numel())
    after.restore(step, checkpoint.load(path, limit))
    assert flat(after.contents()) == flat(before.contents())
    assert path.stat().st_size < limit < 2 * path.stat().st_size + (8 << 20) + (1 << 24)


def test_centered_clipping_goes_on_from_where_it_was_and_from_nowhere_else(make_job: Make, trained) -> None:
    job = make_job(*SMALL, "aggregator=centered_clipping")
    before, after = trained(job, 2), fresh(job)
    assert before.centre is not None
    assert before.centre.any()
    for change in (lambda c: c.pop("centre"), lambda c: c.update(centre=torch.full_like(c["centre"], torch.nan))):
        contents = before.contents()
        change(contents)
        with pytest.raises(checkpoint.CheckpointError, match="centre"):
            after.restore(2, contents)
    after.restore(2, before.contents())
    assert after.centre is not None
    assert torch.equal(after.centre, before.centre)


def test_statistics_of_batch_norm_are_restored_too(make_job: Make, trained) -> None:
    job = make_job(*SMALL, "model=resnet18")
    before, after = trained(job, 1), fresh(job)
    after.restore(1, before.contents())
    assert torch.equal(after.statistics, before.statistics)


def put(*keys: Any) -> Callable[[Any], Change]:
    """Return `to(value)`, which gives a change that sets contents[key][key]... to the value."""

    def to(value: Any) -> Change:
        def change(contents: dict[str, Any]) -> None:
            part = contents
            for key in keys[:-1]:
                part = part[key]
            part[keys[-1]] = value(part[keys[-1]]) if callable(value) else value

        return change

    return to


def spoilt(number: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def spoil(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.clone()
        tensor.view(-1)[-1] = number
        return tensor

    return spoil


WEIGHT = ("model", "0.weight")
MOMENTUM = ("optimizer", "state", 0, "momentum_buffer")
FAULTS: dict[str, tuple[Change, str]] = {
    "extra key": (lambda c: c.update(more=1), "holds more, which is none of step, model"),
    "missing key": (lambda c: c.pop("ledger"), "lacks ledger"),
    "another seed": (put("job", "seed")(8), "another job: seed is 8, not 7"),
    "another model": (put("job", "model")("fc"), "another job: model is fc, not lenet"),
    "another scheme": (put("job", "scheme")({"name": "repetition"}), "another job: scheme."),
    "unknown option": (put("job", "colour")("red"), "is none that this version of Draco reads (colour:"),
    "no job": (put("job")(None), "is none that this version of Draco reads"),
    "a job that is none": (put("job")({"name": 3}), "is none that this version of Draco reads (name:"),
    "wrong step": (put("step")(2), "it holds step 2, its name says 3"),
    "step as text": (put("step")("3"), "it holds step '3'"),
    "step as a tensor": (put("step")(torch.ones(3)), "its name says 3"),
    "other steps": (put("steps")(9), "at step 3 of 9, this job has 4 steps"),
    "steps as a tensor": (put("steps")(torch.ones(3)), "this job has 4 steps"),
    "nan": (put(*WEIGHT)(spoilt(float("nan"))), "model.0.weight: holds numbers that are not finite"),
    "infinite": (put(*WEIGHT)(spoilt(float("-inf"))), "not finite"),
    "shape": (put(*WEIGHT)(lambda w: w.flatten()), "must be (20, 1, 5, 5) torch.float32"),
    "dtype": (put(*WEIGHT)(lambda w: w.double()), "torch.float64, and must be"),
    "meta": (put(*WEIGHT)(lambda w: w.to("meta")), "do not lie one after the other"),
    "sparse": (put(*WEIGHT)(lambda w: w.to_sparse()), "do not lie one after the other"),
    "one number, repeated": (put(*WEIGHT)(lambda w: torch.zeros(1).expand(w.shape)), "do not lie one after the other"),
    "no tensor": (put(*WEIGHT)([1.0]), "is list instead of a tensor"),
    "missing tensor": (lambda c: c["model"].pop("0.weight"), "model: lacks 0.weight"),
    "extra tensor": (lambda c: c["model"].update(x=torch.ones(1)), "model: holds x, which is none of"),
    "model that is none": (put("model")(5), "model: is int instead of a dict"),
    "momentum": (put(*MOMENTUM)(spoilt(float("nan"))), "momentum_buffer: holds numbers that are not finite"),
    "no momentum": (put("optimizer", "state")({}), "optimizer.state: lacks 0"),
    "short momentum": (put(*MOMENTUM)(lambda m: m[1:].clone()), "and must be (431080,)"),
    "optimizer": (put("optimizer")([]), "optimizer: is list instead of a dict"),
    "two groups": (put("optimizer", "param_groups")(lambda g: g * 2), "is not a list of 1"),
    "rate": (put("optimizer", "param_groups", 0, "lr")(float("nan")), "lr: is not a finite number"),
    "huge rate": (put("optimizer", "param_groups", 0, "lr")(10**400), "lr: is not a finite number"),
    "schedule": (put("schedule", "last_epoch")(2), "schedule: is not that of step 3"),
    "schedule's insides": (lambda c: c["schedule"].update(optimizer=1), "schedule: holds optimizer"),
    "torch": (put("torch")(torch.ones(2)), "torch: is Tensor instead of a version"),
    "ledger": (put("ledger")(7), "ledger: is int instead of a dict"),
    "ledger's key": (put("ledger")({"more": 1}), "ledger: holds more"),
    "ledger's count": (put("ledger", "caught")(-1), "ledger.caught: is not a count"),
    "ledger's kind": (put("ledger", "caught")({}), "ledger.caught: is dict instead of int"),
    "ledger's rank": (put("ledger", "suspicions")({3: 1}), "names ranks that are none of 1 to 2"),
}


@pytest.fixture(scope="module")
def own(data_root: Path) -> tuple[state.Training, dict[str, Any]]:
    """A fresh training and what the same job holds at step 3."""
    job = parse(JOB, "test", [f"data.root={data_root}"])
    later = fresh(job)
    for _ in range(3):
        later.update(torch.full((later.elements,), 0.01))
    return fresh(job), later.contents()


def restored(training: state.Training, contents: dict[str, Any], step: int = 3) -> str:
    """Restore contents and return why that was refused; then nothing has changed."""
    before = flat(training.contents())
    why = ""
    try:
        training.restore(step, contents)
    except checkpoint.CheckpointError as error:
        why = error.why
    assert not why or flat(training.contents()) == before
    assert why.isprintable()
    return why


@pytest.mark.parametrize(("change", "why"), FAULTS.values(), ids=FAULTS)
def test_what_is_not_the_jobs_own_is_refused_and_nothing_of_it_restored(own, change: Change, why: str) -> None:
    training, contents = own
    changed = copy.deepcopy(contents)
    change(changed)
    assert why in restored(training, changed) != ""


def test_the_step_in_the_name_counts(own) -> None:
    training, contents = own
    assert restored(training, copy.deepcopy(contents), step=2) == "it holds step 3, its name says 2"


def test_a_checkpoint_from_before_an_option_was_added_is_accepted(make_job: Make, trained) -> None:
    """Draco has grown a field with a default, or torch has: what is missing has its default."""
    job = make_job(*SMALL)
    contents = copy.deepcopy(trained(job, 2).contents())
    del contents["job"]["loggers"], contents["job"]["stop_early"], contents["job"]["data"]["augment"]
    del contents["job"]["wire"]
    contents["job"]["tensorboard"] = False  # as it was said then
    del contents["ledger"]["falsely_accused"]
    del contents["optimizer"]["param_groups"][0]["differentiable"]
    training = fresh(job)
    assert restored(training, contents, step=2) == "optimizer.param_groups.0: lacks differentiable"
    contents["torch"] = "1.0"
    assert restored(training, contents, step=2) == ""
    assert (training.step, training.ledger.falsely_accused, training.ledger.caught) == (2, 0, 1)
    training.update(torch.zeros(training.elements))


def test_an_option_that_is_not_its_default_must_be_there(make_job: Make, trained) -> None:
    job = make_job(*SMALL, "attack.name=random", "attack.adversaries=1", "attack.magnitude=3.5")
    contents = copy.deepcopy(trained(job, 2).contents())
    del contents["job"]["attack"]["magnitude"]
    assert "attack.magnitude is 100.0, not 3.5" in restored(fresh(job), contents, step=2)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.builds(torch.zeros, st.just(2)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3),
    max_leaves=5,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path to every value in nested contents."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [*([path] if path else []), *(place for key, item in inner for place in places(item, (*path, key)))]


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_whatever_takes_the_place_of_a_value_is_refused_or_restored_and_never_an_error(own, choices) -> None:
    training, contents = own
    changed = {**contents, **{k: copy.deepcopy(contents[k]) for k in ("schedule", "ledger", "job")}}
    changed["optimizer"] = {
        **contents["optimizer"],
        "param_groups": copy.deepcopy(contents["optimizer"]["param_groups"]),
    }
    changed["model"] = dict(contents["model"])
    place = choices.draw(st.sampled_from([p for p in places(changed) if p[:2] != ("optimizer", "state")]))
    put(*place)(choices.draw(VALUES))(changed)
    checkpoint_check.misfit(changed, training.contents(), training.job, 3, training.flat.numel())


def test_a_run_goes_on_from_the_newest_checkpoint_that_is_its_own_and_gives_the_same_bits(
    make_job: Make, train, tmp_path: Path
) -> None:
    """Step 4 is damaged, 3 of another job, 2 not finite: all are named, set aside, and step 1 is gone on from."""
    job = make_job(*SMALL)
    whole = train(job)
    folder = whole.run / "checkpoints"
    want = whole.model
    (folder / "step-00000004.pt").write_bytes(b"x")
    for step, change in ((3, put("job", "seed")(8)), (2, put(*WEIGHT)(spoilt(float("nan"))))):
        contents = checkpoint.load(folder / f"step-{step:08d}.pt")
        change(contents)
        (folder / f"step-{step:08d}.json").unlink()
        checkpoint.save(folder, step, contents)
    resumed = train(job, whole.run)
    assert (resumed.status.state, resumed.status.step) == ("succeeded", 4)
    assert torch.equal(resumed.model, want)
    log = list(events.read(whole.run / "events.jsonl"))
    refusals = [(e["file"], e["why"]) for e in log if e["event"] == "refused_checkpoint"]
    assert [name for name, _ in refusals] == [f"step-0000000{step}.pt" for step in (4, 3, 2)]
    assert "its manifest says" in refusals[0][1]
    assert "another job" in refusals[1][1]
    assert "not finite" in refusals[2][1]
    assert [e["step"] for e in log if e["event"] == "resume"] == [1]
    assert [step for step, _ in checkpoint.steps(folder)] == [1, 2, 3, 4]
    assert len(list(folder.glob("*.pt.refused"))) == 3
    again = train(job, whole.run)
    assert [e["step"] for e in events.read(again.run / "events.jsonl") if e["event"] == "resume"] == [1, 4]


def test_a_run_none_of_whose_checkpoints_can_be_used_loses_nothing_silently(make_job: Make, train, tmp_path) -> None:
    job = make_job(*SMALL)
    run = train(job).run
    folder = run / "checkpoints"
    for _, path in checkpoint.steps(folder):
        path.write_bytes(b"")
    for _ in range(2):  # nor at the second attempt
        with pytest.raises(checkpoint.CheckpointError, match="none of its checkpoints can be used"):
            train(job, run)
        status = json.loads((run / "state.json").read_text())
        assert (status["state"], status["step"]) == ("failed", 4)
        assert status["message"].count("has 0 bytes") == 4
        assert "to start anew from step 0" in status["message"]
        assert [step for step, _ in checkpoint.steps(folder)] == [1, 2, 3, 4]
    for _, path in checkpoint.steps(folder):
        checkpoint.set_aside(path)
    for _ in range(2):  # what is left of them counts as well
        with pytest.raises(checkpoint.CheckpointError, match=r"step-00000004\.pt\.refused: refused before"):
            train(job, run)
        assert checkpoint.steps(folder) == []
    for path in folder.glob("step-*"):
        path.unlink()
    assert train(job, run).status.state == "succeeded"


def test_options_that_do_not_apply_make_no_other_job(make_job: Make) -> None:
    job = make_job(*SMALL, "scheme={name: cyclic, adversaries: 0}")
    assert checkpoint_check._job_difference(to_dict(job), job) == ""
