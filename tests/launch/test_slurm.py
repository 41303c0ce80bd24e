"""Slurm: an allocation, who is dealt to which node, srun's command line, and what nodes say of themselves before."""

import json
import os
import re
from pathlib import Path

import pytest
import slurm_stand_in

from draco.cli.main import main
from draco.errors import MissingError, NotConfiguredError
from draco.job import Job, parse, to_yaml
from draco.launch import fork_client, slurm, slurm_node
from draco.launch.judge import Observed, judge, killed_ranks
from draco.launch.plan import LAUNCHERS, plan
from draco.launch.planned import Allocation
from draco.runs.directory import Status

RUN = Path("runs/a-1")
GIVEN = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-3]", "SLURM_JOB_CPUS_PER_NODE": "4(x2),1"}
NODES = Allocation(GIVEN, ("n1", "n2", "n3"), (4, 4, 1), 29_500)
SEVEN = ["n1", "n2", "n3", "n1", "n2", "n1", "n2"]  # as the real srun has dealt them there


def job(*overrides: str) -> Job:
    text = (
        "{name: a, workers: 6, model: fc, data: synthetic, batch_size: 12, steps: 2, scheme: uncoded, launcher: slurm}"
    )
    return parse(text, "test", overrides)


@pytest.fixture
def allocated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An allocation of three nodes, two of which go by names that are known everywhere."""
    folder = slurm_stand_in.install(tmp_path)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    for name, value in {**GIVEN, "SLURM_JOB_NODELIST": "localhost,127.0.0.1,127.0.0.2"}.items():
        monkeypatch.setenv(name, value)
    return folder


# Plans


@pytest.mark.parametrize(("text", "numbers"), [("4(x2),1", (4, 4, 1)), ("16", (16,)), ("2,3(x3)", (2, 3, 3, 3))])
def test_counts_are_read_as_slurm_writes_them(text: str, numbers: tuple[int, ...]) -> None:
    assert slurm._counts(text) == numbers


def test_ranks_are_dealt_in_turn_to_nodes_that_have_room() -> None:
    assert slurm.deal(NODES, job()) == SEVEN
    assert slurm.deal(NODES, job("workers=1", "batch_size=2")) == ["n1", "n2"]
    assert slurm.deal(NODES, job("workers=3", "threads=2")) == ["n1", "n2", "n1", "n2"]


def test_a_job_is_run_by_one_srun() -> None:
    made = plan(job(), RUN, python="python", allocation=NODES, forks="of no use here")
    assert made.argv == (
        "srun", "--overlap", "--mpi=none", "--export=ALL", "--nodes", "3", "--nodelist", "n1,n2,n3", "--ntasks", "7",
        "--distribution", "cyclic", "--cpus-per-task", "1", "--kill-on-bad-exit=0", "--no-kill", "--wait=0",
        "python", "-m", "draco", "rank", "runs/a-1",
    )  # fmt: skip
    environment = dict(made.environment)
    assert environment.items() >= {**GIVEN, "MASTER_ADDR": "n1", "MASTER_PORT": "29500"}.items()
    assert "DRACO_FORK_SERVER" not in environment
    assert made.files == ((RUN / "launch/nodes.json", json.dumps(SEVEN[1:])),)
    assert made.starter == "srun"


# Allocations


def test_an_allocation_is_what_slurm_has_given(allocated: Path) -> None:
    found = slurm.allocation(job())
    assert (found.nodes, found.cores, found.port) == (("localhost", "127.0.0.1", "127.0.0.2"), (4, 4, 1), None)
    assert set(found.environment) == set(GIVEN)


def test_without_an_allocation_it_is_said_how_to_get_one() -> None:
    with pytest.raises(MissingError, match=r"no allocation here \(SLURM_JOB_ID .* salloc --ntasks=7 .*train\.sbatch"):
        slurm.allocation(job(), {})


def test_an_allocation_may_be_too_small(allocated: Path) -> None:
    with pytest.raises(MissingError, match=r"room for 9 processes of 1 thread, and the job needs 11: .*--ntasks=11"):
        slurm.allocation(job("workers=10", "batch_size=20"))
    with pytest.raises(MissingError, match=r"room for 4 processes of 2 threads, .* --ntasks=7 --cpus-per-task=2$"):
        slurm.allocation(job("threads=2"))


def test_variables_that_are_of_no_allocation_are_told(allocated: Path) -> None:
    with pytest.raises(MissingError, match=r"SLURM_JOB_NODELIST=n\[1-2\] and .*=4\(x2\),1 do not go together"):
        slurm.allocation(job(), {**GIVEN, "SLURM_JOB_NODELIST": "n[1-2]"})


def test_an_allocation_of_which_the_tools_are_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingError, match="srun is not on the PATH, though SLURM_JOB_ID is set"):
        slurm.allocation(job(), GIVEN)


def test_nodes_are_asked_before_a_launch_and_the_first_one_for_a_port(allocated: Path) -> None:
    found = slurm.meet(job(), allocated)
    assert found.port
    assert found.port > 1023
    (call,) = (allocated / "calls").read_text().splitlines()
    assert "--ntasks 3 --ntasks-per-node=1" in call
    assert call.endswith(f"-m draco.launch.slurm_node {allocated} localhost")


def test_a_folder_that_no_node_sees_keeps_the_job_from_starting(allocated: Path) -> None:
    with pytest.raises(NotConfiguredError) as caught:
        slurm.meet(job(), allocated / "elsewhere")
    first, second, _ = str(caught.value).splitlines()
    assert first.startswith(f"localhost: does not see {allocated / 'elsewhere'}: ")
    assert second.startswith("127.0.0.1: does not see")


def said(node: str, **changes: object) -> dict[str, object]:
    facts = {"draco": "1", "python": "3", "torch": "2", "numpy": "2"}
    return {"node": node, "sees": True, "knows": True, "port": 5, "facts": facts, **changes}


def test_each_fault_of_a_node_is_a_sentence() -> None:
    here = said("here")["facts"]
    answers = {
        "n1": said("n1"), "n2": said("n2", sees=False, knows=False),
        "n3": said("n3", facts={**here, "torch": "1"}),
    }  # fmt: skip
    found = slurm.faults(answers, ["n1", "n2", "n3", "n4"], RUN, here, "srun: error: Node failure on n4")
    patterns = [
        "n2: does not see .*/runs/a-1: .*--runs DIR", "n2: does not know an address of n1",
        "n3: torch is 1, here it is 2",
        "n4: does not answer by srun: srun: error: Node failure on n4",
    ]  # fmt: skip
    assert len(found) == len(patterns)
    assert all(re.match(pattern, fault) for pattern, fault in zip(patterns, found, strict=True))


def test_a_node_tells_what_it_sees(tmp_path: Path) -> None:
    here = slurm_node.answer(tmp_path, "localhost")
    assert (here["sees"], here["knows"]) == (True, True)
    gone = slurm_node.answer(tmp_path / "gone", "no.such.node.invalid")
    assert (gone["sees"], gone["knows"]) == (False, False)


# What srun says


@pytest.mark.parametrize(
    ("line", "ranks"),
    [
        ("srun: error: n1: task 3: Killed", {3: "rank 3 on n1 was killed by signal 9"}),
        ("srun: error: n1: tasks 1,4-5: Killed", dict.fromkeys([1, 4, 5])),
        ("srun: error: n2: task 2: Segmentation fault (core dumped)", {2: "rank 2 on n2 was killed by signal 11"}),
        ("srun: error: n2: task 2: Out Of Memory", {2: "rank 2 on n2 had no memory left"}),
        ("srun: error: n2: task 4: Exited with exit code 5", {}),
        ("srun: error: n2: task 4: Terminated", {}),
    ],
)
def test_ranks_that_were_killed_are_those_that_srun_names(line: str, ranks: dict[int, str | None]) -> None:
    found = killed_ranks(["draco: rank 0, process 7: up", line, "srun: Force Terminated StepId=4.3"])
    assert found.keys() == ranks.keys()
    assert all(why is None or found[rank] == why for rank, why in ranks.items())


def test_tasks_that_srun_has_ended_itself_were_not_killed() -> None:
    printed = ["srun: forcing job termination", "srun: error: n1: tasks 0,3,5: Killed"]
    assert killed_ranks(printed) == {}


@pytest.mark.parametrize(
    ("line", "state", "remedy"),
    [
        (
            "srun: error: Unable to create step for job 4: More processors requested than permitted",
            "failed",
            "--ntasks",
        ),
        ("srun: Check SLURM_JOB_ID environment variable. Expired or invalid job 77", "failed", "salloc or sbatch"),
        ("srun: unrecognized option '--overlap'", "failed", "20.11"),
        ("srun: error: Node failure on n4", "lost", ""),
    ],
)
def test_a_launch_that_srun_could_not_make_is_told_in_its_words(line: str, state: str, remedy: str) -> None:
    status = Status("pending", 0, "", 1, "here", 0.0)
    found, why = judge(Observed(status, 1, printed=[line], starter="srun"))
    assert found == state
    assert why.startswith("could not be started (exit code 1): srun:")
    assert remedy in why


# The command


def test_a_dry_run_shows_the_command_and_outside_of_an_allocation_what_is_missing(
    allocated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(fork_client.NAME, "of nobody, for nothing is started")
    (tmp_path / "a.yaml").write_text(to_yaml(job("workers=2")))
    assert main(["train", "a.yaml", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "MASTER_ADDR=localhost MASTER_PORT=PORT" in shown
    assert "srun --overlap" in shown
    assert not (tmp_path / "calls").exists()
    monkeypatch.delenv("SLURM_JOB_ID")
    assert main(["train", "a.yaml"]) == MissingError.exit_code
    assert "launcher: slurm: there is no allocation here (SLURM_JOB_ID is not set)" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_only_the_ranks_of_this_machine_are_looked_at() -> None:
    assert {name for name, launcher in LAUNCHERS.items() if not launcher.here} == {"slurm"}
