"""Reports of tasks without accuracy: which metrics have a line, a column and a curve, beside runs that have it."""

import math
from pathlib import Path

import pytest
from html_tree import Document
from recorded import lines, whole_run, write_run

from draco import report
from draco.cli.main import main
from draco.report import figures, tables
from draco.report.figures import Curves
from draco.report.page import gather, write

MAE = [
    {"step": 1, "mae": 4.0, "loss": 9.0, "samples": 50, "by": "training"},
    {"step": 3, "mae": 2.5, "f1": math.nan, "loss": math.inf, "samples": 50},
]


@pytest.fixture
def lefts(tmp_path: Path) -> list[report.Left]:
    """A run of the built-in task, and one of a regression that has diverged."""
    images = write_run(tmp_path / "a", lines(whole_run()), name="images")
    return [
        report.read(images),
        report.read(write_run(tmp_path / "b", lines(whole_run()), evaluations=MAE, name="own")),
    ]


def test_the_metrics_of_a_task_stand_where_accuracy_does(lefts: list[report.Left]) -> None:
    facts = [fact for fact in tables.facts(lefts[1].summary) if fact[0] in ("accuracy", "evaluation")]
    assert facts == [("evaluation", "mae 2.5, f1 nan, loss inf of 50 test samples after step 3")]


def test_columns_are_those_of_all_runs_and_accuracy_is_the_first(lefts: list[report.Left]) -> None:
    images, own = (left.summary for left in lefts)
    assert tables.columns([images])[4:6] == ["accuracy", "caught"]
    assert tables.columns([own])[4:8] == ["test mae", "test f1", "test loss", "caught"]
    assert tables.columns([own, images])[4:9] == ["accuracy", "test mae", "test f1", "test loss", "caught"]
    shown = tables.quality([images, own])
    assert tables.cells(images, shown)[4:8] == ["90.00%", "-", "-", "0.25"]
    assert tables.cells(own, shown)[4:8] == ["-", "2.5", "nan", "inf"]
    assert report.markdown([images, own]).count("| inf |") == 1


def test_a_task_cannot_take_the_place_of_another_column(lefts: list[report.Left], tmp_path: Path) -> None:
    odd = [{"step": 1, "loss": 1.0, "samples": 1, **dict.fromkeys(("accuracy", "caught", "run"), 0.5)}]
    left = report.read(write_run(tmp_path / "c", lines(whole_run()), evaluations=odd, name="odd"))
    headers = tables.columns([left.summary, lefts[0].summary])
    assert len({*headers}) == len(headers)
    assert {"test accuracy", "test caught", "test run", "accuracy", "caught", "run"} <= {*headers}


def test_each_metric_has_a_curve_below_the_loss(lefts: list[report.Left]) -> None:
    runs = gather(lefts)
    assert figures.drawn([runs[0].series]) == ["top1"]
    assert figures.drawn([runs[1].series]) == ["mae", "f1", "loss"]
    drawn = figures.curves([Curves(run.label, run.series) for run in runs])
    labels = [axes.get_ylabel() for axes in drawn.axes[::2]]
    assert labels == ["training loss", "test accuracy, %", "test mae", "test f1", "test loss"]
    ys = [line.get_ydata() for line in drawn.axes[4].get_lines() if line.get_marker() == "o"]
    assert [list(y) for y in ys] == [pytest.approx([math.nan, math.nan], nan_ok=True), [4.0, 2.5]]


def test_the_page_names_the_metrics_and_has_their_numbers(lefts: list[report.Left], tmp_path: Path) -> None:
    document = Document(write(lefts[1:], tmp_path / "page").read_text())
    assert document.faults == []
    assert "Loss and metrics" in document.text
    assert "Training loss and test mae and test f1 and test loss, left against the step" in document.text
    assert document.rows("step")[:3] == [
        ["step", "seconds", "mae", "f1", "test loss"], ["1", "0.0", "4", "nan", "9"], ["3", "0.0", "2.5", "nan", "inf"],
    ]  # fmt: skip


def test_a_plot_of_runs_that_do_not_all_have_accuracy_is_of_their_losses(
    lefts: list[report.Left], monkeypatch: pytest.MonkeyPatch
) -> None:
    quality, drawn = figures.quality, list[str]()
    monkeypatch.setattr(figures, "quality", lambda runs, metric: drawn.append(metric) or quality(runs, metric))
    runs = [str(left.summary.run) for left in lefts]
    target = lefts[0].summary.run / "curves.svg"
    for given in (runs[:1], runs, runs[1:]):
        assert main(["report", *given, "--plot", str(target)]) == 0
        assert target.read_bytes().startswith(b"<?xml")
    assert drawn == ["top1", "loss", "loss"]
