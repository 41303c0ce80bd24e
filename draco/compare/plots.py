"""The plots: accuracy by step with a panel for each attack, and final accuracy of every setting under every attack."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from draco.compare.results import Ranking, Result
from draco.compare.table import in_words, worst_in_words

_PANELS_IN_A_ROW = 3  # more are put into a square
_STYLES = ("-", "--", ":", "-.")  # lines that coincide stay visible
_BRIGHT = 0.6  # accuracy from which the colour is so light that text on it must be dark


def draw(results: Sequence[Result], ranking: Ranking, folder: Path) -> list[Path]:
    """Draw both plots into the folder, each as PNG and as SVG, and return the files."""
    from draco.report.figures import encoded

    drawings: Mapping[str, Callable[[], Any]] = {
        "accuracy": lambda: curves(results, ranking),
        "final": lambda: heat_map(ranking),
    }
    files = []
    for name, drawing in drawings.items():
        figure = drawing()
        for kind in ("png", "svg"):
            files.append(folder / f"{name}.{kind}")
            files[-1].write_bytes(encoded(figure, kind))
    return files


def curve(group: Sequence[Result]) -> list[tuple[int, float, float]]:
    """Return (step, mean, standard deviation) of the accuracy over cells that differ in their seed only.

    It ends where the first of them has no more evaluations: a mean over those that are left would be of others.
    """
    by_step: dict[int, list[float]] = {}
    for result in group:
        for e in result.evaluations:
            by_step.setdefault(e["step"], []).append(e["top1"])
    return [
        (step, mean(values), stdev(values) if len(values) > 1 else 0.0)
        for step, values in sorted(by_step.items())
        if len(values) == len(group)
    ]


def curves(results: Sequence[Result], ranking: Ranking) -> Any:
    """Return the figure of accuracy by step: one panel an attack, one line a setting, one standard deviation around."""
    from matplotlib.figure import Figure

    count = len(ranking.attacks)
    columns = count if count <= _PANELS_IN_A_ROW else math.ceil(math.sqrt(count))
    lines = -(-count // columns)
    figure = Figure(figsize=(3.2 * columns + 2.6, 2.8 * lines), layout="constrained")
    panels = list(figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flat)
    for axes, attack in zip(panels, ranking.attacks, strict=False):
        for index, setting in enumerate(sorted(ranking.settings)):
            group = [r for r in results if (r.cell.setting, r.cell.attack) == (setting, attack)]
            _line(axes, index, setting, group)
        axes.set_title(attack, fontsize="medium")
        axes.grid(alpha=0.3)
    for axes in panels[count:]:
        axes.set_visible(False)
    figure.supxlabel("step", fontsize="medium")
    figure.supylabel("test accuracy, %", fontsize="medium")
    lines_drawn = {str(line.get_label()): line for axes in figure.axes for line in axes.get_lines()}
    shown = {label: line for label, line in lines_drawn.items() if not label.startswith("_")}
    figure.legend(list(shown.values()), list(shown), loc="outside right center", fontsize="small")
    return figure


def _line(axes: Any, index: int, setting: str, group: Sequence[Result]) -> None:
    points = [(step, 100 * average, 100 * spread) for step, average, spread in curve(group)]
    color, style = f"C{index % 10}", _STYLES[index % len(_STYLES)]
    failed = [result.outcome.step for result in group if result.outcome.state == "failed"]
    if not group:
        return
    axes.plot([p[0] for p in points], [p[1] for p in points], style, color=color, marker=".", label=setting)
    axes.fill_between(
        [p[0] for p in points], [max(p[1] - p[2], 0) for p in points], [min(p[1] + p[2], 100) for p in points],
        color=color, alpha=0.2, linewidth=0,
    )  # fmt: skip
    if failed:  # a training that ended early ends at the bottom
        axes.plot(failed, [0] * len(failed), "x", color=color, label="_fails")


def heat_map(ranking: Ranking) -> Any:
    """Return the figure of final accuracies: a row a setting, the best worst accuracy on top, a column an attack."""
    from matplotlib.figure import Figure

    columns = [*ranking.attacks, "worst"]
    height, width = len(ranking.settings), len(columns)
    figure = Figure(figsize=(1.25 * width + 3.2, 0.42 * height + 1.1), layout="constrained")
    axes = figure.subplots()
    values = [[_value(ranking, setting, column) for column in columns] for setting in ranking.settings]
    shown = [[float("nan") if value is None else 100 * value for value, _ in line] for line in values]
    image = axes.imshow(shown, vmin=0, vmax=100, cmap="viridis", aspect="auto")
    for i, line in enumerate(values):
        for j, (value, text) in enumerate(line):
            color = "black" if value is None or value > _BRIGHT else "white"
            axes.text(j, i, text, ha="center", va="center", fontsize="small", color=color)
    axes.set_xticks(range(width), columns, rotation=20, ha="right")
    axes.set_yticks(range(height), ranking.settings)
    axes.axvline(width - 1.5, color="white", linewidth=3)
    figure.colorbar(image, label="test accuracy, %")
    return figure


def _value(ranking: Ranking, setting: str, column: str) -> tuple[float | None, str]:
    """Return what a square of the heat map shows: a fraction for its colour, and its text."""
    row = ranking.rows.get((setting, column))
    if column != "worst":
        return (row["accuracy"] if row else None), in_words(row).replace("%", "")
    rows = [row for (other, _), row in ranking.rows.items() if other == setting]
    return rows[0]["worst"], worst_in_words(rows).replace("%", "")
