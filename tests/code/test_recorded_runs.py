"""Runs of a job with own code on this machine: what is edited afterwards changes none of them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("forks")

TASK = """
import torch
from pathlib import Path
from helper import SCALE
from draco.tasks import Task

class Line(Task):
    def model(self):
        return torch.nn.Linear(4, 1)

    def samples(self, split):
        if not Path("ready").exists():
            raise RuntimeError("not yet")
        x = torch.randn(60, 4, generator=torch.Generator().manual_seed(1))
        return x, SCALE * x.sum(1, keepdim=True)

    def loss(self, model, batch):
        x, y = batch
        return ((model(x) - y) ** 2).mean(1)

    def evaluate(self, model, batch):
        return {"loss": self.loss(model, batch), "scale": torch.full((len(batch[0]),), SCALE)}
"""
JOB = """
name: own
workers: 3
task: my_task.py:Line
batch_size: 12
steps: 4
scheme: {name: repetition, adversaries: 1}
"""


def draco(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "draco", *words], cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        check=False, timeout=120,
    )  # fmt: skip


def evaluated(run: Path) -> float:
    """Return the scale that the run's last model was evaluated with."""
    return float(json.loads((run / "evaluations.jsonl").read_text().splitlines()[-1])["scale"])


def test_a_resume_takes_the_recorded_code_on_demand_only(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(JOB)
    (tmp_path / "my_task.py").write_text(TASK)
    (tmp_path / "helper.py").write_text("SCALE = 1.0\n")
    failed = draco(tmp_path, "train", "job.yaml", "--here")
    assert failed.returncode == 7
    assert "not yet" in failed.stderr
    (tmp_path / "ready").touch()
    (tmp_path / "helper.py").write_text("SCALE = 2.0\n")
    refused = draco(tmp_path, "train", "job.yaml", "--here", "--resume")
    assert refused.returncode == 4
    assert refused.stderr.splitlines()[-3:] == ["@@ -1 +1 @@", "-SCALE = 1.0", "+SCALE = 2.0"]
    went_on = draco(tmp_path, "train", "job.yaml", "--here", "--resume", "--recorded-code")
    assert went_on.returncode == 0, went_on.stderr
    (run,) = (tmp_path / "runs").iterdir()
    assert evaluated(run) == 1.0
    again = draco(tmp_path, "train", f"{run}/job.yaml", "--here", "--new", "--simulate", "--runs", "again")
    assert again.returncode == 0, again.stderr
    assert not [*tmp_path.rglob("code/**/__pycache__")]
    assert [evaluated(each) for each in (tmp_path / "again").iterdir()] == [1.0]


def test_nothing_is_made_where_something_is_missing(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(JOB)
    (tmp_path / "my_task.py").write_text("import lib.gone\n" + TASK)
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/there.py").touch()
    for words in (("train", "--here"), ("validate",)):
        made = draco(tmp_path, *words, "job.yaml")
        assert made.returncode == 2
        assert "my_task.py, line 1: imports lib.gone, and there is no such file" in made.stderr
    (tmp_path / "my_task.py").write_text(TASK)
    lacking = draco(tmp_path, "train", "job.yaml", "--here")
    assert lacking.returncode == 2
    assert "my_task.py, line 4: needs helper, which is neither a file of yours nor installed" in lacking.stderr
    assert not (tmp_path / "runs").exists()
