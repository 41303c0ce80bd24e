"""The plot of examples/README.md: how the GPT of examples/gpt.py trains, attack-free, coded and without a code.

    .venv/bin/python -m benchmarks.gpt_curves docs/gpt.svg

Five trainings, simulated, one after the other: half a minute each on a core. It says whether the coded losses are the
attack-free ones bit for bit.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt

JOB = "examples/gpt.yaml"
REVERSED = "attack=reverse_gradient"
UNCODED = "scheme=uncoded"
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
    {"color": "C3", "linewidth": 1.2, "marker": "x", "markevery": [-1]},
)


def losses(overrides: tuple[str, ...], runs: Path) -> list[float]:
    """Train the job with overrides; return its loss at each step, in nats, which ends where a run diverged."""
    given = [word for override in overrides for word in ("--set", override)]
    command = [sys.executable, "-m", "draco", "train", JOB, "--simulate", "--new", "--runs", str(runs), *given]
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=3600)
    (events,) = runs.glob("*/events.jsonl")
    recorded = [json.loads(line) for line in events.read_text().splitlines()]
    return [event["loss"] for event in recorded if event["event"] == "step"]


def draw(target: Path) -> None:
    """Train all and write the plot."""
    mpl.rcParams["svg.hashsalt"] = "draco"  # the same figures give the same file
    figure, axes = plt.subplots(figsize=(8, 3.8), layout="constrained")
    found: dict[str, list[float]] = {}
    for (label, overrides), style in zip(RUNS.items(), STYLES, strict=True):
        with tempfile.TemporaryDirectory() as folder:
            found[label] = curve = losses(overrides, Path(folder))
        print(f"{label:36} {len(curve):4} steps, last loss {curve[-1]:.4g}", flush=True)
        axes.plot(range(1, len(curve) + 1), [min(abs(loss), 1e9) for loss in curve], label=label, **style)
    free, *coded = list(found.values())[:3]
    print(f"coded and attack-free losses are the same bits: {all(curve == free for curve in coded)}")
    axes.set(xlabel="step", ylabel="training loss, nats per byte", ylim=(2, 6.5))
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    figure.savefig(target, metadata={"Date": None})


if __name__ == "__main__":
    mpl.use("Agg")
    draw(Path(sys.argv[1]))
