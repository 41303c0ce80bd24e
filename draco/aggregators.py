"""Aggregators: rules that reduce n gradients to one, most of them robust to f Byzantine rows.

`AGGREGATORS[name](gradients, f=...)` maps (n, d) to (d,) in the dtype (float32; float64 works) and on the device of
`gradients`, which is never changed. Rows may be strided. `MINIMUM_WORKERS[name](f)` is the least n that a rule bears.
A new rule is one function and one line in each of the two tables at the bottom.

Shapes: n gradients, d parameters, f declared Byzantine rows, m rows that are finite.

What every robust rule (all but `mean`) promises:
- a row with NaN or Inf is certainly Byzantine: it is dropped and f is lowered by one;
- finite rows of any size, 3e38 included, neither make the result non-finite nor spoil the arithmetic of other rows.

Krum and the geometric median depend on the rows only through their inner products, so both read the data once for a
Gram matrix about a central row, iterate on (m, m) numbers, and read one row or one weighted sum at the end. The Gram
matrix is taken in float32 products where a check finds them good enough and in float64 otherwise. Coordinate-wise rules
run a sorting network, stripped to what the result needs, over blocks of columns that fit the cache.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Aggregator = Callable[..., Tensor]  # (gradients (n, d), *, f: int = 0, ...) -> (d,)
Matrix = npt.NDArray[np.float64]

GRAM_WIDTH = 8192  # columns of a block on the CPU: with up to 45 rows it stays in a core's second-level cache, nearly
SORT_WIDTH = 24_576  # below torch's grain size of 32768, above which it hands every small call to its thread pool
SUM_WIDTH = 1 << 16  # a weighted sum makes no copy of a float32 block, so calls are dearer than cache misses
CUDA_WIDTH = 1 << 18  # on a GPU a block only bounds the scratch memory and the number of launches
SAMPLE = 4096  # columns from which a central row is guessed
FAR = 16.0  # float32 products are trusted if the centre's squared spread is at most this many times the smallest
FAR_PRECISE = 1e6  # the same for float64 products
TINY = 1e-30  # and if that spread is not less: the squares of its coordinates might have underflowed
AMBIGUOUS = 1e-6  # Krum scores this near to the least, relatively, are taken in float64; float32 erred by up to 6e-7
NEAR_A_ROW = 1e-2  # a point this near to a row, relative to the middle distance, may be on a slow way to it


# --- rules ---------------------------------------------------------------------------------------------------------


def mean(gradients: Tensor, *, f: int = 0) -> Tensor:
    """Return the mean of the rows, (n, d) -> (d,). It bears no Byzantine row: `f` is ignored, NaN and Inf spread.

    Raises:
        ValueError: `gradients` is not a real (n >= 1, d) tensor.
    """
    _check("mean", gradients, f)
    return gradients.detach().mean(0)


def median(gradients: Tensor, *, f: int = 0) -> Tensor:
    """Return the median of every coordinate, (n, d) -> (d,); for even n the midpoint of the middle two.

    Source: Yin, Chen, Ramchandran, Bartlett, Byzantine-Robust Distributed Learning, ICML 2018 (arXiv:1803.01498),
    definition 1. `f` does not change the result; n >= 2f + 1 is required.

    Raises:
        ValueError: n < 2f + 1, or half of the rows or more hold NaN or Inf.
    """
    rows = _finite_rows("median", gradients, f, bearable=(len(gradients) - 1) // 2)
    return _mean_of_middle(gradients.detach(), rows, (len(rows) - 1) // 2)


def trimmed_mean(gradients: Tensor, *, f: int = 0) -> Tensor:
    """Return the mean of every coordinate without its f largest and f smallest values, (n, d) -> (d,).

    Source: Yin et al. 2018 (arXiv:1803.01498), definition 2, with beta = f / n.

    Raises:
        ValueError: n < 2f + 1, or more than f rows hold NaN or Inf.
    """
    rows = _finite_rows("trimmed_mean", gradients, f, bearable=f)
    return _mean_of_middle(gradients.detach(), rows, f - (len(gradients) - len(rows)))


def krum(gradients: Tensor, *, f: int = 0) -> Tensor:
    """Return the row with the least sum of squared distances to its n - f - 2 nearest other rows, (n, d) -> (d,).

    Source: Blanchard, El Mhamdi, Guerraoui, Stainer, Machine Learning with Adversaries, NeurIPS 2017
    (arXiv:1703.02757), section 4, which is over the whole vector and needs n >= 2f + 3. Other libraries sum n - f - 1
    distances or do not square them; the original Draco applied the paper's rule to every layer: see `per_layer`.
    Of equal scores the first row's wins.

    Raises:
        ValueError: n < 2f + 3, or more than f rows hold NaN or Inf.
    """
    rows, gram, precise = _finite_gram("krum", gradients, f, bearable=f)
    nearest = len(gradients) - f - 2  # the same after b rows are dropped: (n - b) - (f - b) - 2
    scores = _krum_scores(gram, nearest)
    if not precise and np.sum(scores <= scores.min() * (1 + AMBIGUOUS)) > 1:
        scores = _krum_scores(_precise_gram(gradients.detach(), rows), nearest)
    best = int(np.argmax(scores <= scores.min() * (1 + 1e-12)))
    return gradients.detach()[rows[best]].clone()


def geometric_median(
    gradients: Tensor, *, f: int = 0, tol: float = 1e-9, max_iterations: int = 1000, backend: str = "gram"
) -> Tensor:
    """Return the point with the least sum of (unsquared) distances to the rows, (n, d) -> (d,).

    Source: Chen, Su, Xu, Distributed Statistical Machine Learning in Adversarial Settings, POMACS 2017
    (arXiv:1705.05491), section 3; Weiszfeld's iteration, whose stay at a row that is not the median is avoided and
    whose slow approach to a row that is the median is cut short by the test of Vardi and Zhang, The multivariate
    L1-median, PNAS 2000.

    Args:
        gradients: (n, d).
        f: declared Byzantine rows; it does not change the result, but n >= 2f + 1 is required.
        tol: the iteration ends when a step is at most this times the middle distance from the point to the rows.
        max_iterations: it ends then in any case, at the best point so far.
        backend: "gram", or "hdmedians" for the library that the original Draco used, on a float64 copy of the rows,
            with `tol` and `max_iterations` as its `eps` and `maxiters`; it is there to compare with.

    Raises:
        ValueError: n < 2f + 1, half of the rows or more hold NaN or Inf, or an unknown backend.
    """
    bearable = (len(gradients) - 1) // 2
    if backend == "hdmedians":
        rows = _finite_rows("geometric_median", gradients, f, bearable=bearable)
        return _hdmedians(gradients.detach(), rows, tol, max_iterations)
    if backend != "gram":
        raise ValueError(f"geometric_median: backend {backend!r} is not one of gram, hdmedians")
    rows, gram, precise = _finite_gram("geometric_median", gradients, f, bearable=bearable)
    weights, distances, settled = _weiszfeld(gram, tol, max_iterations)
    if not precise and not (settled and distances.min() > NEAR_A_ROW * np.median(distances)):
        gram, precise = _precise_gram(gradients.detach(), rows), True
        weights, distances, _ = _weiszfeld(gram, tol, max_iterations)
    if precise:
        for place in np.argsort(distances)[: len(rows) // 2 + 1]:
            if _minimal_at(gram, place):
                return gradients.detach()[rows[place]].clone()
    return _weighted_sum(gradients.detach(), rows, weights)


def per_layer(rule: Aggregator, bounds: Sequence[tuple[int, int]]) -> Aggregator:
    """Return a rule that applies `rule` to the columns [start, stop) of every layer on its own.

    The original Draco did so. The bound on Byzantine rows then holds layer by layer, but the result may mix layers of
    different rows.

    Raises:
        ValueError: the bounds are empty, out of order or leave a gap; or, when called, do not end at d.
    """
    starts, stops = [start for start, _ in bounds], [stop for _, stop in bounds]
    if not bounds or starts != [0, *stops[:-1]] or any(start >= stop for start, stop in bounds):
        raise ValueError(f"per_layer: the bounds {list(bounds)} are not contiguous non-empty slices from column 0")

    def layered(gradients: Tensor, *, f: int = 0, **options: Any) -> Tensor:
        if gradients.dim() != 2 or gradients.shape[1] != stops[-1]:
            raise ValueError(f"per_layer: gradients {tuple(gradients.shape)} do not have {stops[-1]} columns")
        return torch.cat([rule(gradients[:, start:stop], f=f, **options) for start, stop in bounds])

    return layered


# --- which rows count ----------------------------------------------------------------------------------------------


def minimum_workers(name: str, f: int) -> int:
    """Return the least n with which the rule `name` bears f Byzantine rows.

    Raises:
        ValueError: there is no such rule, or f is negative.
    """
    if name not in MINIMUM_WORKERS:
        raise ValueError(f"aggregator {name!r} is not one of {', '.join(MINIMUM_WORKERS)}")
    if f < 0:
        raise ValueError(f"{name}: f = {f}; it must be 0 or more")
    return MINIMUM_WORKERS[name](f)


def _check(name: str, gradients: Tensor, f: int) -> None:
    """Raise ValueError unless `gradients` is (n, d), float32 or float64, with enough rows for f."""
    if gradients.dim() != 2 or gradients.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{name}: gradients are {tuple(gradients.shape)} {gradients.dtype}; need (n, d) float32")
    least = minimum_workers(name, f)
    if len(gradients) < least:
        raise ValueError(f"{name}: f = {f} needs at least {least} gradients, got {len(gradients)}")


def _finite_rows(name: str, gradients: Tensor, f: int, *, bearable: int) -> list[int]:
    """Return the rows without NaN and Inf, increasing, after the checks; ValueError if over `bearable` have some."""
    _check(name, gradients, f)
    finite = torch.isfinite(gradients.detach().sum(1))  # a finite sum has finite terms; others are looked at closely
    for row in torch.nonzero(~finite).flatten().tolist():
        finite[row] = torch.isfinite(gradients[row]).all()
    rows: list[int] = torch.nonzero(finite).flatten().tolist()
    lost = len(gradients) - len(rows)
    if lost > bearable:
        limit = f"f = {f}" if bearable == f else f"{bearable}, fewer than half"
        raise ValueError(f"{name}: {lost} of {len(gradients)} gradients hold NaN or Inf; the most it bears is {limit}")
    return rows


def _blocks(gradients: Tensor, rows: list[int], width: int) -> Iterator[tuple[slice, Tensor]]:
    """Yield the columns of every block and its chosen rows, (m, <= width); copies only where rows are left out."""
    for start in range(0, gradients.shape[1], width):
        columns = slice(start, min(start + width, gradients.shape[1]))
        block = gradients[:, columns]
        yield columns, block if len(rows) == len(gradients) else block[rows]


# --- coordinate-wise rules -----------------------------------------------------------------------------------------


class Comparator(NamedTuple):
    """One exchange of a sorting network: the smaller value goes to row `low`, the larger to row `high`."""

    low: int
    high: int
    keep_low: bool  # False: nothing reads the smaller value any more
    keep_high: bool


def _sorting_network(n: int) -> list[tuple[int, int]]:
    """Return the (low, high) pairs of Batcher's odd-even merge sort of n values (Knuth, TAOCP 3, 5.2.2 M)."""
    pairs = []
    merged = 1
    while merged < n:
        reach = merged
        while reach >= 1:
            for start in range(reach % merged, n - reach, 2 * reach):
                for low in range(start, min(start + reach, n - reach)):
                    if low // (2 * merged) == (low + reach) // (2 * merged):
                        pairs.append((low, low + reach))
            reach //= 2
        merged *= 2
    return pairs


@lru_cache(maxsize=64)
def _trimming_network(n: int, drop: int) -> tuple[Comparator, ...]:
    """Return the exchanges after which rows drop .. n - drop - 1 hold the middle values, in any order.

    From the last exchange backwards, one between two values that are both dropped, or both just summed, is left out.
    """
    fate = ["summed" if drop <= row < n - drop else "dropped" for row in range(n)]
    needed = []
    for low, high in reversed(_sorting_network(n)):
        if fate[low] == fate[high] != "compared":
            continue
        needed.append(Comparator(low, high, fate[low] != "dropped", fate[high] != "dropped"))
        fate[low] = fate[high] = "compared"
    return tuple(reversed(needed))


def _mean_of_middle(gradients: Tensor, rows: list[int], drop: int) -> Tensor:
    """Return the mean of every coordinate without its `drop` largest and smallest values, (n, d) -> (d,)."""
    n, kept = len(rows), len(rows) - 2 * drop
    network = _trimming_network(n, drop)
    width = CUDA_WIDTH if gradients.is_cuda else SORT_WIDTH
    ops: Any = torch if gradients.is_cuda else np  # numpy's calls cost half of torch's
    out = gradients.new_empty(gradients.shape[1])
    scratch = gradients.new_empty(n + 1, min(width, gradients.shape[1]))
    for columns, block in _blocks(gradients, rows, width):
        work = scratch[:, : block.shape[1]]
        work[:n].copy_(block)
        *values, spare = work if gradients.is_cuda else work.numpy()
        _run_network(network, values, spare, ops)
        result = out[columns] if gradients.is_cuda else out[columns].numpy()
        result[:] = 0
        for value in values[drop : n - drop]:
            value *= 1 / kept  # before summing, so that huge values do not overflow
            result += value
    return out


def _run_network(network: tuple[Comparator, ...], values: list[Any], spare: Any, ops: Any) -> None:
    """Exchange the rows of `values`, arrays of `ops` (numpy or torch), in place; the list is permuted with `spare`."""
    for low, high, keep_low, keep_high in network:
        a, b = values[low], values[high]
        if keep_low and keep_high:
            ops.minimum(a, b, out=spare)
            ops.maximum(a, b, out=b)
            values[low], spare = spare, a
        elif keep_low:
            ops.minimum(a, b, out=a)
        else:
            ops.maximum(a, b, out=b)


# --- inner products ------------------------------------------------------------------------------------------------


def _finite_gram(name: str, gradients: Tensor, f: int, *, bearable: int) -> tuple[list[int], Matrix, bool]:
    """Return the finite rows, their inner products about one of them (m, m), and whether those are float64 products.

    Where the fast way succeeds with all rows, all are finite and were read once.

    Raises:
        ValueError: as `_finite_rows`.
    """
    _check(name, gradients, f)
    rows = list(range(len(gradients)))
    gram = _fast_gram(gradients.detach(), rows)
    if gram is None:
        rows = _finite_rows(name, gradients, f, bearable=bearable)
        if len(rows) < len(gradients):
            gram = _fast_gram(gradients.detach(), rows)
    if gram is None:
        return rows, _precise_gram(gradients.detach(), rows), True
    return rows, gram, False


def _fast_gram(gradients: Tensor, rows: list[int]) -> Matrix | None:
    """Return float32 inner products (m, m) of the chosen rows about a central one; None where they cannot be trusted.

    Subtracting a central row first keeps a large common part from drowning the differences. A Byzantine row would be a
    bad centre: the centre is guessed on a sample of columns and the guess is judged by the outcome over all of them, so
    that foreseeing the sample gains an adversary a second pass, and nothing else. The products are trusted if the
    centre is so central that they give the distances to about 1e-6. NaN and Inf anywhere, and overflow, show in them.
    """
    if gradients.is_cuda or gradients.dtype != torch.float32 or gradients.shape[1] <= SAMPLE:
        return None
    gram = _products(gradients, rows, _central_gram(_sample(gradients), rows)[1], np.float32)
    if not np.isfinite(gram).all():
        return None
    spread = np.sort(gram.diagonal())[len(rows) // 2]  # the centre's
    return gram if TINY <= spread <= FAR * _spread(gram).min() else None


def _precise_gram(gradients: Tensor, rows: list[int]) -> Matrix:
    """Return the float64 inner products (m, m) of the chosen rows, all finite, about a central one."""
    return _central_gram(gradients, rows)[0]


def _central_gram(gradients: Tensor, rows: list[int]) -> tuple[Matrix, int]:
    """Return the float64 inner products (m, m) about a row central enough for them, and the most central row's place.

    Every pass after the first, if any, starts at least 1000 times nearer to the majority: even a first row at 1e38 is
    left after a few.
    """
    centre = 0
    for _ in rows:
        gram = _products(gradients, rows, centre, np.float64)
        spread = _spread(gram)
        if not spread[centre] > FAR_PRECISE * spread.min():  # central enough, or NaN
            break
        centre = int(spread.argmin())
    return gram, int(spread.argmin())


def _products(gradients: Tensor, rows: list[int], centre: int, dtype: type[np.floating[Any]]) -> Matrix:
    """Return the inner products (m, m) of the chosen rows about the `centre`-th of them, in blocks of `dtype`.

    The blocks' products are added in float64. On a GPU all is float64, whatever its settings say on float32 products.
    """
    m = len(rows)
    if gradients.is_cuda:
        total = gradients.new_zeros(m, m, dtype=torch.float64)
        for _, block in _blocks(gradients, rows, CUDA_WIDTH):
            differences = block.double() - block[centre].double()
            total += differences @ differences.T
        return np.asarray(total.cpu(), np.float64)
    gram, part = np.zeros((m, m)), np.empty((m, m), dtype)
    scratch = np.empty((m, min(GRAM_WIDTH, gradients.shape[1])), dtype)
    with np.errstate(over="ignore", invalid="ignore"):  # the caller looks at the outcome
        for columns, block in _blocks(gradients, rows, GRAM_WIDTH):
            values, centred = block.numpy(), scratch[:, : columns.stop - columns.start]
            np.subtract(values, values[centre], out=centred, dtype=dtype)
            gram += np.matmul(centred, centred.T, out=part)  # numpy sees A A^T and computes half of it
    return gram


def _sample(gradients: Tensor) -> Tensor:
    """Return SAMPLE of the columns, in 16 runs spread over all of them, (n, SAMPLE)."""
    apart, run = gradients.shape[1] // 16, SAMPLE // 16
    return torch.cat([gradients[:, start : start + run] for start in range(0, 16 * apart, apart)], 1)


def _squared_distances(gram: Matrix) -> Matrix:
    """Return the squared distances (m, m) that belong to inner products (m, m)."""
    norms = gram.diagonal()
    with np.errstate(invalid="ignore"):  # Inf - Inf
        distances: Matrix = np.maximum(norms[:, None] + norms - 2 * gram, 0)
    return distances


def _spread(gram: Matrix) -> Matrix:
    """Return for every row the squared distance within which lie more than half of the rows, itself included."""
    spread: Matrix = np.sort(_squared_distances(gram), axis=1)[:, len(gram) // 2]
    return spread


def _krum_scores(gram: Matrix, nearest: int) -> Matrix:
    """Return for every row the sum of its `nearest` least squared distances to other rows, (m,)."""
    distances = np.sort(_squared_distances(gram), axis=1)
    scores: Matrix = distances[:, : nearest + 1].sum(1)  # the first is the row's own, zero
    return scores


def _weiszfeld(gram: Matrix, tol: float, max_iterations: int) -> tuple[Matrix, Matrix, bool]:
    """Return the geometric median's weights (m,), of sum 1, its distances (m,) to the rows, and whether it settled.

    Each step weights every row by the inverse of its distance to the last point, so the point stays a weighted sum.
    It starts from the inverse spreads: near the majority, whatever the size of the rest.
    """
    weights = _inverse(np.sqrt(_spread(gram)))
    for _ in range(max_iterations):
        distances = _distances_to(gram, weights)
        middle = np.median(distances)
        update = _inverse(np.maximum(distances, 1e-8 * middle))  # Gram noise; leaves rows
        step = update - weights
        weights = update
        if step @ gram @ step <= (tol * middle) ** 2:
            return weights, _distances_to(gram, weights), True
    return weights, _distances_to(gram, weights), False


def _inverse(distances: Matrix) -> Matrix:
    """Return weights (m,) of sum 1 in inverse proportion to the distances, of which some may be zero."""
    inverse = 1 / np.maximum(distances, 1e-150)
    weights: Matrix = inverse / inverse.sum()
    return weights


def _distances_to(gram: Matrix, weights: Matrix) -> Matrix:
    """Return the distances (m,) from the rows to their sum with `weights`."""
    projections = gram @ weights
    distances: Matrix = np.sqrt(np.maximum(gram.diagonal() - 2 * projections + weights @ projections, 0))
    return distances


def _minimal_at(gram: Matrix, row: int) -> bool:
    """Return whether `row` is the only geometric median: the others' unit pulls sum to less than its multiplicity."""
    about = gram - gram[row] - gram[:, [row]] + gram[row, row]
    norms = about.diagonal()
    apart = norms > 1e-13 * (gram.diagonal() + gram[row, row])  # nearer rows are copies of it, up to rounding
    units = 1 / np.sqrt(norms[apart])
    return bool(units @ about[np.ix_(apart, apart)] @ units < np.sum(~apart) ** 2 * (1 - 1e-9))


def _weighted_sum(gradients: Tensor, rows: list[int], weights: Matrix) -> Tensor:
    """Return the sum of the chosen rows with `weights` (m,), (n, d) -> (d,)."""
    dtype = gradients.dtype if weights.min() > 1e-30 else torch.float64  # tiny weights belong to huge rows: keep both
    factors = torch.from_numpy(weights).to(gradients.device, dtype)
    out = gradients.new_empty(gradients.shape[1])
    for columns, block in _blocks(gradients, rows, CUDA_WIDTH if gradients.is_cuda else SUM_WIDTH):
        out[columns] = factors @ block.to(dtype)
    return out


def _hdmedians(gradients: Tensor, rows: list[int], tol: float, max_iterations: int) -> Tensor:
    """Return the geometric median that the package hdmedians finds for the chosen rows, (n, d) -> (d,)."""
    import hdmedians  # built from source and needed for this comparison only

    points = gradients[rows].double().T.cpu().numpy()
    found = np.asarray(hdmedians.geomedian(points, axis=1, eps=tol, maxiters=max_iterations))  # a view that can die
    return torch.tensor(found, dtype=gradients.dtype, device=gradients.device)


AGGREGATORS: dict[str, Aggregator] = {
    "mean": mean,
    "median": median,
    "trimmed_mean": trimmed_mean,
    "geometric_median": geometric_median,
    "krum": krum,
}

MINIMUM_WORKERS: dict[str, Callable[[int], int]] = {
    "mean": lambda f: 1,
    "median": lambda f: 2 * f + 1,
    "trimmed_mean": lambda f: 2 * f + 1,
    "geometric_median": lambda f: 2 * f + 1,
    "krum": lambda f: 2 * f + 3,
}
