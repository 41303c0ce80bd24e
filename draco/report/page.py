"""The page: one file of HTML on one run, or on several side by side, and its figures as PNG files beside it.

`write` and `plot` write; everything else is pure. Nothing in it depends on when it is made: a run that has ended always
gives the same page.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from draco import files
from draco.errors import MissingError
from draco.report import elements, figures, tables
from draco.report.section import Run, one_run
from draco.report.series import Series, bins, means, series
from draco.report.summary import Left, Summary

_ROWS = 50  # lines of a table of losses; of a longer run their means
_NAMED = 60  # letters of runs' names that become a folder's


def write(lefts: Sequence[Left], folder: Path | None = None) -> Path:
    """Write the page of these runs, with its figures, into a folder and return its path.

    Args:
        lefts: what they left.
        folder: made if it is not there; left out, see `place`.

    Raises:
        MissingError: the folder cannot be written.
    """
    runs = gather(lefts)
    pictures = draw(runs)
    target = (folder or place([left.summary.run for left in lefts])) / "index.html"
    contents = {**{f"{stem}.png": png for stem, png in pictures.items()}, target.name: render(runs, pictures).encode()}
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for file, content in contents.items():
            files.replace(target.parent / file, content)
    except (PermissionError, FileExistsError, NotADirectoryError) as error:
        why = f"the report cannot be written there ({error.strerror}); name another folder with --html"
        raise MissingError(f"{target.parent}: {why}") from error
    return target


def plot(lefts: Sequence[Left], target: Path) -> None:
    """Draw test accuracy by step, one line a run, into a file whose ending decides the format."""
    runs = gather(lefts)
    ends = ["" if run.summary.state == "succeeded" else f" ({run.summary.state})" for run in runs]
    some = [figures.Curves(run.label + end, run.series) for run, end in zip(runs, ends, strict=True)]
    target.write_bytes(figures.encoded(figures.accuracy(some), target.suffix.removeprefix(".")))


def gather(lefts: Sequence[Left]) -> list[Run]:
    """Return the runs with their names and arrays."""
    labels = name([left.summary for left in lefts])
    return [Run(label, left, series(left.events, left.evaluations)) for label, left in zip(labels, lefts, strict=True)]


def place(runs: Sequence[Path]) -> Path:
    """Return where a page belongs: in its run, or beside its runs in a folder of their names, or a hash of them."""
    whole = [run.resolve() for run in runs]
    if len(whole) == 1:
        return runs[0] / "report"
    names = "-".join(run.name for run in whole)
    short = names if len(names) <= _NAMED else hashlib.sha256("\n".join(map(str, whole)).encode()).hexdigest()[:12]
    return runs[0].parent / f"report-{short}"


def name(summaries: Sequence[Summary]) -> list[str]:
    """Return what the runs are called: by their jobs, where those repeat by their directories, numbered at the last."""
    jobs, folders = [s.name for s in summaries], [s.run.resolve().name for s in summaries]
    found = [job if jobs.count(job) == 1 else folder for job, folder in zip(jobs, folders, strict=True)]
    return [label if found.count(label) == 1 else f"{label} ({at})" for at, label in enumerate(found, start=1)]


def draw(runs: Sequence[Run]) -> dict[str, bytes]:
    """Return the figures as PNG files, by the stem of their names; of a run that took no step there are none."""
    some = [figures.Curves(run.label, run.series) for run in runs if len(run.series.steps)]
    found = {"curves": figures.curves(some)} if some else {}
    for at, run in enumerate(runs, start=1):
        if len(run.series.steps):
            found[f"suspects-{at}"] = figures.suspects(run.series)
            found[f"seconds-{at}"] = figures.seconds(run.series)
            found[f"received-{at}"] = figures.received(run.series)
            if not np.isnan(run.series.errors).all():
                found[f"errors-{at}"] = figures.errors(run.series)
    return {stem: figures.encoded(figure, "png") for stem, figure in found.items()}


def render(runs: Sequence[Run], pictures: Mapping[str, bytes]) -> str:
    """Return the page as HTML, with the figures that `draw` has returned."""
    title = f"Draco: {runs[0].label}" if len(runs) == 1 else f"Draco: {len(runs)} runs"
    body = ["<header>", elements.heading(1, title)]
    if len(runs) > 1:
        body.append(elements.links((f"run-{at}", run.label) for at, run in enumerate(runs, start=1)))
    body += ["</header><main>", *_overview(runs), *_curves(runs, pictures.get("curves"))]
    for at, run in enumerate(runs, start=1):
        body += [f"<section>{elements.heading(2, run.label, f'run-{at}')}", *one_run(run, at, pictures), "</section>"]
    return elements.page(title, [*body, "</main>"])


# --- All runs --------------------------------------------------------------------------------------------------------


def _overview(runs: Sequence[Run]) -> Iterator[str]:
    yield elements.heading(2, "Summary", "summary")
    summaries = [run.summary for run in runs]
    if len(runs) == 1:
        yield elements.facts([("state", summaries[0].state), *tables.facts(summaries[0])])
    else:
        yield elements.table(tables.COLUMNS, map(tables.cells, summaries), tables.WORDS)
        yield from map(elements.paragraph, tables.footnotes(summaries))
    yield elements.paragraph("Times and bytes are medians over the steps. Lies are counted per worker and step.")


def _curves(runs: Sequence[Run], png: bytes | None) -> Iterator[str]:
    yield elements.heading(2, "Loss and accuracy", "curves")
    if png is None:
        yield elements.paragraph("No step is on record.", warn=True)
        return
    without = [run.label for run in runs if not len(run.series.evaluations)]
    if without:
        yield elements.paragraph(f"Not evaluated, so without an accuracy: {', '.join(without)}.", warn=True)
    yield elements.image(png, f"Curves. {' '.join(map(_ends, runs))}", _CURVES)
    for run in runs:
        yield elements.folded(f"Numbers: {run.label}", *_numbers(run.series))


_CURVES = (
    "Training loss and test accuracy, left against the step, right against the run's own time, which begins with its "
    "first event and stands still while nobody looked after the run. An accuracy stands at the time of its step, "
    f"whenever it was evaluated. Of runs of more than {figures.MOST} steps means are drawn."
)


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


def _numbers(run: Series) -> Iterator[str]:
    rows = [
        (f"{step:.0f}", elements.seconds(second), f"{top1:.2%}", f"{top5:.2%}", f"{loss:.4g}")
        for step, second, top1, top5, loss in run.evaluations.tolist()
    ]
    if rows:
        yield elements.table(("step", "seconds", "top-1", "top-5", "test loss"), rows)
    if not len(run.steps):
        yield elements.paragraph("No step is on record.")
        return
    into = bins(int(run.steps[0]), int(run.steps[-1]), _ROWS)
    columns = [means(values, run.steps, into) for values in (run.seconds, run.loss)]
    first = into.first + into.size * np.arange(into.number)
    yield elements.table(
        ("steps", "seconds", "training loss"),
        [
            (_range(int(at), min(int(at) + into.size - 1, into.last)), elements.seconds(second), _figure(loss))
            for at, second, loss in zip(first, *columns, strict=True)
        ],
    )


def _range(first: int, last: int) -> str:
    return str(first) if first == last else f"{first} to {last}"


def _figure(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4g}"
