"""A run's events as arrays, against twins that do it the slow way."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded import EVALUATIONS, SECONDS, job, start, step, timed, whole_run

from draco.report.series import (
    CLASSES,
    PARTS,
    Bins,
    Mark,
    bins,
    classes,
    elapsed,
    heat,
    maxima,
    means,
    series,
    taken,
    tally,
)

# From the least to the worst: what one cell shows where a column holds several steps.
WORST_LAST = ["no record", "honest", "straggling", "lost", "suspect", "caught", "falsely accused", "missed"]

numbers = st.lists(st.integers(1, 30), max_size=40)
ranks = st.lists(st.integers(1, 5), max_size=3, unique=True)


@st.composite
def records(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Draw increasing steps, some missing, with whoever was suspected, Byzantine, straggling or lost."""
    found = []
    for number in sorted(draw(st.sets(st.integers(1, 60), min_size=1, max_size=20))):
        event = {"suspects": draw(ranks), "lost": draw(ranks), "straggling": draw(ranks), "byzantine": draw(ranks)}
        if not draw(st.booleans()):
            del event["byzantine"]
        found.append({"event": "step", "step": number, **event})
    return found


def word(record: dict[str, Any], rank: int) -> str:
    """The slow twin of `classes`."""
    if "byzantine" not in record:
        if rank in record["suspects"]:
            return "suspect"
    elif rank in record["byzantine"]:
        return "caught" if rank in record["suspects"] else "missed"
    elif rank in record["suspects"]:
        return "falsely accused"
    if rank in record["lost"]:
        return "lost"
    return "straggling" if rank in record["straggling"] else "honest"


def test_the_order_of_the_classes_is_the_stated_one() -> None:
    assert list(CLASSES) == WORST_LAST


@given(numbers)
def test_of_steps_that_were_taken_again_the_last_of_each_counts_and_nothing_after_a_way_back(order: list[int]) -> None:
    events = [{"event": "step", "step": number, "at": index} for index, number in enumerate(order)]
    expected = [e for e in events if all(later["step"] > e["step"] for later in events[e["at"] + 1 :])]
    assert taken([{"event": "start"}, *events, {"event": "end"}]) == expected


@settings(max_examples=40)
@given(records())
def test_every_worker_has_one_class_at_a_step(events: list[dict[str, Any]]) -> None:
    for event in events:
        found = classes(event)
        assert [CLASSES[found.get(rank, 1)] for rank in range(1, 6)] == [word(event, rank) for rank in range(1, 6)]


@settings(max_examples=40)
@given(records(), st.integers(1, 12))
def test_a_column_of_the_heat_map_shows_the_worst_of_its_steps(events: list[dict[str, Any]], most: int) -> None:
    into = bins(events[0]["step"], events[-1]["step"], most)
    got = heat(events, 5, into)
    assert got.shape == (5, into.number)
    for column in range(into.number):
        first = into.first + column * into.size
        here = [e for e in events if first <= e["step"] < first + into.size]
        for rank in range(1, 6):
            worst = max((word(e, rank) for e in here), key=WORST_LAST.index, default="no record")
            assert CLASSES[got[rank - 1, column]] == worst


@settings(max_examples=40)
@given(records())
def test_steps_are_counted_by_worker_and_class(events: list[dict[str, Any]]) -> None:
    got = tally(events, 5)
    expected = [[sum(word(e, rank) == kind for e in events) for kind in WORST_LAST] for rank in range(1, 6)]
    assert got.tolist() == expected


def test_a_rank_that_the_job_does_not_have_is_in_nobodys_row() -> None:
    record = {"event": "step", "step": 1, "suspects": [0, 9], "byzantine": [2]}
    assert heat([record], 3, bins(1, 1, 10)).tolist() == [[1], [7], [1]]
    assert tally([record], 3).sum() == 3


def test_an_older_run_names_its_byzantine_workers_liars() -> None:
    record = step(1, suspects=[1, 2], liars=[2, 3])
    kinds = [WORST_LAST.index(kind) for kind in ("falsely accused", "caught", "missed")]
    assert heat([record], 3, bins(1, 1, 10)).tolist() == [[kind] for kind in kinds]
    assert series(timed([record])).workers == 3


@given(st.integers(1, 1000), st.integers(0, 5000), st.integers(1, 400))
def test_bins_hold_every_step_once_are_few_enough_and_no_larger_than_they_must_be(
    first: int, more: int, most: int
) -> None:
    last = first + more
    into = bins(first, last, most)
    assert into.number <= most
    assert into.size == 1 or math.ceil((more + 1) / (into.size - 1)) > most
    borders = into.edges
    assert len(borders) == into.number + 1
    assert borders[0] == first - 0.5
    assert borders[-2] < last < borders[-1]
    steps = np.arange(first, last + 1)
    assert (borders[into.of(steps)] < steps).all()
    assert (steps < borders[into.of(steps) + 1]).all()


@given(st.lists(st.one_of(st.just(math.nan), st.floats(-1e6, 1e6)), min_size=1, max_size=40), st.integers(1, 9))
def test_means_and_maxima_of_a_bin_are_those_of_its_known_values(values: list[float], most: int) -> None:
    steps = np.arange(3, 3 + len(values))
    into = bins(3, int(steps[-1]), most)
    by_bin: list[list[float]] = [[] for _ in range(into.number)]
    for index, value in enumerate(values):
        if not math.isnan(value):
            by_bin[index // into.size].append(value)
    mean = [sum(held) / len(held) if held else math.nan for held in by_bin]
    assert means(np.array(values), steps, into) == pytest.approx(mean, nan_ok=True, abs=1e-6)
    most_of = [max(held, default=math.nan) for held in by_bin]
    assert maxima(np.array(values), steps, into) == pytest.approx(most_of, nan_ok=True)


def seconds(*events: tuple[str, float | None]) -> list[float]:
    return elapsed([{"event": kind} | ({} if time is None else {"time": time}) for kind, time in events]).tolist()


def test_the_clock_of_a_run_stands_still_while_it_is_stopped() -> None:
    asked_to_stop = seconds(
        ("start", 100), ("step", 110), ("end", 112), ("resume", 5112), ("start", 5113), ("step", 5120)
    )
    assert asked_to_stop == [0, 10, 12, 12, 13, 20]
    killed_twice = seconds(("start", 1), ("step", 2), ("resume", 90), ("start", 91), ("resume", 300), ("start", 303))
    assert killed_twice == [0, 1, 1, 2, 2, 5]
    unusable = seconds(("start", 1), ("end", 4), ("refused_checkpoint", 50), ("resume", 51), ("start", 52))
    assert unusable == [0, 3, 3, 4, 5]


def test_what_the_supervisor_takes_to_start_again_is_the_runs_own_time() -> None:
    events = [
        ("start", 0),
        ("step", 5),
        ("interruption", 9),
        ("relaunch", 10),
        ("notice", 12),
        ("resume", 30),
        ("start", 31),
    ]
    assert seconds(*events) == [0, 5, 9, 10, 12, 30, 31]
    later = [*events, ("step", 40), ("end", 41), ("resume", 1041), ("start", 1042)]
    assert seconds(*later)[-2:] == [41, 42]  # one relaunch excuses one start


def test_the_clock_never_goes_back_and_passes_over_events_without_a_time() -> None:
    assert seconds(("start", 10), ("step", 20), ("step", 15), ("step", 18)) == [0, 10, 10, 13]
    assert seconds(("start", 10), ("step", None), ("step", 12)) == pytest.approx([0, math.nan, 2], nan_ok=True)


def test_a_run_becomes_arrays_of_its_steps() -> None:
    events = timed(whole_run())
    events[4]["decoding_error"] = 0.25
    got = series(events, EVALUATIONS)
    assert got.workers == 3
    assert got.steps.tolist() == [1, 2, 3]
    assert got.seconds.tolist() == [1, 2, 4]
    assert got.loss.tolist() == [2.3, 1.5, 0.5]
    assert got.parts.tolist() == [[SECONDS[part] for part in PARTS]] * 3
    assert got.received.tolist() == [3e6] * 3
    assert got.errors == pytest.approx([math.nan, math.nan, 0.25], nan_ok=True)
    assert got.evaluations.tolist() == [[1, 1, 0.2, 0.5, 2.2], [3, 4, 0.9, 0.99, 0.25]]
    assert got.marks == (Mark("end", 5.0, 3, "succeeded"),)


def test_an_evaluation_stands_at_the_time_of_its_step_the_second_time_the_step_was_taken() -> None:
    again = [{"event": "resume", "step": 2, "file": "x"}, step(3)]
    got = series(timed([*whole_run(), *again]), [*EVALUATIONS, {**EVALUATIONS[0], "top1": 0.8}])
    assert got.steps.tolist() == [1, 2, 3]
    assert got.evaluations[:, :3].tolist() == [[1, 1, 0.2], [3, 6, 0.8]]


def test_an_evaluation_of_a_step_that_is_not_on_record_has_no_time() -> None:
    got = series([], EVALUATIONS)
    assert np.isnan(got.evaluations[:, 1]).all()
    assert got.evaluations[:, 0].tolist() == [1, 3]
    assert (got.workers, got.steps.shape, got.parts.shape) == (0, (0,), (0, len(PARTS)))


def test_without_a_start_there_are_as_many_workers_as_are_named() -> None:
    assert series([step(1, suspects=[2]), step(2, suspects=[], lost=[6])]).workers == 6


def test_what_happened_between_steps_is_marked_at_its_time_after_its_step() -> None:
    events = [
        start(job()), step(1), step(2), step(3),
        {"event": "notice", "node": "worker-01", "kind": "interruption", "at": "x"},
        {"event": "interruption", "cause": "worker-01 goes", "nodes": {}, "ranks": []},
        {"event": "relaunch", "launch": 2, "nodes": None, "without": {"worker-01": "goes"}, "warnings": []},
        {"event": "refused_checkpoint", "file": "step-3.pt", "why": "it is cut off"},
        {"event": "resume", "step": 2, "file": "step-2.pt"},
        start(job()), step(3), {"event": "end", "state": "failed", "message": "worker 2 ended"},
    ]  # fmt: skip
    assert series(timed(events)).marks == (
        Mark("notice", 4, 3, "worker-01: interruption"),
        Mark("interruption", 5, 3, "worker-01 goes"),
        Mark("relaunch", 6, 3, "launch 2 without worker-01"),
        Mark("refused_checkpoint", 7, 3, "step-3.pt: it is cut off"),
        Mark("resume", 8, 2, "after step 2, from step-2.pt"),
        Mark("end", 11, 3, "failed: worker 2 ended"),
    )


def test_a_hundred_thousand_steps_fit_into_a_few_columns() -> None:
    events = [{"step": n, "suspects": (1,), "byzantine": (1, 2) if n == 70_000 else (1,)} for n in range(1, 100_001)]
    into = bins(1, 100_000, 400)
    assert into == Bins(1, 100_000, 250, 400)
    got = heat(events, 3, into)
    assert (got[0] == CLASSES.index("caught")).all()
    assert np.flatnonzero(got[1] == CLASSES.index("missed")).tolist() == [(70_000 - 1) // 250]
