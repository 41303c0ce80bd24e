"""Nodes that a run loses are brought up again beside it: once a loss, never two at once, and ended with the watch."""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from draco.cluster import repair as repairing
from draco.cluster.repair import Repair

# Notes its words, waits for the file `go`, and ends as that says.
STAND_IN = ("sh", "-c", 'echo "$@" >> called; while [ ! -e go ]; do sleep 0.02; done; echo said; exit $(cat go)', "sh")


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    return []


def repair(said: list[str], clock: Callable[[], float] = time.time) -> Repair:
    return Repair("dev", said.append, STAND_IN, clock)


def lost(at: float, *nodes: str) -> dict[str, Any]:
    return {"event": "interruption", "time": at, "nodes": dict.fromkeys(nodes, "gone"), "cause": "", "ranks": []}


ALIVE = {"event": "alive"}


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def calls() -> list[str]:
    return Path("called").read_text().splitlines() if Path("called").exists() else []


def test_a_lost_node_is_brought_up_once_and_the_end_is_told(said: list[str]) -> None:
    with repair(said) as mending:
        for event in (ALIVE, lost(1.0, "b"), ALIVE, lost(1.0, "b")):  # told again after a broken connection
            mending.note(event)
        until(lambda: calls() == ["cluster up --name dev --yes"])
        assert said == ["make cluster-up NAME=dev: started, so that the run gets its nodes back; see "
                        ".clusters/dev/repair.log"]  # fmt: skip
        Path("go").write_text("0")
        until(lambda: mending.note(ALIVE) or len(said) == 2)
        mending.note(lost(1.0, "b"))
    assert said[1:] == ["make cluster-up NAME=dev: done: said"]
    assert len(calls()) == 1


def test_the_market_is_left_only_where_that_is_allowed(said: list[str]) -> None:
    Path("go").write_text("0")
    with Repair("dev", said.append, STAND_IN, on_demand=True) as mending:
        mending.note(lost(1.0, "b"))
        until(lambda: mending.note(ALIVE) or len(said) == 2)
    assert calls() == ["cluster up --name dev --yes --on-demand"]


def test_a_loss_while_nodes_are_brought_up_is_seen_to_afterwards(said: list[str]) -> None:
    with repair(said) as mending:
        mending.note(lost(1.0, "b"))
        until(lambda: len(calls()) == 1)
        mending.note(lost(2.0, "c"))
        mending.note(lost(3.0, "d"))
        assert len(calls()) == 1
        Path("go").write_text("0")
        until(lambda: mending.note(ALIVE) or len(calls()) == 2)
        until(lambda: mending.note(ALIVE) or len(said) == 4)
    assert said[1::2] == ["make cluster-up NAME=dev: done: said"] * 2
    assert len(calls()) == 2  # one for both


def test_what_did_not_end_well_is_tried_again_a_few_times(said: list[str]) -> None:
    now = [1e9]
    Path("go").write_text("5")
    with repair(said, lambda: now[0]) as mending:
        mending.note(lost(1.0, "b"))
        for tries in (1, 2, 3):
            until(lambda tries=tries: mending.note(ALIVE) or len(said) == 2 * tries)
            mending.note(ALIVE)
            assert len(calls()) == tries
            now[0] += repairing.AGAIN_S
        mending.note(ALIVE)
    assert said[1::2] == ["make cluster-up NAME=dev: ended with exit code 5: said"] * 3


def test_a_node_that_said_when_it_goes_is_brought_up_once_it_is_gone(said: list[str]) -> None:
    """Until then nothing is missing, and nothing would be done."""
    now = [datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC).timestamp()]
    with repair(said, lambda: now[0]) as mending:
        mending.note({"event": "notice", "node": "b", "kind": "interruption", "at": "2026-01-02T03:06:05Z"})
        mending.note(lost(1.0, "b"))
        now[0] += 119 + repairing.GONE_S
        mending.note(ALIVE)
        assert calls() == []
        now[0] += 1
        mending.note(ALIVE)
        until(lambda: len(calls()) == 1)
        Path("go").write_text("0")
        until(lambda: mending.note(ALIVE) or len(said) == 2)


def test_a_killed_process_takes_no_node_along(said: list[str]) -> None:
    with repair(said) as mending:
        mending.note(lost(1.0))
    assert (said, calls()) == ([], [])


def test_what_is_not_wanted_any_more_is_ended(said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repairing, "_LIMIT_S", 5.0)
    with repair(said) as mending:
        mending.note(lost(1.0, "b"))
        until(lambda: len(calls()) == 1)
        process = mending._process
    assert process
    assert process.returncode
    assert said[-1].startswith("dev: the run has ended: cluster-up is asked to stop")
