"""The plots: the measure by step with a panel for each attack, and after the last step by setting and attack."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from draco.compare.measure import Measure, value
from draco.compare.results import Ranking, Result
from draco.compare.table import in_words, worst_in_words

_PANELS_IN_A_ROW = 3  # more are put into a square
_STYLES = ("-", "--", ":", "-.")  # lines that coincide stay visible
_BRIGHT = 0.6  # share of the colours from which they are so light that text on them must be dark


def draw(results: Sequence[Result], ranking: Ranking, folder: Path) -> list[Path]:
    """Draw both plots into the folder, each as PNG and as SVG, and return the files."""
    from draco.report.figures import encoded

    drawings: Mapping[str, Callable[[], Any]] = {
        "accuracy" if ranking.measure.is_accuracy else f"test-{ranking.measure.metric}": lambda: curves(
            results, ranking
        ),
        "final": lambda: heat_map(ranking),
    }
    files = []
    for name, drawing in drawings.items():
        figure = drawing()
        for kind in ("png", "svg"):
            files.append(folder / f"{name}.{kind}")
            files[-1].write_bytes(encoded(figure, kind))
    return files


def curve(group: Sequence[Result], measure: Measure) -> list[tuple[int, float, float]]:
    """Return (step, mean, standard deviation) of the measure over cells that differ in their seed only.

    It ends where the first of them has no more evaluations: a mean over those that are left would be of others.
    """
    by_step: dict[int, list[float]] = {}
    for result in group:
        for e in result.evaluations:
            by_step.setdefault(e["step"], []).append(value(e, measure.metric))
    return [
        (step, mean(values), stdev(values) if len(values) > 1 else 0.0)
        for step, values in sorted(by_step.items())
        if len(values) == len(group) and all(map(math.isfinite, values))
    ]


def curves(results: Sequence[Result], ranking: Ranking) -> Any:
    """Return the figure of the measure by step: a panel for each attack, a line for each setting with its spread."""
    from matplotlib.figure import Figure

    count = len(ranking.attacks)
    columns = count if count <= _PANELS_IN_A_ROW else math.ceil(math.sqrt(count))
    lines = -(-count // columns)
    figure = Figure(figsize=(3.2 * columns + 2.6, 2.8 * lines), layout="constrained")
    panels = list(figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flat)
    for axes, attack in zip(panels, ranking.attacks, strict=False):
        for index, setting in enumerate(sorted(ranking.settings)):
            group = [r for r in results if (r.cell.setting, r.cell.attack) == (setting, attack)]
            _line(axes, index, setting, group, ranking.measure)
        axes.set_title(attack, fontsize="medium")
        axes.grid(alpha=0.3)
    for axes in panels[count:]:
        axes.set_visible(False)
    figure.supxlabel("step", fontsize="medium")
    figure.supylabel(ranking.measure.axis, fontsize="medium")
    lines_drawn = {str(line.get_label()): line for axes in figure.axes for line in axes.get_lines()}
    shown = {label: line for label, line in lines_drawn.items() if not label.startswith("_")}
    figure.legend(list(shown.values()), list(shown), loc="outside right center", fontsize="small")
    return figure


def _line(axes: Any, index: int, setting: str, group: Sequence[Result], measure: Measure) -> None:
    scale, most = measure.scale, 100.0 if measure.is_accuracy else math.inf
    points = [(step, scale * average, scale * spread) for step, average, spread in curve(group, measure)]
    color, style = f"C{index % 10}", _STYLES[index % len(_STYLES)]
    failed = [result.outcome.step for result in group if result.outcome.state == "failed"]
    if not group:
        return
    axes.plot([p[0] for p in points], [p[1] for p in points], style, color=color, marker=".", label=setting)
    least = 0.0 if measure.is_accuracy else -math.inf
    axes.fill_between(
        [p[0] for p in points], [max(p[1] - p[2], least) for p in points], [min(p[1] + p[2], most) for p in points],
        color=color, alpha=0.2, linewidth=0,
    )  # fmt: skip
    if failed:  # a training that ended early ends at the bottom
        bottom = {} if measure.is_accuracy else {"transform": axes.get_xaxis_transform()}
        axes.plot(failed, [0] * len(failed), "x", color=color, label="_fails", **bottom)


def heat_map(ranking: Ranking) -> Any:
    """Return the figure of final values: a row a setting, the best of the worst ones on top, a column an attack."""
    from matplotlib.figure import Figure

    columns = [*ranking.attacks, "worst"]
    height, width = len(ranking.settings), len(columns)
    figure = Figure(figsize=(1.25 * width + 3.2, 0.42 * height + 1.1), layout="constrained")
    axes = figure.subplots()
    values = [[_value(ranking, setting, column) for column in columns] for setting in ranking.settings]
    scale, (least, most) = ranking.measure.scale, _range(ranking)
    shown = [[scale * (math.nan if final is None else final) for final, _ in line] for line in values]
    colours = "viridis" if ranking.measure.mode == "max" else "viridis_r"  # the lighter the better
    image = axes.imshow(shown, vmin=least, vmax=most, cmap=colours, aspect="auto")
    for i, line in enumerate(values):
        for j, (_, text) in enumerate(line):
            share = (shown[i][j] - least) / (most - least)
            share = share if ranking.measure.mode == "max" else 1 - share
            color = "white" if share <= _BRIGHT else "black"
            axes.text(j, i, text, ha="center", va="center", fontsize="small", color=color)
    axes.set_xticks(range(width), columns, rotation=20, ha="right")
    axes.set_yticks(range(height), ranking.settings)
    axes.axvline(width - 1.5, color="white", linewidth=3)
    figure.colorbar(image, label=ranking.measure.axis)
    return figure


def _range(ranking: Ranking) -> tuple[float, float]:
    """Return the values at the ends of the colours: 0 and 100 % of accuracy, else the least and the most there are."""
    if ranking.measure.is_accuracy:
        return 0.0, 100.0
    known = [final for row in ranking.rows.values() if (final := row[ranking.measure.column]) is not None]
    finite = [final for final in known if math.isfinite(final)] or [0.0]
    return min(finite), max(finite) if max(finite) > min(finite) else min(finite) + 1.0


def _value(ranking: Ranking, setting: str, column: str) -> tuple[float | None, str]:
    """Return what a square of the heat map shows: a number for its colour, and its text."""
    row, measure = ranking.rows.get((setting, column)), ranking.measure
    if column != "worst":
        return (row[measure.column] if row else None), in_words(row, measure).replace("%", "")
    rows = [row for (other, _), row in ranking.rows.items() if other == setting]
    return rows[0]["worst"], worst_in_words(rows, measure).replace("%", "")
