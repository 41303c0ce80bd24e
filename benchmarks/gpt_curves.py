"""The plot of examples/README.md: how the GPT of examples/gpt.py trains, attack-free, coded and without a code.

    .venv/bin/python -m benchmarks.gpt_curves docs/gpt.svg

Five trainings, simulated, one after the other: a minute each on a core. It says whether the coded losses are the
attack-free ones bit for bit.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import matplotlib.pyplot as plt

JOB = "examples/gpt.yaml"
REVERSED = "attack=reverse_gradient"
UNCODED = "scheme=uncoded"
EVERY = "eval_every=25"
TOP = 9  # bits per byte that are shown
# What is trained -> overrides of the job. The first three are one curve, drawn ever thinner.
RUNS: dict[str, tuple[str, ...]] = {
    "repetition, no attack": ("attack=none",),
    "repetition under alie": (),
    "repetition under reverse_gradient": (REVERSED,),
    "krum under alie": (UNCODED, "scheme.adversaries=3", "aggregator=krum"),
    "mean under reverse_gradient": (REVERSED, UNCODED, "attack.adversaries=3"),
}
STYLES: tuple[dict[str, Any], ...] = (
    {"color": "0.75", "linewidth": 6},
    {"color": "C0", "linewidth": 3},
    {"color": "black", "linewidth": 1, "linestyle": ":"},
    {"color": "C1", "linewidth": 1.2},
    {"color": "C3", "linewidth": 1.2},
)


class Curve(NamedTuple):
    """One training."""

    losses: list[float]  # as reported, by step
    evaluated: dict[int, float]  # step -> bits per byte of the test text


def train(overrides: Iterable[str], runs: Path) -> Curve:
    """Train the job with overrides."""
    given = [word for override in (*overrides, EVERY) for word in ("--set", override)]
    command = [sys.executable, "-m", "draco", "train", JOB, "--simulate", "--new", "--runs", str(runs), *given]
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=3600)
    (run,) = runs.iterdir()
    recorded, evaluations = (
        [json.loads(line) for line in (run / f"{name}.jsonl").read_text().splitlines()]
        for name in ("events", "evaluations")
    )
    losses = [event["loss"] for event in recorded if event["event"] == "step"]
    return Curve(losses, {found["step"]: found["bits_per_byte"] for found in evaluations})


def draw(target: Path) -> None:
    """Train all and write the plot."""
    mpl.rcParams["svg.hashsalt"] = "draco"  # the same figures give the same file
    figure, axes = plt.subplots(figsize=(8, 3.8), layout="constrained")
    reported: list[list[float]] = []
    for (label, overrides), style in zip(RUNS.items(), STYLES, strict=True):
        with tempfile.TemporaryDirectory() as folder:
            curve = train(overrides, Path(folder))
        reported.append(curve.losses)
        print(f"{label:36} {len(curve.losses):4} steps, bits per byte {[*curve.evaluated.values()]}", flush=True)
        first, *_, last = curve.evaluated.values()
        beyond = f" (above: {first:.0f} to {last:.0f})" if first > TOP else ""
        axes.plot([*curve.evaluated], [*curve.evaluated.values()], label=label + beyond, **style)
    free, *coded = reported[:3]
    print(f"coded and attack-free losses are the same bits: {all(losses == free for losses in coded)}")
    axes.set(xlabel="step", ylabel="bits per byte of the test text", ylim=(3, TOP))
    axes.axhline(8, color="0.5", linewidth=0.8, linestyle="--")
    axes.text(200, 8.06, "knows nothing", ha="right", fontsize="small", color="0.3")
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    figure.savefig(target, metadata={"Date": None})


if __name__ == "__main__":
    mpl.use("Agg")
    draw(Path(sys.argv[1]))
