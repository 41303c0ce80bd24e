"""Passes over the replies: secret random projections of a row, weighted sums of rows, norms of rows.

The matrix of replies (n, d) is walked in blocks of columns small enough to stay in the last-level cache between two
uses.

A projection of a row is its inner product with a random vector f. A dense Gaussian f would cost more memory traffic
than the replies. So f is made of chunks of w columns: one Gaussian vector g, the same for every chunk, times a Gaussian
coefficient c of the chunk (the Kronecker product of c and g). f is drawn after the rows are fixed, so nobody can aim an
error at its null space. An error inside one chunk stays unseen with a probability of about (threshold / its size) to
the power of the number of vectors g.

Chunks are short because float32 inner products of w numbers lose about sqrt(w / 16) units in the last place. Their
results are added in float64.
Shapes: n rows, d columns, b chunks of w columns, q directions (vectors g), k projections.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from draco.fused import rows as fused
from draco.fused.sums import weighted_sums
from draco.lazy import Tensor, torch

PROJECTIONS = 8  # k; 4 already locate 98-100 of 100 random error sets at (45, 10)
DIRECTIONS = 2  # q, at least; each costs about 0.6 of copying the row
CHUNK = 1024  # w, the columns that one g spans
FEW = 64  # chunks; where there are no more, every projection has its own g
PIECE = 1 << 20  # columns of a row that are projected on all g before the next: 4 MiB
BLOCK_BYTES = 6 << 20  # of replies per block; flat between 3 and 8 MiB where measured (32 MiB shared L3, 512 KiB L2)
BLOCK_BYTES_CUDA = 256 << 20
WIDEST = 1 << 16  # columns of a block on a CPU
SMALLEST = 1e-30  # a float32 sum of squares below it may have lost terms that underflowed
SCALE = 2.0**-64  # of rows near the largest float32: a power of two, so that nothing is rounded
HUGE = 1e30  # norm from which float32 sums of rows may overflow
SAMPLES, SAMPLE = 16, 128  # segments that norms are estimated from, and columns of each


class Draw(NamedTuple):
    """One step's secret. Projection k is on f_k, whose chunk j is coefficients[j, k] * directions[k mod q]."""

    directions: Tensor  # (q, w)
    coefficients: npt.NDArray[np.float64]  # (b, k)


class Sketch(NamedTuple):
    """What is kept of the rows: a few numbers of each."""

    values: npt.NDArray[np.float64]  # (n, k): the projections; each is Gaussian with the row's norm as its deviation
    squares: npt.NDArray[np.float64]  # (n,): unbiased estimates of the squared norms of the rows


def block_width(rows: int, columns: int, device: torch.device) -> int:
    """Return how many columns of `rows` rows one block takes."""
    width = min(WIDEST, BLOCK_BYTES // (4 * rows)) if device.type == "cpu" else BLOCK_BYTES_CUDA // (4 * rows)
    return max(1, min(columns, max(1024, width)))


def draw(seed: int, columns: int, device: torch.device) -> Draw:
    """Draw one step's projections of rows of `columns` numbers: plain Gaussian ones where a row is one chunk."""
    generator = torch.Generator().manual_seed(seed)
    width = min(columns, CHUNK)
    chunks = -(-columns // width)
    # q: the fewer chunks there are, the fewer coefficients tell projections apart, and the more directions it takes.
    count = max(DIRECTIONS, min(PROJECTIONS, PROJECTIONS * FEW // chunks))
    directions = torch.randn(count, width, generator=generator).to(device)
    coefficients = torch.randn(chunks, PROJECTIONS, generator=generator, dtype=torch.float64)
    return Draw(directions, np.ones((1, PROJECTIONS)) if chunks == 1 else coefficients.numpy())


def dense(secret: Draw, columns: int) -> Tensor:
    """Return the projections f (k, d) written out, in float64; the passes over the replies never do."""
    coefficients = torch.from_numpy(secret.coefficients)
    directions = secret.directions.to("cpu", torch.float64)
    which = torch.arange(PROJECTIONS) % len(directions)
    return (coefficients.T[:, :, None] * directions[which][:, None]).flatten(1)[:, :columns]


def project_row(row: Tensor, secret: Draw) -> Tensor:
    """Return the inner products (b, q) of a row's chunks with the directions."""
    width = secret.directions.shape[1]
    if not row.is_cpu:
        whole_row = torch.empty(1, len(secret.coefficients), len(secret.directions), device=row.device)
        if fused.project(row[None], [0], secret.directions, whole_row):
            return whole_row[0]
    # A piece of the row is multiplied by all g while it is in the cache. A GPU takes the whole row at once.
    inner = torch.zeros(len(secret.directions), len(secret.coefficients), device=row.device)
    step = PIECE // width * width if row.is_cpu else len(secret.coefficients) * width
    for start in range(0, row.shape[0], step):
        piece = row[start : start + step]
        first, whole = start // width, piece.shape[0] // width
        for g, into in zip(secret.directions.unbind(0), inner.unbind(0), strict=True):
            if whole:
                torch.mv(piece[: whole * width].view(whole, width), g, out=into[first : first + whole])
            if rest := piece.shape[0] - whole * width:
                into[first + whole] = torch.dot(piece[whole * width :], g[:rest])
    return inner.t()


def finish(inner: Tensor, replies: Tensor, secret: Draw) -> Sketch:
    """Return the projections and squared norms that the inner products (n, b, q) amount to, in float64.

    Rows of the replies (n, d) whose inner products overflowed are projected once more, scaled by a power of two. What
    is not finite then was not finite before.
    """
    parts = inner.to("cpu", torch.float64).numpy()
    for row in np.flatnonzero(~np.isfinite(parts).all(axis=(1, 2))).tolist():
        parts[row] = project_row(replies[row] * SCALE, secret).to("cpu", torch.float64).numpy() / SCALE
    which = np.arange(PROJECTIONS) % parts.shape[2]  # (k,) the direction of each projection
    with np.errstate(invalid="ignore", over="ignore"):
        values = np.stack([parts[:, :, q] @ secret.coefficients[:, k] for k, q in enumerate(which)], axis=1)
        squares = np.square(parts).sum(axis=(1, 2)) / parts.shape[2]
    return Sketch(values, squares)


def combine(replies: Tensor, runs: Sequence[tuple[int, int]], weights: Tensor) -> Tensor:
    """Return weights (n,) @ replies over the rows in `runs`, summed in the weights' dtype; no other row is read."""
    return combine_all(replies, runs, weights[None])[0]


def combine_all(replies: Tensor, runs: Sequence[tuple[int, int]], weights: Tensor) -> Tensor:
    """Return weights (m, n) @ replies, (m, d), as `combine`; the rows are read once for all of them."""
    n, d = replies.shape
    out = torch.empty(len(weights), d, dtype=replies.dtype, device=replies.device)
    if not replies.is_cpu and _summed(replies, runs, weights.unbind(0), out.unbind(0)):
        return out
    width = block_width(n, d, replies.device)
    for block, targets in zip(torch.split(replies, width, 1), torch.split(out, width, 1), strict=True):
        for each, target in zip(weights, targets, strict=True):
            add_up(block, runs, each, target)
    return out


def add_up_all(
    block: Tensor, runs: Sequence[tuple[int, int]], weights: Sequence[Tensor], targets: Sequence[Tensor]
) -> None:
    """Do what `add_up` does for several weights; on a GPU the rows are read once for all of them."""
    if block.is_cpu or not _summed(block, runs, weights, targets):
        for each, target in zip(weights, targets, strict=True):
            add_up(block, runs, each, target)


def _summed(
    block: Tensor, runs: Sequence[tuple[int, int]], weights: Sequence[Tensor], targets: Sequence[Tensor]
) -> bool:
    rows = [row for start, stop in runs for row in range(start, stop)]
    used = torch.stack([torch.cat([each[start:stop] for start, stop in runs]) for each in weights]) if rows else None
    return used is not None and weighted_sums(block, rows, used, list(targets))


def add_up(block: Tensor, runs: Sequence[tuple[int, int]], weights: Tensor, target: Tensor) -> None:
    """Set target (w,) to weights (n,) @ block (n, w) over the rows in `runs`, summed in the weights' dtype."""
    if weights.dtype != block.dtype:
        exact = torch.zeros(target.shape, dtype=weights.dtype, device=block.device)
        for start, stop in runs:
            exact.addmv_(block[start:stop].t().to(weights.dtype), weights[start:stop])
        target.copy_(exact)
    elif runs == [(0, len(block))]:
        torch.mv(block.t(), weights, out=target)
    else:
        for index, (start, stop) in enumerate(runs):  # with beta = 0 the target is not read: it may hold NaN
            torch.addmv(target, block[start:stop].t(), weights[start:stop], beta=float(index > 0), out=target)


def mask_without(n: int, rows: Sequence[int]) -> npt.NDArray[np.bool_]:
    """Return (n,), False at `rows`."""
    mask = np.ones(n, dtype=np.bool_)
    mask[list(rows)] = False
    return mask


def squared_norms(replies: Tensor, runs: Sequence[tuple[int, int]]) -> npt.NDArray[np.float64]:
    """Return the squared norms (n,) of the rows in `runs`, 0 elsewhere, in float64."""
    n, d = replies.shape
    blocks = torch.split(replies, block_width(n, d, replies.device), 1)
    squares = torch.zeros(len(blocks), n, dtype=torch.float64, device=replies.device)
    for block, into in zip(blocks, squares, strict=True):
        for start, stop in runs:
            into[start:stop] = torch.linalg.vector_norm(block[start:stop], dim=1).double().square()
    found: npt.NDArray[np.float64] = squares.cpu().numpy()  # of a GPU waited for once
    kept = np.zeros(n, np.bool_)
    for start, stop in runs:
        kept[start:stop] = True
    lost = kept & ((found < SMALLEST) | ~np.isfinite(found))  # float32 may have under- or overflowed
    for place in np.flatnonzero(lost.any(axis=1)).tolist():
        rows = np.flatnonzero(lost[place])
        exact = torch.linalg.vector_norm(blocks[place][torch.from_numpy(rows)], dim=1, dtype=torch.float64).square()
        found[place, rows] = exact.cpu().numpy()
    total = np.zeros(n)
    for each in found:
        total += each
    return total


def sampled_squares(
    replies: Tensor, runs: Sequence[tuple[int, int]], generator: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Return estimates of the squared norms of the rows in `runs` alone, from random segments of columns."""
    d = replies.shape[1]
    if d > SAMPLES * SAMPLE:
        starts = generator.integers(0, d - SAMPLE + 1, SAMPLES)
        replies = torch.cat([replies[:, i : i + SAMPLE] for i in starts.tolist()], dim=1)
    kept = np.concatenate([np.arange(a, b) for a, b in runs]) if runs else np.empty(0, dtype=np.intp)
    squares: npt.NDArray[np.float64] = squared_norms(replies, runs)[kept] * (d / replies.shape[1])
    return squares


def runs_of(kept: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Return the runs of True, each as (first, one beyond the last)."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], kept.astype(np.int8), [0]))))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]
