"""The table of an interruption tells what happened, and no more."""

from typing import Any

import pytest

from draco.cluster.timeline import Row, given, gone, looked, recovered, settled, timeline

T = 1_800_000_000.0
NODE = "worker-02"
TOLD = "spot interruption at 03:04:05Z"


def event(name: str, after: float, **more: Any) -> dict[str, Any]:
    return {"event": name, "time": T + after, **more}


def step(number: int, at: float) -> dict[str, Any]:
    return event("step", at, step=number, suspects=[])


def verdict(state: str, at: float, number: int = 6, message: str = "") -> dict[str, Any]:
    return {"event": "state", "state": state, "step": number, "message": message, "updated": T + at, "pid": 1}


BEFORE = [event("start", -60, steps=100), step(1, -5), step(2, -4), event("checkpoint", -3.5, step=2)]
BREAK = [
    given(T, NODE, TOLD), step(3, 1), event("notice", 2, node=NODE, kind="interruption", at="2026-01-02T03:04:05Z"),
    event("checkpoint", 3, step=3), step(4, 3.5), step(5, 4), gone(T + 10, NODE),
    event("interruption", 12, nodes={NODE: "gone"}, ranks=[2], cause="worker-02 is lost: no answer by ssh"),
]  # fmt: skip
BACK = [
    event("relaunch", 13, launch=2, nodes=["worker-01"], without={NODE: "gone"}, warnings=[]),
    event("start", 18, steps=100), event("resume", 18.5, step=3, file="step-00000003.pt"), step(4, 20), step(5, 20.5),
]  # fmt: skip


def words(rows: list[Row]) -> list[tuple[float | None, str]]:
    return [(None if row.seconds is None else round(row.seconds, 1), row.what) for row in rows]


def test_a_recovery_from_the_notice_to_the_first_step() -> None:
    rows = timeline([*BEFORE, *BREAK, *BACK], T)
    assert words(rows) == [
        (0.0, "notice"), (2.0, "the head knows"), (3.0, "checkpoint"), (10.0, "node gone"), (12.0, "interruption"),
        (13.0, "relaunch"), (18.5, "resume"), (20.0, "first step"), (16.0, "without a step"),
    ]  # fmt: skip
    assert [row.about for row in rows] == [
        TOLD, "worker-02: interruption", "step 3", NODE, "worker-02 is lost: no answer by ssh",
        "launch 2, without worker-02", "step 3", "step 4", "2 steps taken again",
    ]  # fmt: skip


@pytest.mark.parametrize("turn", [0, 5, 9])
def test_the_order_in_which_events_come_does_not_matter(turn: int) -> None:
    events = [*BEFORE, *BREAK, *BACK]
    assert timeline(events[turn:] + events[:turn], T) == timeline(events, T)


def test_it_is_settled_with_the_first_step_after_the_break_and_not_before() -> None:
    events = [*BEFORE, *BREAK, *BACK]
    for count in range(len(events) + 1):
        assert settled(events[:count], T) == (count >= len(events) - 1), events[:count][-1:]
    assert recovered(events, T)
    assert not recovered(events[:-2], T)


def test_steps_of_the_old_launch_that_are_written_late_are_no_recovery() -> None:
    events = [*BEFORE, *BREAK, step(6, 12.5)]
    assert not settled(events, T)
    rows = timeline([*events, looked(T + 190)], T)
    assert words(rows)[-2:] == [(12.0, "interruption"), (177.5, "without a step")]
    assert rows[-1].about == "until now; the last was step 6"


def test_a_run_that_is_lost_is_said_to_be() -> None:
    events = [*BEFORE, *BREAK[:-1], verdict("lost", 45, 3, "worker-02 is lost (rank 2)"), looked(T + 46)]
    assert settled(events, T)
    assert not recovered(events, T)
    rows = timeline(events, T)
    assert words(rows)[-3:] == [(10.0, "node gone"), (45.0, "end of the run"), (42.0, "without a step")]
    assert rows[-2].about == "lost at step 3: worker-02 is lost (rank 2)"


def test_a_run_that_breaks_again_before_its_first_step_has_not_come_back() -> None:
    again = [*BEFORE, *BREAK, *BACK[:3], event("interruption", 19, cause="worker-01 is lost"), looked(T + 100)]
    assert not settled(again, T)
    assert not recovered(again, T)
    assert timeline(again, T)[-1] == Row(96.0, "without a step", "until now; the last was step 5")
    came = [*again, event("relaunch", 101, launch=3, without={}), event("resume", 105, step=3), step(4, 107)]
    rows = timeline(came, T)
    assert words(rows)[-1] == (103.0, "without a step")  # once, though there were two breaks
    assert rows[-2] == Row(107.0, "first step", "step 4")


def test_two_breaks_with_steps_between_are_both_counted() -> None:
    more = [event("interruption", 30, cause="b"), event("relaunch", 31, launch=3), step(6, 36)]
    rows = timeline([*BEFORE, *BREAK, *BACK, *more], T)
    assert words(rows)[-2:] == [(36.0, "first step"), (31.5, "without a step")]


def test_a_run_that_moves_off_the_node_first_is_followed_until_the_node_is_gone() -> None:
    moved = [
        *BEFORE, given(T, NODE, TOLD), event("checkpoint", 3, step=3), step(3, 3.1),
        event("interruption", 4, cause=TOLD), event("relaunch", 5, launch=2, without={NODE: TOLD}),
        event("resume", 8, step=3), step(4, 9),
    ]  # fmt: skip
    assert not settled(moved, T)
    went = [*moved, step(100, 119), gone(T + 120, NODE)]
    assert not settled([*went, step(101, 121)], T)
    assert settled([*went, step(101, 126)], T)
    rows = timeline([*went, step(101, 126)], T)
    assert words(rows)[-3:] == [(9.0, "first step"), (120.0, "node gone"), (5.9, "without a step")]
    assert rows[-1].about == ""  # none was taken again


def test_a_run_that_did_not_need_the_node_went_on() -> None:
    events = [*BEFORE, given(T, NODE, "none"), step(3, 1), gone(T + 2, NODE), step(4, 3)]
    assert not settled(events, T)
    events += [step(400, 33), looked(T + 34)]
    assert settled(events, T)
    assert recovered(events, T)
    rows = timeline(events, T)
    assert words(rows) == [(-3.5, "checkpoint"), (0.0, "notice"), (2.0, "node gone"), (0.0, "without a step")]
    assert rows[-1].about == "the run went on: it did not need the node"


def test_a_run_that_was_done_before_is_no_failure() -> None:
    events = [*BEFORE, given(T, NODE, TOLD), step(100, 5), verdict("succeeded", 6, 100), gone(T + 10, NODE)]
    assert recovered(events, T)
    assert timeline(events, T)[-1].about == "the run was done"


def test_a_run_that_just_hangs_is_told_by_its_last_step() -> None:
    events = [*BEFORE, given(T, NODE, "none"), gone(T + 1, NODE), looked(T + 181)]
    assert timeline(events, T)[-1] == Row(185.0, "without a step", "until now; the last was step 2")
    assert not recovered(events, T)


def test_events_of_nobody_that_is_known_are_passed_over() -> None:
    running = verdict("running", 1)
    strange = [{"event": "step"}, {"event": "suspect", "time": "noon"}, {"event": "x", "time": T + 1}, running]
    assert timeline(strange, T) == [Row(None, "without a step", "there never was one")]
    assert not settled(strange, T)
