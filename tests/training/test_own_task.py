"""A job's own task: trained with the same bits simulated, over MPI and resumed; what is frozen, and what fails."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from draco import own
from draco.errors import OwnCodeError
from draco.job import Job, parse
from draco.runs import events
from draco.tasks import Task
from draco.training import build, checkpoint, worker
from draco.training.gradients import StepVectors

JOB = """
name: own
workers: 5
task: {name: "given:Line", options: {}}
batch_size: 20
steps: 4
scheme: {name: repetition, adversaries: 1}
"""


class Line(Task):
    """Regression of y = x . (1, 2, 3) by a net with dropout, tied weights, and a frozen first layer if asked for."""

    def __init__(self, frozen: bool = False, kind: str = "tuple") -> None:
        self.frozen, self.kind = frozen, kind

    def model(self) -> nn.Module:
        net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 1))
        for parameter in net[0].parameters():
            parameter.requires_grad_(not self.frozen)
        return net

    def samples(self, split: str) -> Any:
        x = torch.randn(60 if split == "train" else 20, 3)
        y = x @ torch.tensor([1.0, 2.0, 3.0])
        if self.kind == "tuple":
            return x, y
        return {"x": x, "y": y} if self.kind == "dict" else [{"x": a, "y": b} for a, b in zip(x, y, strict=True)]

    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        x, y = batch if self.kind == "tuple" else (batch["x"], batch["y"])
        return F.mse_loss(model(x).squeeze(1), y, reduction="none")


class Whole(Line):
    """The same loss, which is said to be of the batch as a whole."""

    per_sample = False

    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        return super().loss(model, batch).mean()


class Ragged(Task):
    """Sequences of unlike length, padded batch by batch: two partitions do not make one batch."""

    def model(self) -> nn.Module:
        return nn.EmbeddingBag(11, 4, mode="sum", padding_idx=0)

    def samples(self, split: str) -> list[list[int]]:
        return [[1 + (i * j) % 10 for j in range(1, 2 + i % 5)] for i in range(40)]

    def collate(self, items: list[list[int]]) -> torch.Tensor:
        longest = max(map(len, items))
        return torch.tensor([item + [0] * (longest - len(item)) for item in items])

    def loss(self, model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return (model(batch) - 1).square().sum(1)


@pytest.fixture(autouse=True)
def given(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (Line, Whole, Ragged):
        monkeypatch.setitem(own.GIVEN, f"given:{kind.__name__}", kind)


def job_of(*overrides: str) -> Job:
    return parse(JOB, "test", overrides)


def vectors_of(job: Job) -> tuple[build.Built, StepVectors]:
    built = build.Built(job)
    return built, worker.build_vectors(built)


def losses(run: Path) -> list[float]:
    return [event["loss"] for event in events.read(run / "events.jsonl") if event["event"] == "step"]


def test_a_code_makes_the_attack_free_model_bit_for_bit(train) -> None:
    free, attacked = train(job_of()), train(job_of("attack=reverse_gradient"))
    assert torch.equal(free.model, attacked.model)
    (line,) = [json.loads(line) for line in (free.run / "evaluations.jsonl").read_text().splitlines()]
    assert [*line] == ["step", "time", "by", "loss", "samples"]
    assert line["samples"] == 20


def test_a_step_vector_is_the_gradient_of_plain_torch() -> None:
    job, out = job_of("scheme=uncoded", "workers=1", "batch_size=60"), torch.zeros(8 * 4 + 9 + 1)
    plain, again = vectors_of(job)
    plain.model[2].p = again.model[2].p = 0.0
    again.partition(1, 0, out)
    loss = F.mse_loss(plain.model(plain.train[0]).squeeze(1), plain.train[1])
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(plain.model.parameters()))])
    torch.testing.assert_close(out[:-1], gradient, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(out[-1], loss, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["dict", "list"])
def test_batches_of_any_kind_give_the_same_bits(train, kind: str) -> None:
    expected = train(job_of()).model
    assert torch.equal(train(job_of(f"task.options={{kind: {kind}}}")).model, expected)


def test_frozen_parameters_are_neither_sent_nor_kept(train) -> None:
    job = job_of("task.options={frozen: true}")
    built, vectors = vectors_of(job)
    assert vectors.elements == built.elements == 8 + 1 + 1  # the second layer's weights and bias, and the loss
    run = train(job).run
    contents = checkpoint.load(checkpoint.newest(run / "checkpoints"))
    assert [*contents["model"]] == ["3.weight", "3.bias"]
    assert not torch.equal(contents["model"]["3.weight"], built.model[3].weight)


def test_a_stopped_run_goes_on_to_the_same_bits(train) -> None:
    whole = train(job_of())
    asked: list[Path] = []

    def stopping(w: Any) -> Any:
        def reply(task: Any, model: torch.Tensor, frame: torch.Tensor) -> int | None:
            if task.step == 2:
                (asked[0] / "stop").touch()
            return w.reply(task, model, frame)

        return reply

    half = train(job_of("steps=1"))  # for its directory
    run = half.run.with_name("own-resumed")
    shutil.copytree(half.run, run)
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").mkdir()
    asked.append(run)
    train(job_of(), run, replace={1: stopping})
    assert [*events.read(run / "events.jsonl")][-1]["step"] == 2
    assert torch.equal(train(job_of(), run).model, whole.model)


def test_a_loss_of_the_whole_batch_is_encoded_explicitly_to_the_same_model(train) -> None:
    cyclic = ("scheme={name: cyclic, adversaries: 1}", "task.options={}")
    each, whole = (job_of(*cyclic, f"task.name=given:{name}") for name in ("Line", "Whole"))
    assert build.Built(each).encodes_freely
    assert not build.Built(whole).encodes_freely
    torch.testing.assert_close(train(each).model, train(whole).model, rtol=1e-4, atol=1e-6)


def test_batches_that_do_not_fit_together_are_encoded_one_by_one_to_the_same_sum() -> None:
    job = job_of("task.name=given:Ragged", "scheme={name: cyclic, adversaries: 1}")
    built, vectors = vectors_of(job)
    assert built.encodes_freely
    row = 1
    mine = built.scheme.assignment[row].nonzero()[0].tolist()
    free, parts = torch.zeros(vectors.elements), torch.zeros(len(mine), vectors.elements)
    vectors.weighted(3, mine, built.scheme.weights[row, mine].tolist(), free)
    for out, partition in zip(parts, mine, strict=True):
        vectors.partition(3, partition, out)
    torch.testing.assert_close(free, built.scheme.encode(row, parts), rtol=1e-5, atol=1e-6)


def test_a_loss_that_fails_ends_the_run_with_its_file_and_line(train, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(Line):
        def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
            raise KeyError("weight")

    monkeypatch.setitem(own.GIVEN, "given:Failing", Failing)
    with pytest.raises(OwnCodeError, match=r"^given:Failing: loss\(\), .*_task\.py, line \d+: KeyError: 'weight'"):
        train(job_of("task.name=given:Failing"))


def test_label_flip_needs_labels(train) -> None:
    with pytest.raises(OwnCodeError, match=r"attack: label_flip needs false labels.* give it flipped\(batch\)"):
        train(job_of("attack=label_flip"))


def test_a_split_by_class_needs_classes() -> None:
    job = job_of("scheme=uncoded", "data={split: by_class}")
    with pytest.raises(OwnCodeError, match=r"deals samples out by class: add Line\.labels\(\)"):
        _ = build.Built(job).shards


OVER_MPI = """
import os
import torch
from draco.tasks import Task
from torch import nn

RANK = int(os.environ.get("OMPI_COMM_WORLD_RANK", "0"))

class Line(Task):
    def __init__(self, fails_at=0, ranks=()):
        self.fails_at, self.ranks, self.calls = fails_at, ranks, 0

    def model(self):
        return nn.Linear(3, 1)

    def samples(self, split):
        x = torch.randn(40, 3)
        return x, x.sum(1)

    def loss(self, model, batch):
        self.calls += 1
        if RANK in self.ranks and self.calls == self.fails_at:
            raise ValueError("a sample is broken")
        x, y = batch
        return (model(x).squeeze(1) - y).square()
"""


def over_mpi(folder: Path, *overrides: str) -> tuple[int, str, Path]:
    """Run the job in a folder; return the exit code, what it printed, and its run."""
    (folder / "my_task.py").write_text(OVER_MPI)
    text = JOB.replace('"given:Line"', "my_task.py:Line").replace("workers: 5", "workers: 3")
    (folder / "job.yaml").write_text(text)
    settings = [word for each in overrides for word in ("--set", each)]
    made = subprocess.run(
        [sys.executable, "-m", "draco", "train", "job.yaml", "--here", "--new", *settings],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return made.returncode, made.stdout + made.stderr, sorted((folder / "runs").iterdir())[-1]


@pytest.mark.usefixtures("forks")
def test_over_mpi_and_simulated_a_task_of_a_file_trains_the_same_model(tmp_path: Path) -> None:
    states = []
    for launcher in ("mpi", "simulate"):
        code, said, run = over_mpi(tmp_path, f"launcher={launcher}")
        assert code == 0, said
        states.append(checkpoint.load(checkpoint.newest(run / "checkpoints"))["model"])
    assert all(torch.equal(a, b) for a, b in zip(states[0].values(), states[1].values(), strict=True))


@pytest.mark.usefixtures("forks")
def test_over_mpi_code_that_fails_on_more_workers_than_may_lie_ends_the_run_with_its_line(tmp_path: Path) -> None:
    code, said, run = over_mpi(tmp_path, "task.options={fails_at: 2, ranks: [1, 2, 3]}")
    assert code == 7
    assert "step 2: the code of ranks 1, 2, 3 failed: Line.loss(), my_task.py, line 23: ValueError: a sample is" in said
    assert checkpoint.newest(run / "checkpoints").name == "step-00000001.pt"


@pytest.mark.usefixtures("forks")
def test_over_mpi_the_failing_code_of_one_worker_is_an_erasure(tmp_path: Path) -> None:
    code, said, run = over_mpi(tmp_path, "task.options={fails_at: 2, ranks: [2]}")
    assert code == 0, said
    refused = [event["refused"] for event in events.read(run / "events.jsonl") if event["event"] == "step"]
    assert [[*each] for each in refused] == [[], ["2"], [], []]
    assert "its code failed: Line.loss(), my_task.py, line 23" in refused[1]["2"]


class FrozenNorm(Line):
    """A net whose BatchNorm is frozen, as in fine-tuning: its running statistics are used and never change."""

    def model(self) -> nn.Module:
        net = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1))
        net[1].running_mean.fill_(0.5)
        net[1].eval()
        return net


def test_frozen_batch_norm_keeps_its_statistics_and_lets_encoding_be_free(train, monkeypatch) -> None:
    monkeypatch.setitem(own.GIVEN, "given:FrozenNorm", FrozenNorm)
    job = job_of("task.name=given:FrozenNorm", "scheme={name: cyclic, adversaries: 1}", "attack=reverse_gradient")
    built, vectors = vectors_of(job)
    assert built.encodes_freely
    assert vectors.elements == 3 * 8 + 8 + 16 + 8 + 1 + 1  # no statistics are sent
    state = checkpoint.load(checkpoint.newest(train(job).run / "checkpoints"))["model"]
    assert torch.equal(state["1.running_mean"], torch.full((8,), 0.5))
    assert torch.equal(state["1.running_var"], torch.ones(8))
