"""The part of the page on all runs, as values for its template: their numbers side by side, loss and metrics."""

from collections.abc import Sequence
from typing import Any

from draco import metrics
from draco.report import figures, tables
from draco.report.elements import Picture, Run, Table, number
from draco.report.series import Series, means
from draco.report.summary import Summary

_ROWS = 50  # lines of a table of losses; of a longer run their means
_CURVES = (
    "Training loss and {what}, left against the step, right against the run's own time, which begins with its "
    "first event and stands still while nobody looked after the run. An evaluation stands at the time of its step, "
    f"whenever it was made. Of runs of more than {figures.MOST} steps means are drawn."
)


def summary(of: Sequence[Summary]) -> dict[str, Any]:
    """Return the numbers of the runs: of one run as facts, of several as a table."""
    rows = [tables.cells(s, tables.quality(of), tables.rounds(of)) for s in of]
    return {
        "facts": [("state", of[0].state), *tables.facts(of[0])] if len(of) == 1 else [],
        "table": Table(tables.columns(of), rows, tables.WORDS),
        "footnotes": tables.footnotes(of) if len(of) > 1 else [],
    }


def curves(runs: Sequence[Run], png: bytes) -> dict[str, Any]:
    """Return the figure of all runs, and its numbers run by run."""
    return {
        "title": "Loss and accuracy" if "top1" in figures.drawn([run.series for run in runs]) else "Loss and metrics",
        "without": [run.label for run in runs if not len(run.series.evaluations)],
        "picture": Picture(png, f"Curves. {' '.join(map(_ends, runs))}", _CURVES.format(what=_what(runs))),
        "numbers": [{"label": run.label, **_numbers(run.series)} for run in runs],
    }


def _what(runs: Sequence[Run]) -> str:
    """Say which metrics the figure of all runs shows."""
    shown = figures.drawn([run.series for run in runs]) or ["top1"]
    return " and ".join(f"test {'accuracy' if name == 'top1' else name}" for name in shown)


def _ends(run: Run) -> str:
    """Say in words where a run's curves begin and end."""
    steps, loss, evaluations = run.series.steps, run.series.loss, run.series.evaluations
    if not len(steps):
        return f"{run.label}: no step."
    said = f"{run.label}: loss {loss[0]:.4g} at step {steps[0]} to {loss[-1]:.4g} at step {steps[-1]}"
    for name in figures.drawn([run.series]):
        values = run.series.metric(name)
        first, last = metrics.shown(name, values[0]), metrics.shown(name, values[-1])
        said += f", {'accuracy' if name == 'top1' else f'test {name}'} {first} at step {evaluations[0, 0]:.0f}"
        said += f" to {last} at step {evaluations[-1, 0]:.0f}"
    return f"{said}."


def _numbers(run: Series) -> dict[str, Table]:
    evaluations = [
        (f"{step:.0f}", number(second, ",.1f"), *map(metrics.shown, run.metrics, values))
        for step, second, *values in run.evaluations.tolist()
    ]
    names = ["test loss" if name == "loss" else metrics.label(name) for name in run.metrics]
    return {
        "evaluations": Table(("step", "seconds", *names), evaluations),
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
