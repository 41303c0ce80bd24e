"""`draco verify`: what it finds in good runs, in runs that were lied to, and in records that were changed."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from twin_chain import model_digest

from draco.cli.main import main
from draco.errors import ExitCode
from draco.job import Job
from draco.runs import chain
from draco.training import checkpoint
from draco.training.verify import sample

Train = Callable[..., Any]
MakeJob = Callable[..., Job]


@pytest.fixture
def verify(data_root: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Return `verify(run, *options) -> (exit code, all that was printed)`."""

    def call(run: Path, *options: str) -> tuple[int, str]:
        code = main(["verify", str(run), "--here", "--data", str(data_root), *options])
        said = capsys.readouterr()
        return code, said.out + said.err

    return call


Verify = Callable[..., tuple[int, str]]


def rechained(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change lines of a chain, as whoever has faked a run would: with every digest of a line made anew."""
    head, out = chain.NOTHING, b""
    for text in path.read_bytes().splitlines():
        line = json.loads(text)
        change(line)
        line["prev"] = head
        text = json.dumps(line).encode()
        head, out = chain.digest(text), out + text + b"\n"
    path.write_bytes(out)
    events = path.with_name("events.jsonl")
    kept = [json.loads(each) for each in events.read_text().splitlines()]
    kept[-1]["chain"] = head
    events.write_text("".join(json.dumps(each) + "\n" for each in kept))


def test_an_honest_run_is_right_to_the_bit_wherever_its_directory_and_its_data_are(
    train: Train, make_job: MakeJob, verify: Verify, tmp_path: Path
) -> None:
    job = make_job("checkpoint_every=1", "checkpoint_keep=all", "steps=3", "chain=partitions", "data.root=/nowhere")
    shutil.copytree(train(job).run, tmp_path / "elsewhere")
    (tmp_path / "elsewhere/secret").unlink()
    code, said = verify(tmp_path / "elsewhere", "--sample", "100%")
    assert code == 0, said
    assert "sample: 3 of 3 segments, 3 of 3 steps" in said
    assert said.count("right, bit for bit") == 3
    assert "with 95% confidence at most 0 are" in said


@pytest.mark.parametrize(
    "options",
    [
        (
            "scheme=repetition", "scheme.adversaries=1", "workers=7", "attack=reverse_gradient", "ema=0.9",
            "optimizer={name: adam, lr: 0.001}",
        ),
        ("scheme=reactive", "scheme.adversaries=1", "attack={name: reverse_gradient, ranks: [2]}"),
        ("scheme={name: repetition, adversaries: 1, uplink: digest}", "precision=float64_rounded"),
        ("scheme=checked", "scheme.adversaries=1", "attack={name: reverse_gradient, ranks: [2]}"),
        (
            "scheme={name: verified, adversaries: 2, verifiers: 2}", "workers=7", "batch_size=10",
            "attack={name: reverse_gradient, ranks: [2], from_step: 2}",
        ),
        ("scheme=uncoded", "local.momentum=0.9", "aggregator=krum", "aggregator.f=1", "scheme.adversaries=1"),
        ("aggregator=centered_clipping", "wire=float16", "optimizer={name: sgd, lr: 0.05}", "clip_norm=1"),
    ],
    ids=["repetition", "reactive", "digests", "checked", "verified", "momentum", "float16"],
)  # fmt: skip
def test_runs_of_all_kinds_have_the_bits_that_are_recomputed(
    train: Train, make_job: MakeJob, verify: Verify, options: tuple[str, ...]
) -> None:
    run = train(make_job("checkpoint_every=2", "steps=3", "chain=partitions", *options)).run
    code, said = verify(run, "--sample", "1")
    assert code == 0, said
    assert said.count("right, bit for bit") == 2


TASK = """
import draco
import torch
from torch import nn


class Plane(draco.Task):
    def model(self):
        return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.ReLU(), nn.Linear(8, 1))

    def samples(self, split):
        x = torch.randn(60, 3)
        return x, x @ torch.tensor([1.0, 2.0, 3.0])

    def loss(self, model, batch):
        x, y = batch
        return (model(x).squeeze(1) - y) ** 2
"""


@pytest.mark.usefixtures("forks")
def test_a_job_of_ones_own_is_recomputed_by_the_code_that_was_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """BatchNorm and dropout, over MPI, in an interrupted run, with the code of the task changed since."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "task.py").write_text(TASK)
    (tmp_path / "job.yaml").write_text(
        "{name: own, workers: 3, task: 'task.py:Plane', batch_size: 30, steps: 6, chain: partitions,"
        " scheme: {name: repetition, adversaries: 1}, attack: {name: reverse_gradient, ranks: [2]},"
        " checkpoint_every: 3, eval_every: 0}"
    )
    subprocess.run([sys.executable, "-m", "draco", "train", "job.yaml", "--here"], check=True, capture_output=True)
    (tmp_path / "task.py").write_text(TASK.replace("1.0, 2.0", "1.0, 5.0"))
    assert main(["verify", "--here", "--sample", "100%"]) == 0
    assert capsys.readouterr().out.count("right, bit for bit") == 2
    (run,) = (tmp_path / "runs").iterdir()
    record = chain.read(run / chain.NAME)
    assert record.launches[0]["statistics"] == 16
    assert len(record.steps[6]["partitions"]) == 1
    assert record.steps[6]["before"] != record.steps[5]["after"]
    state = checkpoint.load(run / "checkpoints/step-00000006.pt")["model"]
    names = [name for name in state if name.split(".")[-1] in ("weight", "bias")]
    parameters = torch.cat([state[name].ravel() for name in names]).numpy()
    statistics = torch.cat([state["1.running_mean"], state["1.running_var"]]).numpy()
    assert record.model(6) == model_digest(parameters, statistics)
    copied = run / "code/task.py"
    copied.chmod(0o600)
    copied.write_text(TASK.replace("1.0, 2.0", "1.0, 5.0"))
    assert main(["verify", "--here"]) == ExitCode.USAGE


def test_a_lie_that_an_aggregator_let_in_is_found_with_its_step_and_partition(
    train: Train, make_job: MakeJob, verify: Verify
) -> None:
    job = make_job(
        "checkpoint_every=2", "steps=4", "chain=partitions", "aggregator=mean",
        "attack={name: reverse_gradient, ranks: [2], from_step: 3, magnitude: 1}",
    )  # fmt: skip
    run = train(job).run
    code, said = verify(run, "--sample", "100%")
    line = chain.read(run / chain.NAME).steps[3]
    assert code == ExitCode.WRONG
    assert "steps 1 to 2: right, bit for bit" in said
    assert "wrong: step 3: partition " in said
    assert "is not what honest workers give" in said
    assert sum(f"it is {each}" in said for each in line["partitions"]) == 1


def test_without_digests_of_partitions_the_step_is_still_found(train: Train, make_job: MakeJob, verify: Verify) -> None:
    job = make_job("steps=4", "attack={name: reverse_gradient, ranks: [2], from_step: 3, magnitude: 1}")
    code, said = verify(train(job).run)
    assert code == ExitCode.WRONG
    assert "wrong: step 3: the model after it is not what honest workers give" in said


def test_a_code_that_decodes_up_to_rounding_is_compared_within_a_tolerance(
    train: Train, make_job: MakeJob, verify: Verify
) -> None:
    job = make_job(
        "checkpoint_every=2", "steps=2", "scheme=cyclic", "scheme.adversaries=1", "batch_size=10",
        "attack={name: reverse_gradient, ranks: [2]}",
    )  # fmt: skip
    run = train(job).run
    code, said = verify(run)
    assert code == 0, said
    assert "compared within 0.001: cyclic decodes up to rounding" in said
    assert "right, within " in said
    code, said = verify(run, "--tolerance", "0.0000000001")
    assert code == ExitCode.WRONG
    assert "its model is " in said
    assert "from what honest workers give" in said


@pytest.fixture
def run(train: Train, make_job: MakeJob) -> Path:
    """A run of 4 steps with checkpoints after 2 and 4."""
    found: Path = train(make_job("checkpoint_every=2", "steps=4")).run
    return found


def test_whoever_changes_a_record_is_found_out(run: Path, verify: Verify, tmp_path: Path) -> None:
    """Each change is made to a copy; what was printed begins as it says."""
    newest = "checkpoints/step-00000004"

    def edit(name: str, old: str, new: str) -> Callable[[Path], None]:
        def change(copy: Path) -> None:
            text = (copy / name).read_text()
            assert old in text
            (copy / name).write_text(text.replace(old, new, 1))

        return change

    def other_model(copy: Path) -> None:
        contents = checkpoint.load(copy / f"{newest}.pt")
        contents["model"]["0.weight"][0] += 1
        (copy / f"{newest}.json").unlink()
        (copy / f"{newest}.pt").unlink()
        checkpoint.save(copy / "checkpoints", 4, contents)

    def faked_model(copy: Path) -> None:
        other_model(copy)
        sha = checkpoint.digest_of(copy / f"{newest}.pt")
        rechained(copy / chain.NAME, lambda line: line.update({"sha256": sha}) if "sha256" in line else None)

    def faked_momentum(copy: Path) -> None:
        contents = checkpoint.load(copy / f"{newest}.pt")
        contents["optimizer"]["state"][0]["momentum_buffer"][7] += 1
        (copy / f"{newest}.json").unlink()
        (copy / f"{newest}.pt").unlink()
        checkpoint.save(copy / "checkpoints", 4, contents)
        sha = checkpoint.digest_of(copy / f"{newest}.pt")

        def change(line: dict[str, Any]) -> None:
            if (line["line"], line["step"]) == ("checkpoint", 4):
                line["sha256"] = sha

        rechained(copy / chain.NAME, change)

    def faked_step(copy: Path) -> None:
        def change(line: dict[str, Any]) -> None:
            if line["line"] == "step" and line["step"] in (3, 4):
                line["after" if line["step"] == 3 else "before"] = "ab" * 32

        rechained(copy / chain.NAME, change)

    changes: dict[str, tuple[Callable[[Path], None], str]] = {
        "chain": (edit(chain.NAME, '"step": 3', '"step": 9'), "wrong: line 5 of chain.jsonl: step 9 after step 2"),
        "job": (edit("job.yaml", "lr: 0.05", "lr: 0.06"), "wrong: job.yaml has the SHA-256 "),
        "end": (lambda copy: rechained_only(copy / chain.NAME), "wrong: the head of chain.jsonl is "),
        "checkpoint": (other_model, "wrong: step-00000004.pt has the SHA-256 "),
        "model": (faked_model, "wrong: step-00000002.pt has the SHA-256 "),
        "momentum": (faked_momentum, "wrong: step 4: optimizer.state.0.momentum_buffer in its checkpoint is not"),
        "step": (faked_step, "wrong: step 3: the model after it is not what honest workers give: it is abababab"),
        "loss": (edit("events.jsonl", '"loss": ', '"loss": 1'), "wrong: step 1: the loss in events.jsonl is not what"),
    }
    for name, (change, words) in changes.items():
        copy = tmp_path / name
        shutil.copytree(run, copy)
        change(copy)
        code, said = verify(copy, "--sample", "100%")
        assert (code, words in said) == (ExitCode.WRONG, True), (name, said)
    code, said = verify(run, "--head", "ab" * 32)
    assert code == ExitCode.WRONG
    assert f"and should be {'ab' * 32}" in said
    assert verify(run, "--head", chain.read(run / chain.NAME).head, "--sample", "100%")[0] == 0


def rechained_only(path: Path) -> None:
    """Make a chain anew without telling the end event of it."""
    events = path.with_name("events.jsonl").read_text()
    rechained(path, lambda line: line.update(note=1))
    path.with_name("events.jsonl").write_text(events)


def test_what_was_taken_after_the_last_checkpoint_is_verified_too(run: Path, verify: Verify) -> None:
    for name in ("step-00000004.pt", "step-00000004.json"):
        (run / "checkpoints" / name).unlink()
    code, said = verify(run, "--sample", "100%")
    assert code == 0, said
    assert "steps 3 to 4: right, bit for bit" in said


def test_a_run_without_a_chain_or_a_model_cannot_be_judged(
    run: Path, verify: Verify, train: Train, make_job: MakeJob
) -> None:
    path = run / chain.NAME
    whole = path.read_bytes()
    path.unlink()
    code, said = verify(run)
    assert code == ExitCode.MISSING
    assert "has no chain.jsonl, so nothing of it can be verified" in said
    path.write_bytes(whole[:50])
    code, said = verify(run)
    assert code == ExitCode.MISSING
    assert "no line of its chain.jsonl is whole" in said
    path.unlink()
    for name in ("step-00000004.pt", "step-00000004.json"):
        (run / "checkpoints" / name).unlink()
    train(make_job("checkpoint_every=2", "steps=4"), run)  # it has no record of the first two steps
    code, said = verify(run, "--sample", "100%")
    assert code == 0
    assert "nothing is recorded of the steps 1 to 2" in said
    assert "sample: 1 of 1 segments" in said


def test_another_machine_compares_within_the_tolerance_and_says_so(run: Path, verify: Verify) -> None:
    def other(line: dict[str, Any]) -> None:
        if line["line"] == "launch":
            line["platforms"] = ["another machine"]

    rechained(run / chain.NAME, other)
    code, said = verify(run, "--sample", "100%")
    assert code == 0
    assert "compared within 0.001: the run was on another machine, this is " in said
    assert "no step of the sample was wrong, bit for bit" in said

    def wrong(line: dict[str, Any]) -> None:
        if line["line"] == "step" and line["step"] == 3:
            line["after"] = "ab" * 32
        if line["line"] == "step" and line["step"] == 4:
            line["before"] = "ab" * 32

    rechained(run / chain.NAME, wrong)
    code, said = verify(run, "--sample", "100%")
    assert code == 0
    assert "steps 3 to 4: right, within 0.0e+00" in said
    for name in ("step-00000004.pt", "step-00000004.json"):
        (run / "checkpoints" / name).unlink()
    code, said = verify(run, "--sample", "100%")
    assert code == ExitCode.MISSING
    assert "whether it is right cannot be said: step 3: the model after it is not what honest" in said


@pytest.mark.parametrize("part", ["0", "0%", "101%", "-1", "half", "nan"])
def test_a_sample_is_a_share(part: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["verify", "run", "--sample", part])
    assert "it must be a share such as 1% or 0.01" in capsys.readouterr().err


def test_the_odds_are_those_that_are_counted() -> None:
    """Every sample of 3 of 8 segments, of which any 2 are wrong, is counted."""
    samples = [*combinations(range(8), 3)]
    missed = sum(not {*drawn} & {0, 1} for drawn in samples) / len(samples)
    assert sample.chance_to_miss(8, 3, 2) == pytest.approx(missed)
    assert sample.most_wrong(8, 8) == 0
    assert sample.most_wrong(100, 50) == 4  # 0.5^5 is 0.03, of five that are wrong all are missed so seldom
    assert sample.needed(100, 1, 0.99) == 99
    assert sample.needed(8, 2, 0.99) == 7


def test_every_segment_is_drawn_as_often_and_a_seed_draws_the_same() -> None:
    counts = torch.zeros(10)
    for seed in range(2000):
        drawn = sample.draw(10, 0.21, seed)
        assert len(drawn) == 3
        assert drawn == sorted({*drawn}) == sample.draw(10, 0.21, seed)
        counts[drawn] += 1
    assert bool(((counts - 600).abs() < 100).all())
    assert len(sample.draw(10, 0.001)) == 1
    assert len(sample.draw(1000, 0.01)) == 10
    assert len({tuple(sample.draw(1000, 0.01)) for _ in range(20)}) == 20
