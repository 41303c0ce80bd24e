"""The space of a run: what is reckoned beside what is written, and a disk that has not got it."""

import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from draco.cli.main import main
from draco.data.datasets import DATASETS
from draco.errors import MissingError
from draco.job import Job, to_yaml
from draco.job.sections import CheckpointKeepSection
from draco.job.space import checkpoint_bytes, space
from draco.launch import space as shell
from draco.models import MODELS, model_size
from draco.runs import directory as run_directory
from draco.training import checkpoint
from draco.training.build import Built
from draco.training.state import Training
from draco.training.thinning import staying

pytestmark = pytest.mark.usefixtures("forks")

Make = Callable[..., Job]
Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize(
    "overrides",
    [
        ["optimizer={name: sgd, lr: 0.1}"],
        ["optimizer={name: sgd, lr: 0.1, momentum: 0.9}"],
        ["optimizer=adam", "model=fc"],
        ["optimizer=adamw", "aggregator=centered_clipping"],
        ["local.momentum=0.5"],
        ["ema=0.5"],
        ["model=resnet18", "batch_size=10"],
    ],
    ids=" ".join,
)
def test_a_checkpoint_is_as_large_as_is_reckoned(make_job: Make, tmp_path: Path, overrides: list[str]) -> None:
    job = make_job("steps=1", *overrides)
    training = Training(Built(job))
    training.update(torch.zeros(training.elements))
    path = checkpoint.save(tmp_path, 1, training.contents())
    info = DATASETS["synthetic"]
    written = path.stat().st_size
    reckoned = checkpoint_bytes(job, model_size(job.model, info.shape, info.classes))
    assert written <= reckoned <= 1.05 * written + 2**17


def test_a_line_of_events_is_no_longer_than_is_reckoned(make_job: Make, train) -> None:
    job = make_job(
        "steps=5", "model=fc", "workers=9", "batch_size=9", "scheme={name: repetition, adversaries: 1}", "attack=random"
    )
    run = train(job).run
    lines = [line for line in (run / "events.jsonl").read_text().splitlines() if '"step"' in line]
    assert max(map(len, lines)) < space(job).events / 5 < 3 * max(map(len, lines))


def test_the_files_of_loggers_are_no_larger_than_is_reckoned(make_job: Make, train) -> None:
    words = ["steps=20", "model=fc", "workers=3", "batch_size=3"]
    job = make_job(*words, "loggers=[csv, tensorboard]")
    run = train(job).run
    reckoned = space(job).events - space(make_job(*words)).events
    written = sum(path.stat().st_size for path in [run / "steps.csv", *(run / "tensorboard").iterdir()])
    assert written < reckoned < 3 * written


@pytest.mark.parametrize("keep", ["all", "{last: 3}", "{last: 1, every: 0, best: false}", "{last: 2, every: 1}"])
@pytest.mark.parametrize("every", [0, 1, 7, 50, 1000])
def test_there_are_never_more_checkpoints_than_is_reckoned(make_job: Make, keep: str, every: int) -> None:
    job = make_job("steps=200", f"checkpoint_every={every}", f"checkpoint_keep={keep}")
    steps = sorted({200, *(range(every, 201, every) if every else ())})
    there, most = set[int](), 0
    for number, step in enumerate(steps):
        there.add(step)
        most = max(most, len(there))
        evaluated = {done: evaluation(done) for done in steps[:number]}  # the first is the best
        there = staying(sorted(there), evaluated, job.checkpoint_keep)
    assert most <= space(job).checkpoints <= most + 2


def evaluation(step: int) -> object:
    from draco.training.evaluate import Evaluation

    return Evaluation({"top1": 1 - step / 1000, "loss": 1.0}, 10)


def test_31000_steps_take_as_much_as_is_said_and_not_5_gigabytes(make_job: Make) -> None:
    job = make_job("model=lenet", "data=mnist", "steps=31000", "checkpoint_every=20")
    assert space(job)._replace(events=0).whole < 0.7e9
    kept_all = space(job.model_copy(update={"checkpoint_keep": CheckpointKeepSection(name="all")}))
    assert kept_all.whole > 5e9


def test_every_model_says_its_size() -> None:
    assert [name for name, model in MODELS.items() if model.size is None] == []


def test_a_run_is_told_what_it_takes_and_refused_before_anything_is_touched(
    make_job: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    job = tmp_path / "a.yaml"
    job.write_text(to_yaml(make_job("steps=2", "model=fc", "eval_every=0")))
    words = ["train", str(job), "--here", "--runs", str(tmp_path / "runs")]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 0, 8_000_000))
    assert main(words) == 3
    said = capsys.readouterr().err
    assert "8.5 MB is needed, and 8.0 MB is free (disk: up to 1 checkpoint of 8.5 MB" in said
    assert "checkpoint_keep" in said
    assert not (tmp_path / "runs").exists()


def test_what_is_there_already_is_not_needed_again(make_job: Make, train, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job("steps=2", "checkpoint_every=1", "checkpoint_keep=all")
    run = train(job).run
    there = sum(path.stat().st_size for path in (run / "checkpoints").iterdir())
    needed = space(job).whole
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 0, needed - there))
    assert "is there already" in shell.require(run.parent, [(job, run)])
    with pytest.raises(MissingError, match="is needed, and"):
        shell.require(run.parent, [(job, None)])
    with pytest.raises(MissingError, match="is needed, and"):
        shell.require(run.parent / "not" / "there", [(job, run), (job, None)])


def test_a_run_that_is_resumed_on_a_full_disk_is_refused_and_left_as_it_was(
    make_job: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    job = make_job()
    run = run_directory.create(tmp_path / "runs", job.name, to_yaml(job))
    run_directory.write_status(run, "interrupted", 1)
    (run / "stop").touch()
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 0, 1000))
    words = ["train", str(run / "job.yaml"), "--resume", "--here", "--runs", str(run.parent)]
    assert main(words) == 3
    assert "1.0 kB is free" in capsys.readouterr().err
    after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.suffix != ".lock"}
    assert before == after
