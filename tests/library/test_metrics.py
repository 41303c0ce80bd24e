"""Metrics: which names there are, in which order they are shown, and which value is better."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from draco import metrics

NUMBERS = st.floats(allow_nan=True, allow_infinity=True)


@given(NUMBERS, NUMBERS, st.sampled_from(["min", "max"]))
def test_the_better_of_two_has_the_higher_merit_and_no_number_has_the_lowest(a: float, b: float, mode) -> None:
    better = metrics.merit(a, mode) > metrics.merit(b, mode)
    if math.isnan(a):
        assert not better
    elif math.isnan(b):
        assert better or abs(a) == math.inf
    else:
        assert better == (a < b if mode == "min" else a > b)


def test_of_equals_the_one_with_the_lower_loss_is_better() -> None:
    ranks = [metrics.rank({"top1": 0.5, "loss": loss}, "top1", "max") for loss in (0.2, 0.9, math.nan)]
    assert ranks == sorted(ranks, reverse=True)
    assert len({*ranks}) == 3


def test_accuracy_counts_where_there_is_one_and_else_the_loss() -> None:
    assert metrics.usual(["mae", "top1", "loss"]) == "top1"
    assert metrics.usual(["mae", "loss"]) == "loss"
    assert [metrics.mode_of(name) for name in ("loss", "top1", "top5")] == ["min", "max", "max"]
    with pytest.raises(KeyError):
        metrics.mode_of("accuracy")  # which no name tells


def test_metrics_are_shown_accuracy_first_and_the_loss_last() -> None:
    assert metrics.ordered(["loss", "mae", "top5", "f1", "top1", "mae"]) == ["top1", "top5", "mae", "f1", "loss"]
    assert metrics.ordered([]) == []
    assert [metrics.shown(name, 0.12345) for name in ("top1", "mae")] == ["12.35%", "0.1235"]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["loss", "step"], "step is no name of a metric: the record of an evaluation has it already"),
        (["loss", "f1-macro"], "'f1-macro' is no name of a metric"),
        (["loss", "a\n"], r"'a\n' is no name of a metric"),
        (["loss", 3], "3 is no name of a metric"),
        (["mae"], "loss is missing among its metrics, mae"),
        ([], "loss is missing among its metrics, of which there are none"),
        (["loss", *(f"m{i}" for i in range(32))], "33 metrics are more than the 32 that are recorded"),
        (["loss", *(f"m{i}" for i in range(31))], ""),
    ],
)
def test_what_cannot_be_recorded_is_said(names: list[str], words: str) -> None:
    said = metrics.fault(dict.fromkeys(names, 0.0))
    assert said.startswith(words)
    assert bool(said) == bool(words)


def test_of_a_record_only_its_other_numbers_are_metrics() -> None:
    record = {"step": 1, "time": 2.0, "samples": 3, "by": "training", "loss": 1, "mae": 0.5, "flag": True, "note": "x"}
    assert metrics.recorded(record) == {"loss": 1.0, "mae": 0.5}
