"""The server's look at a job's own task: before step 1, at a resume, among workers, and after a step that failed."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from draco import own
from draco.errors import OwnCodeError, TrainingError
from draco.job import Job, parse
from draco.runs import directory as run_directory
from draco.runs import events
from draco.tasks import Task
from draco.training import checkpoint, task_check

JOB = """
name: checked
workers: 3
task: {name: "given:Points", options: {}}
batch_size: 12
steps: 2
scheme: {name: repetition, adversaries: 1}
optimizer: {name: sgd, lr: 0.1}
eval_every: 0
"""


class Points(Task):
    """Points of three classes; `shift` stands for data that have changed, `nan_from` for a loss that fails later."""

    def __init__(self, shift: float = 0.0, noise: bool = False, nan_from: int = 0) -> None:
        self.shift, self.noise, self.nan_from = shift, noise, nan_from
        self.counts = {"model": 0, "samples": 0, "loss": 0, "batch": 0}

    def model(self) -> nn.Module:
        self.counts["model"] += 1
        return nn.Linear(4, 3)

    def samples(self, split: str) -> Any:
        self.counts["samples"] += 1
        return torch.randn(40, 4) + self.shift, torch.arange(40) % 3

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        self.counts["loss"] += 1
        x, y = batch
        if self.noise:
            x = x + torch.rand_like(x)
        if self.nan_from and self.counts["loss"] > self.nan_from:
            x = x / 0.0
        return F.cross_entropy(model(x), y, reduction="none")


@pytest.fixture(autouse=True)
def _given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(own.GIVEN, "given:Points", Points)


def job_of(*overrides: str) -> Job:
    return parse(JOB, "test", ["launcher=simulate", *overrides])


def kinds(run: Path) -> list[str]:
    return [event["event"] for event in events.read(run / "events.jsonl")]


def begun(tmp_path: Path) -> Path:
    (run,) = (tmp_path / "runs").iterdir()
    return run


def test_a_mistake_ends_the_run_before_step_1_and_nothing_is_lost(train, tmp_path: Path) -> None:
    with pytest.raises(OwnCodeError, match=r"line \d+: torch.rand_like draws from torch's global generator"):
        train(job_of("task.options={noise: true}"))
    run = begun(tmp_path)
    assert kinds(run) == ["end"]
    assert run_directory.read_status(run).state == "failed"
    assert "draws from torch's global generator" in run_directory.read_status(run).message
    assert checkpoint.newest(run / "checkpoints") is None


def test_what_was_seen_is_on_record(train) -> None:
    run = train(job_of()).run
    checked = next(iter(events.read(run / "events.jsonl")))
    assert (checked["event"], checked["trained"], checked["train"], checked["warnings"]) == ("checked", 15, 40, [])
    assert checked["batch"] == "batch[0] (12, 4) float32, batch[1] (12,) int64"


class Shifted(Points):
    def __init__(self) -> None:
        super().__init__(shift=1.0)


def test_a_resume_takes_no_first_check_and_refuses_other_data(train, monkeypatch: pytest.MonkeyPatch) -> None:
    run = train(job_of()).run
    train(job_of(), run)
    assert kinds(run).count("checked") == 1
    monkeypatch.setitem(own.GIVEN, "given:Points", Shifted)
    with pytest.raises(OwnCodeError, match="sees other training samples than when this run began"):
        train(job_of(), run)
    assert checkpoint.newest(run / "checkpoints").name == "step-00000002.pt"


def test_a_loss_that_is_not_finite_later_is_blamed_on_its_line(train) -> None:
    # The first check takes 4 losses, as nothing is joined, and a simulated step of one group of equal workers takes 1.
    with pytest.raises(TrainingError) as caught:
        train(job_of("task.options={nan_from: 5}"))
    text = str(caught.value)
    assert text.startswith("step 2: no worker's reply is finite")
    assert "given:Points: loss(), tests/training/test_task_check.py, line" in text
    assert "what loss() gives to the model is not" in text


@pytest.mark.parametrize(("again", "fetches"), [(True, 3), (False, 2)])
def test_what_a_first_check_costs(again: bool, fetches: int) -> None:
    built = task_check.Built(job_of("scheme={name: cyclic, adversaries: 1}"))
    task_check.check(built, again=again)
    # The trainer's own model and samples are among these; each split is fetched once, and train once more.
    assert built.task.counts == {"model": 2, "samples": fetches, "loss": 7, "batch": 0}


OVER_MPI = """
import os
import torch
from draco.tasks import Task
from torch import nn

RANK = os.environ.get("OMPI_COMM_WORLD_RANK", "0")
if RANK == os.environ.get("FAILS_ON"):
    raise ImportError("this machine has no such package")

class Points(Task):
    def model(self):
        return nn.Linear(3, 1)

    def samples(self, split):
        x = torch.randn(40, 3)
        return x + (RANK in os.environ.get("SHIFTED_ON", "").split(",")), x.sum(1)

    def loss(self, model, batch):
        x, y = batch
        return (model(x).squeeze(1) - y).square()
"""


def over_mpi(folder: Path, **environment: str) -> tuple[int, str, Path]:
    """Run the job in a folder; return the exit code, what it printed, and its run."""
    (folder / "my_task.py").write_text(OVER_MPI)
    (folder / "job.yaml").write_text(JOB.replace('"given:Points"', "my_task.py:Points"))
    made = subprocess.run(
        [sys.executable, "-m", "draco", "train", "job.yaml", "--here", "--new"],
        cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, **environment},
    )  # fmt: skip
    return made.returncode, made.stdout + made.stderr, begun(folder)


@pytest.mark.usefixtures("forks")
def test_over_mpi_code_that_fails_to_import_on_one_worker_is_told_with_its_line(tmp_path: Path) -> None:
    code, said, run = over_mpi(tmp_path, FAILS_ON="2", SHIFTED_ON="2")
    assert code == 0, said
    (doubt,) = (event for event in events.read(run / "events.jsonl") if event["event"] == "doubt")
    why = "worker 2: my_task.py: cannot be imported, my_task.py, line 9: ImportError: this machine has no such package"
    assert doubt["sentences"] == [why]
    assert f"warning: {why}" in " ".join(said.split())


@pytest.mark.usefixtures("forks")
def test_over_mpi_more_than_s_workers_with_other_data_end_the_run_before_step_1(tmp_path: Path) -> None:
    code, said, run = over_mpi(tmp_path, SHIFTED_ON="1,3")
    assert code == 7
    assert "my_task.py:Points: workers 1, 3 see other training samples than the server" in said
    assert "step" not in kinds(run)
