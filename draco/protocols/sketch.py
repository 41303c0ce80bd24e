"""Sketches: a few thousand secret projections of a vector, by which two vectors are compared that nobody sends.

A vector of d numbers, zeros appended, is a matrix E of a rows and b columns, both about the root of d. Its sketch is
U^T E W, where U (a, c) and W (b, c) hold independent standard normal numbers, drawn by a seed, and c = 64. So c^2
numbers cost about c d multiply-adds and 2c root(d) random numbers.

Theorem. Let E be fixed before the seed is drawn, and Q = |U^T E W|^2 / (c^2 |E|^2). Then Q has the mean 1, and for
every m with 0 < m < c/2 and every t

    P(Q <= t) <= (t c^2)^m  N(-m)^2,    P(Q >= t) <= (t c^2)^-m  N(m)^2,    N(m) = 2^m Gamma(c/2 + m) / Gamma(c/2).

Proof. Let x_1, x_2, ... be independent chi-squares of c degrees of freedom, whose m-th moment is N(m). For given W,
with l_i the eigenvalues of (EW)^T (EW), the square |U^T E W|^2 is distributed as the sum of l_i x_i. For any convex f
the mean of f(sum of l_i x_i) is convex in the l_i. So among those of one sum it is largest where one l_i has all of
it: it is at most the mean of f(|EW|^2 x_1). In the same way |EW|^2 is the sum of v_k x_k, v_k the squares of E's
singular values, and may be replaced by |E|^2 x_2. Both f(q) = q^-m and f(q) = q^m are convex (m >= 1 in the second).
Markov's inequality for f(Q) is the theorem. Matrices of rank one, such as a single wrong number, attain it.

Two vectors agree where their sketches' distance, which estimates theirs, is at most MARGIN = 2 tolerances. By the
theorem (`chance`):

    true distance, in tolerances      they agree with a probability of at most    they do not, of at most
    0.5                                                                           4e-46
    1                                                                             2e-9
    5                                 4e-9
    10                                2e-22

So an honest worker is refused by another with 2e-9 or less, and what is 5 tolerances from an honest vector passes with
4e-9 or less, by each honest worker whom it is compared with. Differences by rounding are spread over the vector, and
are far less likely to be refused.

The theorem is Johnson & Lindenstrauss's lemma (1984) for products of two Gaussian matrices; moments of chi-squares
stand in any table. Workers must draw the same numbers on unlike machines: numpy has frozen the stream of RandomState.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

COUNT = 64  # c
MARGIN = 2.0  # in tolerances
_BLOCK = 1 << 20  # numbers that are taken to float64 at once: 8 MiB

Matrix = npt.NDArray[np.float64]


def sketch(vector: Any, seed: int, count: int = COUNT) -> tuple[float, ...]:
    """Return the sketch of a vector (d,) in main memory, c^2 numbers, and after them its L2 norm.

    Sums are in float64, so that honest sketches differ by no more than honest vectors do. A vector that holds NaN or
    infinity has such numbers in its sketch.

    Args:
        vector: a tensor or an array of float32 or float64.
        seed: from 0 to 2^63 - 1, secret until every vector that is compared was committed to.
        count: c.
    """
    flat: npt.NDArray[Any] = np.asarray(vector).reshape(-1)
    columns = max(math.isqrt(flat.size), 1)
    rows = -(-flat.size // columns)
    left, right = _projections(rows, columns, seed, count)
    total, square = np.zeros((count, count)), 0.0
    step = max(_BLOCK // columns, 1)
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, rows, step):
            block = flat[start * columns : (start + step) * columns].astype(np.float64)
            square += float(block @ block)
            whole = len(block) // columns
            inner = block[: whole * columns].reshape(whole, columns) @ right
            total += left[start : start + whole].T @ inner
            if rest := len(block) - whole * columns:
                total += np.outer(left[start + whole], block[-rest:] @ right[:rest])
    return (*total.reshape(-1).tolist(), math.sqrt(square) if square >= 0 else math.nan)


def _projections(rows: int, columns: int, seed: int, count: int) -> tuple[Matrix, Matrix]:
    """Return U (a, c) and W (b, c)."""
    drawn = np.random.RandomState(np.random.MT19937(np.random.SeedSequence(seed)))
    return drawn.standard_normal((rows, count)), drawn.standard_normal((columns, count))


def distances(sketches: list[tuple[float, ...]]) -> dict[tuple[int, int], float]:
    """Return the norm of each vector by (i, i), and by (i, j), i < j, their distance, for votes within a tolerance.

    Norms are those that the sketches claim. A distance is the estimate, divided by MARGIN, and by the ratio of the
    shorter norm to the longer. So it is compared with the tolerance times the shorter, and whoever claims too long a
    norm is near nobody for it. Norms of honest vectors hardly differ.
    """
    norms = [claimed[-1] for claimed in sketches]
    found = {(i, i): norm for i, norm in enumerate(norms)}
    numbers = np.array([claimed[:-1] for claimed in sketches], np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        for j in range(len(sketches)):
            estimates = np.linalg.norm(numbers[:j] - numbers[j], axis=1) / math.sqrt(numbers.shape[1])
            for i, estimate in enumerate(estimates.tolist()):
                found[i, j] = estimate and estimate / MARGIN * _ratio(norms[i], norms[j])
    return found


def _ratio(a: float, b: float) -> float:
    """Return the longer norm divided by the shorter; infinity where one of them is no length."""
    if not (0 < a < math.inf and 0 < b < math.inf):
        return math.inf
    return max(a / b, b / a)


def chance(error: float, count: int = COUNT) -> float:
    """Return the bound of the theorem for two vectors whose distance is so many tolerances, above 0.

    Where that is MARGIN or less, the vectors are found to differ with at most this probability; where it is more, they
    are found to agree with at most this one.
    """
    sign = 1 if error <= MARGIN else -1
    scale = math.log(count * count) + 2 * math.log(MARGIN / error)  # of t c^2
    half = count / 2
    exponents = [k / 8 for k in range(8, 32 * count)] if sign > 0 else [-k / 32 for k in range(1, 16 * count)]
    logs = (2 * (m * math.log(2) + math.lgamma(half + m) - math.lgamma(half)) - m * scale for m in exponents)
    return min(math.exp(min(logs)), 1.0)
