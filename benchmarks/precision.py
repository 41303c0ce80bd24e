"""What float64_rounded costs, and how often unlike kernels tie: two tables of docs/numerics.md.

    python -m benchmarks.precision                 prints both
    python -m benchmarks.precision --only time     the ratio of gradient times, with one thread
    python -m benchmarks.precision --only ties     expected and counted ties, each setting in a process of its own

Two float64 results that are e apart are on both sides of the middle between two multiples of the quantum q with the
probability e / q. So the expected number of ties of two vectors is the sum of e / q over their elements. It is compared
with the same for plain float32, in which q is each element's own unit in the last place.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.autocast import Sequences
from benchmarks.timing import Call, alternate
from draco import data
from draco.tasks import Task
from draco.tasks.images import ImageClassification
from draco.training.gradients import Plan, StepVectors
from draco.training.rounding import exponents

# Model -> data set, samples in a partition, steps of which ties are counted.
IMAGES: Mapping[str, tuple[str, int, int]] = {
    "fc": ("synthetic", 16, 20), "lenet": ("synthetic", 16, 20), "resnet18": ("synthetic_rgb", 8, 1)
}  # fmt: skip
TRANSFORMER = ("", 16, 20)
SETTINGS: Mapping[str, tuple[int, Mapping[str, str]]] = {
    "own": (1, {}),
    "2 threads": (2, {"OMP_WAIT_POLICY": "passive"}),
    "AVX2": (1, {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}),
    "SSE": (1, {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"}),
}


class Watched(StepVectors):
    """Step vectors, of which the float64 numbers are kept."""

    exact: Tensor

    def _hand_over(self, out: Tensor) -> None:
        assert self._staging is not None
        self.exact = self._staging.clone()
        super()._hand_over(out)

    def quanta(self) -> Tensor:
        """Return the quantum of each element of the last vector (d,), as rounding.py takes it."""
        found = []
        for part, sizes in self._groups():
            for size, exponent in zip(sizes, exponents(torch.split(self.exact[part], sizes)), strict=True):
                found.append(torch.full((size,), 1.0 if exponent is None else 2.0**exponent, dtype=torch.float64))
        return torch.cat(found)


def task_of(model: str, folder: Path) -> tuple[Task, int]:
    """Return the task of a model, and the samples of a partition."""
    name, size, _ = IMAGES.get(model, TRANSFORMER)
    return (ImageClassification(model, name, folder, 7) if name else Sequences()), size


def built(model: str, precision: str, folder: Path, kind: type[StepVectors] = StepVectors) -> Any:
    """Return what computes a model's vectors."""
    torch.manual_seed(1)
    task, size = task_of(model, folder)
    return kind(task, task.model(), task.samples("train"), Plan(7, 3 * size, 3, 500, precision=precision))


def one(model: str, setting: str, folder: Path) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield each step's float64 vector, the rounded one, and the quanta; weights walk at random, alike everywhere."""
    of = built(model, "float64_rounded", folder, Watched)
    weights = torch.load(folder / f"{model}.pt", weights_only=True)
    out = torch.zeros(of.elements)
    for step in range(1, IMAGES.get(model, TRANSFORMER)[2] + 1):
        source = torch.Generator().manual_seed(step)
        weights += (torch.rand(len(weights), generator=source) - 0.5) * 1e-3  # torch.randn depends on the kernels
        of.load(step, weights)
        of.partition(step, 0, out)
        yield of.exact, out.clone(), of.quanta()


def ties(folder: Path, models: list[str]) -> None:
    """Print the table of ties."""
    print("| model | d | kernels | expected in plain float32 | expected | counted | steps |")
    print("|---|--:|---|--:|--:|--:|--:|")
    for model in models:
        torch.save(built(model, "float32", folder)._flat.clone(), folder / f"{model}.pt")
        for setting, (threads, environment) in SETTINGS.items():
            words = [sys.executable, "-m", "benchmarks.precision", "--one", model, setting, str(folder)]
            subprocess.run(words, check=True, env={**os.environ, "OMP_NUM_THREADS": str(threads), **environment})
        own = torch.load(folder / f"{model}-own.pt", weights_only=True, mmap=True)
        for setting in list(SETTINGS)[1:]:
            other = torch.load(folder / f"{model}-{setting}.pt", weights_only=True, mmap=True)
            plain = expected = 0.0
            counted = 0
            for (a, rounded_a, quanta), (b, rounded_b, _) in zip(own, other, strict=True):
                apart = (a - b).abs()
                unit = torch.ldexp(torch.ones_like(a), torch.frexp(a.float())[1].clamp(min=-125) - 24)
                plain += float((apart / unit).clamp(max=1).sum())
                expected += float((apart / quanta).sum())
                counted += int((rounded_a != rounded_b).sum())
            n, size = len(own), f"{model} | {own[0][0].numel():,}"
            print(f"| {size} | {setting} | {plain / n:.1e} | {expected / n:.1e} | {counted} | {n} |", flush=True)


def next_step(of: StepVectors) -> Call:
    """Return a call that computes the vector of partition 0 of one more step each time."""
    out, steps = torch.zeros(of.elements), count(1)
    return lambda: of.partition(next(steps), 0, out)


def times(folder: Path, models: list[str], repeats: int) -> None:
    """Print how many times as long a step vector takes in float64, with one thread."""
    torch.set_num_threads(1)
    print("| model | samples | float32, ms | float64_rounded, ms | ratio |")
    print("|---|--:|--:|--:|--:|")
    for model in models:
        formats = ("float32", "float64_rounded")
        took = alternate({each: next_step(built(model, each, folder)) for each in formats}, repeats)
        single, wide = took["float32"], took["float64_rounded"]
        size = IMAGES.get(model, TRANSFORMER)[1]
        print(f"| {model} | {size} | {1e3 * single:.1f} | {1e3 * wide:.1f} | {wide / single:.2f} |", flush=True)


def main() -> None:
    """Print the tables, or compute for them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--one", nargs=3)
    parser.add_argument("--only", choices=("time", "ties"))
    parser.add_argument("--models", nargs="+", default=[*IMAGES, "transformer"])
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    if args.one:
        model, setting, folder = args.one
        torch.set_num_threads(SETTINGS[setting][0])
        torch.save([*one(model, setting, Path(folder))], Path(folder, f"{model}-{setting}.pt"))
        return
    with tempfile.TemporaryDirectory() as name:
        for each in {kind for kind, _, _ in IMAGES.values()}:
            data.prepare(each, Path(name))
        began = time.monotonic()
        if args.only != "ties":
            times(Path(name), args.models, args.repeats)
        if args.only != "time":
            ties(Path(name), args.models)
        print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
