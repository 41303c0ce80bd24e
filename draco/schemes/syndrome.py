"""Find the rows that lie, from projections of the replies alone: nothing here depends on d.

A parity matrix F (p, n) annihilates every honest set of replies, F Z = 0, so the syndrome S = F rho of the projected
replies rho (n, k) is that of the errors alone. F[l, i] = F[0, i] x_i^l with n different nodes x_i on the unit circle:
any p columns are independent (MDS), so e errors at unknown rows and x at known ones are determined if 2e + x <= p.

Locator: Prony's method (de Prony 1795) as in Chen et al., DRACO, ICML 2018 (arXiv:1803.09877), section 3 and its
appendix on the cyclic code, with two changes: the Hankel matrices of all k projections are stacked and their smallest
singular vector gives the polynomial (total least squares; Rahman & Yu 1987), and rows are ranked by the polynomial's
magnitude instead of compared with a fixed 1e-9. Known rows are taken out first with their locator polynomial (Forney
1965). No set of rows is believed without the certificate: the syndrome outside their span must be noise.
Shapes: n rows, p parities, k projections, t rows in a set, N sets.
"""

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Complex = npt.NDArray[np.complex128]
Floats = npt.NDArray[np.float64]
Sets = npt.NDArray[np.intp]  # (N, t) rows
Rows = tuple[int, ...]

GIANT = 1e6  # times the median row: beyond, float64 would lose the honest part of the syndrome to rounding
TINY = 1e-37  # smaller differences are float32's own underflow
SEARCH = 20_000  # sets that an exhaustive search may try at each size: about half a second
BEAM = 60  # sets kept from one size to the next
SPARE = 6  # rows beyond t of the ranking whose subsets of t are all tried
CLEAR = 1 / 3  # of the threshold; honest noise stays below a quarter of it where measured
DOUBT = 1e5  # thresholds; larger syndromes leave no doubt which rows they are of
DISTINCT = 2.0  # times the least residual: a set that leaves more is not a rival; 9 standard deviations at p - t = 5
AMBIGUOUS = 1e-3  # of a row's size: what two explanations of the same syndrome may differ by
CHUNK = 1_000  # sets whose residuals are computed at once


class Evidence(NamedTuple):
    """What the syndromes are made of."""

    parity: Complex  # (p, n)
    nodes: Complex  # (n,)
    values: npt.NDArray[np.complex128] | Floats  # (n, k), 0 at the known rows
    squares: Floats  # (n,) squared norm of each row, 0 at the known rows
    known: Rows  # rows that did not arrive or are not finite
    tolerance: float  # relative size of honest differences in a row


def evidence(
    parity: Complex, values: Complex | Floats, squares: Floats, known: npt.NDArray[np.bool_], tolerance: float
) -> Evidence:
    """Return the evidence with the known rows blanked out."""
    n = len(known)
    nodes = parity[1] / parity[0] if len(parity) > 1 else np.ones(n, dtype=np.complex128)  # no locator needs the latter
    rows = tuple(int(i) for i in np.flatnonzero(known))
    return Evidence(parity, nodes, np.where(known[:, None], 0, values), np.where(known, 0, squares), rows, tolerance)


def locate_clearly(found: Evidence) -> Rows | None:
    """Return what `locate` would, if the first set that passes leaves clearly no more than noise; else None."""
    for variant in (found, *_without_giants(found)):
        if (rows := _by_polynomial(variant, 1.0)) is not None:
            return _settled(variant, _pruned(variant, rows)) if _leftover(variant, rows) <= CLEAR else None
    return None


def locate(found: Evidence) -> Rows | None:
    """Return the fewest rows that explain the syndrome, the known ones included; None if no admissible set does.

    A set that leaves much less than the certificate allows is preferred to a smaller one that just passes: where the
    rows that lie are neighbours, the right set and a wrong one can both pass, and the right one leaves only noise.
    Rows beyond `GIANT` times the median may drown the others: what fails with them is tried again with them blanked,
    which turns their errors into "minus the honest reply", still at the same rows.
    """
    variants = [found, *_without_giants(found)]
    weak: tuple[Evidence, Rows] | None = None
    for search, order in ((_by_polynomial, variants), (_by_subsets, variants[::-1])):
        for variant in order:
            if weak is None and (rows := search(variant, 1.0)) is not None:
                weak = variant, rows
            if weak is None:
                continue
            share = _leftover(*weak)
            if share <= CLEAR:
                return _settled(weak[0], _pruned(*weak))
            if (rows := search(variant, min(CLEAR, share / 4))) is not None:
                return _settled(variant, _pruned(variant, rows))
    return None if weak is None else _settled(weak[0], _pruned(*weak))


def _settled(found: Evidence, rows: Rows) -> Rows | None:
    """Return the set of least residual that swaps of a row lead to; None if a rival explains the syndrome as well.

    Only small errors are in doubt: those of neighbours whose columns of F nearly depend on each other. A rival is a
    set that passes and decodes the projections to something else.
    """
    sets = np.asarray([rows], dtype=np.intp)
    if len(rows) == len(found.known) or _leftover(found, found.known) > DOUBT:
        return rows
    while True:
        least = float(_shares(found, sets)[0])
        rivals = _rivals(found, tuple(int(i) for i in sets[0]))
        shares = _shares(found, rivals)
        best = int(np.argmin(shares))
        if not shares[best] < least * (1 - 1e-9):
            break
        sets = rivals[best : best + 1]
    close = rivals[shares <= min(1.0, DISTINCT * max(least, TINY))]
    chosen = tuple(int(i) for i in sets[0])
    mean = _decoded(found, chosen)
    differences = [np.linalg.norm(_decoded(found, tuple(int(i) for i in other)) - mean) for other in close]
    size = np.sqrt(found.squares.mean() * found.values.shape[1])
    return None if any(d > AMBIGUOUS * size for d in differences) else chosen


def _rivals(found: Evidence, rows: Rows) -> Sets:
    """Return the sets that differ from `rows` by a swap, or take the same number of rows from a wide neighbourhood."""
    n = len(found.nodes)
    free = [i for i in rows if i not in found.known]
    others = [j for j in range(n) if j not in rows]
    sets = {tuple(sorted({*rows} - {i} | {j})) for i in free for j in others}
    spare = max(k for k in range(SPARE + 1) if math.comb(len(free) + k, k) <= CHUNK)
    pool = [int(i) for i in _ranking(found, len(free))[: len(free) + spare]]
    sets |= {tuple(sorted((*found.known, *c))) for c in itertools.combinations(pool, len(free))}
    sets.discard(rows)
    return np.asarray(sorted(sets), dtype=np.intp)


def _decoded(found: Evidence, rows: Rows) -> Complex:
    """Return the mean over all rows that the projections decode to without `rows`, up to the code's own weights."""
    clean = np.full(len(found.nodes), 1 / len(found.nodes))
    weights = recombination(found.parity, clean, rows)
    return weights @ found.values


def _shares(found: Evidence, sets: Sets) -> Floats:
    shares: Floats = residuals(found, sets) / np.maximum(thresholds(found, sets), TINY)
    return shares


def _leftover(found: Evidence, rows: Rows) -> float:
    """Return the residual of a set as a share of its threshold."""
    return float(_shares(found, np.asarray([rows], dtype=np.intp))[0])


def certified(found: Evidence, rows: Rows, *, slack: float = 1.0) -> bool:
    """Return whether the syndrome is nothing but the errors of `rows` and honest noise."""
    sets = np.asarray([rows], dtype=np.intp)
    return _admissible(found, len(rows)) and bool((residuals(found, sets) <= slack * thresholds(found, sets))[0])


def residuals(found: Evidence, sets: Sets) -> Floats:
    """Return, for N sets of t rows, the norm of the syndrome's part outside the span of their columns of F."""
    syndrome = found.parity @ found.values  # (p, k)
    if not sets.shape[1]:
        return np.full(len(sets), np.linalg.norm(syndrome))
    result = []
    for chunk in np.array_split(sets, -(-len(sets) // CHUNK)):
        basis = np.linalg.qr(found.parity[:, chunk].transpose(1, 0, 2))[0]  # (N, p, t)
        rest = syndrome - basis @ (basis.conj().transpose(0, 2, 1) @ syndrome)
        result.append(np.linalg.norm(rest, axis=(1, 2)))
    return np.concatenate(result)


def thresholds(found: Evidence, sets: Sets) -> Floats:
    """Return, for N sets of t rows, the largest residual that honest rows are allowed.

    A row of norm a with relative noise eta adds (eta a)^2 per projection to the squared norm of n orthonormal
    combinations, hence (p - t)/n of that to the residual. The tolerance is about four times the largest eta that was
    measured between honest machines (5e-7), so that chance does not matter even where few coordinates carry the noise.
    """
    p, n = found.parity.shape
    kept = np.ones((len(sets), n), dtype=np.bool_)
    np.put_along_axis(kept, sets, values=False, axis=1)
    total = np.where(kept, found.squares, 0.0).sum(1)
    share = max(0, p - sets.shape[1]) * found.values.shape[1] / n
    limits: Floats = np.sqrt(share * (found.tolerance**2 * total + TINY**2))
    return limits


def admissible(parity: Complex, known: Rows) -> bool:
    """Return whether the known rows leave a parity to check the others with, where there are any parities."""
    return len(known) < len(parity) or not known


def _admissible(found: Evidence, total: int) -> bool:
    """Return whether a set of `total` rows is uniquely decodable, with at least one parity left to check it."""
    p, known = len(found.parity), len(found.known)
    return 2 * (total - known) + known <= p and (total < p or not total)


def _most(found: Evidence) -> int:
    """Return the most rows beyond the known ones that can be located."""
    known = len(found.known)
    return max((t for t in range((len(found.parity) - known) // 2 + 1) if _admissible(found, known + t)), default=-1)


def _without_giants(found: Evidence) -> Iterator[Evidence]:
    """Yield the evidence with the giant rows blanked and known, if there are any and few enough."""
    sizes = np.sqrt(found.squares)
    others = np.setdiff1d(np.arange(len(sizes)), found.known)
    if not len(others):
        return
    giant = sizes > GIANT * np.median(sizes[others])
    if giant.any() and int(giant.sum()) <= _most(found):
        known = giant.copy()
        known[list(found.known)] = True
        yield evidence(found.parity, found.values, found.squares, known, found.tolerance)


def _by_polynomial(found: Evidence, slack: float) -> Rows | None:
    """Return the first set that passes among the roots of the locator polynomials of increasing degree."""
    for t in range(_most(found) + 1):
        rows = _union(found, _ranking(found, t)[:t])
        if certified(found, rows, slack=slack):
            return rows
    return None


def _union(found: Evidence, more: npt.NDArray[np.intp]) -> Rows:
    return tuple(sorted({*found.known, *(int(i) for i in more)}))


def _ranking(found: Evidence, t: int) -> npt.NDArray[np.intp]:
    """Return the rows not known, most suspicious first, by the magnitude of the degree-t locator polynomial."""
    others = np.setdiff1d(np.arange(len(found.nodes)), found.known)
    if t == 0:
        return others
    erased = np.poly(found.nodes[list(found.known)])[::-1] if found.known else np.ones(1)  # increasing powers
    syndrome = found.parity @ found.values
    length = len(syndrome) - len(found.known)
    syndrome = sum(c * syndrome[m : m + length] for m, c in enumerate(erased))
    hankel = np.concatenate([[c[i : i + t + 1] for i in range(length - t)] for c in syndrome.T])
    scale = np.abs(hankel).max()
    if not scale > 0:
        return others
    wide = hankel.shape[0] <= t  # then the null vector is not among the first t singular vectors
    polynomial = np.linalg.svd(hankel / scale, full_matrices=wide)[2][-1].conj()
    size = np.abs(np.polyval(polynomial[::-1], found.nodes[others]))
    return others[np.argsort(size, kind="stable")]


def _by_subsets(found: Evidence, slack: float) -> Rows | None:
    """Try sets by increasing size: all if they are few, else subsets of the best-ranked rows, and a beam."""
    others = [int(i) for i in _ranking(found, 0)]
    frontier: list[Rows] = [()]
    for t in range(_most(found) + 1):
        everything = math.comb(len(others), t) <= SEARCH
        pool = others if everything else [int(i) for i in _ranking(found, t)[: t + SPARE]]
        tries = set(itertools.combinations(sorted(pool), t))
        if not everything:
            tries |= {tuple(sorted({*kept, i})) for kept in frontier for i in others if i not in kept}
        sets = np.asarray([sorted({*found.known, *c}) for c in sorted(tries)], dtype=np.intp).reshape(len(tries), -1)
        shares = _shares(found, sets)
        order = np.argsort(shares, kind="stable")
        if shares[order[0]] <= slack:
            return tuple(int(i) for i in sets[order[0]])
        frontier = [tuple(int(i) for i in sets[j] if i not in found.known) for j in order[:BEAM]]
    return None


def _pruned(found: Evidence, rows: Rows) -> Rows:
    """Return `rows` without those whose absence leaves hardly more; the known ones stay."""
    limit = max(CLEAR, _leftover(found, rows))
    for row in rows:
        fewer = tuple(i for i in rows if i != row)
        if row not in found.known and certified(found, fewer, slack=limit):
            rows = fewer
    return rows


def recombination(parity: Complex, clean: Complex | Floats, rows: Rows) -> Complex:
    """Return the weights (n,) of least norm that decode with the weights of `rows` exactly zero.

    Every v = clean + F^T y decodes the same, as F annihilates the code; v is 0 on `rows` for y of least squares.
    """
    index = list(rows)
    weights = clean.astype(np.complex128)
    if not index:
        return weights
    weights += parity.T @ np.linalg.lstsq(parity[:, index].T, -clean[index], rcond=1e-15)[0]
    weights[index] = 0
    return weights
