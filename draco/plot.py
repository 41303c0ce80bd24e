"""The picture of a comparison: test accuracy by step, one line a run, as SVG or PNG."""

from collections.abc import Sequence
from pathlib import Path

from draco import events
from draco.report import Summary


def accuracy_curves(summaries: Sequence[Summary], target: Path) -> None:
    """Draw the evaluations of every run into `target`; its ending decides the format."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "draco"  # the same runs give the same file
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for index, summary in enumerate(summaries):
        points = sorted((e["step"], 100 * e["top1"]) for e in events.read(summary.run / "evaluations.jsonl"))
        label = summary.name if summary.state == "succeeded" else f"{summary.name} ({summary.state})"
        style = ("-", "--", ":", "-.")[index % 4]  # curves that coincide stay visible
        axes.plot([p[0] for p in points], [p[1] for p in points], style, marker="o", markersize=3, label=label)
    axes.set(xlabel="step", ylabel="test accuracy, %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(target, metadata={"Date": None} if target.suffix == ".svg" else None)
