"""The optimistic decoder: one pass over the replies that decodes them, checks the result and learns the wrong rows.

The replies R (n, d) are read in blocks of columns, and each block is multiplied by two rows of weights at once. v (n,)
decodes without the rows known to be wrong. h (n,) is a random vector of the parity space that is zero on those rows. So
h^T R is honest noise unless another row is wrong. This is a spot check in the manner of Freivalds 1977, with h secret
and fresh for each block.

Where a block clearly fails, the wrong rows are located from that block alone. Then v and h are drawn anew and the pass
goes on. Blocks before it stay, since they were checked. So a run under attack costs hardly more than one without.
An error that is spread so thin that no block shows it is left to the caller, who gets None.
Shapes: n rows, d columns, p parities, w columns of a block, c checks h of a block, t rows left out.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from draco.lazy import Tensor, torch
from draco.schemes.cyclic_code import PRECISE, Code, amplifications
from draco.schemes.locate import locate
from draco.schemes.projection import (
    HUGE,
    add_up_all,
    block_width,
    mask_without,
    runs_of,
    sampled_squares,
    squared_norms,
)
from draco.schemes.syndrome import CLEAR, Rows, evidence, recombination

TRIGGER = 8.0  # a block whose residual is so many times the whole row's tolerance is searched for wrong rows
SEGMENT = 2048  # columns of a failing block that are searched for wrong rows
PROJECTIONS = 8  # random combinations of these columns that the search sees
# Draws of each h. The one whose smallest entry is largest is taken: no single row can hide behind a small entry.
DRAWS = 4
# (size, checks): up to so many numbers n d, so many checks h of a block cost little. Beyond the last there is one.
UNDERFLOW = 2.0**-126  # what a float32 square that underflows loses at most
SURE = 1e3  # times all that squares may lose by underflow: the least residual that is to be noticed
CHEAP = ((1 << 22, 64), (1 << 24, 2))


class Phase(NamedTuple):
    """The weights while a set of rows is left out."""

    rows: Rows
    runs: tuple[list[tuple[int, int]], list[tuple[int, int]]]  # of rows: all that are there, and only those kept
    weights: list[tuple[Tensor, ...]]  # for every block: v and the c vectors h, each (n,)
    inverse: float  # 1 / |v|^2


def optimistic(
    code: Code, basis: npt.NDArray[np.float64], replies: Tensor, missing: Rows, tolerance: float, seed: int
) -> tuple[Tensor, Rows] | None:
    """Return the decoded (d,) and the rows left out; None where this pass cannot tell.

    `basis` is `real_basis(code.parity)`; rows in `missing` are not read.
    """
    n, d = replies.shape
    generator = np.random.default_rng(seed)
    width = block_width(n, d, replies.device)
    blocks = -(-d // width)
    phase = _phase(code, basis, missing, missing, replies, generator, blocks)
    size = float(np.median(sampled_squares(replies, phase.runs[1], generator)))  # of a usual row, squared norm
    lost = UNDERFLOW * d * (len(phase.weights[0]) - 1)  # by the squares of all checks, at most
    if not (SURE * lost < (CLEAR * tolerance) ** 2 * size / n and size < HUGE**2):
        return None  # float32 squares of what is to be noticed under- or overflow
    out = torch.empty(d, dtype=replies.dtype, device=replies.device)
    spare = torch.empty(len(phase.weights[0]) - 1, width, dtype=replies.dtype, device=replies.device)  # (c, w)
    residual, inverse = 0.0, phase.inverse  # squared norm of h^T R over all blocks; the least 1 / |v|^2 so far
    for index, (block, mean) in enumerate(zip(torch.split(replies, width, 1), torch.split(out, width), strict=True)):
        check = spare if len(mean) == width else spare[:, : len(mean)]  # the last block may be narrower
        rest = _apply(phase, index, block, mean, check)
        if not rest <= (TRIGGER * tolerance) ** 2 * size:
            learned = _learn(code, block, check, phase, tolerance, size, generator)
            if learned is None:
                return None
            if learned != phase.rows:  # decode and check this block again, without the rows that were found
                phase = _phase(code, basis, learned, missing, replies, generator, blocks)
                inverse = min(inverse, phase.inverse)
                rest = _apply(phase, index, block, mean, check)
        residual += rest
    # By Cauchy and Schwarz |v^T R|^2 / |v|^2 is at most the sum of the rows' squared norms.
    energy = float(torch.dot(out, out)) * inverse
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
    kept, came = mask_without(n, rows), mask_without(n, missing)  # (n,) each
    v = recombination(code.parity, code.clean, rows).real
    checks = next((count for size, count in CHEAP if replies.numel() <= size), 1)
    h = np.zeros((blocks, 1, n))  # without a parity left there is nothing to check with
    if p > t:
        # An orthonormal basis (p - t, n) of the parities that are zero on `rows`. They are combinations u^T basis with
        # u orthogonal to the t columns of `rows`: the left singular vectors beyond the first t.
        free = np.linalg.svd(basis[:, list(rows)])[0][:, t:].T @ basis if t else basis
        if checks >= p - t:  # the whole basis is cheap, and misses nothing
            h = np.broadcast_to(free * math.sqrt(n), (blocks, p - t, n))
        else:
            draws = generator.standard_normal((blocks, checks, DRAWS, p - t)) @ free
            draws *= math.sqrt(n) / np.linalg.norm(draws, axis=3, keepdims=True)  # (blocks, checks, DRAWS, n)
            best = np.abs(draws[..., kept]).min(3).argmax(2)
            h = np.take_along_axis(draws, best[..., None, None], 2)[:, :, 0]
    weights = np.concatenate([np.broadcast_to(v, (blocks, 1, n)), h * kept], axis=1)
    # (blocks, 1 + c, n). Weights that amplify rounding are applied in float64.
    precise = amplifications(code, np.asarray([rows], dtype=np.intp))[0] > PRECISE
    on_device = torch.from_numpy(weights).to(replies.device, torch.float64 if precise else replies.dtype)
    vectors = [block.unbind(0) for block in on_device.unbind(0)]
    return Phase(rows, (runs_of(came), runs_of(kept)), vectors, 1 / float(v @ v))


def _apply(phase: Phase, index: int, block: Tensor, mean: Tensor, check: Tensor) -> float:
    """Set mean (w,) and check (c, w) to v and h times block `index`; return the mean squared norm of the checks over n.

    Rows left out are multiplied by zero, which is faster than not reading them. Where that gives NaN they are not read.
    """
    v, *checks = phase.weights[index]  # (n,) each
    targets = check.unbind(0)[: len(checks)]
    rest = math.nan
    for runs in phase.runs:
        add_up_all(block, runs, [v, *checks], [mean, *targets])
        rest = sum(float(torch.dot(c, c)) for c in targets)  # squared norms
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
    """Return the phase's rows and those that are wrong in this block; just the former if all others are honest.

    The segment of the block that fails worst is enough to tell. Its rows may be far smaller than the squared `size` of
    a whole row lets expect, while honest noise is not. Then the segment gets some of the whole row's tolerance.
    """
    n = len(code.clean)
    kept = mask_without(n, phase.rows)
    check = check[: len(phase.weights[0]) - 1]  # a new phase may have fewer checks than there is space for
    # The mean squared norm of the checks in each segment of columns, and the segment where it is largest.
    failing = torch.stack([part.double().square().sum() / len(check) for part in torch.split(check, SEGMENT, 1)])
    worst = int(torch.nan_to_num(failing, nan=math.inf).argmax())
    segment = block[:, worst * SEGMENT : (worst + 1) * SEGMENT]
    squares = squared_norms(segment, runs_of(kept))  # (n,) of the segment alone
    median = float(np.median(squares[kept]))
    if float(failing[worst]) / n <= (TRIGGER * tolerance) ** 2 * median:
        return phase.rows  # the block is large, not wrong
    if size > median > 0:
        tolerance *= min(TRIGGER, math.sqrt(size / median))
    projections = torch.from_numpy(generator.standard_normal((segment.shape[1], PROJECTIONS))).to(block.device)
    values = np.zeros((n, PROJECTIONS))  # the segment's rows, projected in float64
    for a, b in runs_of(kept):
        values[a:b] = (segment[a:b].double() @ projections).cpu().numpy()
    known = ~kept | ~np.isfinite(values).all(1) | ~np.isfinite(squares)
    return locate(evidence(code.parity, values, squares, known, tolerance, segment.shape[1]))


def _accepted(n: int, residual: float, energy: float, tolerance: float, replies: Tensor, phase: Phase) -> bool:
    """Return whether the residual is clearly honest noise, measured by the rows' squared norms.

    `energy` is a lower bound of their sum that costs nothing. The norms are taken only where it does not suffice.
    """
    if residual <= (CLEAR * tolerance) ** 2 * energy / n < math.inf:
        return True
    exact = squared_norms(replies, phase.runs[1])
    return bool(residual <= (CLEAR * tolerance) ** 2 * exact.sum() / n)
