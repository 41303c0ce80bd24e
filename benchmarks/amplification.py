"""The plot of docs/numerics.md: the amplification of the cyclic codes by n and s, and the measured error of decoding.

    .venv/bin/python -m benchmarks.amplification docs/amplification.svg

Shapes: n workers = partitions, s adversaries, d parameters. Everything is drawn from fixed seeds.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import torch

from draco.schemes import build
from draco.schemes.cyclic import ROUNDING
from draco.schemes.cyclic_code import real_code, worst_amplification
from draco.schemes.cyclic_dft import dft_code

ADVERSARIES = (1, 2, 3, 5)
WORKERS = range(3, 46, 2)  # odd, where the redundancy is 2s + 1 throughout
MEASURED = ((5, 1), (9, 1), (15, 1), (45, 1), (9, 2), (15, 2), (45, 2), (15, 3), (31, 3), (45, 3), (25, 5), (45, 5))
WIDTH = 20_000  # d
TRIALS = 20


class Point(NamedTuple):
    """One code under one placement of the Byzantine workers."""

    workers: int
    adversaries: int
    adjacent: bool  # rows of Byzantine workers: neighbours, or drawn
    promised: float  # amplification times the rounding of a float32
    error: float  # the largest relative error of the decoded mean


def amplification_by_workers(adversaries: int, *, published: bool) -> tuple[list[int], list[float]]:
    """Return n and the worst amplification of the real code, or of the paper's, for s adversaries."""
    at = [n for n in WORKERS if n >= 2 * adversaries + 1]
    codes = [dft_code(n, adversaries) if published else real_code(n, 2 * adversaries) for n in at]
    return at, [worst_amplification(code, adversaries) for code in codes]


def measure(workers: int, adversaries: int, *, adjacent: bool) -> Point:
    """Decode `TRIALS` steps in float32 and compare with the mean of the same gradients in float64."""
    scheme = build("cyclic", workers=workers, adversaries=adversaries, tolerance=1e-5)
    assert scheme.amplification is not None
    generator = np.random.default_rng(workers * 100 + adversaries)
    worst = 0.0
    for trial in range(TRIALS):
        gradients = torch.from_numpy(generator.standard_normal((workers, WIDTH), np.float32))
        replies = torch.stack([
            scheme.encode(row, gradients[torch.from_numpy(scheme.assignment[row])]) for row in range(workers)
        ])  # fmt: skip
        start = int(generator.integers(workers))
        drawn = generator.choice(workers, adversaries, replace=False)
        rows = (start + np.arange(adversaries)) % workers if adjacent else drawn
        replies[torch.from_numpy(rows)] *= -100
        decoded = scheme.decode(replies, seed=trial)
        assert set(decoded.suspects) == set(rows.tolist())
        truth = gradients.double().mean(0)
        worst = max(worst, float((decoded.gradients[0].double() - truth).norm() / truth.norm()))
    return Point(workers, adversaries, adjacent, scheme.amplification * ROUNDING, worst)


def points() -> Iterator[Point]:
    """Yield every measured code, with neighbouring rows and with drawn ones."""
    for workers, adversaries in MEASURED:
        for adjacent in (True, False):
            yield measure(workers, adversaries, adjacent=adjacent)


def draw(target: Path) -> None:
    """Write the plot, and print the measured points."""
    mpl.rcParams["svg.hashsalt"] = "draco"  # the same figures give the same file
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for adversaries, colour in zip(ADVERSARIES, ("C0", "C1", "C2", "C3"), strict=True):
        left.semilogy(*amplification_by_workers(adversaries, published=False), color=colour, label=f"s = {adversaries}")
        left.semilogy(*amplification_by_workers(adversaries, published=True), color=colour, linestyle=":")
    left.set(
        xlabel="workers n", ylabel="worst amplification", ylim=(0.3, 1e10), title="solid: cyclic, dotted: cyclic_dft"
    )
    left.legend()
    measured = list(points())
    for adjacent, marker, label in ((True, "o", "neighbouring rows"), (False, "x", "drawn rows")):
        shown = [point for point in measured if point.adjacent == adjacent]
        right.loglog([p.promised for p in shown], [p.error for p in shown], marker, label=label, linestyle="")
    ends = [min(p.promised for p in measured), max(p.promised for p in measured)]
    right.loglog(ends, ends, color="grey", label="product")
    right.set(xlabel="worst amplification times rounding of float32", ylabel="measured relative error of the mean")
    right.set_title("cyclic, s Byzantine workers, float32")
    right.legend()
    figure.savefig(target, metadata={"Date": None})
    for point in measured:
        where = "neighbours" if point.adjacent else "drawn"
        print(f"{point.workers:3} {point.adversaries} {where:10} {point.promised:.1e} {point.error:.1e}")


if __name__ == "__main__":
    mpl.use("Agg")
    torch.set_num_threads(1)
    draw(Path(sys.argv[1]))
