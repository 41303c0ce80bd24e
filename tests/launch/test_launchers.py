"""Whole runs by torchrun and by srun (a stand-in): the bits of a simulation, losses, signals, and no process left."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import slurm_stand_in
import torch
from conftest import Trained

from draco.job import Job
from draco.launch import sweep
from draco.runs import directory as run_directory
from draco.runs import events

pytestmark = pytest.mark.usefixtures("forks")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1")
SCHEME = "scheme={name: repetition, adversaries: 1}"
SMALL = ("model=fc", "workers=2", "batch_size=6", "steps=3", "checkpoint_every=100")
DRACO = (sys.executable, "-m", "draco")
LIMIT_S = 200


class Going:
    """A command that is running in a folder, and the run that it has made there."""

    def __init__(self, folder: Path, *argv: str, environment: Mapping[str, str] = {}) -> None:
        self.folder = folder
        with open(folder / "said", "wb") as said:
            self.process = subprocess.Popen(
                argv, cwd=folder, stdout=said, stderr=subprocess.STDOUT, env={**os.environ, **environment},
                start_new_session=True,
            )  # fmt: skip

    @property
    def said(self) -> str:
        return (self.folder / "said").read_text()

    @property
    def run(self) -> Path:
        (found,) = run_directory.runs(self.folder / "runs")
        return found

    def stepped(self) -> None:
        """Wait until the run has taken a step."""
        deadline = time.monotonic() + LIMIT_S
        logs = self.folder.glob
        while not any('"event": "step"' in log.read_text() for log in logs("runs/*/events.jsonl")):
            assert self.process.poll() is None, self.said
            assert time.monotonic() < deadline, self.said
            time.sleep(0.1)

    def ended(self) -> int:
        """Wait for its end, and make sure that no rank is left."""
        code = self.process.wait(LIMIT_S)
        ranks = [pid for path in ("runs/*", "runs/*-joined") for run in self.folder.glob(path) for pid in _ranks(run)]
        assert ranks == []
        return code


def _ranks(run: Path) -> list[int]:
    return sweep.ranks(f"runs/{run.name}")


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., Going]]:
    going: list[Going] = []

    def start(*argv: str, **options: Mapping[str, str]) -> Going:
        going.append(Going(tmp_path, *argv, **options))
        return going[-1]

    yield start
    for each in going:
        if each.process.poll() is None:
            os.killpg(each.process.pid, signal.SIGKILL)


@pytest.fixture
def written(tmp_path: Path, make_job: Callable[..., Job]) -> Callable[..., Job]:
    """Return what writes the test job, overridden, to a.yaml; it returns the job."""
    from draco.job import to_yaml

    def write(*overrides: str) -> Job:
        job = make_job(*overrides)
        (tmp_path / "a.yaml").write_text(to_yaml(job))
        return job

    return write


@pytest.fixture
def nodes(tmp_path: Path) -> Mapping[str, str]:
    """An allocation of two nodes with three and one cores, and srun."""
    (tmp_path / "bin").mkdir()
    path = f"{slurm_stand_in.install(tmp_path / 'bin')}:{os.environ['PATH']}"
    names = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "localhost,127.0.0.1", "SLURM_JOB_CPUS_PER_NODE": "3,1"}
    return {**names, "PATH": path}


def same_bits(run: Path, job: Job, train: Callable[..., Trained]) -> None:
    simulated = train(job.model_copy(update={"launcher": "simulate"}))
    assert torch.equal(Trained(run).model, simulated.model)


def test_torchrun_trains_to_the_bits_of_a_simulation_though_a_worker_is_killed(
    written: Callable[..., Job], started: Callable[..., Going], train: Callable[..., Trained]
) -> None:
    job = written("model=fc", "workers=3", "batch_size=6", "steps=400", SCHEME, "launcher=torchrun")
    going = started(*DRACO, "train", "a.yaml")
    going.stepped()
    log = (going.run / "logs" / "output.log").read_text()
    (worker,) = [line for line in log.splitlines() if line.startswith("draco: rank 2,") and line.endswith(": ready")]
    os.kill(int(worker.split(",")[1].split()[1].rstrip(":")), signal.SIGKILL)
    assert going.ended() == 0, going.said
    steps = [event for event in events.read(going.run / "events.jsonl") if event["event"] == "step"]
    assert (len(steps), steps[-1]["lost"]) == (400, [2])
    assert "was killed by signal 9" in (going.run / "logs" / "output.log").read_text()
    same_bits(going.run, job, train)


def test_srun_trains_to_the_bits_of_a_simulation_on_the_nodes_of_the_allocation(
    written: Callable[..., Job],
    started: Callable[..., Going],
    nodes: Mapping[str, str],
    train: Callable[..., Trained],
    tmp_path: Path,
) -> None:
    job = written(*SMALL, "launcher=slurm")
    going = started(*DRACO, "train", "a.yaml", environment=nodes)
    assert going.ended() == 0, going.said
    assert json.loads((going.run / "launch" / "nodes.json").read_text()) == ["127.0.0.1", "localhost"]
    early, before, launch = (tmp_path / "bin" / "calls").read_text().splitlines()
    assert before == early.replace(f"{tmp_path}/runs ", f"{going.run} ")
    assert "--ntasks 3 --distribution cyclic --cpus-per-task 1 --kill-on-bad-exit=0" in launch
    same_bits(going.run, job, train)


def test_a_signal_to_torchrun_stops_those_who_have_joined_after_a_step_with_a_checkpoint(
    written: Callable[..., Job], started: Callable[..., Going]
) -> None:
    written("model=fc", "workers=2", "batch_size=6", "steps=100000", "checkpoint_every=100000")
    going = started(*TORCHRUN, "--nproc-per-node", "3", "-m", "draco", "join", "a.yaml")
    going.stepped()
    going.process.send_signal(signal.SIGINT)
    assert going.ended() != 0  # torchrun's own code
    status = run_directory.read_status(going.run)
    assert (status.state, status.message) == ("interrupted", "asked to stop")
    assert [path.stem for path in (going.run / "checkpoints").glob("*.json")] == [f"step-{status.step:08}"]
    assert f"interrupted at step {status.step}; go on with: the same command, with --resume" in going.said


def test_tasks_of_srun_join_to_the_bits_of_a_simulation(
    written: Callable[..., Job],
    started: Callable[..., Going],
    nodes: Mapping[str, str],
    train: Callable[..., Trained],
) -> None:
    job = written(*SMALL)
    options = ("--ntasks", "3", "--nodes", "2", "--nodelist", nodes["SLURM_JOB_NODELIST"])
    going = started("srun", *options, *DRACO, "join", "a.yaml", environment=nodes)
    assert going.ended() == 0, going.said
    assert run_directory.read_job(going.run).launcher == "slurm"
    same_bits(going.run, job, train)
