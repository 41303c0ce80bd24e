"""The facts that a node reports: equal nodes have no fault, a difference is one sentence, a false one no crash."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from draco.launch import every_node, preflight
from draco.launch.every_node import Answer, explained
from draco.launch.facts import facts, faults
from draco.launch.roster import Host, Roster

HEAD: dict[str, Any] = {
    "draco": "0123456789ab", "python": "3.11.9", "torch": "2.13.0", "torchvision": "0.28.0", "numpy": "2.4.6",
    "mpi4py": "4.1.2", "openmpi": "5.0.11", "time": 1000.0, "sees_runs": True, "reads_data": True,
}  # fmt: skip
NODE = {**HEAD, "sees_runs": False}


def test_a_node_like_the_head_that_sees_no_runs_has_no_fault() -> None:
    assert faults("worker-01", NODE, HEAD) == []


@pytest.mark.parametrize("what", ["draco", "python", "torch", "torchvision", "numpy", "mpi4py", "openmpi"])
def test_what_differs_is_named_with_node_and_both_values(what: str) -> None:
    (fault,) = faults("worker-02", {**NODE, what: "other"}, HEAD)
    assert fault.startswith(f"worker-02: {what} is other, on the head it is {HEAD[what]}; ")
    assert "make cluster-up" in fault


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (5.0, None),
        (-5.0, None),
        (5.6, "worker-01: its clock is 6 s ahead of the head's; set it"),
        (-7.0, "worker-01: its clock is 7 s behind the head's; set it"),
    ],
)
def test_a_clock_may_differ_by_five_seconds(seconds: float, said: str | None) -> None:
    assert faults("worker-01", {**NODE, "time": 1000.0 + seconds}, HEAD) == ([said] if said else [])


def test_a_worker_that_sees_the_runs_or_no_data_is_named() -> None:
    (runs,) = faults("worker-01", {**NODE, "sees_runs": True}, HEAD)
    assert runs.startswith("worker-01: it can see the runs, which only the head may")
    (data,) = faults("worker-01", {**NODE, "reads_data": False}, HEAD)
    assert data.startswith("worker-01: it cannot read the data folder")


def test_every_fault_of_a_node_is_told_at_once() -> None:
    assert (
        len(faults("worker-01", {**NODE, "torch": "1", "time": 0.0, "sees_runs": True, "reads_data": False}, HEAD)) == 4
    )


def test_a_node_that_leaves_things_out_is_at_fault_and_nothing_breaks() -> None:
    found = faults("worker-01", {}, HEAD)
    assert "worker-01: torch is None, on the head it is 2.13.0" in found[2]
    assert any("clock" in fault or "time" in fault for fault in found)
    assert any("data folder" in fault for fault in found)


@pytest.mark.parametrize(
    "said",
    [[], "torch", {**NODE, "time": "noon"}, {**NODE, "time": None}, {**NODE, "time": float("nan")}],
    ids=["list", "text", "a time in words", "no time", "a time that is no number"],
)
def test_a_node_that_says_what_it_likes_is_at_fault_and_nothing_breaks(said: Any) -> None:
    assert faults("worker-01", said, HEAD)


def test_facts_are_json_and_true_of_this_process(tmp_path: Path) -> None:
    for folder in ("runs", "data"):
        (tmp_path / folder).mkdir()
    made = subprocess.run(
        [sys.executable, "-W", "error", "-m", "draco.launch.facts"], cwd=tmp_path, capture_output=True, check=True
    )
    said = json.loads(made.stdout)
    here = facts()
    assert said.keys() == here.keys() == HEAD.keys()
    assert all(said[what] == here[what] for what in HEAD if what not in ("time", "sees_runs", "reads_data"))
    assert said["sees_runs"]
    assert said["reads_data"]
    assert abs(said["time"] - here["time"]) < 60
    assert here["torch"] != "missing"


def test_before_a_run_every_node_that_is_not_fit_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    good = json.dumps({**facts(), "sees_runs": False, "reads_data": True})
    answers = {
        "good": Answer(good, ""),
        "frozen": Answer("", "no answer"),
        "odd": Answer("Welcome!\n", ""),
        "old": Answer(good.replace(facts()["torch"], "1.0"), ""),
    }
    monkeypatch.setattr(every_node, "ask", lambda *_, **__: answers)
    found = preflight._nodes(Roster("dev", "", "python", "", ()))
    assert [fault.split(": ")[0] for fault in found] == ["frozen", "odd", "old"]
    assert found[0] == "frozen: no answer"
    assert "not JSON: 'Welcome!" in found[1]


def test_a_full_disk_is_told_before_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert preflight._disk(tmp_path) == []
    monkeypatch.setattr(preflight, "_LEAST_FREE_BYTES", 1 << 80)
    (fault,) = preflight._disk(tmp_path)
    assert fault.startswith(f"{tmp_path}: ")
    assert "MiB free" in fault


# What ssh says

CHANGED = [
    "@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@",
    "@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @",
    "@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@",
    "IT IS POSSIBLE THAT SOMEONE IS DOING SOMETHING NASTY!",
    "Host key verification failed.",
]


NODES = Roster("dev", "", "python", "the_config", tuple(Host(name, "", 1) for name in ("head", "a", "b")))


@pytest.fixture
def fake_ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Return `fake(body)`: let ssh be this shell script, in which $3 is the node, and return where it runs."""

    def fake(body: str) -> Path:
        tool = tmp_path / "ssh"
        tool.write_text(f"#!/bin/sh\n{body}\n")
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        monkeypatch.chdir(tmp_path)
        return tmp_path

    return fake


def test_every_worker_node_is_asked_and_answers_for_itself(fake_ssh) -> None:
    fake_ssh('[ $3 = b ] && { echo "ssh: Permission denied (publickey)." >&2; exit 255; }; echo "$*"')
    answers = every_node.ask(NODES, ["ls", "-l"])
    assert answers["a"] == Answer("-F the_config a -- ls -l\n", "")
    assert answers["b"].output == ""
    assert answers["b"].fault.startswith("it does not accept the head's key")
    assert list(answers) == ["a", "b"]
    assert list(every_node.unreachable(NODES)) == ["b"]


def test_a_node_that_fails_without_a_word_is_told_by_its_exit_code(fake_ssh) -> None:
    fake_ssh("exit 3")
    assert every_node.ask(NODES, ["x"])["a"].fault == "the command ended with exit code 3"


def test_a_node_that_does_not_answer_in_time_is_given_up(fake_ssh) -> None:
    fake_ssh("[ $3 = a ] && exec sleep 60; echo fine")
    answers = every_node.ask(NODES, ["x"], limit_s=0.5)
    assert "no answer by ssh within the time limit" in answers["a"].fault
    assert answers["b"] == Answer("fine\n", "")


def test_nodes_get_their_input_at_once(fake_ssh) -> None:
    fake_ssh(
        "cat > $3.part; mv $3.part $3.got; while [ ! -e a.got ] || [ ! -e b.got ]; do sleep 0.02; done; cat $3.got"
    )
    assert every_node.ask(NODES, ["x"], limit_s=3.0, text="job") == {"a": Answer("job", ""), "b": Answer("job", "")}


@pytest.mark.parametrize(
    ("lines", "meaning"),
    [
        (CHANGED, "its host key is not the one that make cluster-up recorded"),
        (CHANGED[-1:], "its host key is not known to the head"),
        (["draco@10.0.0.11: Permission denied (publickey)."], "it does not accept the head's key"),
        (["ssh: connect to host 10.0.0.11 port 2222: Connection refused"], "no sshd answers there"),
        (
            ["some banner", "ssh: connect to host 10.0.0.11 port 2222: No route to host"],
            "ssh: connect to host 10.0.0.11 port 2222: No route to host",
        ),
        ([], ""),
    ],
    ids=["changed key", "unknown key", "no key", "no server", "anything else", "nothing"],
)
def test_what_ssh_says_is_explained(lines: list[str], meaning: str) -> None:
    assert explained(lines).startswith(meaning)
    assert bool(explained(lines)) == bool(lines)
