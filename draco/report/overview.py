"""The part of the page on all runs, as values for its template: their numbers side by side, loss and accuracy."""

from collections.abc import Sequence
from typing import Any

from draco.report import figures, tables
from draco.report.elements import Picture, Run, Table, number
from draco.report.series import Series, means
from draco.report.summary import Summary

_ROWS = 50  # lines of a table of losses; of a longer run their means
_CURVES = (
    "Training loss and test accuracy, left against the step, right against the run's own time, which begins with its "
    "first event and stands still while nobody looked after the run. An accuracy stands at the time of its step, "
    f"whenever it was evaluated. Of runs of more than {figures.MOST} steps means are drawn."
)


def summary(of: Sequence[Summary]) -> dict[str, Any]:
    """Return the numbers of the runs: of one run as facts, of several as a table."""
    return {
        "facts": [("state", of[0].state), *tables.facts(of[0])] if len(of) == 1 else [],
        "table": Table(tables.COLUMNS, list(map(tables.cells, of)), tables.WORDS),
        "footnotes": tables.footnotes(of) if len(of) > 1 else [],
    }


def curves(runs: Sequence[Run], png: bytes) -> dict[str, Any]:
    """Return the figure of all runs, and its numbers run by run."""
    return {
        "without": [run.label for run in runs if not len(run.series.evaluations)],
        "picture": Picture(png, f"Curves. {' '.join(map(_ends, runs))}", _CURVES),
        "numbers": [{"label": run.label, **_numbers(run.series)} for run in runs],
    }


def _ends(run: Run) -> str:
    """Say in words where a run's curves begin and end."""
    steps, loss, evaluations = run.series.steps, run.series.loss, run.series.evaluations
    if not len(steps):
        return f"{run.label}: no step."
    said = f"{run.label}: loss {loss[0]:.4g} at step {steps[0]} to {loss[-1]:.4g} at step {steps[-1]}"
    if len(evaluations):
        said += f", accuracy {evaluations[0, 2]:.2%} at step {evaluations[0, 0]:.0f}"
        said += f" to {evaluations[-1, 2]:.2%} at step {evaluations[-1, 0]:.0f}"
    return f"{said}."


def _numbers(run: Series) -> dict[str, Table]:
    accuracy = [
        (f"{step:.0f}", number(second, ",.1f"), f"{top1:.2%}", f"{top5:.2%}", f"{loss:.4g}")
        for step, second, top1, top5, loss in run.evaluations.tolist()
    ]
    return {
        "accuracy": Table(("step", "seconds", "top-1", "top-5", "test loss"), accuracy),
        "loss": Table(("steps", "seconds", "training loss"), _losses(run) if len(run.steps) else []),
    }


def _losses(run: Series) -> list[tuple[str, ...]]:
    into = run.bins(_ROWS)
    columns = [means(values, run.steps, into) for values in (run.seconds, run.loss)]
    starts = range(into.first, into.last + 1, into.size)
    return [
        (_range(first, min(first + into.size - 1, into.last)), number(second, ",.1f"), number(loss, ".4g"))
        for first, second, loss in zip(starts, *columns, strict=True)
    ]


def _range(first: int, last: int) -> str:
    return str(first) if first == last else f"{first} to {last}"
