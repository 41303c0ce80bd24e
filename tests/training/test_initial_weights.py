"""Initial weights from a file: what is taken, what is refused in which words, and what a run records."""

from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from draco import files
from draco.errors import JobError, MissingError, TrainingError
from draco.job import Job, parse, to_yaml
from draco.job.sections import WeightsSection
from draco.runs import directory as run_directory
from draco.runs import events
from draco.training import checkpoint, initial_weights

Make = Callable[..., Job]


class Tied(nn.Module):
    """A head that shares its weights with the embedding, and a BatchNorm layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 5)
        self.head.weight = self.embedding.weight


def state(seed: int = 1) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    model = Tied()
    model.norm.running_mean += 3
    return {name: value.clone() for name, value in model.state_dict().items()}


def section(path: Path, **more: object) -> WeightsSection:
    return WeightsSection(file=str(path), **more)


def saved(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(tensors, path)
    else:
        torch.save(tensors, path)
    return path


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_all_numbers_of_a_file_are_taken(tmp_path: Path, name: str) -> None:
    wanted, model = state(), Tied()
    initial_weights.load_into(model, section(saved(tmp_path / name, wanted)))
    assert all(torch.equal(value, wanted[name]) for name, value in model.state_dict().items())
    assert model.head.weight is model.embedding.weight


def test_of_tied_names_one_suffices_and_narrow_numbers_are_widened(tmp_path: Path) -> None:
    wanted = state()
    file = {
        f"module.{n}": v.bfloat16() if v.dtype == torch.float32 else v for n, v in wanted.items() if n != "head.weight"
    }
    model = Tied()
    initial_weights.load_into(model, section(saved(tmp_path / "a.pt", file), prefix="module."))
    assert torch.equal(model.head.weight, wanted["head.weight"].bfloat16().float())


def test_a_new_head_keeps_its_own_numbers_and_an_old_one_is_passed_over(tmp_path: Path) -> None:
    file = state() | {"old.weight": torch.zeros(3), "head.bias": torch.zeros(7)}
    model = Tied()
    before = model.head.bias.detach().clone()
    initial_weights.load_into(model, section(saved(tmp_path / "a.pt", file), fresh=("head.bias",), unused=("old.*",)))
    assert torch.equal(model.head.bias, before)
    assert torch.equal(model.norm.running_mean, file["norm.running_mean"])


def test_all_differences_are_told_at_once_and_nothing_is_taken(tmp_path: Path) -> None:
    file = state() | {"more": torch.zeros(2), "head.bias": torch.zeros(7)}
    file |= {"norm.bias": torch.full((4,), torch.nan), "norm.weight": torch.ones(4, dtype=torch.float64)}
    file["head.weight"] = file["head.weight"] + 1
    del file["norm.running_var"]
    model = Tied()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(JobError) as caught:
        initial_weights.load_into(model, section(saved(tmp_path / "a.pt", file)))
    said = str(caught.value)
    for words in (
        "norm.running_var: is not in the file", "more: is not in the model", "norm.bias: holds numbers that are not",
        "head.bias: has the shape (7,), the model's has (5,)", "norm.weight: is torch.float64, the model's is",
        "head.weight: is another than embedding.weight", "weights.fresh",
    ):  # fmt: skip
        assert words in said
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"nonsense", "cannot be read as a state_dict or as safetensors"),
        ({"model": {}, "optimizer": {}, "ledger": {}}, "is a checkpoint of a run; make export"),
        ({"state_dict": {"a": torch.zeros(1)}, "epoch": 3}, "it holds {'state_dict': 'dict', 'epoch': 'int'}"),
        (b"\x10\0\0\0\0\0\0\0{" + b"\0" * 15, "cannot be read"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: object, words: str) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(JobError, match=words.replace("{", r"\{")):
        initial_weights.load_into(Tied(), section(path))


def test_a_file_that_is_not_there_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"weights: .*nowhere.pt is not in .*data folder"):
        initial_weights.find(section(tmp_path / "nowhere.pt"))


def test_a_file_is_held_against_the_hash_that_is_wanted(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", state())
    spec = initial_weights.pinned(section(path))
    initial_weights.load_into(Tied(), spec)
    saved(path, state(2))
    with pytest.raises(JobError, match=f"and must have {spec.sha256}"):
        initial_weights.load_into(Tied(), spec)


def test_a_run_begins_with_the_weights_of_another_and_goes_on_with_no_other_file(
    make_job: Make, train, tmp_path: Path
) -> None:
    first = train(make_job("model=fc", "steps=2"))
    model = checkpoint.load(checkpoint.newest(first.run / "checkpoints"))["model"]
    path = saved(tmp_path / "first.safetensors", {name: value.clone() for name, value in model.items()})
    job = make_job("model=fc", "steps=2", f"weights={path}", "optimizer.lr=1e-12", "optimizer.momentum=0")
    run = run_directory.create(tmp_path / "runs", job.name, to_yaml(job))
    files.replace(run / "secret", b"11" * 32)
    second = train(job, run)
    assert torch.allclose(second.model, first.model, atol=1e-9)
    (start,) = [e for e in events.read(run / "events.jsonl") if e["event"] == "start"]
    assert start["weights"] == initial_weights.digest(job.weights)
    run_directory.write_status(run, "interrupted", 2)
    saved(path, {name: value + 1 for name, value in model.items()})
    with pytest.raises(TrainingError, match="is not the file that the run began with"):
        train(job, run)
    assert torch.equal(train_model(run), second.model)


def train_model(run: Path) -> torch.Tensor:
    state = checkpoint.load(checkpoint.newest(run / "checkpoints"))["model"]
    return torch.cat([value.flatten().double() for value in state.values()])


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("weights.fresh=[a]", "weights.fresh: needs weights.file"),
        ("autocast={dtype: float16, loss_scale: 1000.0}", "autocast.loss_scale: must be a power of two"),
        ("autocast={dtype: bfloat16, loss_scale: 2.0}", "autocast.loss_scale: applies only with dtype: float16"),
        ("clip_norm=0", "clip_norm: must be a number above 0"),
        ("ema=1.0", "ema: must be a number at least 0.0 and below 1.0"),
        ("micro_batch=0", "micro_batch: must be a whole number at least 1"),
        ("weights=3", "weights: must be text, or a mapping with the keys file"),
    ],
)
def test_a_job_that_asks_for_nonsense_is_refused(override: str, fault: str) -> None:
    with pytest.raises(JobError) as caught:
        parse(
            "{name: a, workers: 1, model: fc, data: synthetic, batch_size: 9, steps: 9, scheme: uncoded}",
            "a",
            [override],
        )
    assert fault in str(caught.value)
