"""`draco join`: the place of a process among those that somebody else has started."""

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from unittest.mock import create_autospec

import pytest
import slurm_stand_in

from draco.cli.main import main
from draco.errors import JobError, MissingError, RefusedError
from draco.launch import fork_client, supervise
from draco.launch.changes import Changes
from draco.launch.joining import joined, of_several, turn_away
from draco.launch.meeting import free_port
from draco.launch.run import Stops
from draco.launch.watch import Watch
from draco.training.transport import ServerGone, meeting
from draco.training.transport.torch_worker import TorchWorker

ELASTIC = {"TORCHELASTIC_RUN_ID": "r", "TORCHELASTIC_RESTART_COUNT": "0", "TORCHELASTIC_USE_AGENT_STORE": "True"}
TORCHRUN = {"RANK": "2", "WORLD_SIZE": "5", "MASTER_ADDR": "n1", "MASTER_PORT": "29500"}
STEP = {
    "SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "5", "SLURM_STEP_NODELIST": "n[1-3]", "SLURM_JOB_ID": "7",
    "SLURM_STEP_ID": "1",
}  # fmt: skip
JOB = """{name: a, workers: 2, model: fc, data: synthetic, batch_size: 6, steps: 2, scheme: uncoded, eval_every: 0}"""
Draco = Callable[[str, Mapping[str, str]], tuple[int, str]]


def test_a_process_of_torchruns_has_the_place_that_it_is_told() -> None:
    found = joined({**ELASTIC, **TORCHRUN, "LOCAL_RANK": "0", "HOME": "/home/me"})
    assert found is not None
    assert (found.launcher, found.rank, found.size) == ("torchrun", 2, 5)
    assert found.environment == {**ELASTIC, **TORCHRUN, "LOCAL_RANK": "0"}
    again = joined({**ELASTIC, **TORCHRUN, "TORCHELASTIC_RESTART_COUNT": "1"})
    assert again is not None
    assert found.name != again.name
    assert (found.again, again.again) == (False, True)


def test_a_task_of_sruns_is_told_where_the_first_node_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(slurm_stand_in.install(tmp_path)))
    found = joined(STEP)
    assert found is not None
    assert (found.launcher, found.rank, found.size, found.name) == ("slurm", 3, 5, "slurm/7.1")
    port = int(found.environment["MASTER_PORT"])
    assert found.environment == {"RANK": "3", "WORLD_SIZE": "5", "MASTER_ADDR": "n1", "MASTER_PORT": str(port)}
    assert 20_000 <= port < 30_000
    others = joined({**STEP, "SLURM_PROCID": "4"}), joined({**STEP, "SLURM_STEP_ID": "2"})
    assert [other and other.environment["MASTER_PORT"] == str(port) for other in others] == [True, False]
    told = joined({**STEP, "MASTER_ADDR": "x", "MASTER_PORT": "5"})
    assert told is not None
    assert told.environment.items() >= {"MASTER_ADDR": "x", "MASTER_PORT": "5"}.items()


def test_a_batch_script_and_a_shell_are_no_rank() -> None:
    assert joined({}) is None
    assert joined({"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "5"}) is None
    assert joined({"RANK": "2", "WORLD_SIZE": "5"}) is None


def test_without_slurms_tool_the_address_must_be_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingError, match=r"which node is the first of n\[1-3\]: set MASTER_ADDR"):
        joined(STEP)


@pytest.mark.parametrize(
    ("environ", "several"),
    [
        ({**ELASTIC, **TORCHRUN}, True),
        (STEP, True),
        ({**STEP, "SLURM_STEP_NUM_TASKS": "1"}, False),  # a shell that srun --pty has opened
        (TORCHRUN, False),  # somebody's own variables, which may be left of anything
        ({}, False),
    ],
)
def test_who_is_one_of_several_is_known_without_asking_anybody(environ: dict[str, str], several: bool) -> None:
    assert (of_several(environ) is not None) == several


def test_workers_of_srun_that_wait_for_a_server_which_will_not_come_are_let_go() -> None:
    port = free_port()
    place = joined({**STEP, "SLURM_STEP_NUM_TASKS": "3", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)})
    assert place is not None
    turning = threading.Thread(target=turn_away, args=(place, 20.0))
    turning.start()
    environment = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    for rank in (1, 2):
        with meeting.reach(place.name, rank, environment) as connection, pytest.raises(ServerGone):
            TorchWorker(connection).job()
    turning.join(20.0)
    assert not turning.is_alive()


@pytest.mark.parametrize(
    ("alone", "asked", "begun", "why"),
    [
        (True, True, False, "its processes had not met"),
        (True, True, True, ""),
        (True, False, False, ""),
        (False, True, False, ""),  # of Draco's own launches no worker gets the signal
    ],
)
def test_a_server_that_waits_for_workers_which_a_signal_has_ended_is_ended(
    alone: bool, asked: bool, begun: bool, why: str
) -> None:
    watch, changes, stops = (create_autospec(kind, instance=True) for kind in (Watch, Changes, Stops))
    watch.return_value, watch.begun, watch.stepped, stops.asked = "", begun, begun, asked
    changes.look.return_value = False
    assert supervise._looking(watch, changes, stops, alone=alone)() == why


@pytest.fixture
def draco(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Draco:
    """Return what runs a command in a folder with a job, and with some variables; it returns its code and words."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(fork_client.NAME, "of nobody, for nothing is started")
    (tmp_path / "a.yaml").write_text(JOB)

    def run(words: str, environment: Mapping[str, str]) -> tuple[int, str]:
        with pytest.MonkeyPatch.context() as patched:
            for name, value in environment.items():
                patched.setenv(name, value)
            return main(words.split()), capsys.readouterr().err

    return run


def test_what_is_started_otherwise_than_it_needs_is_told_so(draco: Draco) -> None:
    assert draco("join a.yaml", {}) == (
        MissingError.exit_code,
        "draco join: this process is none of several: start it by torchrun or srun (docs/launchers.md), or let draco "
        "train start them\n",
    )
    assert draco("join a.yaml", {**ELASTIC, **TORCHRUN}) == (
        JobError.exit_code,
        "a.yaml: workers: torchrun has started 5 processes, which are a server and 4 workers, and the job has 2: start "
        "3, or --set workers=4\n",
    )
    code, said = draco("train a.yaml", {**ELASTIC, **TORCHRUN})
    assert code == RefusedError.exit_code
    assert said.startswith("draco train: this is process 2 of 5 that torchrun has started, and each would ")
    assert not Path("runs").exists()
