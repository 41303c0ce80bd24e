"""torchrun: its command line, its own process beside the ranks, and what is read of its words."""

import os
from pathlib import Path

import pytest

from draco.job import parse
from draco.launch import fork_client, fork_server, pulse, sweep
from draco.launch.judge import Observed, judge, killed_ranks
from draco.launch.plan import plan
from draco.launch.planned import Plan
from draco.runs import spoken, stages
from draco.runs.directory import Status

RUN = Path("runs/a-1")
JOB = "{name: a, workers: 3, model: fc, data: synthetic, batch_size: 6, steps: 2, scheme: uncoded, launcher: torchrun}"


def made() -> Plan:
    return plan(parse(JOB, "test"), RUN, python="/venv/bin/python", forks="abc")


def test_a_job_is_run_by_one_torchrun_that_restarts_nothing() -> None:
    assert made().argv == (
        "/venv/bin/python", "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1",
        "--nproc-per-node", "4", "--max-restarts", "0", "-m", "draco", "rank", "runs/a-1",
    )  # fmt: skip
    environment = dict(made().environment)
    assert (
        environment.items() >= {"OMP_NUM_THREADS": "1", "DRACO_FORK_SERVER": "abc", "DRACO_TRANSPORT": "torch"}.items()
    )
    assert (made().files, made().roster, made().starter) == ((), None, "torchrun")


def test_its_own_process_is_no_rank_and_counts_until_one_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    rank = ["/venv/bin/python", "-u", "-m", "draco", "rank", str(RUN)]
    monkeypatch.setattr(sweep, "_processes", lambda: [(10, list(made().argv)), (11, rank)])
    monkeypatch.setattr(pulse, "_of", lambda pid: pid)
    assert (sweep.ranks(str(RUN)), sweep.agents(str(RUN))) == ([11], [10])
    assert pulse.pulse(["--but", str(RUN)]) == 21
    assert pulse.pulse(["--but", str(RUN), "7"]) == 11


def test_what_torchrun_tells_its_ranks_keeps_none_from_being_forked() -> None:
    told = {"TORCHELASTIC_RUN_ID": "x", "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1", "RANK": "2"}
    assert fork_server._differing({"OMP_NUM_THREADS": "1"}, {"OMP_NUM_THREADS": "1", **told}) == []
    assert fork_server._differing({}, {"TORCH_LOGS": "x"}) == ["TORCH_LOGS"]


FAILED = """\
============================================================
draco FAILED
------------------------------------------------------------
Root Cause (first observed failure):
[0]:
  time      : 2026-01-02_03:04:05
  host      : here
  rank      : 0 (local_rank: 0)
  exitcode  : -9 (pid: 1234)
  error_file: <N/A>
  traceback : Signal 9 (SIGKILL) received by PID 1234
"""


def test_ranks_that_were_killed_are_those_that_torchrun_names() -> None:
    assert killed_ranks(FAILED.splitlines()) == {0: "rank 0 on here was killed by signal 9"}
    assert killed_ranks(FAILED.replace("-9", "-15").splitlines()) == {}  # by torchrun itself, after another
    assert killed_ranks(FAILED.replace("-9", "1").splitlines()) == {}


def test_a_launch_that_torchrun_could_not_make_is_told_in_its_words() -> None:
    printed = ["torch.distributed.DistNetworkError: The server socket has failed to listen: EADDRINUSE"]
    status = Status("pending", 0, "", 1, "here", 0.0)
    state, why = judge(Observed(status, 1, printed=printed, starter="torchrun"))
    assert (state, why) == ("failed", f"its processes ended (exit code 1): {printed[0]}")
    state, why = judge(Observed(status, 1, printed=[], starter="torchrun"))
    assert (state, why) == ("failed", "could not be started (exit code 1): torchrun said nothing")


@pytest.mark.parametrize(
    ("rank", "status", "code", "said"),
    [
        ("2", 9, 0, "draco: rank 2 on here was killed by signal 9\n"),
        ("2", 15, 0, ""),
        ("2", 1 << 8, 0, ""),
        ("0", 9, None, "draco: rank 0 on here was killed by signal 9\n"),
        ("0", 1 << 8, None, ""),
    ],
)
def test_who_stands_for_a_worker_ends_well_and_says_who_was_killed(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    rank: str,
    status: int,
    code: int | None,
    said: str,
) -> None:
    ends: list[int] = []
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr(fork_client.socket, "gethostname", lambda: "here")
    monkeypatch.setattr(os, "_exit", ends.append)
    fork_client.spare(status)
    assert (ends, capsys.readouterr().out) == ([] if code is None else [code], said)


@pytest.mark.parametrize(
    ("environment", "rank"),
    [
        ({"RANK": "3"}, 3),
        ({"SLURM_PROCID": "4"}, 4),
        ({"OMPI_COMM_WORLD_RANK": "5", "RANK": "3", "SLURM_PROCID": "0"}, 5),
    ],
)
def test_a_rank_of_any_launcher_says_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], environment: dict[str, str], rank: int
) -> None:
    for name in (spoken.JOINED, *(rank for rank, _ in spoken.NUMBERED)):
        monkeypatch.delenv(name, raising=False)
    stages.say("up")
    assert capsys.readouterr().out == ""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    stages.say("up")
    assert stages.reached([capsys.readouterr().out.rstrip()]).keys() == {rank}
    monkeypatch.setenv(spoken.JOINED, "of somebody else's start, who watches over nothing")
    stages.say("up")
    assert capsys.readouterr().out == ""
