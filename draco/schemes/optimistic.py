"""One pass over the replies that decodes them and checks the result, learning on the way which rows lie.

In each block of columns the replies are multiplied by two rows of weights at once: v, which decodes without the rows
known to lie, and h, a random unit vector of the parity space that is zero on those rows. h^T R is zero but for honest
noise unless another row lies: a spot check in the manner of Freivalds 1977, with h secret and fresh for each block.
Where a block fails clearly, the liars are located from that block alone, its v and h drawn anew, and the pass goes on;
blocks before it stay, since they were checked. So an attack costs hardly more than none. What is not clear, an error
spread so thin that no block shows it, is the caller's: None says so.
Shapes: n rows, d columns, p parities.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from draco.lazy import Tensor, torch
from draco.schemes.cyclic_code import PRECISE, Code, amplifications
from draco.schemes.locate import locate
from draco.schemes.projection import add_up, block_width, mask_without, runs_of, sampled_squares, squared_norms
from draco.schemes.syndrome import CLEAR, Rows, evidence, recombination

TRIGGER = 8.0  # a block whose residual alone is so many times the whole row's tolerance is searched for liars
SEGMENT = 2048  # columns of a failing block that are searched for liars
PROJECTIONS = 8  # of them
# Of h, of which the one is taken whose smallest entry is largest: lone liars cannot hide behind a small entry.
DRAWS = 4
# (size, checks): up to so many numbers n d, so many checks h cost little; beyond, one.
CHEAP = ((1 << 22, 64), (1 << 24, 2))


class Phase(NamedTuple):
    """The weights while a set of rows is left out."""

    rows: Rows
    runs: tuple[list[tuple[int, int]], list[tuple[int, int]]]  # of the rows to read: all but the missing, only the kept
    weights: list[tuple[Tensor, ...]]  # of every block: v and the c vectors h, each (n,)
    inverse: float  # 1 / |v|^2


def real_basis(code: Code) -> npt.NDArray[np.float64]:
    """Return an orthonormal real basis (p, n) of the parity space."""
    p = len(code.parity)
    basis: npt.NDArray[np.float64] = np.linalg.svd(np.concatenate([code.parity.real, code.parity.imag]))[2][:p]
    return basis


def optimistic(
    code: Code, basis: npt.NDArray[np.float64], replies: Tensor, missing: Rows, tolerance: float, seed: int
) -> tuple[Tensor, Rows] | None:
    """Return the decoded (d,) and the rows left out; None where this pass cannot tell.

    `basis` is `real_basis(code)`; rows in `missing` are not read.
    """
    n, d = replies.shape
    generator = np.random.default_rng(seed)
    width = block_width(n, d, replies.device)
    blocks = -(-d // width)
    phase = _phase(code, basis, missing, missing, replies, generator, blocks)
    size = float(np.median(sampled_squares(replies, phase.runs[1], generator)))
    out = torch.empty(d, dtype=replies.dtype, device=replies.device)
    spare = torch.empty(len(phase.weights[0]) - 1, width, dtype=replies.dtype, device=replies.device)
    residual, inverse = 0.0, phase.inverse
    for index, (block, mean) in enumerate(zip(torch.split(replies, width, 1), torch.split(out, width), strict=True)):
        check = spare if len(mean) == width else spare[:, : len(mean)]
        rest = _apply(phase, index, block, mean, check)
        if not rest <= (TRIGGER * tolerance) ** 2 * size:
            learned = _learn(code, block, check, phase, tolerance, size, generator)
            if learned is None:
                return None
            if learned != phase.rows:
                phase = _phase(code, basis, learned, missing, replies, generator, blocks)
                inverse = min(inverse, phase.inverse)
                rest = _apply(phase, index, block, mean, check)
        residual += rest
    energy = float(torch.dot(out, out)) * inverse  # at most the sum of the rows' squared norms, by Cauchy and Schwarz
    return (out, phase.rows) if _accepted(n, residual, energy, tolerance, replies, phase) else None


def _phase(
    code: Code,
    basis: npt.NDArray[np.float64],
    rows: Rows,
    missing: Rows,
    replies: Tensor,
    generator: np.random.Generator,
    blocks: int,
) -> Phase:
    """Return the weights without `rows`: v, and for every block the best of some random h, of norm sqrt(n)."""
    n, p, t = len(code.clean), len(basis), len(rows)
    kept, came = mask_without(n, rows), mask_without(n, missing)
    v = recombination(code.parity, code.clean, rows).real
    checks = next((count for size, count in CHEAP if replies.numel() <= size), 1)
    h = np.zeros((blocks, 1, n))
    if p > t:
        free = np.linalg.svd(basis[:, list(rows)])[0][:, t:].T @ basis if t else basis  # of the parities, 0 on rows
        if checks >= p - t:
            h = np.broadcast_to(free * math.sqrt(n), (blocks, p - t, n))
        else:
            draws = generator.standard_normal((blocks, checks, DRAWS, p - t)) @ free
            draws *= math.sqrt(n) / np.linalg.norm(draws, axis=3, keepdims=True)
            best = np.abs(draws[..., kept]).min(3).argmax(2)
            h = np.take_along_axis(draws, best[..., None, None], 2)[:, :, 0]
    weights = np.concatenate([np.broadcast_to(v, (blocks, 1, n)), h * kept], axis=1)
    precise = amplifications(code, np.asarray([rows], dtype=np.intp))[0] > PRECISE
    on_device = torch.from_numpy(weights).to(replies.device, torch.float64 if precise else replies.dtype)
    vectors = [block.unbind(0) for block in on_device.unbind(0)]
    return Phase(rows, (runs_of(came), runs_of(kept)), vectors, 1 / float(v @ v))


def _apply(phase: Phase, index: int, block: Tensor, mean: Tensor, check: Tensor) -> float:
    """Set mean (w,) and check (c, w) to v and h times block `index`; return the squared norm of an h^T R, per row.

    Rows left out are multiplied by zero, which is faster than leaving them out, unless that gives NaN.
    """
    v, *checks = phase.weights[index]
    targets = check.unbind(0)[: len(checks)]
    rest = math.nan
    for runs in phase.runs:
        add_up(block, runs, v, mean)
        for h, target in zip(checks, targets, strict=True):
            add_up(block, runs, h, target)
        rest = sum(float(torch.dot(c, c)) for c in targets)
        if not math.isfinite(rest):  # perhaps only the squares overflow
            rest = float(check[: len(checks)].double().square().sum())
        if math.isfinite(rest):
            break
    return rest / len(checks) / len(v)


def _learn(
    code: Code,
    block: Tensor,
    check: Tensor,
    phase: Phase,
    tolerance: float,
    size: float,
    generator: np.random.Generator,
) -> Rows | None:
    """Return the phase's rows and those that lie in this block; just the former if it is honest after all.

    The segment of the block that fails worst is enough to tell. Its own size may be far below its share of the whole
    row's (squared) `size`, and honest noise with it not: then it is given some of the whole row's tolerance.
    """
    n = len(code.clean)
    kept = mask_without(n, phase.rows)
    check = check[: len(phase.weights[0]) - 1]
    failing = torch.stack([part.double().square().sum() / len(check) for part in torch.split(check, SEGMENT, 1)])
    worst = int(torch.nan_to_num(failing, nan=math.inf).argmax())
    segment = block[:, worst * SEGMENT : (worst + 1) * SEGMENT]
    squares = squared_norms(segment, runs_of(kept))
    median = float(np.median(squares[kept]))
    if float(failing[worst]) / n <= (TRIGGER * tolerance) ** 2 * median:
        return phase.rows
    if size > median > 0:
        tolerance *= min(TRIGGER, math.sqrt(size / median))
    projections = torch.from_numpy(generator.standard_normal((segment.shape[1], PROJECTIONS))).to(block.device)
    values = np.zeros((n, PROJECTIONS))
    for a, b in runs_of(kept):
        values[a:b] = (segment[a:b].double() @ projections).cpu().numpy()
    known = ~kept | ~np.isfinite(values).all(1) | ~np.isfinite(squares)
    return locate(evidence(code.parity, values, squares, known, tolerance))


def _accepted(n: int, residual: float, energy: float, tolerance: float, replies: Tensor, phase: Phase) -> bool:
    """Return whether the residual is clearly honest noise: first by a lower bound of the rows' size, |v^T R| / |v|."""
    if residual <= (CLEAR * tolerance) ** 2 * energy / n < math.inf:
        return True
    exact = squared_norms(replies, phase.runs[1])
    return bool(residual <= (CLEAR * tolerance) ** 2 * exact.sum() / n)
