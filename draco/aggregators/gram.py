"""The Gram matrix: the rows' inner products about zero or a central row, which is all that distance-based rules need.

The data is read once for the Gram matrix. A rule iterates on (m, m) numbers. One row or one weighted sum is read at the
end. The products are float32 where a check finds them good enough, and float64 otherwise. Memory beyond the result is
blocks of columns and (m, m) numbers.

Shapes: n gradients, d parameters, m rows that are finite.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from draco.aggregators.rows import CUDA_WIDTH, blocks, check, finite_rows
from draco.aggregators.rule import Matrix, RowsDeclaration, Weighing
from draco.fused import products as fused
from draco.fused import source, sums
from draco.lazy import Tensor, torch

T = TypeVar("T")
# (gram (m, m), f, precise) -> what is decided on it, and whether float32 products settle that.
Decision = Callable[[Matrix, int, bool], tuple[T, bool]]

GRAM_WIDTH = 16384  # columns of a block on the CPU: wider ones are a little faster, and float32 errs more in them
SUM_WIDTH = 1 << 16  # a weighted sum makes no copy of a float32 block, so calls are dearer than cache misses
SAMPLE = 4096  # columns from which a central row is guessed
FAR = 16.0  # float32 products are trusted if the centre's squared spread is at most this many times the smallest
FAR_PRECISE = 1e6  # the same for float64 products
NEAR = 2.0  # zero is centre enough if the rows' median squared norm is at most this many times the smallest spread
TINY = 1e-30  # and if that spread is not less: the squares of its coordinates might have underflowed
AMBIGUOUS = 2e-6  # scores this near, relatively, are told apart in float64; float32 erred by up to 1e-6


def decide(
    declared: RowsDeclaration,
    gradients: Tensor,
    f: int,
    decision: Decision[T],
    *,
    tolerated: int,
    precise: bool = False,
) -> tuple[list[int], int, T]:
    """Return the finite rows, how many of them may be Byzantine, and what is decided on their inner products.

    What float32 products do not settle is decided on float64 ones; with `precise` it is at once.

    Raises:
        ValueError: as `finite_rows`.
    """
    rows, gram, precise = finite_gram(declared, gradients, f, tolerated=tolerated, precise=precise)
    left = max(f - (len(gradients) - len(rows)), 0)
    decided, certain = decision(gram, left, precise)
    if not (certain or precise):
        decided, _ = decision(precise_gram(gradients.detach(), rows), left, True)
    return rows, left, decided


def weigh(
    declared: RowsDeclaration, gradients: Tensor, f: int, weighing: Weighing, *, tolerated: int, precise: bool = False
) -> Tensor:
    """Return the sum of the finite rows with the weights that `weighing` gives them, (n, d) -> (d,).

    With `precise` it is given float64 products at once.

    Raises:
        ValueError: as `finite_rows`.
    """
    rows, _, weights = decide(declared, gradients, f, weighing, tolerated=tolerated, precise=precise)
    return weighted_sum(gradients.detach(), rows, weights)


def least(scores: Matrix, count: int) -> tuple[list[int], bool]:
    """Return the places of the `count` least scores, of equal ones the first, and whether float32 tells them so.

    Scores of equal rows are equal in float32 too: a tie is certain unless others come near to it.
    """
    order = np.argsort(scores, kind="stable")
    last = scores[order[count - 1]]
    # Scores that equal the last chosen one up to float64's rounding: of these the first rows are taken.
    equal = [place for place in range(len(scores)) if abs(scores[place] - last) <= 1e-12 * last]
    below = [int(place) for place in order[:count] if place not in equal]
    chosen = below + equal[: count - len(below)]
    # Certain if the first score left out is clearly larger, or if all scores as near as float32 errs are equal ones.
    next_one = scores[order[count]] if count < len(scores) else np.inf
    near = np.sum(np.abs(scores - last) <= AMBIGUOUS * last)
    return chosen, bool(next_one > last * (1 + AMBIGUOUS) or near == len(equal))


def equal_weights(m: int, chosen: list[int]) -> Matrix:
    """Return weights (m,) with which the weighted sum is the mean of the chosen rows."""
    weights = np.zeros(m)
    weights[chosen] = 1 / len(chosen)
    return weights


def finite_gram(
    declared: RowsDeclaration, gradients: Tensor, f: int, *, tolerated: int, precise: bool = False
) -> tuple[list[int], Matrix, bool]:
    """Return the finite rows, their inner products about a common point (m, m), and whether those are float64 products.

    Where the fast way succeeds with all rows, all are finite and were read once; with `precise` it is not tried.

    Raises:
        ValueError: as `finite_rows`.
    """
    check(declared, gradients, f)
    rows = list(range(len(gradients)))
    gram = None if precise else _fast_gram(gradients.detach(), rows)
    if gram is None:  # some row may hold NaN or Inf: find such rows, and try the others
        rows = finite_rows(declared, gradients, f, tolerated=tolerated)
        if len(rows) < len(gradients) and not precise:
            gram = _fast_gram(gradients.detach(), rows)
    if gram is None:
        return rows, precise_gram(gradients.detach(), rows), True
    return rows, gram, False


def _fast_gram(gradients: Tensor, rows: list[int]) -> Matrix | None:
    """Return float32 inner products (m, m) of the chosen rows about one point; None where they cannot be trusted.

    A large common part drowns the differences, so a central row is subtracted first. Where that part is small, the rows
    are taken as they are, which saves a third of the time. A Byzantine row would be a bad centre: the centre is guessed
    on a sample of columns, and the outcome over all columns judges the guess. An adversary who foresees the sample
    costs a second pass, and gains nothing else. The products are trusted if the centre is so central that they give the
    distances to about 1e-6. NaN and Inf anywhere, and overflow, show in them.
    """
    if not (gradients.is_cpu or source.usable(gradients)) or gradients.dtype != torch.float32:
        return None
    if gradients.shape[1] <= SAMPLE:
        return None
    # Guess on the sample: the most central row, and whether zero is central enough to take the rows as they are.
    looked_at = sample(gradients).cpu()
    near, centre = _central_gram(looked_at, rows)
    norms = looked_at[rows].double().square().sum(1).median().item()
    at_zero = norms <= NEAR * spread_of(near).min()  # False for NaN
    # One pass over all columns; the outcome says whether the guess was good.
    gram = products(gradients, rows, None if at_zero else centre, np.float32)
    if not np.isfinite(gram).all():
        return None
    spread = np.sort(gram.diagonal())[len(rows) // 2]  # the centre's
    far = 2 * NEAR if at_zero else FAR
    # float32's error grows with the spread about the centre: it must not be far above the smallest spread of any row.
    return gram if TINY <= spread <= far * spread_of(gram).min() else None


def precise_gram(gradients: Tensor, rows: list[int]) -> Matrix:
    """Return the float64 inner products (m, m) of the chosen rows, all finite, about a central one."""
    return _central_gram(gradients, rows)[0]


def _central_gram(gradients: Tensor, rows: list[int]) -> tuple[Matrix, int]:
    """Return the float64 inner products (m, m) about a row central enough for them, and the most central row's place.

    Most often one pass suffices. Each further pass starts at least 1000 times nearer to the majority, so that a few do
    even where the first row is at 1e38.
    """
    centre = 0
    for _ in rows:
        gram = products(gradients, rows, centre, np.float64)
        spread = spread_of(gram)
        if not spread[centre] > FAR_PRECISE * spread.min():  # central enough, or NaN
            break
        centre = int(spread.argmin())
    return gram, int(spread.argmin())


def products(gradients: Tensor, rows: list[int], centre: int | Tensor | None, dtype: type[np.floating[Any]]) -> Matrix:
    """Return the inner products (m, m) of the chosen rows about the `centre`-th of them, a vector (d,) or zero (None).

    They are taken block by block in `dtype` and added in float64. On a GPU without kernels all is float64. What its
    settings say on float32 products matters to neither.
    """
    m = len(rows)  # the centre is subtracted block by block: the centred rows are never made
    if not gradients.is_cpu:
        about = gradients[rows[centre]] if isinstance(centre, int) else centre
        found = fused.gram(gradients, rows, about, precise=dtype is np.float64)
        if found is not None:
            return np.asarray(found.cpu(), np.float64)
        total = gradients.new_zeros(m, m, dtype=torch.float64)
        for columns, block in blocks(gradients, rows, CUDA_WIDTH):
            differences = block.double()
            if centre is not None:
                differences = differences - _part(centre, columns, block).double()
            total += differences @ differences.T
        return np.asarray(total.cpu(), np.float64)
    gram, part = np.zeros((m, m)), np.empty((m, m), dtype)
    scratch = np.empty((m, min(GRAM_WIDTH, gradients.shape[1])), dtype)
    with np.errstate(over="ignore", invalid="ignore"):  # the caller looks at the outcome
        for columns, block in blocks(gradients, rows, GRAM_WIDTH):
            centred = block.numpy()
            if centre is not None:
                from_it = scratch[:, : columns.stop - columns.start]
                centred = np.subtract(centred, _part(centre, columns, block).numpy(), out=from_it, dtype=dtype)
            centred = centred.astype(dtype, copy=False)
            gram += np.matmul(centred, centred.T, out=part)  # numpy sees A A^T and computes half of it
    return gram


def _part(centre: int | Tensor, columns: slice, block: Tensor) -> Tensor:
    """Return the centre's part in a block: a row of it, or a part of a vector (d,)."""
    return block[centre] if isinstance(centre, int) else centre[columns]


def sample(gradients: Tensor) -> Tensor:
    """Return SAMPLE of the columns, in 16 runs spread over all of them, (n, SAMPLE)."""
    apart, run = gradients.shape[1] // 16, SAMPLE // 16
    return torch.cat([gradients[:, start : start + run] for start in range(0, 16 * apart, apart)], 1)


def squared_distances(gram: Matrix) -> Matrix:
    """Return the squared distances (m, m) that belong to inner products (m, m)."""
    norms = gram.diagonal()
    with np.errstate(invalid="ignore"):  # Inf - Inf
        # |x - y|^2 = |x|^2 + |y|^2 - 2 x.y, which rounding may make negative
        distances: Matrix = np.maximum(norms[:, None] + norms - 2 * gram, 0)
    return distances


def spread_of(gram: Matrix) -> Matrix:
    """Return for every row the squared distance within which lie more than half of the rows, itself included."""
    spread: Matrix = np.sort(squared_distances(gram), axis=1)[:, len(gram) // 2]
    return spread


def distances_to(gram: Matrix, weights: Matrix) -> Matrix:
    """Return the distances (m,) from the rows to their sum with `weights`."""
    projections = gram @ weights  # of the rows on the sum v: |x - v|^2 = |x|^2 - 2 x.v + |v|^2
    distances: Matrix = np.sqrt(np.maximum(gram.diagonal() - 2 * projections + weights @ projections, 0))
    return distances


def weighted_sum(gradients: Tensor, rows: list[int], weights: Matrix) -> Tensor:
    """Return the sum of the chosen rows with `weights` (m,), (n, d) -> (d,); a single row of weight 1 as it is."""
    used = np.flatnonzero(weights)
    if len(used) == 1 and weights[used[0]] == 1:
        return gradients[rows[used[0]]].clone()
    tiny = np.abs(weights[used]).min(initial=1) <= 1e-30  # tiny weights belong to huge rows: keep both
    dtype = torch.float64 if tiny else gradients.dtype
    factors = torch.from_numpy(weights).to(gradients.device, dtype)
    out = gradients.new_empty(gradients.shape[1])
    if not gradients.is_cpu and sums.weighted_sums(gradients, [rows[i] for i in used], factors[used][None], [out]):
        return out
    for columns, block in blocks(gradients, rows, SUM_WIDTH if gradients.is_cpu else CUDA_WIDTH):
        out[columns] = factors @ block.to(dtype)
    return out
