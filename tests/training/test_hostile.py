"""A real rank that does its worst, beside real workers: the server ends with the model of an honest cluster.

Rank 3 of three is hostile_worker.py; the job tolerates one adversary.
"""

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hostile_worker import MANNERS

from draco.job import parse, to_yaml
from draco.launch import fork_client
from draco.launch.environment import launch_environment
from draco.launch.plan import plan
from draco.runs import directory as run_directory
from draco.runs import events
from draco.training import checkpoint
from draco.training.transport import TOO_LONG, UNASKED

JOB = """
name: hostile
workers: 3
model: lenet
data: synthetic
batch_size: 9
steps: {steps}
scheme: {{name: {scheme}, adversaries: 1}}
optimizer: {{name: sgd, lr: 0.05}}
patience_s: 0.3
reply_timeout_s: 20
eval_every: 0
"""
LIMIT_S = 120
pytestmark = pytest.mark.usefixtures("forks")
IT = 3  # its rank, the last
WORST_RSS_MB = 250  # above what the server needs besides; the flood is twice that
PROGRAM = Path(__file__).with_name("hostile_worker.py")
DISTURBING = ("long", "twice", "flood", "gone")  # after which the worker takes no further part
LATE = ("silent", "frozen")  # meanwhile the others take many steps
BOTH = pytest.mark.parametrize("transport", ["mpi", "torch"])


class Ended:
    """A run that has ended."""

    def __init__(self, run: Path, output: str, grown_mb: float) -> None:
        self.run, self.output, self.grown_mb = run, output, grown_mb
        self.steps = [e for e in events.read(run / "events.jsonl") if e["event"] == "step"]
        self.model = model_of(run)


def model_of(run: Path) -> torch.Tensor:
    path = checkpoint.newest(run / "checkpoints")
    assert path
    return torch.cat([value.flatten() for value in checkpoint.load(path)["model"].values()])


@pytest.fixture
def folder(tmp_path: Path, data_root: Path) -> Path:
    (tmp_path / "data").symlink_to(data_root)
    return tmp_path


def run(folder: Path, scheme: str, seed: int, *manners: str, steps: int = 12, transport: str = "mpi") -> Ended:
    job = parse(JOB.format(scheme=scheme, steps=steps), "test", [f"transport={transport}"])
    directory = run_directory.create(folder / "runs", job.name, to_yaml(job)).relative_to(folder)
    made = plan(job, directory, forks=os.environ[fork_client.NAME])
    at = made.argv.index("-n")
    rank = made.argv[made.argv.index("none") + 1 :]
    where = made.argv[at + 2 : len(made.argv) - len(rank)]
    argv = (*made.argv[:at], *where, "-n", str(IT), *rank, ":",
            "-n", "1", sys.executable, str(PROGRAM), directory.name, str(seed), ",".join(manners))  # fmt: skip
    with open(folder / "output", "w+") as output:
        process = subprocess.Popen(
            argv, env=launch_environment(os.environ, dict(made.environment)), cwd=folder, stdout=output, stderr=output
        )
        sizes: list[float] = []
        watching = threading.Thread(target=watch, args=(process, folder / directory, sizes))
        watching.start()
        try:
            await_end(process, folder / directory)
        finally:
            process.kill()
            watching.join()
        output.seek(0)
        said = output.read()
    assert run_directory.read_status(folder / directory).state == "succeeded", said
    return Ended(folder / directory, said, max(sizes) - sizes[0] if sizes else 0.0)


def await_end(process: "subprocess.Popen[str]", directory: Path) -> None:
    """Wait as the supervisor does: a worker that does not end with the run does not keep it from having ended."""
    deadline = time.monotonic() + LIMIT_S
    while process.poll() is None and run_directory.read_status(directory).state in ("pending", "running"):
        assert time.monotonic() < deadline, list(events.read(directory / "events.jsonl"))[-2:]
        time.sleep(0.1)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(5)


def watch(process: "subprocess.Popen[str]", directory: Path, sizes: list[float]) -> None:
    """Note the server's memory, in MB, from its first step on."""
    while process.poll() is None:
        status = run_directory.read_status(directory)
        if any(e["event"] == "step" for e in events.read(directory / "events.jsonl")):
            try:
                lines = Path(f"/proc/{status.pid}/status").read_text().splitlines()
            except OSError:
                return
            sizes += [int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS")]
        time.sleep(0.02)


@pytest.fixture
def honest(data_root: Path, train) -> Callable[..., torch.Tensor]:
    """Return the model that an honest cluster ends with, by scheme and steps."""

    def model(scheme: str, steps: int = 12) -> torch.Tensor:
        job = parse(JOB.format(scheme=scheme, steps=steps), "test", ["launcher=simulate", f"data.root={data_root}"])
        return model_of(train(job).run)

    return model


def assert_right(ended: Ended, honest: torch.Tensor, scheme: str) -> None:
    if scheme == "repetition":
        assert torch.equal(ended.model, honest)
    else:
        torch.testing.assert_close(ended.model, honest, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("scheme", "seed", "transport"), [("repetition", 1, "mpi"), ("cyclic", 2, "torch")])
def test_whatever_it_answers_the_model_is_right(folder: Path, honest, scheme: str, seed: int, transport: str) -> None:
    manners = [name for name in MANNERS if name not in (*DISTURBING, *LATE)]
    ended = run(folder, scheme, seed, *manners, steps=25, transport=transport)
    assert_right(ended, honest(scheme, 25), scheme)
    accused = [step["suspects"] for step in ended.steps]
    assert {rank for suspects in accused for rank in suspects} == {IT}
    assert accused.count([IT]) > 5  # of 25, unless this machine is so busy that a reply comes too late
    assert not any(step["lost"] for step in ended.steps)


@pytest.mark.long
@pytest.mark.parametrize(("scheme", "transport"), [("repetition", "mpi"), ("cyclic", "mpi"), ("cyclic", "torch")])
def test_however_late_it_is_the_model_is_right(folder: Path, honest, scheme: str, transport: str) -> None:
    ended = run(folder, scheme, 1, *LATE, transport=transport)
    assert_right(ended, honest(scheme), scheme)
    assert any(IT in step["straggling"] for step in ended.steps)
    assert {rank for step in ended.steps for rank in step["suspects"]} <= {IT}
    assert not any(step["lost"] for step in ended.steps)


@pytest.mark.long
@BOTH
@pytest.mark.parametrize(("manner", "why"), [("twice", UNASKED), ("long", TOO_LONG)])
def test_one_that_sends_unasked_or_too_much_is_refused_from_then_on(
    folder: Path, honest, manner: str, why: str, transport: str
) -> None:
    ended = run(folder, "repetition", 1, manner, transport=transport)
    assert_right(ended, honest("repetition"), "repetition")
    refused = [step["refused"] for step in ended.steps]
    first = refused.index({str(IT): why})  # what it sends may come a step later on a busy machine
    assert refused == [{}] * first + [{str(IT): why}] * (len(refused) - first)


@pytest.mark.long
@BOTH
def test_a_flood_neither_fills_the_server_nor_holds_it_up(folder: Path, honest, transport: str) -> None:
    ended = run(folder, "repetition", 1, "flood", transport=transport)
    assert_right(ended, honest("repetition"), "repetition")
    assert ended.steps[-1]["refused"] == {str(IT): UNASKED}
    assert 0 < ended.grown_mb < WORST_RSS_MB


@BOTH
def test_one_that_ends_is_lost_and_no_suspect(folder: Path, honest, transport: str) -> None:
    ended = run(folder, "repetition", 1, "gone", transport=transport)
    assert_right(ended, honest("repetition"), "repetition")
    assert all((step["lost"], step["suspects"]) == ([IT], []) for step in ended.steps[1:])
    assert not any(IT in step["straggling"] for step in ended.steps[1:])
