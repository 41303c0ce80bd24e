"""The memory that a step takes with micro-batches and with recomputed activations, on a small transformer.

    python -m benchmarks.activations          prints the table of docs/training.md

Each figure is how far the peak of a process's resident size rises with its first step vector.
"""

import argparse
import importlib
import resource
import subprocess
import sys
from typing import Any

import torch
from torch import Tensor, nn

from draco.tasks import Task
from draco.training.gradients import Plan, StepVectors

SAMPLES = 32
CASES = {"neither": (0, ""), "`micro_batch: 8`": (8, ""), "`micro_batch: 2`": (2, ""), "`recompute: [1.*]`": (0, "1.*"),
         "both, with 8": (8, "1.*")}  # fmt: skip


class Text(Task):
    """Six layers of width 256 that guess the next of 128 bytes."""

    def model(self) -> nn.Module:
        """Return it without dropout."""
        layers = [nn.TransformerEncoderLayer(256, 4, 1024, dropout=0.0, batch_first=True) for _ in range(6)]
        return nn.Sequential(nn.Embedding(256, 256), nn.Sequential(*layers), nn.Linear(256, 256))

    def samples(self, split: str) -> Tensor:
        """Return bytes (N, 129)."""
        return torch.randint(256, (SAMPLES, 129))

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the mean cross entropy of each sequence."""
        logits = model(batch[:, :-1]).transpose(1, 2)
        return nn.functional.cross_entropy(logits, batch[:, 1:], reduction="none").mean(1)


def risen(micro_batch: int, recompute: str) -> float:
    """Return by how many MiB the peak rises."""
    torch.set_num_threads(1)
    task, globs = Text(), (recompute,) if recompute else ()
    plan = Plan(7, SAMPLES, 1, SAMPLES, micro_batch=micro_batch or None, recompute=globs)
    vectors = StepVectors(task, task.model(), task.samples("train"), plan)
    importlib.import_module("torch._dynamo")  # which torch's checkpoint imports, and is no activation
    out = torch.zeros(vectors.elements)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    vectors.partition(1, 0, out)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def main() -> None:
    """Print the table, or one figure of it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--one", nargs=2)
    args = parser.parse_args()
    if args.one:
        print(risen(int(args.one[0]), args.one[1]))
        return
    print("| | MiB |\n|---|--:|")
    for name, (micro_batch, recompute) in CASES.items():
        words = [sys.executable, "-m", "benchmarks.activations", "--one", str(micro_batch), recompute]
        print(f"| {name} | {float(subprocess.check_output(words, text=True)):.0f} |", flush=True)


if __name__ == "__main__":
    main()
