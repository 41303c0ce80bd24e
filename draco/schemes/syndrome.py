"""The certificate: whether a set of rows explains all errors, judged from projections of the replies alone.

A parity matrix F (p, n) annihilates all honest replies Z (n, d): F Z = 0. The replies are projected to rho (n, k). So
the syndrome S = F rho (p, k) is that of the errors alone. F[l, i] = F[0, i] x_i^l with n different nodes x_i on the
unit circle, so any p columns are independent (the code is MDS). Hence e errors at unknown rows and a at known rows are
determined if 2e + a <= p.

A set of rows is certified if the syndrome outside the span of their columns of F is no more than honest noise.
Source: Chen et al., DRACO, ICML 2018 (arXiv:1803.09877), section 3. The paper compares with a fixed 1e-9 and trusts
the outcome.
Shapes: n rows, p parities, k projections, t rows in a set, N sets. Nothing here depends on d, the length of a reply.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Complex = npt.NDArray[np.complex128]
Floats = npt.NDArray[np.float64]
Sets = npt.NDArray[np.intp]  # (N, t) rows
Rows = tuple[int, ...]

SPACING = 2.0**-149  # of float32 numbers below 2^-126, relative to which they are not rounded any more
ROUNDED = 4 * SPACING  # by which each number of an honest float32 row may be off there, from a few roundings
CLEAR = 1 / 3  # of the threshold: what leaves less is clearly noise, which was measured below a quarter
CHUNK = 1_000  # sets whose residuals are computed at once


class Evidence(NamedTuple):
    """What the syndromes are made of: the code, the projected replies, and what is known of them."""

    parity: Complex  # (p, n)
    nodes: Complex  # (n,)
    values: npt.NDArray[np.complex128] | Floats  # (n, k), 0 at the known rows
    squares: Floats  # (n,) squared norm of each row, 0 at the known rows
    known: Rows  # rows that did not arrive or are not finite
    tolerance: float  # relative size of honest differences in a row
    elements: int  # numbers of a row that were rounded to float32


def evidence(
    parity: Complex,
    values: Complex | Floats,
    squares: Floats,
    known: npt.NDArray[np.bool_],
    tolerance: float,
    elements: int,
) -> Evidence:
    """Return the evidence with zeros in the known rows."""
    n = len(known)
    # x_i = F[1, i] / F[0, i]. With fewer than two parities nothing is located, and no nodes are needed.
    nodes = parity[1] / parity[0] if len(parity) > 1 else np.ones(n, dtype=np.complex128)
    rows = tuple(int(i) for i in np.flatnonzero(known))
    values, squares = np.where(known[:, None], 0, values), np.where(known, 0, squares)
    return Evidence(parity, nodes, values, squares, rows, tolerance, elements)


def admissible(parity: Complex, known: Rows) -> bool:
    """Return whether the known rows leave a parity to check the others with, where there are any parities."""
    return len(known) < len(parity) or not known


def may_hold(found: Evidence, total: int) -> bool:
    """Return whether a set of `total` rows is uniquely decodable, with at least one parity left to check it."""
    p, known = len(found.parity), len(found.known)
    return 2 * (total - known) + known <= p and (total < p or not total)


def certified(found: Evidence, rows: Rows, *, slack: float = 1.0) -> bool:
    """Return whether the syndrome is nothing but the errors of `rows` and honest noise."""
    sets = np.asarray([rows], dtype=np.intp)
    return may_hold(found, len(rows)) and bool((residuals(found, sets) <= slack * thresholds(found, sets))[0])


def leftover(found: Evidence, rows: Rows) -> float:
    """Return the residual of a set as a share of its threshold."""
    return float(shares_of(found, np.asarray([rows], dtype=np.intp))[0])


def shares_of(found: Evidence, sets: Sets) -> Floats:
    """Return, for N sets, their residuals as shares of their thresholds; of a threshold of zero, zero or infinity."""
    rest, limits = residuals(found, sets), thresholds(found, sets)
    shares: Floats = np.divide(rest, limits, out=np.where(rest > 0, np.inf, 0.0), where=limits > 0)
    return shares


def residuals(found: Evidence, sets: Sets) -> Floats:
    """Return, for N sets of t rows, the norm of the syndrome's part outside the span of their columns of F.

    It does not depend on the values at those rows, which are zeroed first. Next to a value of 1e30 the others would
    be rounded away, and what is left would look clean.
    """
    result = []
    for chunk in np.array_split(sets, -(-len(sets) // CHUNK)):
        kept = np.ones((len(chunk), len(found.nodes), 1))  # (N, n, 1): zero at the set's rows
        np.put_along_axis(kept, chunk[..., None], 0, axis=1)
        syndrome = found.parity @ np.where(kept, found.values, 0)  # (N, p, k)
        basis = np.linalg.qr(found.parity[:, chunk].transpose(1, 0, 2))[0]  # (N, p, t), orthonormal, of the columns
        # The syndrome less its projection on the span of the columns, (N, p, k).
        rest = syndrome - basis @ (basis.conj().transpose(0, 2, 1) @ syndrome)
        result.append(np.linalg.norm(rest, axis=(1, 2)))
    return np.concatenate(result)


def thresholds(found: Evidence, sets: Sets) -> Floats:
    """Return, for N sets of t rows, the largest residual that honest rows are allowed.

    A row of norm a with relative noise eta adds (eta a)^2 per projection to the squared norm of n orthonormal
    combinations. The residual has p - t of these n dimensions, hence (p - t)/n of the sum. The tolerance is about four
    times the largest eta that was measured between honest machines (5e-7). So chance does not matter even where few
    coordinates carry the noise.
    """
    p, n = found.parity.shape
    kept = np.ones((len(sets), n), dtype=np.bool_)  # (N, n): False at the set's rows
    np.put_along_axis(kept, sets, values=False, axis=1)
    total = np.where(kept, found.squares, 0.0).sum(1)  # (N,) squared norms of the other rows, added up
    share = max(0, p - sets.shape[1]) * found.values.shape[1] / n  # (p - t)/n of it in each of k projections
    rounded = n * found.elements * ROUNDED**2  # what no tolerance that is relative allows
    limits: Floats = np.sqrt(share * (found.tolerance**2 * total + rounded))
    return limits


def recombination(parity: Complex, clean: Complex | Floats, rows: Rows) -> Complex:
    """Return the weights (n,) of least norm that decode with the weights of `rows` exactly zero.

    `clean` (n,) decodes where no row is wrong. Every v = clean + F^T y decodes the same, as F annihilates the code.
    """
    index = list(rows)
    weights = clean.astype(np.complex128)
    if not index:
        return weights
    # y (p,) is the solution of least norm of F[:, rows]^T y = -clean[rows], so that v is 0 on `rows`.
    weights += parity.T @ np.linalg.lstsq(parity[:, index].T, -clean[index], rcond=1e-15)[0]
    weights[index] = 0  # exactly, not only up to rounding
    return weights
