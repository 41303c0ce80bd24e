"""`draco cluster interrupt` where nodes are made up: what it refuses, in which order it acts, and how it ends."""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from draco.cli.main import main
from draco.cluster import eviction, interrupt, remote, state
from draco.cluster.backend import BACKENDS, Cluster, Node, names
from draco.cluster.eviction import writing
from draco.launch.notices import PATH, parse

RUN = "runs/tiny-1"
COMMAND = ["cluster", "interrupt", "worker-02"]


class Kind:
    """A kind of cluster that notes what is done to its nodes; its head's run is a file of this test's."""

    def __init__(self, folder: Path) -> None:
        self.events = folder / "events"
        self.events.write_text("")
        self.done: list[str] = []
        self.states_of: dict[str, str] = {}
        self.question = ""  # asked before a node is evicted
        self.then: Any = lambda: None  # called when a node is killed

    def states(self, cluster: Cluster, folder: Path) -> dict[str, str]:
        return {node.name: self.states_of.get(node.name, "running") for node in cluster.nodes}

    def eviction(self, cluster: Cluster, folder: Path, node: str, notice_s: float) -> eviction.Eviction:
        def announce(notice: str) -> None:
            self.done.append(f"announce {node}")
            self.notice = parse(notice.encode())

        def kill() -> None:
            self.done.append(f"kill {node}")
            self.then()

        return eviction.by_hand(node, notice_s, announce, kill)._replace(question=self.question)

    def command(
        self, cluster: Cluster, folder: Path, node: str, argv: Sequence[str], *, terminal: bool = False
    ) -> list[str]:
        """Answer `date` as it is and `follow` with the file, for as long as somebody listens."""
        return list(argv) if argv[0] == "date" else ["tail", "-n", "+1", "-f", str(self.events)]

    def happens(self, *events: dict[str, Any]) -> None:
        with self.events.open("a") as file:
            file.writelines(json.dumps({"time": time.time(), **event}) + "\n" for event in events)


@pytest.fixture
def kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kind:
    monkeypatch.chdir(tmp_path)
    made = Kind(tmp_path)
    monkeypatch.setitem(BACKENDS, "netns", made)
    monkeypatch.setattr(remote, "snapshot", lambda cluster: {"run": RUN, "state": "running"})
    up("netns")
    return made


def up(backend: str, runtime: Any = "host") -> Cluster:
    nodes = tuple(Node(name, "10.0.0.10") for name in names(2))
    made = Cluster("dev", backend, nodes, "10.0.0.0/24", runtime, sys.executable, "root", "2026-01-01T00:00:00+00:00",
                   {"region": "us-east-1"})  # fmt: skip
    state.save(made)
    return made


def step(number: int) -> dict[str, Any]:
    return {"event": "step", "step": number}


def test_the_head_is_not_interrupted(kind: Kind, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cluster", "interrupt", "head"]) == 4
    assert "dev: the head holds the server and the runs" in capsys.readouterr().err
    assert kind.done == []


def test_a_worker_that_there_is_none_of_is_told_with_those_that_there_are(
    kind: Kind, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cluster", "interrupt", "worker-03"]) == 3
    assert capsys.readouterr().err == "NODE=worker-03: dev has the workers worker-01, worker-02\n"


def test_a_worker_that_is_gone_already_is_refused(kind: Kind, capsys: pytest.CaptureFixture[str]) -> None:
    kind.states_of["worker-02"] = "stopped"
    assert main(COMMAND) == 4
    assert "dev: worker-02 is stopped; make cluster-up NAME=dev repairs it" in capsys.readouterr().err


def test_somebodys_own_machine_is_refused(kind: Kind, monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    real = BACKENDS["ssh"]
    monkeypatch.setattr(real, "states", kind.states)
    up("ssh")
    for notice in ("0", "120"):
        assert main([*COMMAND, "--notice", notice]) == 4
        assert "worker-02 is somebody's machine" in capsys.readouterr().err
    assert kind.done == []


@pytest.mark.parametrize("option", ["--notice=-1", "--notice=soon", "--wait=1.5"])
def test_seconds_are_whole_numbers(kind: Kind, option: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*COMMAND, option])
    assert ended.value.code == 2


def test_notice_wait_and_end_come_in_this_order(kind: Kind, capsys: pytest.CaptureFixture[str]) -> None:
    kind.happens({"event": "start"}, step(1), step(2))
    began = time.time()

    def comes_back() -> None:
        assert time.time() - began >= 2
        told = [{"event": "interruption", "cause": "worker-02 is lost"}, {"event": "relaunch", "launch": 2},
                {"event": "resume", "step": 1}, step(2), step(3)]  # fmt: skip
        kind.happens(*({"time": time.time() + 1 + i, **event} for i, event in enumerate(told)))

    kind.then = comes_back
    assert main([*COMMAND, "--notice", "2"]) == 0
    assert kind.done == ["announce worker-02", "kill worker-02"]
    assert kind.notice
    assert kind.notice.kind == "interruption"
    assert abs(datetime.fromisoformat(kind.notice.at).timestamp() - began - 2) < 2
    said = capsys.readouterr()
    assert f"worker-02: {kind.notice.sentence()}\nworker-02: gone\n" in said.err
    table = [" ".join(line.split()[1:3]) for line in said.out.splitlines()]
    assert [line.split(" ")[0] for line in table] == [
        "what", "notice", "node", "interruption", "relaunch", "resume", "first", "without",
    ]  # fmt: skip
    assert "1 step taken again" in said.out


def test_without_a_notice_the_node_goes_at_once(kind: Kind, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*COMMAND, "--notice", "0", "--wait", "0"]) == 8  # the run has not come back
    assert kind.done == ["kill worker-02"]
    said = capsys.readouterr()
    assert "worker-02: goes without a notice" in said.err
    assert "without a step" in said.out


@pytest.mark.parametrize(("typed", "agrees"), [("y", True), ("n", False), ("", False)])
def test_what_has_to_be_agreed_to_is_asked_first(
    kind: Kind, monkeypatch: pytest.MonkeyPatch, typed: str, agrees: bool
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("builtins.input", lambda question: asked.append(question) or typed)
    kind.question = "dev: interrupt worker-02 (i-1)"
    assert main([*COMMAND, "--notice", "0", "--wait", "0"]) == (8 if agrees else 4)
    assert asked == ["dev: interrupt worker-02 (i-1)? [y/N] "]
    assert kind.done == (["kill worker-02"] if agrees else [])


def test_a_run_that_ends_is_not_waited_for(kind: Kind, capsys: pytest.CaptureFixture[str]) -> None:
    kind.happens(step(7))
    kind.then = lambda: kind.happens(
        {"event": "state", "state": "lost", "step": 6, "message": "worker-02 is lost", "updated": time.time(),
         "pid": 1, "host": "head"}
    )  # fmt: skip
    began = time.monotonic()
    assert main([*COMMAND, "--notice", "0", "--wait", "60"]) == 8
    assert time.monotonic() - began < 30
    assert "lost at step 6: worker-02 is lost" in capsys.readouterr().out


def test_a_head_that_cannot_be_followed_is_not_waited_for_either(
    kind: Kind, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kind, "command", lambda *_, **__: ["false"])
    began = time.monotonic()
    assert main([*COMMAND, "--notice", "0", "--wait", "60"]) == 8
    assert time.monotonic() - began < 30
    assert "there never was one" in capsys.readouterr().out


@pytest.mark.parametrize("newest", [None, {}, {"run": RUN, "state": "succeeded"}])
def test_without_a_run_the_node_is_taken_all_the_same(
    kind: Kind, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], newest: Any
) -> None:
    monkeypatch.setattr(remote, "snapshot", lambda cluster: newest)
    assert main([*COMMAND, "--notice", "1"]) == 0
    assert kind.done == ["announce worker-02", "kill worker-02"]
    said = capsys.readouterr()
    assert "dev: no run is going on that could recover" in said.err
    assert said.out == ""


def test_ctrl_c_leaves_the_node_alive_and_says_that_the_notice_stands(
    kind: Kind, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def press(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(eviction, "_count_down", press)
    assert main([*COMMAND, "--notice", "60"]) == 130
    assert kind.done == ["announce worker-02"]
    assert "worker-02: the notice stands, and it is not killed" in capsys.readouterr().err


def test_a_million_steps_are_not_kept(kind: Kind) -> None:
    kind.happens(*map(step, range(5000)), {"event": "checkpoint", "step": 4999}, {"event": "alive"}, step(5000))
    with interrupt._Watched(up("netns"), RUN) as watched:
        deadline = time.monotonic() + 20
        while not watched.events or watched.events[-1].get("step") != 5000:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert [event["step"] for event in watched.events] == [0, 4999, 4999, 5000]
    assert abs(watched.now() - time.time()) < 1


def test_a_notice_is_put_in_its_place_whole(tmp_path: Path) -> None:
    path = tmp_path / "run" / "notice.json"
    command = [word.replace(PATH, str(path)).replace("/run/draco", str(path.parent)) for word in writing("it's $HOME")]
    subprocess.run(command, check=True)
    assert path.read_text() == "it's $HOME\n"
    assert path.stat().st_mode & 0o777 == 0o644
    assert [each.name for each in path.parent.iterdir()] == [path.name]
