"""`draco validate --run-code`: a job's own task is tried out in seconds, without a run."""

from pathlib import Path

import pytest

from draco.cli.main import main

TASK = """
import torch
from draco.tasks import Task
from torch import nn

class Points(Task):
    def __init__(self, noise=False):
        self.noise = noise

    def model(self):
        return nn.Linear(3, 1)

    def samples(self, split):
        x = torch.randn(40, 3)
        return x, x.sum(1)

    def loss(self, model, batch):
        x, y = batch
        if self.noise:
            x = x + torch.randn(x.shape)
        return (model(x).squeeze(1) - y).square()
"""
JOB = """
name: tried
workers: 3
task: tried_task.py:Points
batch_size: 12
steps: 2
scheme: {name: cyclic, adversaries: 1}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "tried_task.py").write_text(TASK)
    (tmp_path / "job.yaml").write_text(JOB)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_task_that_is_right_is_described(folder: Path, capsys) -> None:
    assert main(["validate", "--run-code", "job.yaml"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "job.yaml: valid" in said
    assert "tried_task.py:Points: 4 parameters are trained, 0 are frozen" in said
    assert "samples: 40 train, 40 test; a loss for each sample" in said
    assert "partition 0 of 3: batch[0] (4, 3) float32, batch[1] (4,) float32" in said
    assert "a worker computes 3; one backward pass encodes" in said
    assert sorted(path.name for path in folder.iterdir() if path.name != "__pycache__") == ["job.yaml", "tried_task.py"]


def test_every_mistake_is_told_and_the_exit_code_is_2(folder: Path, capsys) -> None:
    assert main(["validate", "--run-code", "job.yaml", "--set", "task.options={noise: true}"]) == 2
    said = capsys.readouterr().err
    assert "tried_task.py:Points: loss(), tried_task.py, line 20: torch.randn draws from torch's global" in said


def test_a_name_that_is_not_there_is_told(folder: Path, capsys) -> None:
    assert main(["validate", "--run-code", "job.yaml", "--set", "task=tried_task.py:Pionts"]) == 2
    assert "tried_task.py has no Pionts; it defines Points" in capsys.readouterr().err


def test_a_job_without_code_of_its_own_has_none_to_run(folder: Path, capsys) -> None:
    job = JOB.replace("task: tried_task.py:Points", "model: lenet\ndata: synthetic")
    (folder / "job.yaml").write_text(job)
    assert main(["validate", "--run-code", "job.yaml"]) == 0
    assert "no task of your own" in capsys.readouterr().out
