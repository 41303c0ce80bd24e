"""The checkpoints that stay: which, in any run; that nothing else goes; and that an evaluator bears it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from draco.cli.main import main
from draco.job import Job, parse, to_yaml
from draco.job.sections import CheckpointKeepSection
from draco.runs import directory as run_directory
from draco.runs import events, hold
from draco.training import build, checkpoint, evaluate, thinning
from draco.training.evaluate import Evaluation
from draco.training.thinning import WAITING, staying, thin

Make = Callable[..., Job]


def rated(top1: float, loss: float = 1.0) -> Evaluation:
    return Evaluation({"top1": top1, "top5": 1.0, "loss": loss}, 10)


def staying_slowly(steps, evaluated, keep, waiting):
    """The obvious twin: asks of each checkpoint why it would stay."""
    metric = keep.metric or "top1"
    sign = -1 if metric == "loss" or keep.mode == "min" else 1

    def value(step: int) -> float:
        return evaluated[step].metrics[metric]

    def loss(step: int) -> float:
        return evaluated[step].metrics["loss"]

    kept = set()
    for step in steps:
        newer = sum(other > step for other in steps)
        number = sum(other <= step for other in evaluated)
        better = [
            other
            for other in steps
            if other in evaluated
            and step in evaluated
            and (
                (sign * value(other) > sign * value(step))
                or (value(other) == value(step) and loss(other) < loss(step))
                or (value(other) == value(step) and loss(other) == loss(step) and other > step)
            )
        ]
        behind = sum(other > step and other not in evaluated for other in steps)
        if (
            newer < keep.last
            or (keep.every and step in evaluated and number % keep.every == 0)
            or (keep.best and step in evaluated and not better)
            or (step not in evaluated and behind < waiting)
        ):
            kept.add(step)
    return kept


@given(
    st.sets(st.integers(1, 60), min_size=1),
    st.dictionaries(st.integers(1, 60), st.tuples(st.integers(0, 3), st.integers(0, 3))),
    st.integers(1, 5),
    st.integers(0, 4),
    st.booleans(),
    st.integers(0, 4),
    st.sampled_from([{}, {"metric": "loss"}, {"metric": "top1"}, {"metric": "top5", "mode": "min"}]),
)
def test_what_stays_is_what_the_words_say(there, marks, last, every, best, waiting, by) -> None:
    steps, evaluated = sorted(there), {step: rated(mark / 3, loss / 2) for step, (mark, loss) in marks.items()}
    keep = CheckpointKeepSection(last=last, every=every, best=best, **by)
    kept = staying(steps, evaluated, keep, waiting)
    assert kept == staying_slowly(steps, evaluated, keep, waiting)
    assert steps[-1] in kept
    assert staying(sorted(kept), evaluated, keep, waiting) == kept  # it stays when it is asked again
    assert staying(steps, evaluated, CheckpointKeepSection(name="all")) == {*steps}


def test_of_equals_the_one_with_the_lower_loss_is_the_best_and_one_without_a_loss_the_worst() -> None:
    evaluated = {1: rated(0.5, 0.7), 2: rated(0.5, 0.6), 3: rated(0.5, 0.9), 4: rated(0.5, float("nan"))}
    assert staying([*range(1, 9)], evaluated, CheckpointKeepSection(last=1, every=0)) == {2, 8}


def test_the_best_may_be_that_of_a_metric_of_a_task_and_one_without_it_is_the_worst() -> None:
    evaluated = {
        step: Evaluation(found, 10)
        for step, found in ((1, {"loss": 0.1}), (2, {"loss": 0.9, "mae": 3.0}), (3, {"loss": 0.5, "mae": 2.0}))
    }
    steps = [*range(1, 9)]
    assert staying(steps, evaluated, CheckpointKeepSection(last=1, every=0)) == {1, 8}  # by the loss
    for mode, step in (("min", 3), ("max", 2)):
        assert staying(steps, evaluated, CheckpointKeepSection(last=1, every=0, metric="mae", mode=mode)) == {step, 8}


@pytest.fixture
def saved(make_job: Make, tmp_path: Path) -> Path:
    """A run with checkpoints of the steps 1 to 40, the evaluated ones of which are better and better to step 17."""
    job = make_job("checkpoint_every=1")
    run = run_directory.create(tmp_path, job.name, to_yaml(job))
    for step in range(1, 41):
        checkpoint.save(run / "checkpoints", step, {"step": step})
        events.append(run / "events.jsonl", "checkpoint", step=step)
        if step <= 35:
            evaluate.append(run, step, rated(0.9 - abs(step - 17) / 100))
    return run


def left(run: Path) -> list[int]:
    return [step for step, _ in checkpoint.steps(run / "checkpoints")]


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_by_default_the_last_three_every_tenth_evaluated_one_and_the_best_stay(saved: Path) -> None:
    thin(saved, CheckpointKeepSection(), 1)
    assert left(saved) == [10, 17, 20, 30, 38, 39, 40]
    assert names(saved) == [f"step-{step:08d}{end}" for step in left(saved) for end in (".json", ".pt")]


def test_all_of_them_stay_where_the_job_or_its_version_says_so(saved: Path) -> None:
    thin(saved, CheckpointKeepSection(name="all"), 1)
    lines = (saved / "job.yaml").read_text().splitlines(keepends=True)
    start = lines.index("checkpoint_keep:\n")
    (saved / "job.yaml").write_text("".join([*lines[:start], *lines[start + 7 :]]))
    job = parse((saved / "job.yaml").read_text(), "", checked=True)
    assert job == run_directory.read_job(saved)
    thin(saved, job.checkpoint_keep, 1)  # an earlier version began it
    assert len(left(saved)) == 40


def test_only_evaluations_at_steps_with_a_checkpoint_are_counted(saved: Path) -> None:
    thin(saved, CheckpointKeepSection(last=1, every=2, best=False), 5)  # 5, 10, 15, ... 35 are evaluated
    assert left(saved) == [10, 20, 30, 40]


def test_what_is_set_aside_stays_and_what_a_killed_server_left_goes(saved: Path) -> None:
    folder = saved / "checkpoints"
    (folder / "step-00000003.json").unlink()  # killed while it removed it
    (folder / "step-00000041.pt").write_bytes(b"begun")  # or wrote it
    (folder / "step-00000002.pt.refused").write_bytes(b"not ours")
    (folder / "step-00000004.json").unlink()
    (folder / "step-00000004.pt").unlink()
    (folder / "step-00000004.pt").mkdir()
    thin(saved, CheckpointKeepSection(last=1, every=0, best=False), 1)
    assert names(saved) == [
        "step-00000002.pt.refused", "step-00000004.pt", "step-00000040.json", "step-00000040.pt", "step-00000041.pt",
    ]  # fmt: skip


@pytest.mark.parametrize("after", [1, 2])
def test_a_server_that_ends_while_it_removes_leaves_no_half_checkpoint(saved: Path, monkeypatch, after: int) -> None:
    removed = list[Path]()
    unlink = Path.unlink

    def ends(path: Path, missing_ok: bool = False) -> None:
        if len(removed) == after:
            raise KeyboardInterrupt
        removed.append(path)
        unlink(path, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", ends)
        with pytest.raises(KeyboardInterrupt):
            thin(saved, CheckpointKeepSection(), 1)
    assert left(saved) == [*range(2, 41)]
    for _, path in checkpoint.steps(saved / "checkpoints")[:3]:
        checkpoint.load(path)
    thin(saved, CheckpointKeepSection(), 1)
    assert names(saved) == [f"step-{step:08d}{end}" for step in left(saved) for end in (".json", ".pt")]


def test_while_an_evaluator_is_at_work_what_it_has_not_come_to_stays_within_a_bound(saved: Path) -> None:
    (saved / "evaluations.jsonl").unlink()
    with hold.take(saved / hold.EVALUATOR, ""):
        thin(saved, CheckpointKeepSection(), 1)
        assert left(saved) == [*range(41 - WAITING, 41)]
    thin(saved, CheckpointKeepSection(), 1)
    assert left(saved) == [38, 39, 40]


def test_a_training_leaves_those_that_stay_and_resumes_from_them_with_the_same_bits(make_job: Make, train) -> None:
    words = ["steps=5", "model=fc", "checkpoint_every=1", "eval_every=1"]
    job = make_job(*words, "checkpoint_keep={last: 1, every: 2}")
    whole = train(make_job(*words, "checkpoint_keep=all"))
    assert left(whole.run) == [*range(1, 6)]
    thinned = train(job)
    found = evaluate.evaluations(thinned.run)
    best = max(found, key=lambda step: (found[step].metrics["top1"], -found[step].metrics["loss"], step))
    assert left(thinned.run) == sorted({2, 4, 5, best})
    assert torch.equal(thinned.model, whole.model)
    for name in (".pt", ".json"):
        (thinned.run / "checkpoints" / f"step-00000005{name}").unlink()
    run_directory.write_status(thinned.run, "interrupted", 4)
    assert torch.equal(train(job, thinned.run).model, whole.model)
    assert [e["step"] for e in events.read(thinned.run / "events.jsonl") if e["event"] == "resume"] == [4]


def test_an_evaluator_passes_over_what_goes_and_the_command_says_so(
    make_job: Make, train, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    job = make_job("steps=6", "checkpoint_every=1", "checkpoint_keep=all", "model=fc")
    run = train(job).run
    load, read = checkpoint.load, list[int]()

    def goes(path: Path, limit: int | None = None) -> checkpoint.Contents:
        step = checkpoint.step_of(path)
        read.append(step)
        if step == 2:  # while the evaluator lists them: three go, and one of them under its hands
            for gone in (2, 3, 4):
                checkpoint.remove(run / "checkpoints", gone)
        return load(path, limit)

    monkeypatch.setattr(checkpoint, "load", goes)
    refused: list[int] = []
    found = evaluate.evaluate_run(
        run, build.Built(job), follow=False, batch_size=1024, refuse=lambda step, why: refused.append(step)
    )
    assert [step for step, _ in found] == [1, 5, 6]
    assert read == [1, 2, 3, 4, 5, 6]
    assert refused == []
    assert evaluate.passed_over(run) == [2, 3, 4]
    assert main(["eval", str(run), "--here"]) == 0
    said = capsys.readouterr()
    assert said.err == "not there any more: 3 of the steps 2 to 4; checkpoint_keep: all keeps every checkpoint\n"


def test_evaluations_that_an_earlier_version_or_a_full_disk_left_are_read(tmp_path: Path) -> None:
    lines = [
        {"step": 1, "top1": 0.5, "top5": 0.6, "loss": 1.0, "samples": 10}, {"step": 2}, [3],
        {"step": "x", "top1": 0.5, "top5": 0.6, "loss": 1.0, "samples": 10},
        {"step": 1, "top1": 0.7, "top5": 0.8, "loss": None, "samples": 10},
    ]  # fmt: skip
    (tmp_path / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 4, "t')
    assert evaluate.evaluations(tmp_path) == {1: Evaluation({"top1": 0.5, "top5": 0.6, "loss": 1.0}, 10)}
    assert thinning.staying([1, 2], {}, CheckpointKeepSection(last=1)) == {2}
    shutil.rmtree(tmp_path)
    assert evaluate.evaluations(tmp_path) == {}
