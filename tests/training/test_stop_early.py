"""Early stopping: at which evaluation, and that it is the same one whatever interrupts the training."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from draco.cli.main import main
from draco.errors import OwnCodeError, RefusedError
from draco.job import Job, parse, to_yaml
from draco.job.sections import StopEarlySection
from draco.launch.resume import unfinished
from draco.report import read, tables
from draco.report.elements import Run
from draco.report.page import draw
from draco.report.section import section
from draco.report.series import series
from draco.runs import directory as run_directory
from draco.runs import events
from draco.training import checkpoint, evaluate, process, stop_early
from draco.training.build import Built
from draco.training.server import Server
from draco.training.stop_early import Stopped, sentence, stopped, verdict

Make = Callable[..., Job]
VALUES = st.lists(st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.0, math.nan, math.inf, -math.inf]), max_size=14)


def stopped_slowly(values: list[float], patience: int, min_delta: float, mode: str) -> tuple[int, int | None] | None:
    """The obvious twin: looks back from each evaluation for the best before it, as a person would."""
    for end in range(1, len(values) + 1):
        best: int | None = None  # its place
        for place in range(end):
            value = values[place]
            if math.isnan(value):
                continue
            if best is None:
                better = value != (math.inf if mode == "min" else -math.inf)
            elif mode == "min":
                better = value < values[best] - min_delta
            else:
                better = value > values[best] + min_delta
            best = place if better else best
        if end - (0 if best is None else best + 1) >= patience:
            return end, None if best is None else best + 1
    return None


@given(VALUES, st.integers(1, 5), st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.sampled_from(["min", "max"]))
def test_a_training_ends_where_a_person_would_end_it(values, patience: int, min_delta: float, mode) -> None:
    end = stopped(dict(enumerate(values, start=1)), patience, min_delta, mode)
    assert (end and (end.step, end.best_step)) == stopped_slowly(values, patience, min_delta, mode)
    if end:  # and nothing before that
        assert stopped(dict(enumerate(values[: end.step - 1], start=1)), patience, min_delta, mode) is None


def test_the_decision_is_by_the_metric_that_is_named() -> None:
    found = {2: {"loss": 1.0, "mae": 0.1}, 4: {"loss": 0.9, "mae": 0.2}, 6: {"loss": 0.8, "mae": 0.3}}
    assert verdict(StopEarlySection(metric="loss", patience=1), found) is None
    assert verdict(StopEarlySection(metric="loss", patience=2, min_delta=0.5), found) == Stopped(6, 2, 1.0)
    assert verdict(StopEarlySection(metric="mae", patience=1, mode="min"), found) == Stopped(4, 2, 0.1)
    assert verdict(StopEarlySection(metric="mae", patience=1, mode="max"), found) is None


def test_the_sentence_says_at_which_step_and_why() -> None:
    spec = StopEarlySection(patience=3, min_delta=0.01)
    assert sentence(spec, Stopped(40, 10, 0.25), 100) == (
        "stopped early after step 40 of 100: loss was best at step 10, 0.25, and 3 evaluations in a row did not "
        "improve on it by more than 0.01"
    )
    assert "loss never was a number, and 3" in sentence(spec, Stopped(40, None, math.nan), 100)


# --- trainings -------------------------------------------------------------------------------------------------------

SAID = (
    "stopped early after step 8 of 14: loss was best at step 4, 2.33501, and 2 evaluations in a row did not improve on "
    "it"
)


@pytest.fixture(scope="module")
def early(data_root: Path) -> Job:
    """A job of 14 steps whose loss rises from the fourth on, so that it ends after the eighth."""
    text = "{name: early, workers: 3, launcher: simulate, model: fc, batch_size: 6, steps: 14, scheme: uncoded, "
    text += "optimizer: {name: sgd, lr: 0.1}, eval_every: 2, checkpoint_every: 3, checkpoint_keep: all, "
    return parse(f"{text} stop_early: {{patience: 2}}, data: {{name: synthetic, root: {data_root}}}}}", "early")


def begun(runs: Path, job: Job) -> Path:
    run = run_directory.create(runs, job.name, to_yaml(job))
    (run / "secret").write_bytes(b"11" * 32)
    return run


@pytest.fixture(scope="module")
def ended(early: Job, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that ended early, and was not interrupted; not to be changed."""
    torch.set_num_threads(1)
    run = begun(tmp_path_factory.mktemp("ended"), early)
    process.serve_all(Built(early), run)
    assert run_directory.read_status(run)[:3] == ("succeeded", 8, SAID)
    return run


@pytest.fixture
def copy(ended: Path, tmp_path: Path) -> Path:
    """The same, to be changed."""
    return Path(shutil.copytree(ended, tmp_path / "runs" / ended.name))


def same_model(run: Path, other: Path) -> bool:
    one, two = (checkpoint.load(each / "checkpoints" / "step-00000008.pt")["model"] for each in (run, other))
    return all(torch.equal(one[name], two[name]) for name in two)


def own_evaluations(run: Path) -> dict[int, dict[str, float]]:
    return evaluate.of_training(run, 10**9)


def test_a_run_that_ends_early_succeeds_with_a_checkpoint_an_event_and_a_reason(ended: Path) -> None:
    logged = [*events.read(ended / "events.jsonl")]
    (stop,) = [e for e in logged if e["event"] == "stop_early"]
    found = own_evaluations(ended)
    assert [*found] == [2, 4, 6, 8]
    assert (stop["step"], stop["metric"], stop["best_step"], stop["best"]) == (8, "loss", 4, found[4]["loss"])
    assert found[4]["loss"] == min(each["loss"] for each in found.values())
    assert [step for step, _ in checkpoint.steps(ended / "checkpoints")] == [3, 6, 8]
    assert (logged[-1]["event"], logged[-1]["state"], logged[-1]["message"]) == ("end", "succeeded", SAID)


def test_a_report_says_that_a_run_ended_early_and_is_no_worse_for_it(ended: Path) -> None:
    left = read(ended)
    facts = dict(tables.facts(left.summary))
    assert (facts["steps"], facts["note"]) == ("8 of 14", SAID)
    run = Run("x", left, series(left.events, left.evaluations))
    part = section(run, 1, draw([run]))
    assert part["well"]
    assert part["state"] == f"The run succeeded before its last step, as its stop_early says. {SAID}"
    assert [row[2:] for row in part["marks"].rows] == [
        ("stop early", "loss was best at step 4"), ("end", f"succeeded: {SAID}"),
    ]  # fmt: skip


@pytest.mark.parametrize("at", [3, 4])
def test_it_ends_at_the_same_step_after_it_was_stopped_and_resumed(
    early: Job, ended: Path, train, tmp_path: Path, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, run_step, ran = begun(tmp_path, early), Server.run_step, list[int]()

    def stopping(server: Server) -> list[dict[str, Any]]:
        (event,) = run_step(server)
        if event["step"] == at:
            (run / "stop").touch()
        ran.append(event["step"])
        return [event]

    monkeypatch.setattr(Server, "run_step", stopping)
    assert train(early, run).status[:2] == ("interrupted", at)
    assert train(early, run).status[:3] == ("succeeded", 8, SAID)
    assert ran == [*range(1, 9)]
    assert same_model(run, ended)
    assert own_evaluations(run) == own_evaluations(ended)


def test_what_an_evaluator_beside_it_records_and_what_is_there_twice_changes_nothing(
    early: Job, ended: Path, copy: Path, train
) -> None:
    """A run goes back by some steps, and takes them again, among lines of `draco eval` and its own of later steps."""
    for step in (6, 8):
        checkpoint.remove(copy / "checkpoints", step)
    run_directory.write_status(copy, "interrupted", 3)
    lines = (copy / "evaluations.jsonl").read_text()
    others = [{"step": step, "top1": 0.0, "top5": 0.0, "loss": 1e-9, "samples": 4} for step in (2, 4, 7)]
    more = "".join(json.dumps(each) + "\n" for each in others)
    (copy / "evaluations.jsonl").write_text(more + lines + lines.splitlines()[0] + "\n" + more)
    assert train(early, copy).status[:3] == ("succeeded", 8, SAID)
    assert same_model(copy, ended)


def test_an_evaluation_that_a_kill_prevented_is_made_when_the_run_goes_on(
    early: Job, ended: Path, copy: Path, train
) -> None:
    """Killed between the checkpoint of the step that ends it and that step's evaluation, it ends there as well."""
    lines = (copy / "evaluations.jsonl").read_text().splitlines(keepends=True)
    (copy / "evaluations.jsonl").write_text("".join(lines[:-1]) + lines[-1][:20])  # which it had begun
    run_directory.write_status(copy, "interrupted", 8)
    assert train(early, copy).status[:3] == ("succeeded", 8, SAID)
    assert own_evaluations(copy) == own_evaluations(ended)
    taken = [e["step"] for e in events.read(copy / "events.jsonl") if e["event"] == "step"]
    assert taken == [*range(1, 9)]


def test_a_run_that_was_killed_before_it_could_record_its_end_takes_no_step_more(early: Job, copy: Path, train) -> None:
    run_directory.write_status(copy, "interrupted", 8)
    assert train(early, copy).status[:3] == ("succeeded", 8, SAID)
    assert len((copy / "evaluations.jsonl").read_text().splitlines()) == 4


def test_the_evaluation_of_the_last_step_is_made_as_well_where_a_kill_prevented_it(make_job: Make, train) -> None:
    job = make_job("steps=1", "model=fc", "eval_every=null")
    done = train(job)
    (done.run / "evaluations.jsonl").unlink()
    run_directory.write_status(done.run, "interrupted", 1)
    assert train(job, done.run).status.state == "succeeded"
    assert [*own_evaluations(done.run)] == [1]


@pytest.mark.usefixtures("forks")
def test_over_mpi_it_ends_at_the_same_step_with_the_same_bits(
    early: Job, ended: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.yaml").write_text(to_yaml(early))
    assert main(["train", "job.yaml", "--here", "--set", "launcher=mpi"]) == 0
    (run,) = run_directory.runs(tmp_path / "runs")
    assert run_directory.read_status(run)[:3] == ("succeeded", 8, SAID)
    assert own_evaluations(run) == own_evaluations(ended)
    assert same_model(run, ended)


def test_a_resume_of_a_run_that_ended_early_says_so(early: Job, ended: Path) -> None:
    with pytest.raises(RefusedError, match=r"stopped early after step 8 of 14: .*there is nothing to resume: leave"):
        unfinished(ended.parent, early, resume=True, new=False)
    assert unfinished(ended.parent, early, resume=False, new=False) is None
    other = early.model_copy(update={"seed": 8})
    with pytest.raises(RefusedError, match="no unfinished run of this very job"):
        unfinished(ended.parent, other, resume=True, new=False)


def test_a_metric_that_the_task_has_not_is_an_error_that_names_those_it_has(make_job: Make, train) -> None:
    job = make_job("steps=1", "model=fc", "eval_every=1")
    kept = {"checkpoint_keep": job.checkpoint_keep.model_copy(update={"metric": "f1", "mode": "max"})}
    with pytest.raises(
        OwnCodeError, match=r"checkpoint_keep\.metric: the task has no metric f1; it has top1, top5, loss"
    ):
        train(job.model_copy(update=kept))
    stopping = job.model_copy(update={"stop_early": StopEarlySection(metric="mae", mode="min")})
    assert stop_early.missing(stopping, {"loss": 1.0}) == "stop_early.metric: the task has no metric mae; it has loss"
    assert stop_early.missing(job, {"loss": 1.0}) == ""
