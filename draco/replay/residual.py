"""How far a product may be from the checker's own, and the secret vectors that tell.

Of a product C = A B with inner length k, a check compares C r with A (B r) for a secret vector r. Row i of the
difference is measured by

    |want_i| + rms(want)                                       first, as it costs nothing
    |want_i| + rms(want) + |a_i| |B|_F / sqrt(k)               where that is too much
    the same of the whole product, computed by the checker     where that is too much

|a_i| |B|_F / sqrt(k) is the size that row i would have if A and B had nothing to do with each other. Rounding is in
proportion to it. Where terms cancel, as in a gradient that is zero in exact arithmetic, rounding is all there is. The
whole product has the last word, so that no honest worker is convicted by a secret vector that was unlucky.

r is Gaussian and not of signs. An error e in a row leaves e . r, which is normal with deviation |e|: the chance that
it is below t |e| is less than 0.8 t. With signs an error in two numbers of a row would cancel with chance 1/2.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

_TINY = 1e-30  # added to a scale, so that products of zeros pass; far above what underflow does
_AT_ONCE = 0.5  # below so much of the tolerance a first scale will do, though a later one would be fairer


class Equation(NamedTuple):
    """One check: both sides of an equation that holds up to rounding, and what rounding is in proportion to."""

    output: int  # which output of the operation it is about
    along: int  # the dimension of that output which was contracted with a secret vector
    got: Tensor  # of the output as it came, in its shape without that dimension
    want: Tensor  # the same by the checker
    inner: int  # of how many terms each number of the output is the sum
    natural: Callable[[], Tensor | float]  # sizes of its rows if the factors had nothing to do with each other


class Secrets:
    """Gaussian numbers of which each is used once, drawn in blocks."""

    def __init__(self, generator: torch.Generator, block: int = 1 << 14) -> None:
        self._generator, self._block = generator, block
        self._drawn, self._used, self._size = torch.empty(0), 0, 0

    def take(self, count: int) -> Tensor:
        """Return fresh numbers (count,)."""
        begin, end = self._used, self._used + count
        if end > self._size:
            self._size = max(count, self._block)
            self._drawn = torch.randn(self._size, generator=self._generator)
            begin, end = 0, count
        self._used = end
        return self._drawn[begin:end]


def residual(equation: Equation, tolerance: float) -> float:
    """Return the largest difference in proportion to its scale; infinite where a side or a scale is not finite."""
    difference = equation.got - equation.want
    floor = rms(equation.want)
    bound = float(torch.linalg.vector_norm(difference, math.inf)) / (floor + _TINY)
    if bound <= tolerance * _AT_ONCE and math.isfinite(floor):
        return bound
    difference.abs_()
    scale = equation.want.abs().add_(floor + _TINY)
    worst = _worst(difference, scale)
    return worst if worst <= tolerance * _AT_ONCE else _worst(difference, scale + equation.natural())


def whole_residual(equation: Equation, came: Tensor, own: Tensor) -> float:
    """Return the same of whole rows of an output as it came, and as the checker has computed it; in float64."""
    difference = torch.linalg.vector_norm((came - own).double(), dim=equation.along)
    rows = torch.linalg.vector_norm(own.double(), dim=equation.along)
    return _worst(difference, rows + (rms(rows) + _TINY) + equation.natural())


def norm(x: Tensor) -> float:
    """Return the root of the sum of squares; in float64 where squares in float32 overflow or vanish."""
    size = float(torch.linalg.vector_norm(x))
    return size if 1e-15 < size < math.inf else float(torch.linalg.vector_norm(x, dtype=torch.float64))


def rms(x: Tensor) -> float:
    """Return the root of the mean of squares."""
    return norm(x) / math.sqrt(max(x.numel(), 1))


def _worst(difference: Tensor, scale: Tensor) -> float:
    if not difference.numel():
        return 0.0
    worst, largest = float((difference / scale).max()), float(scale.max())
    return worst if math.isfinite(worst) and math.isfinite(largest) else math.inf
