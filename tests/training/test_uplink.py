"""`uplink: digest` of repetition: the model of `uplink: full` for a part of the bytes, simulated and over MPI."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Trained

from draco.errors import JobError
from draco.job import Job, parse
from draco.runs import directory as run_directory
from draco.runs import events
from draco.training import greeting, process, server
from draco.training.build import Built
from draco.training.gradients import StepVectors
from draco.training.greeting import Greeting
from draco.training.pair_worker import PairWorker, build_pair_workers

Make = Callable[..., Job]
SIZES = ("workers=6", "batch_size=6", "steps=3")
ATTACKS = {
    "nobody": "none",
    "reverse": "{name: reverse_gradient, who: drawn}",
    "nan": "{name: nan, who: rotating}",
    "silent": "silent",
    "cut": "wrong_size",
}


def scheme(uplink: str, **options: Any) -> str:
    more = "".join(f", {name}: {value}" for name, value in options.items())
    return f"scheme={{name: repetition, adversaries: 1, uplink: {uplink}{more}}}"


def steps_of(run: Path) -> list[dict[str, Any]]:
    return [event for event in events.read(run / "events.jsonl") if event["event"] == "step"]


def told(run: Path) -> list[tuple[Any, ...]]:
    return [(e["step"], e["loss"], e["suspects"], e["byzantine"]) for e in steps_of(run)]


@pytest.mark.parametrize("name", ATTACKS)
def test_digests_give_the_bits_and_suspects_of_full_vectors(make_job: Make, train, name: str) -> None:
    attack = f"attack={ATTACKS[name]}"
    full, digest = (train(make_job(*SIZES, scheme(uplink), attack)) for uplink in ("full", "digest"))
    assert torch.equal(full.model, digest.model)
    assert told(full.run) == told(digest.run)
    received = [sum(event["bytes_received"] for event in steps_of(run.run)) for run in (full, digest)]
    assert name != "nobody" or received[1] <= 1.05 / 3 * received[0]
    assert received[1] <= 1.05 * 3 / 6 * received[0] + 3 * 4096  # a liar who uploads costs one vector more
    assert all(event["copies"] == 3 for event in steps_of(digest.run))


@pytest.mark.parametrize("attack", ["none", "{name: reverse_gradient, who: drawn}"])
def test_unlike_workers_agree_by_sketches(make_job: Make, train, monkeypatch, attack: str) -> None:
    """Vectors have other bits from one worker to the next, as on other machines."""
    compute, count = StepVectors.partition, [0]

    def unlike(self: StepVectors, step: int, partition: int, out: torch.Tensor) -> None:
        compute(self, step, partition, out)
        count[0] += 1
        out *= 1 + 1e-7 * (count[0] % 3)

    monkeypatch.setattr(StepVectors, "partition", unlike)
    monkeypatch.setattr(process, "build_pair_workers", apart)
    options = {"vote": "tolerance", "tolerance": 1e-6}
    full, digest = (train(make_job(*SIZES, scheme(up, **options), f"attack={attack}")) for up in ("full", "digest"))
    assert [e["suspects"] for e in steps_of(full.run)] == [e["suspects"] for e in steps_of(digest.run)]
    assert float((full.model - digest.model).norm() / full.model.norm()) < 1e-6
    assert min(e["rounds"] for e in steps_of(digest.run)) == 2
    received = [sum(event["bytes_received"] for event in steps_of(run.run)) for run in (full, digest)]
    assert attack != "none" or received[1] <= 1.05 / 3 * received[0]


def apart(built: Built, vectors: StepVectors, ranks: Sequence[int], sleep: None) -> list[PairWorker]:
    """Return simulated workers that share nothing of what they compute."""
    return [build_pair_workers(built, vectors, [rank], sleep)[0] for rank in ranks]


def test_auto_takes_the_vote_within_a_tolerance_for_unlike_workers(make_job: Make) -> None:
    job = make_job(*SIZES, scheme("digest"))
    greetings: list[Greeting | None] = [Greeting(str(rank % 2)) for rank in range(6)]
    assert len(greeting.unlike(greetings)) > job.scheme.adversaries
    assert server.choose_vote(job, greetings)[0] == "tolerance"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("wire.compression=blosc2",),
            "wire.compression: repetition sends vectors and digests in one message",
        ),
        (("attack=split_vote",), "attack.who: must be fixed, drawn or rotating: with scheme.uplink digest no worker"),
    ],
)
def test_what_does_not_go_with_digests_is_refused(make_job: Make, overrides: tuple[str, ...], message: str) -> None:
    make_job(*SIZES, scheme("full"), *overrides)
    with pytest.raises(JobError, match=message):
        make_job(*SIZES, scheme("digest"), *overrides)


@pytest.mark.usefixtures("forks")
def test_mpi_gives_the_bits_of_the_simulation(tmp_path: Path, data_root: Path, make_job: Make, train) -> None:
    (tmp_path / "data").symlink_to(data_root)
    text = (
        "{name: up, workers: 3, model: lenet, data: synthetic, batch_size: 6, steps: 3, optimizer: sgd"
        ", scheme: {name: repetition, adversaries: 1, uplink: digest}, attack: {name: reverse_gradient, who: rotating}}"
    )
    (tmp_path / "job.yaml").write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "draco", "train", "job.yaml"], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    over_mpi = run_directory.runs(tmp_path / "runs")[-1]
    full = train(parse(text.replace("digest", "full"), "x.yaml", ["launcher=simulate"]))
    assert told(over_mpi) == told(full.run)
    assert [e["suspects"] for e in steps_of(over_mpi)] == [e["byzantine"] for e in steps_of(over_mpi)] != [[]] * 3
    assert torch.equal(Trained(over_mpi).model, full.model)
