"""The page: one file of HTML on one run, or on several side by side, and its figures as PNG files beside it.

`write` and `plot` write; everything else is pure. The page does not depend on when it is made: a run that has ended
always gives the same page.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from draco import files
from draco.errors import MissingError
from draco.plain import plain
from draco.report import figures
from draco.report.elements import Run
from draco.report.overview import curves, summary
from draco.report.section import expelled_from, section
from draco.report.series import series
from draco.report.summary import Left, Summary

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
    except OSError as error:
        if not files.fault(error):
            raise
        why = f"the report cannot be written there ({error.strerror}); name another folder with --html"
        raise MissingError(f"{target.parent}: {why}") from error
    return target


def plot(lefts: Sequence[Left], target: Path) -> None:
    """Draw test accuracy by step, one line a run, into a file whose ending decides the format.

    Where a run has no accuracy, their losses are drawn.
    """
    runs = gather(lefts)
    ends = ["" if run.left.summary.state == "succeeded" else f" ({run.left.summary.state})" for run in runs]
    some = [figures.Curves(run.label + end, run.series) for run, end in zip(runs, ends, strict=True)]
    evaluated = [run.series for run in runs if len(run.series.evaluations)]
    metric = "top1" if all("top1" in series.metrics for series in evaluated) else "loss"
    try:
        content = figures.encoded(figures.quality(some, metric), target.suffix.removeprefix("."))
    except ValueError as error:  # no such format
        raise MissingError(f"{target}: the figure cannot be drawn ({error}); name a file that ends in .svg") from error
    files.replace(target, content)


def gather(lefts: Sequence[Left]) -> list[Run]:
    """Return the runs with their names and arrays."""
    labels = name([left.summary for left in lefts])
    return [Run(label, left, series(left.events, left.evaluations)) for label, left in zip(labels, lefts, strict=True)]


def place(runs: Sequence[Path]) -> Path:
    """Return where a page belongs: in its run, or beside its runs in a folder with their names, or a hash of them."""
    whole = [run.resolve() for run in runs]
    if len(whole) == 1:
        return runs[0] / "report"
    names = "-".join(run.name for run in whole)
    short = names if len(names) <= _NAMED else hashlib.sha256("\n".join(map(str, whole)).encode()).hexdigest()[:12]
    return runs[0].parent / f"report-{short}"


def name(summaries: Sequence[Summary]) -> list[str]:
    """Return the runs' labels: job names, directory names where those repeat, with numbers where those repeat too."""
    jobs, folders = [plain(s.name) for s in summaries], [plain(s.run.resolve().name) for s in summaries]
    found = [job if jobs.count(job) == 1 else folder for job, folder in zip(jobs, folders, strict=True)]
    return [label if found.count(label) == 1 else f"{label} ({at})" for at, label in enumerate(found, start=1)]


def draw(runs: Sequence[Run]) -> dict[str, bytes]:
    """Return the figures as PNG files, by the stem of their names; of a run that took no step there are none."""
    some = [figures.Curves(run.label, run.series) for run in runs if len(run.series.steps)]
    found = {"curves": figures.curves(some)} if some else {}
    for at, run in enumerate(runs, start=1):
        if len(run.series.steps):
            found[f"suspects-{at}"] = figures.suspects(run.series, expelled_from(run))
            found[f"seconds-{at}"] = figures.seconds(run.series)
            found[f"received-{at}"] = figures.received(run.series)
            if not np.isnan(run.series.errors).all():
                found[f"errors-{at}"] = figures.errors(run.series)
            if not np.isnan(run.series.copies).all():
                found[f"copies-{at}"] = figures.copies(run.series)
    return {stem: figures.encoded(figure, "png") for stem, figure in found.items()}


def render(runs: Sequence[Run], pictures: Mapping[str, bytes]) -> str:
    """Return the page as HTML, with the figures that `draw` has returned."""
    environment = Environment(
        loader=PackageLoader("draco.report"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    return environment.get_template("page.html.j2").render(
        title=f"Draco: {runs[0].label}" if len(runs) == 1 else f"Draco: {len(runs)} runs",
        summary=summary([run.left.summary for run in runs]),
        curves=curves(runs, pictures["curves"]) if "curves" in pictures else None,
        sections=[section(run, at, pictures) for at, run in enumerate(runs, start=1)],
    )
