"""The examples, with fewer steps: each task learns under its job's attack, and shows what it is there to show."""

import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from conftest import Trained

from draco.job import Job, parse
from draco.runs import events

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples"
README = (FOLDER / "README.md").read_text()
JOBS = sorted(FOLDER.glob("*.yaml"))
# transformers speaks of its own next version.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:transformers")
Train = Callable[..., Trained]


@pytest.fixture(autouse=True)
def _where_the_jobs_say_that_their_tasks_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def job(name: str, *overrides: str) -> Job:
    given = ["launcher=simulate", "eval_every=null", *overrides]
    return parse((FOLDER / f"{name}.yaml").read_text(), f"examples/{name}.yaml", given)


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def steps(trained: Trained) -> list[dict[str, Any]]:
    return [event for event in events.read(trained.run / "events.jsonl") if event["event"] == "step"]


def losses(trained: Trained) -> list[float]:
    return [event["loss"] for event in steps(trained)]


def evaluation(trained: Trained) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((trained.run / "evaluations.jsonl").read_text().splitlines()[-1])
    return found


def caught_all(trained: Trained) -> bool:
    return all(event["suspects"] == event["byzantine"] != [] for event in steps(trained))


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_a_job_is_named_after_its_file_and_begins_with_its_question(path: Path) -> None:
    first, second, *_ = path.read_text().splitlines()
    assert first.startswith("# ")
    assert "?" in first
    assert second == "name: " + path.stem.replace("_", "-")
    assert job(path.stem).steps


def test_the_page_has_a_row_for_every_example_whose_command_is_in_the_file_itself_or_runs_it() -> None:
    rows = dict(re.findall(r"^\| \[(\w+\.py)\]\(\1\) \|.*?\| `(.+?)` \|", README, re.MULTILINE))
    assert set(rows) == {path.name for path in FOLDER.glob("*.py")}
    for name, command in rows.items():
        assert command.endswith(f" examples/{name}") or command in (FOLDER / name).read_text()


def test_a_table_of_scikit_learn_is_learnt_under_attack(train: Train) -> None:
    trained = train(job("tabular", "steps=60", "optimizer.lr=0.01"))
    assert caught_all(trained)
    result = evaluation(trained)
    assert result["samples"] == 110
    assert 0.4 < result["r2"] < 0.6
    assert result["error"] < 50


def test_images_of_an_npz_file_are_learnt_under_attack(train: Train, tmp_path: Path) -> None:
    file = tmp_path / "data/digits.npz"
    module("npz").write_digits(str(file))
    trained = train(job("npz", "steps=60", f"task.options.file={file}"))
    assert caught_all(trained)
    assert evaluation(trained)["accuracy"] > 0.7


def test_augmentation_moves_each_image_by_what_the_generator_says(tmp_path: Path) -> None:
    npz, file = module("npz"), tmp_path / "digits.npz"
    npz.write_digits(str(file))
    task = npz.Images(str(file), shift=1)
    images, classes = task.batch(task.samples("train"), torch.arange(50))
    moved, again, other = (
        task.augment((images, classes), torch.Generator().manual_seed(seed))[0] for seed in (1, 1, 2)
    )
    assert torch.equal(moved, again)
    assert not torch.equal(moved, other)
    padded = torch.nn.functional.pad(images, [1] * 4)
    places = [padded[:, :, y : y + 8, x : x + 8] for y in range(3) for x in range(3)]
    assert all(any(torch.equal(image, place[i]) for place in places) for i, image in enumerate(moved))


def test_a_coded_gpt_under_attack_has_the_losses_of_the_attack_free_one_bit_for_bit(train: Train) -> None:
    """Beside it: 2 honest workers, who compute the same 2 partitions; and the mean, which the attacks do reach."""

    def trained(*overrides: str) -> Trained:
        short = ("steps=4", "schedule.warmup_steps=1", "eval_every=0", "task.options.length=32")
        return train(job("gpt", *short, *overrides))

    free = losses(trained("attack=none"))
    assert len(free) == 4
    assert free[-1] < free[0]
    assert losses(trained("attack=none", "scheme=uncoded", "workers=2")) == free
    mean = losses(trained("attack=none", "scheme=uncoded"))
    assert mean[0] == pytest.approx(free[0], rel=0.01)  # the same samples in 15 partitions: other masks of dropout
    for attack in ("attack={name: alie, z: 1}", "attack=reverse_gradient"):
        coded = trained(attack)
        assert caught_all(coded)
        assert losses(coded) == free
        attacked = losses(trained(attack, "attack.adversaries=3", "scheme=uncoded"))
        assert all(a != b for a, b in zip(attacked, mean, strict=True))


@pytest.mark.long
def test_a_gpt_learns_to_write_bytes(train: Train) -> None:
    small = "task.options={length: 32, layers: 1, heads: 4, width: 64, dropout: 0.1}"
    result = evaluation(train(job("gpt", small, "steps=100", "schedule.warmup_steps=5", "optimizer.lr=0.02")))
    assert result["bits_per_byte"] < 4.2  # 8 know nothing, 4.6 know how often each byte comes; with all steps it is 3.5
    assert result["bits_per_byte"] == pytest.approx(result["loss"] / 0.6931472, rel=1e-5)


def test_lora_learns_and_sends_only_its_adapters_and_its_head(train: Train) -> None:
    adapters = train(job("lora", "steps=16"))
    full = train(job("lora", "steps=1", "eval_every=0", "task.options.adapters=false"))
    assert caught_all(adapters)
    assert evaluation(adapters)["accuracy"] > 0.45
    sent, all_of_it = (steps(trained)[0]["bytes_received"] for trained in (adapters, full))
    assert 15 < all_of_it / sent < 25
    table = dict(re.findall(r"^\| (adapters|all).*\| ([\d,]+) \|$", README, re.MULTILINE))
    assert table == {"adapters": f"{sent:,}", "all": f"{all_of_it:,}"}
