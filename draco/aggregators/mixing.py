"""Pre-aggregators: mixing or clipping of the n gradients before a rule reduces them.

Each maps (n, d) to (m, d), in the dtype and on the device of `gradients`, which is not changed. With `overwrite` the
result takes its place in memory, where all rows are finite. Rows with NaN or Inf are certainly Byzantine and are
dropped, each lowering f by one; b of them are left out below. How f and n change:

    nnm        f - b, n - b                     bucketing  f - b, ceil((n - b) / size)
    clipping   f - b, n - b                     arc        f - b, n - b

A bucket that holds a Byzantine row counts as Byzantine.

Without `overwrite` each makes one new matrix, of the size of its result; scratch memory is blocks of columns.

Shapes: n gradients, d parameters, f declared Byzantine rows, m mixed rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from draco.aggregators.gram import SUM_WIDTH, decide, least, squared_distances
from draco.aggregators.norms import finite_norms
from draco.aggregators.rows import CUDA_WIDTH, blocks, finite_rows
from draco.aggregators.rule import Matrix, Mixing, PreAggregatorDeclaration, majority
from draco.declaration import Option
from draco.fused import sums
from draco.lazy import Tensor, torch

PRODUCT = 1 << 17  # elements of a block on the CPU that is multiplied by a matrix of weights


def nnm(gradients: Tensor, *, f: int = 0, overwrite: bool = False) -> Tensor:
    """Return for every row the mean of the n - f rows nearest to it, itself included, (n, d) -> (n, d).

    Source: Allouah, Farhadkhani, Guerraoui, Gupta, Pinot, Stephan, Fixing by Mixing, AISTATS 2023 (arXiv:2302.01772).
    n >= 2f + 1. Of rows equally near the first count.

    Raises:
        ValueError: n < 2f + 1, or more than f rows hold NaN or Inf.
    """
    rows, _, weights = decide(NNM, gradients, f, lambda gram, left, _: _nnm_weights(gram, left), tolerated=f)
    return mixed(gradients.detach(), rows, weights, overwrite)


def nnm_mixing(n: int, generator: torch.Generator | None) -> Mixing:
    """Return the mixing of n rows with their nearest."""
    return _nnm_weights


NNM = PreAggregatorDeclaration(
    name="nnm",
    function=nnm,
    text="nearest-neighbour mixing",
    least=majority,
    mixing=nnm_mixing,
    compares=True,
)


def _nnm_weights(gram: Matrix, f: int) -> tuple[Matrix, bool]:
    """Return the weights (n, n) of nearest-neighbour mixing; see `Mixing`."""
    n = len(gram)
    weights, certain = np.zeros((n, n)), True
    for row, distances in enumerate(squared_distances(gram)):
        chosen, sure = least(distances, n - f)
        weights[row, chosen] = 1 / (n - f)
        certain &= sure
    return weights, certain


def bucketing(
    gradients: Tensor, *, f: int = 0, size: int = 2, generator: torch.Generator, overwrite: bool = False
) -> Tensor:
    """Return the means of random buckets of rows, (n, d) -> (ceil(n / size), d); the last bucket may be smaller.

    Source: Karimireddy, He, Jaggi, Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing, ICLR 2022
    (arXiv:2006.09365), whose s is `size` here. f Byzantine rows spoil at most f buckets, so
    f stays while n shrinks.

    Args:
        gradients: (n, d).
        f: declared Byzantine rows.
        size: rows in a bucket, 1 or more.
        generator: draws the permutation; the same state gives the same buckets.
        overwrite: the buckets may take the place of the first rows.

    Raises:
        ValueError: n < f + 1, more than f rows hold NaN or Inf, or the size is below 1.
    """
    rows = finite_rows(BUCKETING, gradients, f, tolerated=f)
    weights, _ = bucketing_mixing(len(gradients), generator, size=size)(np.eye(len(rows)), f)
    return mixed(gradients.detach(), rows, weights, overwrite)


def bucketing_mixing(n: int, generator: torch.Generator | None, *, size: int = 2) -> Mixing:
    """Draw the order of up to n rows; return the mixing that fills buckets in that order, however often it is asked."""
    BUCKETING.check_options(n, 0, size=size)
    order = torch.randperm(n, generator=generator).tolist()

    def mixing(gram: Matrix, f: int) -> tuple[Matrix, bool]:
        present = [row for row in order if row < len(gram)]
        weights = np.zeros((math.ceil(len(gram) / size), len(gram)))
        for bucket, start in enumerate(range(0, len(gram), size)):
            weights[bucket, present[start : start + size]] = 1 / len(present[start : start + size])
        return weights, True

    return mixing


def _buckets(n: int, given: Mapping[str, Any]) -> int:
    size: int = given.get("size", BUCKETING.options["size"].default)
    return math.ceil(n / size)


BUCKETING = PreAggregatorDeclaration(
    name="bucketing",
    function=bucketing,
    text="means of random buckets",
    options={"size": Option(int, 2, "Gradients in a bucket.", ge=1, le=4096)},
    least=lambda f: f + 1,
    remaining=_buckets,
    draws=True,
    mixing=bucketing_mixing,
)


def clipping(gradients: Tensor, *, f: int = 0, c: float = 2.0, overwrite: bool = False) -> Tensor:
    """Return the rows, those longer than c scaled down to length c, (n, d) -> (n, d).

    It is the static clipping that Allouah et al. 2024 (arXiv:2405.14432) compare with. byzfl always overwrites.

    Raises:
        ValueError: n < f + 1, more than f rows hold NaN or Inf, or c is not above 0.
    """
    CLIPPING.check_options(len(gradients), f, c=c)
    rows, squares, _ = finite_norms(CLIPPING, gradients, f, tolerated=f)
    return _clipped(gradients.detach(), rows, np.sqrt(squares), c, overwrite)


CLIPPING = PreAggregatorDeclaration(
    name="clipping",
    function=clipping,
    text="rows cut to length c",
    options={"c": Option(float, 2.0, "Length to which longer gradients are cut.", gt=0.0, le=1e30)},
    least=lambda f: f + 1,
)


def arc(gradients: Tensor, *, f: int = 0, overwrite: bool = False) -> Tensor:
    """Return the rows, the k = floor(2 f (n - f) / n) longest scaled down to the length of the next, (n, d) -> (n, d).

    Source: Allouah, Guerraoui, Gupta, Jellouli, Rizk, Stephan, 2024 (arXiv:2405.14432), adaptive robust clipping.
    n >= 2f + 1. byzfl always overwrites its input, and takes k from a product in floating point.

    Raises:
        ValueError: n < 2f + 1, or more than f rows hold NaN or Inf.
    """
    rows, squares, _ = finite_norms(ARC, gradients, f, tolerated=f)
    n, f = len(rows), f - (len(gradients) - len(rows))
    norms = np.sqrt(squares)
    most = float(np.sort(norms)[n - 1 - 2 * f * (n - f) // n])
    return _clipped(gradients.detach(), rows, norms, most, overwrite)


ARC = PreAggregatorDeclaration(
    name="arc",
    function=arc,
    text="the longest cut to the next",
    least=majority,
)


def _clipped(gradients: Tensor, rows: list[int], norms: Matrix, most: float, overwrite: bool) -> Tensor:
    """Return the chosen rows (m, d), scaled down to the length `most` where they are longer."""
    factors = np.divide(most, norms, out=np.ones(len(norms)), where=norms > most)
    dtype = gradients.dtype if factors.min() > 1e-30 else torch.float64  # huge rows: keep what is left of them
    scale = torch.from_numpy(factors).to(gradients.device, dtype)[:, None]
    out = _room(gradients, rows, len(rows), overwrite)
    for place, row in enumerate(rows):
        if norms[place] > most:
            torch.mul(gradients[row], scale[place], out=out[place])
        elif out is not gradients:
            out[place] = gradients[row]
    return out


def mixed(gradients: Tensor, rows: list[int], weights: Matrix, overwrite: bool = False) -> Tensor:
    """Return the sums of the chosen rows with each row of `weights` (m, len(rows)), (n, d) -> (m, d)."""
    factors = torch.from_numpy(weights).to(gradients)
    out = _room(gradients, rows, len(weights), overwrite)
    if not gradients.is_cpu:
        if sums.weighted_sums(gradients, rows, factors, list(out)):
            return out
        factors = factors.double()  # float32 products may be TF32's
    few = np.count_nonzero(weights) <= len(rows)  # as in buckets: sums of few rows each
    width = (SUM_WIDTH if few else max(PRODUCT // len(weights), 1)) if gradients.is_cpu else CUDA_WIDTH
    for columns, block in blocks(gradients, rows, width):
        target = torch.empty_like(out[:, columns]) if overwrite else out[:, columns]
        if few:
            _add(weights, block, target)
        elif gradients.is_cpu:
            torch.mm(factors, block, out=target)
        else:
            target.copy_(factors @ block.double())
        if overwrite:
            out[:, columns] = target
    return out


def _add(weights: Matrix, block: Tensor, out: Tensor) -> None:
    """Write the weighted sums of a block's rows into `out`, row after row."""
    for row, its in zip(out, weights, strict=True):
        first, *others = np.flatnonzero(its).tolist()
        torch.mul(block[first], float(its[first]), out=row)
        for other in others:
            row.add_(block[other], alpha=float(its[other]))


def _room(gradients: Tensor, rows: list[int], count: int, overwrite: bool) -> Tensor:
    """Return memory for so many rows (count, d): that of the gradients, if it may be and all of them are chosen."""
    if overwrite and len(rows) == len(gradients):
        return gradients if count == len(gradients) else gradients[:count]
    return gradients.new_empty(count, gradients.shape[1])
