"""Everything that real training needs at once, on a task with a frozen base: over MPI the bits of the simulation."""

import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from draco.cli.main import main
from draco.runs import directory as run_directory
from draco.runs import events
from draco.training import checkpoint

TASK = """
import torch
from torch import nn

from draco.tasks import Task


class Adapted(nn.Module):
    def __init__(self):
        super().__init__()
        self.base = nn.Linear(6, 6).requires_grad_(False)
        self.norm, self.drop = nn.BatchNorm1d(6), nn.Dropout(0.2)
        self.adapter = nn.Linear(6, 2)

    def forward(self, x):
        return self.adapter(self.drop(torch.relu(self.norm(self.base(x)))))


class Fit(Task):
    def model(self):
        return Adapted()

    def samples(self, split):
        x = torch.randn(60, 6)
        return x, x[:, :2] * 2

    def loss(self, model, batch):
        x, y = batch
        return (model(x) - y).square().mean(1)
"""
JOB = """
name: real
workers: 3
task: fit.py:Fit
batch_size: 24
steps: 4
scheme: {name: repetition, adversaries: 1}
attack: {name: reverse_gradient, ranks: [2]}
optimizer: {name: adamw, lr: 0.01}
schedule: {name: cosine, warmup_steps: 1}
clip_norm: 0.1
ema: 0.5
micro_batch: 5
autocast: bfloat16
recompute: [norm]
weights: {file: data/base.safetensors, fresh: [adapter.*]}
eval_every: 2
"""

pytestmark = pytest.mark.usefixtures("forks")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the task, its job and the weights of its base, in which commands are run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fit.py").write_text(TASK)
    (tmp_path / "job.yaml").write_text(JOB)
    (tmp_path / "data").mkdir()
    torch.manual_seed(1)
    base = {"base.weight": torch.randn(6, 6), "base.bias": torch.randn(6)}
    norm = {f"norm.{name}": torch.ones(6) for name in ("weight", "running_var")}
    norm |= {f"norm.{name}": torch.zeros(6) for name in ("bias", "running_mean")}
    counts = {"norm.num_batches_tracked": torch.tensor(0)}
    safetensors.torch.save_file(base | norm | counts, tmp_path / "data/base.safetensors")
    return tmp_path


def trained(folder: Path, *options: str) -> Path:
    words = [sys.executable, "-m", "draco", "train", "job.yaml", "--here", "--new", *options]
    ended = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=280)
    assert ended.returncode == 0, ended.stderr
    return run_directory.runs(folder / "runs")[-1]


def test_over_mpi_all_of_it_gives_the_bits_of_the_simulation_and_adapters_are_exported(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mpi, simulated = trained(folder), trained(folder, "--simulate")
    contents = [checkpoint.load(checkpoint.newest(run / "checkpoints")) for run in (mpi, simulated)]
    assert torch.equal(contents[0]["average"], contents[1]["average"])
    assert all(torch.equal(value, contents[1]["model"][name]) for name, value in contents[0]["model"].items())
    assert "base.weight" not in contents[0]["model"]
    steps = [event for event in events.read(mpi / "events.jsonl") if event["event"] == "step"]
    assert [step["suspects"] for step in steps] == [[2]] * 4
    assert all(step["gradient_norm"] > 0.1 for step in steps)
    for words, name in ((["--trained"], "step-00000004-trained"), ([], "step-00000004")):
        assert main(["export", str(mpi), "--here", *words]) == 0
        assert f"exports/{name}.safetensors: step 4," in capsys.readouterr().out
    adapters = safetensors.torch.load_file(mpi / "exports/step-00000004-trained.safetensors")
    assert {*adapters} == {
        "adapter.weight", "adapter.bias", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var",
    }  # fmt: skip
    whole = safetensors.torch.load_file(mpi / "exports/step-00000004.safetensors")
    base = safetensors.torch.load_file("data/base.safetensors")
    assert torch.equal(whole["base.weight"], base["base.weight"])  # built anew, and read from the file
    assert all(torch.equal(whole[name], value) for name, value in adapters.items())


def test_weights_that_do_not_fit_end_a_run_with_their_names(folder: Path) -> None:
    job = (folder / "job.yaml").read_text().replace("fresh: [adapter.*]", "fresh: [adapter.weight]")
    (folder / "job.yaml").write_text(job)
    words = [sys.executable, "-m", "draco", "train", "job.yaml", "--here", "--simulate"]
    ended = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=280)
    assert ended.returncode != 0
    assert "adapter.bias: is not in the file" in ended.stderr
