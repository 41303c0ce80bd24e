"""The figures of a report: curves of all runs in one, and of each run who lied, where time went, and what was sent.

Drawn without a display; the same runs give the same files. The colours are those of Okabe and Ito, which readers with
any kind of colour vision tell apart. Names of runs are never taken for mathematics or for matplotlib's marks.
"""

import io
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

os.environ.pop("MPLBACKEND", None)  # a notebook's: where it is unknown matplotlib cannot be imported
import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator

from draco import metrics
from draco.report.series import CLASSES, PARTS, Floats, Series, heat, maxima, means

mpl.rcdefaults()  # the same figures whatever matplotlibrc is in the working folder or the user's home
DPI = 120
MOST = 400  # columns in a figure: two pixels each
COLOURS = {
    "no record": "#ffffff", "honest": "#dcdcdc", "straggling": "#56b4e9", "lost": "#333333", "suspect": "#cc79a7",
    "caught": "#0072b2", "falsely accused": "#f0e442", "missed": "#d55e00",
}  # fmt: skip
_LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
_STYLES = ("-", "--", "-.", ":")  # curves that coincide stay visible
_PARTS = dict(zip(PARTS, ("#0072b2", "#56b4e9", "#e69f00", "#d55e00", "#009e73", "#cc79a7"), strict=True))
_SHOWN = {"interruption": ("v", "#d55e00", "interruption"), "resume": ("^", "#009e73", "resumed")}
_EXPELLED: dict[str, Any] = {"color": "#000000", "linestyle": "-", "marker": "x", "markersize": 6}
_LONG = 48  # letters of a name in a legend
_METRICS = 4  # of a task's own, of which curves are drawn
_SPREAD = 50.0  # of losses, from which on their axis is logarithmic


class Curves(NamedTuple):
    """One run as a line in a figure."""

    label: str
    series: Series


def encoded(figure: Figure, kind: str) -> bytes:
    """Return the figure as a file of that kind: png, svg, ..."""
    buffer = io.BytesIO()
    metadata: dict[str, Any] = {"svg": {"Date": None}, "png": {"Software": None}}.get(kind, {})
    for text in figure.findobj(Text):
        if isinstance(text, Text) and "$" in text.get_text():  # a name; matplotlib's own are only written as it draws
            text.set_parse_math(False)
    with warnings.catch_warnings(), mpl.rc_context({"svg.hashsalt": "draco"}):
        warnings.filterwarnings("ignore", message="Glyph")  # a letter that the font lacks is drawn as a box
        figure.savefig(buffer, format=kind, metadata=metadata)
    return buffer.getvalue()


def drawn(runs: Iterable[Series]) -> list[str]:
    """Return the metrics of which the runs have curves: accuracy, those of other tasks, and their loss."""
    evaluated = [run for run in runs if len(run.evaluations)]
    found = metrics.ordered(name for run in evaluated for name in run.metrics)
    own = [name for name in found if name not in metrics.MODES][:_METRICS]
    others = any("top1" not in run.metrics for run in evaluated)
    return [*(["top1"] if "top1" in found else []), *own, *(["loss"] if others else [])]


def quality(runs: Sequence[Curves], metric: str) -> Figure:
    """Draw a metric of the test samples by step."""
    figure = _new(4)
    axes = figure.subplots()
    lines = [_evaluations(axes, run, index, metric, column=0) for index, run in enumerate(runs)]
    axes.set(xlabel="step", ylabel=_axis(metric))
    _stretch(axes, [run.series.metric(metric) for run in runs], metric)
    axes.grid(alpha=0.3)
    axes.legend(lines, _labels(runs), fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def curves(runs: Sequence[Curves]) -> Figure:
    """Draw loss and, where there are evaluations, metrics: against the step and against the run's own clock."""
    shown_metrics = drawn(run.series for run in runs)
    figure = _new(3.2 + 2.2 * len(shown_metrics))
    grid = figure.subplots(1 + len(shown_metrics), 2, squeeze=False, sharex="col", sharey="row")
    scale, unit = _time_unit(runs)
    lines = []
    for index, run in enumerate(runs):
        for column in (0, 1):
            x, loss = _loss(run.series, column)
            (line,) = grid[0, column].plot(x / (scale if column else 1), loss, **_look(index), linewidth=1.2)
            for row, metric in enumerate(shown_metrics, start=1):
                _evaluations(grid[row, column], run, index, metric, column, scale if column else 1)
        lines.append(line)
    shown = [_mark(axes, run.series, scale) for axes in grid[:, 1] for run in runs]
    _stretch(grid[0, 0], [_loss(run.series, 0)[1] for run in runs], "loss")
    grid[0, 0].set_ylabel("training loss")
    for row, metric in enumerate(shown_metrics, start=1):
        grid[row, 0].set_ylabel(_axis(metric))
        _stretch(grid[row, 0], [run.series.metric(metric) for run in runs], metric)
    grid[-1, 0].set_xlabel("step")
    grid[-1, 1].set_xlabel(f"time, {unit}")
    for axes in grid.flat:
        axes.grid(alpha=0.3)
    kinds = [kind for kind in _SHOWN if any(kind in each for each in shown)]
    keys = [Line2D([], [], color=_SHOWN[kind][1], linestyle=":", marker=_SHOWN[kind][0]) for kind in kinds]
    _legend(figure, [*lines, *keys], [*_labels(runs), *(_SHOWN[kind][2] for kind in kinds)], columns=2)
    return figure


def suspects(run: Series, expelled: Mapping[int, int] = {}) -> Figure:
    """Draw who was what at which step, worker by step; where steps share a column, its worst class.

    `expelled`: by rank, the step from which on a worker is expelled; a line with a cross at its beginning.
    """
    into = run.bins(MOST)
    grid = heat(run.records, run.workers, into)
    figure = _new(float(np.clip(1.4 + 0.24 * run.workers, 2.2, 12)))
    axes = figure.subplots()
    axes.imshow(
        grid, cmap=ListedColormap(list(COLOURS.values())), vmin=-0.5, vmax=len(CLASSES) - 0.5, aspect="auto",
        interpolation="nearest", extent=(into.edges[0], into.edges[-1], run.workers + 0.5, 0.5),
    )  # fmt: skip
    axes.set(xlabel="step", ylabel="worker", xlim=(into.edges[0], run.steps[-1] + 0.5))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=32, integer=True))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for mark in run.marks:
        if mark.kind in _SHOWN:
            shape, colour, _ = _SHOWN[mark.kind]
            axes.plot(
                [np.clip(mark.step + 0.5, into.edges[0], run.steps[-1] + 0.5)], [1.0], shape, color=colour,
                clip_on=False, markersize=6, transform=axes.get_xaxis_transform(),
            )  # fmt: skip
    for rank, step in expelled.items():
        axes.plot([max(step, into.edges[0]), run.steps[-1] + 0.5], [rank, rank], **_EXPELLED, markevery=[0])
    present = [index for index in range(len(CLASSES)) if (grid == index).any()]
    keys: list[Patch | Line2D] = [Patch(facecolor=COLOURS[CLASSES[i]], edgecolor="#888888") for i in present]
    kinds = [kind for kind in _SHOWN if any(mark.kind == kind for mark in run.marks)]
    keys += [Line2D([], [], color=_SHOWN[kind][1], linestyle="", marker=_SHOWN[kind][0]) for kind in kinds]
    labels = [*(CLASSES[i] for i in present), *(_SHOWN[kind][2] for kind in kinds)]
    if expelled:
        keys, labels = [*keys, Line2D([], [], **_EXPELLED)], [*labels, "expelled from there on"]
    _legend(figure, keys, labels, columns=8)
    return figure


def seconds(run: Series) -> Figure:
    """Draw the milliseconds of a step's parts on top of each other; where steps share a column, their means.

    The axis is cut where a few slow steps, such as the first, would make the others too low to see.
    """
    into = run.bins(MOST)
    figure, axes = _figure("ms per step", run)
    base = np.zeros(into.number)
    for index, part in enumerate(PARTS):
        top = base + np.nan_to_num(1e3 * means(run.parts[:, index], run.steps, into))
        axes.stairs(top, into.edges, baseline=base, fill=True, color=_PARTS[part])
        base = top
    axes.set_ylim(0, time_limit(base) or None)
    _legend(figure, [Patch(color=_PARTS[part]) for part in PARTS], list(PARTS), columns=len(PARTS))
    return figure


def time_limit(heights: Floats) -> float:
    """Return where the axis of `seconds` ends: at the highest, or at thrice the median of those that are not 0."""
    above = heights[heights > 0]
    return float(min(1.05 * above.max(), 3 * np.median(above))) if len(above) else 0.0


def received(run: Series) -> Figure:
    """Draw the megabytes that the server received in a step; where steps share a column, their mean."""
    into = run.bins(MOST)
    figure, axes = _figure("MB per step", run)
    axes.stairs(means(run.received, run.steps, into) / 1e6, into.edges, baseline=None, color=_LINES[0])
    axes.set_ylim(bottom=0)
    return figure


def errors(run: Series) -> Figure:
    """Draw the decoding error of each step; where steps share a column, the largest."""
    into = run.bins(MOST)
    figure, axes = _figure("decoding error", run)
    values = maxima(run.errors, run.steps, into)
    axes.stairs(values, into.edges, baseline=None, color=_LINES[1])
    known = values[np.isfinite(values)]
    if len(known) and known.min() > 0 and known.max() > _SPREAD * known.min():
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    return figure


def copies(run: Series) -> Figure:
    """Draw how many workers computed each partition, and what is left of that; where steps share a column, means.

    A step that was undone stands as a triangle at its place.
    """
    into = run.bins(MOST)
    figure, axes = _figure("copies per partition", run)
    axes.stairs(means(run.copies, run.steps, into), into.edges, baseline=None, color=_LINES[0])
    axes.stairs(means(run.redundancy, run.steps, into), into.edges, baseline=None, color=_LINES[1], linestyle="--")
    axes.set_ylim(bottom=0)
    keys = [Line2D([], [], color=_LINES[0]), Line2D([], [], color=_LINES[1], linestyle="--")]
    labels = ["computed", "at the next step, if nobody lies"]
    if undone := [mark.step + 1 for mark in run.marks if mark.kind == "undone"]:
        axes.plot(undone, [0] * len(undone), "^", color=_LINES[3], clip_on=False)
        keys, labels = [*keys, Line2D([], [], color=_LINES[3], linestyle="", marker="^")], [*labels, "step undone"]
    _legend(figure, keys, labels, columns=3)
    return figure


def _new(height: float) -> Figure:
    figure = Figure(figsize=(8, height), dpi=DPI)
    figure.set_layout_engine("constrained", h_pad=0.08)  # inches: room for the marks above the axes
    return figure


def _figure(what: str, run: Series) -> tuple[Figure, Axes]:
    figure = _new(2.8)
    axes = figure.subplots()
    axes.set(xlabel="step", ylabel=what, xlim=(run.steps[0] - 0.5, run.steps[-1] + 0.5))
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    return figure, axes


def _loss(run: Series, column: int) -> tuple[Floats, Floats]:
    """Return the losses' places, by step (column 0) or second (column 1), and the losses; of a long run their means."""
    x = run.seconds if column else run.steps.astype(np.float64)
    if len(run.steps) <= MOST:
        return x, run.loss
    into = run.bins(MOST)
    return means(x, run.steps, into), means(run.loss, run.steps, into)


def _evaluations(axes: Axes, run: Curves, index: int, metric: str, column: int, scale: float = 1.0) -> Line2D:
    values = run.series.metric(metric)
    values = np.where(np.isfinite(values), 100 * values if metric == "top1" else values, np.nan)
    x = run.series.evaluations[:, column] / scale
    (line,) = axes.plot(x, values, **_look(index), marker="o", markersize=3)
    return line


def _axis(metric: str) -> str:
    return "test accuracy, %" if metric == "top1" else f"test {metric}"


def _stretch(axes: Axes, values: Sequence[Floats], metric: str) -> None:
    """Make an axis logarithmic where what stands on it is spread widely above 0; accuracy's never is."""
    whole = np.concatenate(values) if values else np.zeros(0)
    known = whole[np.isfinite(whole)]
    if metric != "top1" and len(known) and known.min() > 0 and known.max() > _SPREAD * known.min():
        axes.set_yscale("log")


def _look(index: int) -> dict[str, Any]:
    return {"color": _LINES[index % len(_LINES)], "linestyle": _STYLES[index % len(_STYLES)]}


def _mark(axes: Axes, run: Series, scale: float) -> set[str]:
    """Draw a line at each interruption and resumption; return which of the two there are."""
    shown = [mark for mark in run.marks if mark.kind in _SHOWN and np.isfinite(mark.seconds)]
    for mark in shown:
        shape, colour, _ = _SHOWN[mark.kind]
        axes.axvline(
            mark.seconds / scale, color=colour, linestyle=":", linewidth=1, marker=shape, markevery=[1], clip_on=False
        )
    return {mark.kind for mark in shown}


def _time_unit(runs: Sequence[Curves]) -> tuple[float, str]:
    longest = max((np.nanmax(run.series.seconds, initial=0.0) for run in runs), default=0.0)
    return (1.0, "s") if longest < 600 else (60.0, "min") if longest < 3 * 3600 else (3600.0, "h")


def _labels(runs: Sequence[Curves]) -> list[str]:
    return [run.label if len(run.label) <= _LONG else f"{run.label[: _LONG - 1]}…" for run in runs]


def _legend(figure: Figure, keys: Sequence[Line2D | Patch], labels: Sequence[str], columns: int) -> None:
    """Put a legend below."""
    figure.legend(
        keys, labels, loc="outside lower center", ncols=min(columns, max(len(keys), 1)), fontsize="small", frameon=False
    )
