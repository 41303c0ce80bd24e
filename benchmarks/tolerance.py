"""The figures of docs/checked.md: honest residuals, what errors at the tolerance do, and whether replays pay.

    .venv/bin/python -m benchmarks.tolerance [honest] [sums] [gradients] [training] [pays]

Without a name it prints all, on one thread, in about 20 minutes of one core. Times are of the thread's own clock,
so that other programs disturb them less.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch.nn import functional as F

from benchmarks.tolerance_attack import across, against_learning, losses, moved, noise, worst_direction
from benchmarks.tolerance_cases import Case, build
from draco.replay import CheatError, record, replay
from draco.replay.pays import advise, measure
from draco.replay.tolerance import LEAST, default_tolerance

CASES = (("lenet", 48), ("gpt 4x128", 2), ("resnet18", 4))
# Who computes: environment, threads, oneDNN. The checker has all instructions, one thread and oneDNN.
WORKERS: dict[str, tuple[dict[str, str], int, bool]] = {
    "as the checker": ({}, 1, True),
    "2 threads": ({}, 2, True),
    "without oneDNN": ({}, 1, False),
    "without oneDNN, 2 threads": ({}, 2, False),
    "AVX2 throughout": ({"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}, 1, True),
    "products in SSE4.1": ({"ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"}, 1, True),
    "no vector instructions in ATen": ({"ATEN_CPU_CAPABILITY": "default"}, 1, True),
}


def _record(threads: str, onednn: str, folder: str) -> None:
    torch.set_num_threads(int(threads))
    with torch.backends.mkldnn.flags(enabled=onednn == "True"):
        for number, (name, samples) in enumerate(CASES):
            torch.save(record(build(name, samples).gradient)[1], Path(folder) / str(number))


def honest() -> None:
    """Print the largest residual of honest workers with other kernels; a tolerance of 1 lets all of them pass."""
    for worker, (environment, threads, onednn) in WORKERS.items():
        with tempfile.TemporaryDirectory() as folder:
            command = [
                sys.executable,
                "-W",
                "ignore",
                "-m",
                "benchmarks.tolerance",
                "record",
                str(threads),
                str(onednn),
            ]
            subprocess.run([*command, folder], env={**os.environ, **environment}, check=True)
            transcripts = [torch.load(Path(folder) / str(number)) for number in range(len(CASES))]
        for (name, samples), transcript in zip(CASES, transcripts, strict=True):
            print(f"{name} {samples} | {worker} | {_judged(build(name, samples), transcript)}", flush=True)


def _judged(case: Case, transcript: torch.Tensor) -> str:
    """Return the largest residual under 3 secrets, and whether the default tolerance lets it pass."""
    verdicts = [replay(case.gradient, transcript, generator=_secret(seed), tolerance=1.0)[1] for seed in range(3)]
    worst = max(verdicts, key=lambda verdict: verdict.worst)
    try:
        replay(case.gradient, transcript, generator=_secret(3))
        end = "passes"
    except CheatError as error:
        end = f"convicted: {error}"
    return f"{worst.worst:.1e} ({worst.where}) | {end}"


def sums() -> None:
    """Print how far oneDNN's weight gradients with long sums are from those in float64, by the scale of each row."""
    for images in (4, 16, 64, 256):
        for positive in (False, True):
            generator = _secret(0)
            x, by = (torch.randn(images, channels, 32, 32, generator=generator) for channels in (8, 16))
            x, by = (x.abs(), by.abs()) if positive else (x, by)
            false, true = _by_weights(x, by).double(), _by_weights(x.double(), by.double())
            rows = true.norm(dim=0)
            scale = rows + rows.square().mean().sqrt() + by.double().norm() * x.double().square().mean().sqrt()
            worst = float(((false - true).norm(dim=0) / scale).max())
            length = images * 32 * 32
            print(f"sums of {length:,}, positive: {positive} | {worst:.1e} | tolerance {default_tolerance(length):.1e}")


def _by_weights(x: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
    weights = torch.zeros(by.shape[1], x.shape[1], 3, 3, dtype=x.dtype, requires_grad=True)
    return torch.autograd.grad(F.conv2d(x, weights, padding=1), weights, by)[0]


def gradients() -> None:
    """Print by how much errors at the tolerance move gradients, relative to their norm."""
    for name, samples in CASES:
        case = build(name, samples)
        iterations = 3 if name == "resnet18" else 6
        print(
            f"{name} {samples} | amplification in the worst direction {worst_direction(case, iterations):.0f}",
            flush=True,
        )
        for size in (LEAST / 100, LEAST, 10 * LEAST, 100 * LEAST):
            print(f"{name} {samples} | tolerance {size:.0e} | noise {moved(case, noise(3 * size, 1)):.1e}", end="")
            if name != "gpt 4x128":
                print(f" | kinks {moved(case, across(3 * size, centred=name != 'lenet')):.1e}", end="")
            if name == "lenet":
                print(f" | against learning {moved(case, against_learning(case, 3 * size)):.1e}", end="")
            print(flush=True)


def training() -> None:
    """Print the losses of LeNet with nobody lying, twice, and with a liar in every product of every step."""
    attacks: dict[str, tuple[Callable[[Case], Callable[..., torch.Tensor]] | None, int]] = {
        "free": (None, 0),
        "free, other samples": (None, 1),
        "tolerance": (partial(against_learning, size=3 * LEAST), 0),
        "100 tolerances": (partial(against_learning, size=300 * LEAST), 0),
    }
    for name, (attack, seed) in attacks.items():
        print(f"{name} | {' '.join(f'{loss:.3f}' for loss in losses(attack, 120, 20, seed))}", flush=True)


def pays() -> None:
    """Print what replays cost, and from how many copies on they are the quicker way."""
    sizes = [("lenet", 48), ("lenet", 480), ("resnet18", 4), ("resnet18", 12), ("resnet18", 48)]
    for name, samples in [*sizes, ("gpt 4x256", 1), ("gpt 4x256", 4), ("gpt 4x768", 1), ("gpt 4x768", 4)]:
        case = build(name, samples)
        numbers = sum(parameter.numel() for parameter in case.model.parameters())
        costs = measure(case.gradient, clock=time.thread_time, generator=_secret(1), numbers=numbers)
        few, many = (advise(costs, pairs=pairs, adversaries=2) for pairs in (3, 13))
        quick = advise(costs, pairs=13, adversaries=2, bytes_a_second=1.25e10)
        print(
            f"{name} {samples} | gradient {costs.gradient_s * 1e3:.0f} ms | replay {few.share:.2f} | "
            f"{few.transcript_bytes / 1e6:.1f} MB, {costs.transcript / numbers:.1f} d | "
            f"copies {few.copies:.1f} of 3 pairs, {many.copies:.1f} of 13; sample {many.sampled:.2f}, "
            f"2 verifiers {many.drawn:.1f}, at 100 Gbit/s {quick.drawn:.1f} | digest {costs.digest_s * 1e3:.0f} ms",
            flush=True,
        )


def _secret(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


if __name__ == "__main__":
    if sys.argv[1:2] == ["record"]:
        _record(*sys.argv[2:])
    else:
        torch.set_num_threads(1)
        for section in (honest, sums, gradients, training, pays):
            if len(sys.argv) == 1 or section.__name__ in sys.argv[1:]:
                section()
