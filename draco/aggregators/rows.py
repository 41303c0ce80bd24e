"""Which rows a rule may read: enough of them, finite, and in blocks of columns that fit the cache.

Shapes: n gradients, d parameters, f declared Byzantine rows, m rows that are finite.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from draco.lazy import Tensor, torch

MINIMUM_WORKERS: dict[str, Callable[[int], int]] = {
    "mean": lambda f: 1,
    "median": lambda f: 2 * f + 1,
    "trimmed_mean": lambda f: 2 * f + 1,
    "meamed": lambda f: 2 * f + 1,
    "sign_majority": lambda f: 2 * f + 1,
    "median_of_means": lambda f: 2 * f + 1,
    "geometric_median": lambda f: 2 * f + 1,
    "krum": lambda f: 2 * f + 3,
    "multi_krum": lambda f: 2 * f + 3,
    "bulyan": lambda f: 4 * f + 3,
    "mda": lambda f: 2 * f + 1,
    "smea": lambda f: 2 * f + 1,
    "caf": lambda f: 2 * f + 1,
    "centered_clipping": lambda f: 2 * f + 1,
    "monna": lambda f: 2 * f + 1,
    "cge": lambda f: 2 * f + 1,
}
# The same for what is done to the gradients before a rule.
PRE_MINIMUM_WORKERS: dict[str, Callable[[int], int]] = {
    "nnm": lambda f: 2 * f + 1,
    "bucketing": lambda f: f + 1,
    "clipping": lambda f: f + 1,
    "arc": lambda f: 2 * f + 1,
}

CUDA_WIDTH = 1 << 18  # on a GPU a block only bounds the scratch memory and the number of launches


def minimum_workers(name: str, f: int) -> int:
    """Return the least n with which the rule or pre-aggregator `name` bears f Byzantine rows.

    Raises:
        ValueError: there is no such rule, or f is negative.
    """
    if name in PRE_MINIMUM_WORKERS and f >= 0:
        return PRE_MINIMUM_WORKERS[name](f)
    if name not in MINIMUM_WORKERS | PRE_MINIMUM_WORKERS:
        raise ValueError(f"aggregator {name!r} is not one of {', '.join(MINIMUM_WORKERS)}")
    if f < 0:
        raise ValueError(f"{name}: f = {f}; it must be 0 or more")
    return MINIMUM_WORKERS[name](f)


def check(name: str, gradients: Tensor, f: int) -> None:
    """Raise ValueError unless `gradients` is (n, d), float32 or float64, with enough rows for f."""
    if gradients.dim() != 2 or gradients.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{name}: gradients are {tuple(gradients.shape)} {gradients.dtype}; need (n, d) float32")
    least = minimum_workers(name, f)
    if len(gradients) < least:
        raise ValueError(f"{name}: f = {f} needs at least {least} gradients, got {len(gradients)}")


def finite_rows(name: str, gradients: Tensor, f: int, *, bearable: int) -> list[int]:
    """Return the rows without NaN and Inf, increasing, after the checks; ValueError if over `bearable` have some."""
    check(name, gradients, f)
    finite = torch.isfinite(gradients.detach().sum(1))  # a finite sum has finite terms; others are looked at closely
    for row in torch.nonzero(~finite).flatten().tolist():
        finite[row] = torch.isfinite(gradients[row]).all()
    rows: list[int] = torch.nonzero(finite).flatten().tolist()
    lost = len(gradients) - len(rows)
    if lost > bearable:
        limit = f"f = {f}" if bearable == f else f"{bearable}, fewer than half"
        raise ValueError(f"{name}: {lost} of {len(gradients)} gradients hold NaN or Inf; the most it bears is {limit}")
    return rows


def is_finite(vector: Tensor) -> bool:
    """Say whether every element is finite: a sum carries every NaN and infinity, and reads the vector only once."""
    return bool(torch.isfinite(vector.sum())) or bool(torch.isfinite(vector).all())


def blocks(gradients: Tensor, rows: list[int], width: int) -> Iterator[tuple[slice, Tensor]]:
    """Yield the columns of every block and its chosen rows, (m, <= width); copies only where rows are left out."""
    for start in range(0, gradients.shape[1], width):
        columns = slice(start, min(start + width, gradients.shape[1]))
        block = gradients[:, columns]
        yield columns, block if len(rows) == len(gradients) else block[rows]
