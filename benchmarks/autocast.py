"""What autocast does to the agreement of honest workers: differences between step vectors that should be alike.

    python -m benchmarks.autocast          prints the table of docs/numerics.md

Every model and format is computed by processes of their own, as threads and instruction sets are a process's. A
difference is |a - b| / |b| over the gradient, b computed with one thread and the processor's own instructions.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from draco import data
from draco.tasks import Task
from draco.tasks.images import ImageClassification
from draco.training.autocast import Autocast
from draco.training.gradients import Plan, StepVectors

FORMATS = {"float32": "none", "bfloat16": "bfloat16", "float16": "float16"}
IMAGES = {"fc": "synthetic", "lenet": "synthetic"}
MODELS = (*IMAGES, "transformer")
WEIGHTS = (0.3, 0.4, 0.3)  # of an encoded row
SIZE = 16  # samples in a partition
# What a process is told -> what differs.
SETTINGS: dict[str, tuple[int, Mapping[str, str]]] = {
    "again": (1, {}),
    "2 threads": (2, {}),
    "AVX2 only": (1, {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}),
}


class Sequences(Task):
    """A small transformer that classifies sequences of random tokens."""

    def model(self) -> nn.Module:
        """Return it without dropout."""
        layer = nn.TransformerEncoderLayer(64, 4, 256, dropout=0.0, batch_first=True)
        return nn.Sequential(
            nn.Embedding(100, 64), nn.TransformerEncoder(layer, 3), nn.Flatten(), nn.Linear(64 * 32, 10)
        )

    def samples(self, split: str) -> Any:
        """Return tokens (N, 32) and labels (N,)."""
        return torch.randint(100, (500, 32)), torch.randint(10, (500,))

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the cross entropy of each sequence."""
        tokens, labels = batch
        return torch.nn.functional.cross_entropy(model(tokens), labels, reduction="none")


def vectors(model: str, kind: str, folder: Path) -> dict[str, Tensor]:
    """Return gradients (p,): of the first partition, and of a row of three in one pass and one after the other."""
    torch.manual_seed(1)
    task = Sequences() if model == "transformer" else ImageClassification(model, IMAGES[model], folder, 7)
    samples = task.samples("train")
    plan = Plan(7, 3 * SIZE, 3, 500, autocast=Autocast(FORMATS[kind], 1024.0))
    of = StepVectors(task, task.model(), samples, plan)
    found = {name: torch.zeros(of.elements) for name in ("alone", "fused", "explicit")}
    each = torch.zeros(of.elements)
    for partition, weight in enumerate(WEIGHTS):
        of.partition(1, partition, each)
        found["explicit"] += weight * each
        if not partition:
            found["alone"].copy_(each)
    of.weighted(1, range(3), WEIGHTS, found["fused"])
    return {name: vector[: of.parameters] for name, vector in found.items()}


def compute(model: str, kind: str, setting: str, folder: Path) -> dict[str, Tensor]:
    """Return the same from a process of its own."""
    threads, environment = SETTINGS[setting]
    out = folder / "vectors.pt"
    words = [sys.executable, "-m", "benchmarks.autocast", "--one", model, kind, str(threads), str(folder), str(out)]
    subprocess.run(words, check=True, env={**os.environ, "OMP_NUM_THREADS": str(threads), **environment})
    found: dict[str, Tensor] = torch.load(out, weights_only=True)
    return found


def difference(a: Tensor, b: Tensor) -> str:
    """Return |a - b| / |b| in words; 0 where all bits are equal."""
    return "0" if torch.equal(a, b) else f"{float((a.double() - b.double()).norm() / b.double().norm()):.1e}"


def main() -> None:
    """Print the table, or compute for it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--one", nargs=5)
    args = parser.parse_args()
    if args.one:
        model, kind, threads, folder, out = args.one
        torch.set_num_threads(int(threads))
        torch.save(vectors(model, kind, Path(folder)), out)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for each in IMAGES.values():
            data.prepare(each, folder)
        print("| model | format | again | one pass against three | 2 threads | AVX2 only | against float32 |")
        print("|---|---|--:|--:|--:|--:|--:|")
        for model in MODELS:
            exact = compute(model, "float32", "again", folder)["alone"]
            for kind in FORMATS:
                first = compute(model, kind, "again", folder)
                told = {
                    setting: difference(compute(model, kind, setting, folder)["alone"], first["alone"])
                    for setting in SETTINGS
                }
                cells = [
                    told["again"],
                    difference(first["fused"], first["explicit"]),
                    told["2 threads"],
                    told["AVX2 only"],
                ]
                print(f"| {model} | {kind} | {' | '.join([*cells, difference(first['alone'], exact)])} |", flush=True)


if __name__ == "__main__":
    main()
