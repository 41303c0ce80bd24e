"""Real processes, over both transports: the same bits as in one process, and an honest end whatever happens to a rank.

Every run is started as a user would, by `python -m draco train`, with a time limit from outside.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from draco import files
from draco.job import parse, to_yaml
from draco.launch import fork_client
from draco.launch.environment import launch_environment
from draco.launch.plan import plan
from draco.runs import directory as run_directory
from draco.runs import events
from draco.training import checkpoint, transport
from draco.training.process import read_job

JOB = """
name: ranks
workers: {workers}
model: lenet
data: synthetic
batch_size: 15
steps: {steps}
scheme: {{name: {scheme}, adversaries: {adversaries}}}
attack: {attack}
optimizer: {{name: sgd, lr: 0.05}}
checkpoint_every: {every}
patience_s: {patience}
reply_timeout_s: {timeout}
on_loss: {on_loss}
transport: {transport}
"""
LIMIT_S = 120
BOTH = pytest.mark.parametrize("transport", ["mpi", "torch"])
pytestmark = pytest.mark.usefixtures("forks")


@pytest.fixture
def folder(tmp_path: Path, data_root: Path) -> Path:
    (tmp_path / "data").symlink_to(data_root)
    return tmp_path


def write_job(
    folder: Path,
    *,
    steps: int = 3,
    scheme: str = "cyclic",
    adversaries: int = 1,
    timeout: float = 60,
    every: int = 1000,
    on_loss: str = "pack",
    attack: str = "{name: reverse_gradient, ranks: [2]}",
    patience: float = 60,
    workers: int = 3,  # the fewest that tolerate an adversary: every rank imports torch, which takes 2 s
    transport: str = "mpi",
) -> None:
    values = {name: value for name, value in locals().items() if name != "folder"}
    (folder / "job.yaml").write_text(JOB.format(**values))


def command(*options: str) -> list[str]:
    return [sys.executable, "-m", "draco", "train", "job.yaml", *options]


def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*options), cwd=folder, capture_output=True, text=True, timeout=LIMIT_S)


def newest(folder: Path) -> Path:
    return run_directory.runs(folder / "runs")[-1]


def model(run: Path) -> torch.Tensor:
    path = checkpoint.newest(run / "checkpoints")
    assert path
    return torch.cat([value.flatten() for value in checkpoint.load(path)["model"].values()])


def simulated(folder: Path, train) -> Path:
    """Train the newest run's job again in this process, with the same secret; return the run."""
    first = newest(folder)
    job = parse((first / "job.yaml").read_text(), "job.yaml", ["launcher=simulate"])
    second = run_directory.create(folder / "simulated", job.name, to_yaml(job))
    files.replace(second / "secret", (first / "secret").read_bytes())
    train(job, second)
    return second


@pytest.mark.parametrize(
    ("scheme", "attack", "transport"),
    [
        ("repetition", "{name: split_vote}", "mpi"),
        ("cyclic", "{name: orthogonal_to_projection, who: drawn}", "mpi"),  # the last step's secret is told
        ("cyclic", "{name: orthogonal_to_projection, who: drawn}", "torch"),
        # Without a code every bit of the lie is in the model.
        ("uncoded", "{name: alie, z: 1.5, adversaries: 1, who: rotating}", "mpi"),
    ],
)
def test_a_simulation_gives_the_same_model_as_processes_bit_for_bit(
    folder: Path, scheme: str, attack: str, transport: str, train
) -> None:
    write_job(folder, scheme=scheme, attack=attack, transport=transport)
    processes = run(folder)
    assert processes.returncode == 0, processes.stderr
    first = newest(folder)
    status = json.loads((first / "state.json").read_text())
    assert (status["state"], status["step"]) == ("succeeded", 3)
    second = simulated(folder, train)
    assert torch.equal(model(first), model(second))
    steps = [
        [(e["step"], e["loss"], e["suspects"]) for e in events.read(r / "events.jsonl") if e["event"] == "step"]
        for r in (first, second)
    ]
    assert len(steps[0]) == 3
    assert steps[0] == steps[1]


@pytest.mark.long
def test_worker_momentum_goes_on_over_mpi_from_a_simulations_checkpoint_with_the_same_bits(folder: Path, train) -> None:
    """Own samples, own momentum, and Byzantine workers who know the others' and attach theirs; also interrupted."""
    write_job(folder, steps=4, scheme="uncoded", attack="{name: alie, who: drawn}", adversaries=2, workers=5)
    more = "aggregator: median\nlocal: {momentum: 0.9, clip: 2.0}\n"
    own = (folder / "job.yaml").read_text().replace("synthetic", "{name: synthetic, split: dirichlet, alpha: 0.2}")
    (folder / "job.yaml").write_text(own + more)
    job = parse((folder / "job.yaml").read_text(), "job.yaml")
    whole, partial = (run_directory.create(folder / name, job.name, to_yaml(job)) for name in ("whole", "runs"))

    def stopping(worker):
        def reply(task: transport.Task, model: torch.Tensor, frame: torch.Tensor) -> int | None:
            if task.step == 2:
                (partial / "stop").touch()
            return worker.reply(task, model, frame)

        return reply

    train(job, whole)
    assert train(job, partial, {3: stopping}).status.step == 2
    resumed = run(folder, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert newest(folder) == partial
    assert torch.equal(model(partial), model(whole))
    momenta = [checkpoint.load(checkpoint.newest(each / "checkpoints"))["momenta"] for each in (partial, whole)]
    assert torch.equal(*momenta)


def started(folder: Path, *options: str) -> subprocess.Popen[str]:
    """Start a long job and return once it has taken a step."""
    process = subprocess.Popen(
        command(*options), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline and process.poll() is None:
        runs = run_directory.runs(folder / "runs")
        if runs and any(e["event"] == "step" for e in events.read(runs[-1] / "events.jsonl")):
            return process
        time.sleep(0.1)
    process.kill()
    pytest.fail(f"the job took no step: {process.communicate()}")


def rank_process(folder: Path, rank: int) -> int:
    """Return the process id of an MPI rank of the newest run."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (entry / "cmdline").read_bytes().split(b"\0")
            environment = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        mine = f"OMPI_COMM_WORLD_RANK={rank}".encode() in environment
        if mine and b"rank" in arguments and (entry / "cwd").resolve() == folder.resolve():
            return int(entry.name)
    raise AssertionError(f"no process of rank {rank}")


def survivors(folder: Path) -> list[str]:
    """Return the command lines of processes that still run in `folder`."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "cwd").resolve() == folder.resolve() and (entry / "cmdline").read_bytes():
                found.append((entry / "cmdline").read_bytes().decode().replace("\0", " "))
        except OSError:
            continue
    return found


@pytest.fixture
def long_run(folder: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    """A job of many steps; the transport is the fixture's parameter, if it has one."""
    write_job(folder, steps=100_000, timeout=3, on_loss="fail", transport=getattr(request, "param", "mpi"))
    process = started(folder)
    yield folder, process
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, errors = process.communicate(timeout=LIMIT_S)
    return process.returncode, errors


@pytest.mark.long
def test_a_worker_that_is_needed_and_never_answers_is_named_and_ends_the_run_resumably(long_run) -> None:
    """Rank 2 is Byzantine: the code tolerates no more."""
    folder, process = long_run
    os.kill(rank_process(folder, 3), signal.SIGSTOP)
    code, errors = ended(process)
    assert code == 8
    assert re.search(r"ranks 3 did not answer step \d+ within the time limit, and the cyclic scheme cannot do", errors)
    status = run_directory.read_status(newest(folder))
    assert status.state == "lost"
    assert status.step > 0
    assert checkpoint.newest(newest(folder) / "checkpoints")
    assert survivors(folder) == []


@pytest.mark.long
@pytest.mark.parametrize("long_run", ["mpi", "torch"], indirect=True)
def test_a_worker_that_is_needed_and_killed_ends_the_run_promptly(long_run) -> None:
    folder, process = long_run
    began = time.monotonic()
    os.kill(rank_process(folder, 3), signal.SIGKILL)
    code, errors = ended(process)
    assert code == 8
    assert time.monotonic() - began < 20
    assert run_directory.read_status(newest(folder)).state == "lost"
    assert "ranks 3 ended, and the cyclic scheme cannot do without" in errors
    assert survivors(folder) == []


@pytest.mark.long
@BOTH
def test_a_run_goes_on_without_workers_that_hang_or_are_killed_and_has_back_who_comes_back(
    folder: Path, transport: str, train
) -> None:
    write_job(folder, steps=200, scheme="repetition", attack="none", patience=0.5, transport=transport)
    process = started(folder)
    log = newest(folder) / "events.jsonl"

    def steps(kind: str) -> list[list[int]]:
        return [e[kind] for e in events.read(log) if e["event"] == "step"]

    frozen = rank_process(folder, 2)
    os.kill(frozen, signal.SIGSTOP)
    await_(lambda: steps("straggling")[-1] == [2])
    os.kill(frozen, signal.SIGCONT)
    await_(lambda: steps("straggling")[-1] == [])
    os.kill(rank_process(folder, 3), signal.SIGKILL)
    code, errors = ended(process)
    assert code == 0, errors
    assert steps("lost")[-1] == [3]
    assert not any(steps("suspects"))
    assert [e["event"] for e in events.read(log) if e["event"] in ("start", "interruption")] == ["start"]
    assert survivors(folder) == []
    assert torch.equal(model(newest(folder)), model(simulated(folder, train)))


def await_(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def mpirun_process(folder: Path) -> int:
    """Return the process id of the mpirun of the newest run."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (entry / "cmdline").read_bytes().split(b"\0")
            here = (entry / "cwd").resolve() == folder.resolve()
        except OSError:
            continue
        if here and b"--map-by" in arguments and b"rank" in arguments:
            return int(entry.name)
    raise AssertionError("no mpirun")


@pytest.mark.long
@BOTH
def test_a_run_outlives_its_server_and_its_mpirun_with_the_same_bits(folder: Path, transport: str, train) -> None:
    write_job(folder, steps=60, scheme="repetition", every=2, transport=transport)
    process = started(folder)
    os.kill(rank_process(folder, 0), signal.SIGKILL)
    log = newest(folder) / "events.jsonl"
    deadline = time.monotonic() + LIMIT_S
    while [e["event"] for e in events.read(log) if e["event"] in ("relaunch", "step")][-1] != "step" or not (
        any(e["event"] == "relaunch" for e in events.read(log))
    ):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    os.kill(mpirun_process(folder), signal.SIGKILL)
    code, errors = ended(process)
    assert code == 0, errors
    told = list(events.read(log))
    first, second = [e for e in told if e["event"] == "interruption"]
    assert first["cause"].startswith("its processes ended (exit code ")
    assert second["cause"].startswith("its processes ended (exit code -9)")
    assert [e["launch"] for e in told if e["event"] == "relaunch"] == [2, 3]
    assert "interrupted: its processes ended" in errors
    assert survivors(folder) == []
    assert torch.equal(model(newest(folder)), model(simulated(folder, train)))


@pytest.mark.long
def test_sigusr1_to_mpirun_leaves_a_checkpoint_and_ctrl_c_a_run_that_resumes_only_when_asked(folder: Path) -> None:
    write_job(folder, steps=100_000)
    process = started(folder)
    log = newest(folder) / "events.jsonl"
    os.kill(mpirun_process(folder), signal.SIGUSR1)
    await_(lambda: any(e["event"] == "checkpoint" for e in events.read(log)))
    (saved,) = [e["step"] for e in events.read(log) if e["event"] == "checkpoint"]
    await_(lambda: any(e["event"] == "step" and e["step"] > saved + 2 for e in events.read(log)))
    assert not (newest(folder) / "checkpoint").exists()
    os.kill(process.pid, signal.SIGINT)
    code, errors = ended(process)
    assert code == 130
    assert "interrupted at step" in errors
    assert "make train JOB=job.yaml RESUME=1" in errors
    stopped = run_directory.read_status(newest(folder))
    assert stopped.state == "interrupted"
    refused = run(folder)
    assert refused.returncode == 4
    assert "--resume" in refused.stderr
    assert len(run_directory.runs(folder / "runs")) == 1
    resumed = started_again(folder)
    os.kill(resumed.pid, signal.SIGINT)
    assert ended(resumed)[0] == 130
    assert len(run_directory.runs(folder / "runs")) == 1
    assert run_directory.read_status(newest(folder)).step > stopped.step
    assert survivors(folder) == []


def started_again(folder: Path) -> subprocess.Popen[str]:
    """Resume and return once a step was taken after the resumption."""
    process = subprocess.Popen(
        command("--resume"),
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        kinds = [e["event"] for e in events.read(newest(folder) / "events.jsonl")]
        if "resume" in kinds and "step" in kinds[kinds.index("resume") :]:
            return process
        time.sleep(0.1)
    process.kill()
    pytest.fail(f"no step after the resumption: {process.communicate()}")


def test_a_rank_that_fails_ends_the_job_with_its_reason(folder: Path) -> None:
    """The data disappear between the launcher's check and the ranks' start: an error in every rank."""
    write_job(folder)
    job = parse((folder / "job.yaml").read_text(), "job.yaml", ["data.root=elsewhere"])
    result = launched(folder, run_directory.create(folder / "runs", job.name, to_yaml(job)))
    assert "Traceback" not in result.stderr  # the sentence says all
    assert "elsewhere" in result.stderr


@pytest.mark.long
def test_the_number_of_processes_is_checked_before_anything_else(folder: Path) -> None:
    write_job(folder)
    job = parse((folder / "job.yaml").read_text(), "job.yaml")
    result = launched(folder, run_directory.create(folder / "runs", job.name, to_yaml(job)), processes=3)
    assert "3 workers and a server, but 3 processes started" in result.stderr


def launched(folder: Path, run: Path, processes: int = 4) -> subprocess.CompletedProcess[str]:
    """Let mpirun start a run's processes, without a supervisor."""
    made = plan(read_job(run), run, forks=os.environ[fork_client.NAME])
    argv = [str(processes) if word == "4" else word for word in made.argv]
    environment = launch_environment(os.environ, dict(made.environment))
    return subprocess.run(argv, env=environment, cwd=folder, capture_output=True, text=True, timeout=LIMIT_S)
