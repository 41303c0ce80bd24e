"""Export: a file of a run's model that loads in plain PyTorch and gives the same outputs, bit for bit."""

import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from torch import nn

from draco.cli.main import main
from draco.job import Job, parse, to_yaml
from draco.runs import directory as run_directory
from draco.training import checkpoint, exporting, process, saved
from draco.training.build import Built

Make = Callable[..., Job]
JOB = """
{name: test, workers: 1, launcher: simulate, model: lenet, data: synthetic, batch_size: 4, steps: 2, scheme: uncoded,
ema: 0.5, checkpoint_every: 1, eval_every: 1, optimizer: {name: sgd, lr: 0.1}}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, data_root: Path) -> Path:
    """A run with an average of the weights and two checkpoints."""
    job = parse(JOB, "test", [f"data.root={data_root}"])
    folder = run_directory.create(tmp_path_factory.mktemp("runs"), job.name, to_yaml(job))
    process.serve_all(Built(job), folder)
    return folder


def exported(run: Path, folder: Path, *words: str) -> dict[str, torch.Tensor]:
    """Return what the command writes."""
    path = folder / "-".join(["model", *words, ".safetensors"])
    assert main(["export", str(run), "--here", "--output", str(path), *words]) == 0
    return safetensors.torch.load_file(path)


def test_a_file_loads_without_draco_and_gives_the_same_outputs(run: Path, tmp_path: Path, capsys) -> None:
    job = run_directory.read_job(run)
    model = Built(job).model
    saved.load_into(model, job, 2, run / "checkpoints/step-00000002.pt")
    images = torch.rand(3, 1, 28, 28)
    torch.save(images, tmp_path / "images.pt")
    for name in ("model.safetensors", "model.pt"):
        path = tmp_path / name
        assert main(["export", str(run), "--here", "--output", str(path)]) == 0
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        assert f"{path}: step 2, {path.stat().st_size:,} bytes, SHA-256 {digest}\n" == capsys.readouterr().out
    script = """
import sys, torch, safetensors.torch
from torch import nn

torch.set_num_threads(1)
model = nn.Sequential(
    nn.Conv2d(1, 20, 5), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(20, 50, 5), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(),
    nn.Linear(800, 500), nn.Linear(500, 10),
)
outputs = []
for state in (safetensors.torch.load_file("model.safetensors"), torch.load("model.pt", weights_only=True)):
    model.load_state_dict(state)
    outputs.append(model.eval()(torch.load("images.pt")))
torch.save(outputs, "outputs.pt")
assert not any(name.startswith("draco") for name in sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path)
    expected = model.eval()(images)
    assert [torch.equal(output, expected) for output in torch.load(tmp_path / "outputs.pt")] == [True, True]


def test_the_average_is_exported_and_the_last_weights_on_demand(run: Path, tmp_path: Path) -> None:
    contents = checkpoint.load(run / "checkpoints/step-00000002.pt")
    average, last = exported(run, tmp_path), exported(run, tmp_path, "--last")
    order = [name for name in contents["model"] if name in average]
    assert torch.equal(torch.cat([average[name].flatten() for name in order]), contents["average"])
    assert all(torch.equal(last[name], contents["model"][name]) for name in order)
    assert not torch.equal(average["0.weight"], last["0.weight"])
    with safetensors.safe_open(tmp_path / "model---last-.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "job": "test", "step": "2", "weights": "last"}


def test_a_step_or_the_best_is_taken_and_one_that_is_not_there_is_refused(run: Path, tmp_path: Path, capsys) -> None:
    first = checkpoint.load(run / "checkpoints/step-00000001.pt")["model"]
    assert torch.equal(exported(run, tmp_path, "--step", "1", "--last")["8.bias"], first["8.bias"])
    exported(run, tmp_path, "--best")
    assert main(["export", str(run), "--here", "--step", "9"]) == 3
    assert "has no checkpoint of step 9; it has 1, 2" in capsys.readouterr().err


def test_nothing_is_overwritten_and_the_usual_place_is_in_the_run(run: Path, capsys) -> None:
    words = ["export", str(run), "--here", "--trained"]
    assert main(words) == 0
    made = run / "exports/step-00000002-trained.safetensors"
    assert made.is_file()
    before = made.read_bytes()
    assert main(words) == 4
    assert f"{made}: is there already" in capsys.readouterr().err
    assert made.read_bytes() == before


class Tied(nn.Module):
    """A head that shares its weights with the embedding, a frozen layer, and a BatchNorm layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embedding.weight


@pytest.mark.parametrize("kind", ["safetensors", "state_dict"])
def test_tied_weights_and_views_of_one_vector_load_everywhere(tmp_path: Path, kind: exporting.Format) -> None:
    model = Tied()
    flat = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    nn.utils.vector_to_parameters(flat, model.parameters())  # as in a run: views of one vector
    content = exporting.packed(exporting.state(model, trained=False), kind, {})
    (tmp_path / "a").write_bytes(content)
    load = safetensors.torch.load_file if kind == "safetensors" else torch.load
    other = Tied()
    other.load_state_dict(load(tmp_path / "a"))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert len(content) < 4000


def test_what_was_trained_is_without_what_was_frozen_and_with_statistics() -> None:
    assert {*exporting.state(Tied(), trained=True)} == {
        "embedding.weight", "head.weight", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var",
    }  # fmt: skip
