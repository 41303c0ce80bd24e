"""Rules that look at every coordinate by itself.

Beside the result each needs memory for a few blocks of columns, whatever d is. At n = 45 that is some 5 MB.
"""

from __future__ import annotations

from collections.abc import Callable

from draco.aggregators.rows import CUDA_WIDTH, below_half, blocks, check, finite_rows
from draco.aggregators.rule import RuleDeclaration, majority
from draco.aggregators.sorting import Picking, mean_if_finite, mean_of_picked, middle, near_median
from draco.fused import columns
from draco.fused.writing import Value, sign
from draco.lazy import Tensor, torch

SIGN_WIDTH = 8192  # columns of a block of signs on the CPU: with up to 15 rows it stays in a core's second-level cache


def mean(gradients: Tensor, *, f: int = 0) -> Tensor:
    """Return the mean of the rows, (n, d) -> (d,). It tolerates no Byzantine row.

    `f` is ignored, and NaN and Inf spread.

    Raises:
        ValueError: `gradients` is not a real (n >= 1, d) tensor.
    """
    check(MEAN, gradients, f)
    return gradients.detach().mean(0)


MEAN = RuleDeclaration(
    name="mean",
    function=mean,
    text="the mean of the rows, which tolerates no Byzantine one",
    least=lambda f: 1,
    robust=False,
    by_coordinate=True,
)


def median(gradients: Tensor, *, f: int = 0) -> Tensor:
    """Return the median of every coordinate, (n, d) -> (d,); for even n the midpoint of the middle two.

    Source: Yin, Chen, Ramchandran, Bartlett, Byzantine-Robust Distributed Learning, ICML 2018 (arXiv:1803.01498),
    definition 1. `f` does not change the result; n >= 2f + 1 is required.

    Raises:
        ValueError: n < 2f + 1, or half of the rows or more hold NaN or Inf.
    """
    return _sorted(MEDIAN, gradients, f, below_half(gradients), lambda m: middle(m, (m - 1) // 2))


MEDIAN = RuleDeclaration(
    name="median",
    function=median,
    text="the median of every coordinate",
    least=majority,
    by_coordinate=True,
)


def trimmed_mean(gradients: Tensor, *, f: int = 0) -> Tensor:
    """Return the mean of every coordinate without its f largest and f smallest values, (n, d) -> (d,).

    Source: Yin et al. 2018 (arXiv:1803.01498), definition 2, with beta = f / n.

    Raises:
        ValueError: n < 2f + 1, or more than f rows hold NaN or Inf.
    """
    n = len(gradients)
    return _sorted(TRIMMED_MEAN, gradients, f, f, lambda m: middle(m, f - (n - m)))


TRIMMED_MEAN = RuleDeclaration(
    name="trimmed_mean",
    function=trimmed_mean,
    text="the mean of every coordinate without its f largest and f smallest values",
    least=majority,
    by_coordinate=True,
)


def meamed(gradients: Tensor, *, f: int = 0) -> Tensor:
    """Return the mean around the median: of every coordinate's n - f values nearest to its median, (n, d) -> (d,).

    Source: Xie, Koyejo, Gupta, Generalized Byzantine-tolerant SGD, 2018 (arXiv:1802.10116). For even n the median is
    the midpoint of the middle two; of a smaller and a larger value at the same distance the smaller is taken.

    Raises:
        ValueError: n < 2f + 1, or more than f rows hold NaN or Inf.
    """
    n = len(gradients)
    return _sorted(MEAMED, gradients, f, f, lambda m: near_median(m, f - (n - m)))


MEAMED = RuleDeclaration(
    name="meamed",
    function=meamed,
    text="the mean of every coordinate's m - f values nearest to its median",
    least=majority,
    by_coordinate=True,
)


def _sorted(
    declared: RuleDeclaration, gradients: Tensor, f: int, tolerated: int, picking: Callable[[int], Picking]
) -> Tensor:
    """Return the mean of the values that `picking` (of m finite rows) picks of every coordinate's.

    A GPU reads the rows once, as if all were finite, and says whether they were. A CPU looks for that first.
    """
    check(declared, gradients, f)
    out = mean_if_finite(gradients.detach(), picking(len(gradients)))
    if out is None:
        rows = finite_rows(declared, gradients, f, tolerated=tolerated)
        out = mean_of_picked(gradients.detach(), rows, picking(len(rows)))
    return out


def sign_majority(gradients: Tensor, *, f: int = 0) -> Tensor:
    """Return the sign that most of the rows have in every coordinate, (n, d) -> (d,): -1, 1, or 0 for a draw.

    Source: Bernstein, Zhao, Azizzadenesheli, Anandkumar, signSGD with Majority Vote is Communication Efficient and
    Fault Tolerant, ICLR 2019 (arXiv:1810.05291). A zero abstains. The result has no scale: it takes a learning rate of
    its own, as signSGD does. `f` does not change the result; n >= 2f + 1 is required.

    Raises:
        ValueError: n < 2f + 1, or half of the rows or more hold NaN or Inf.
    """
    check(SIGN_MAJORITY, gradients, f)
    rows = list(range(len(gradients)))
    out = columns.reduced(gradients.detach(), rows, _majority, f"signs of {len(rows)} rows", watch=True)
    if out is None:
        rows = finite_rows(SIGN_MAJORITY, gradients, f, tolerated=below_half(gradients))
        out = columns.reduced(gradients.detach(), rows, _majority, f"signs of {len(rows)} rows")
    return _signs(gradients.detach(), rows) if out is None else out


def _signs(gradients: Tensor, rows: list[int]) -> Tensor:
    out = gradients.new_empty(gradients.shape[1])
    for part, block in blocks(gradients, rows, SIGN_WIDTH if gradients.is_cpu else CUDA_WIDTH):
        out[part] = torch.sign(block).sum(0).sign()
    return out


def _majority(rows: list[Value], double: bool) -> Value:
    """Write the sign of the sum of the rows' signs as a kernel's source."""
    total, *others = [sign(row) for row in rows]
    for other in others:
        total = total + other
    return sign(total)


SIGN_MAJORITY = RuleDeclaration(
    name="sign_majority",
    function=sign_majority,
    text="the sign that most rows have in every coordinate",
    least=majority,
    by_coordinate=True,
)
