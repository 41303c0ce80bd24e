"""The locator: which rows of a cyclic code are wrong, found from the evidence of `syndrome`.

Source: Prony's method (de Prony 1795) as in Chen et al., DRACO, ICML 2018 (arXiv:1803.09877), section 3 and its
appendix on the cyclic code. The errors of t rows make the syndrome a sum of t powers, and the roots of its locator
polynomial are the nodes x_i of these rows. Two things are different here:

- The Hankel matrices of all k projections are stacked, and their smallest singular vector is the polynomial (total
  least squares; Rahman & Yu 1987).
- Rows are ranked by the polynomial's magnitude at their nodes. The paper compares it with a fixed 1e-9.

Known rows are those that are missing or not finite. Their locator polynomial takes them out of the syndrome first
(Forney 1965). No set of rows is believed without the certificate of `syndrome`. Where the polynomial fails, sets of
rows are tried: all if they are few, else a bounded search.
Shapes: n rows, of them a known, p parities, k projections, t rows in a set, N sets. Nothing here depends on d, the
length of a reply.
"""

import itertools
import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from draco.schemes.syndrome import (
    CLEAR,
    Complex,
    Evidence,
    Rows,
    Sets,
    certified,
    evidence,
    leftover,
    may_hold,
    recombination,
    shares_of,
)

GIANT = 1e6  # times the median row's norm; beside larger rows float64 rounds the honest part of the syndrome away
SEARCH = 20_000  # sets that an exhaustive search may try at each size: about half a second
BEAM = 60  # sets that the search keeps from one size to the next
SPARE = 6  # rows of the ranking beyond the first t; all subsets of t of these t + SPARE rows are tried
POOL = 200  # sets of the best-ranked rows that are compared with the one found
DOUBT = 3.0  # margin of the syndrome beyond which no other set is compared
DISTINCT = 2.0  # times the least residual: a set that leaves more is no rival; 9 standard deviations at p - t = 5
AMBIGUOUS = 1e-3  # of the mean: the most by which two explanations of the same syndrome may differ


def locate_clearly(found: Evidence) -> Rows | None:
    """Return what `locate` would, if the first set that passes leaves clearly no more than noise; else None."""
    # Only the first set that passes is looked at: where it is not clear, `locate` searches on with exact norms.
    for variant in (found, *_without_giants(found)):
        if (rows := _by_polynomial(variant, 1.0)) is not None:
            return _settled(variant, _pruned(variant, rows)) if leftover(variant, rows) <= CLEAR else None
    return None


def locate(found: Evidence) -> Rows | None:
    """Return the fewest rows that explain the syndrome, the known ones included; None if no admissible set does.

    A larger set is preferred to a smaller one that just passes if it leaves much less than the certificate allows.
    Where the wrong rows are neighbours, the right set and another one can both pass. The right one leaves only noise.

    A row beyond `GIANT` times the median may drown the others. What fails with such rows is tried again with zeros in
    their place. Their errors are then minus their honest replies, which are of usual size and in the same rows.
    """
    variants = [found, *_without_giants(found)]
    weak: tuple[Evidence, Rows] | None = None  # the first set that passes, kept while a clearer one is looked for
    # The polynomial is cheap and goes first. The search of subsets begins without giants, where it sees most.
    for search, order in ((_by_polynomial, variants), (_by_subsets, variants[::-1])):
        for variant in order:
            if weak is None and (rows := search(variant, 1.0)) is not None:
                weak = variant, rows
            if weak is None:
                continue
            share = leftover(*weak)
            if share <= CLEAR:  # only noise is left
                return _settled(weak[0], _pruned(*weak))
            # The set passes, but leaves more than noise mostly does: is there one that leaves a quarter of it?
            if (rows := search(variant, min(CLEAR, share / 4))) is not None:
                return _settled(variant, _pruned(variant, rows))
    return None if weak is None else _settled(weak[0], _pruned(*weak))


def _without_giants(found: Evidence) -> Iterator[Evidence]:
    """Yield the evidence with the giant rows blanked and known, if there are any and few enough."""
    sizes = np.sqrt(found.squares)  # (n,) norms
    others = np.setdiff1d(np.arange(len(sizes)), found.known)
    if not len(others):
        return
    giant = sizes > GIANT * np.median(sizes[others])
    if giant.any() and int(giant.sum()) <= _most(found):
        known = giant.copy()
        known[list(found.known)] = True
        yield evidence(found.parity, found.values, found.squares, known, found.tolerance, found.elements)


def _most(found: Evidence) -> int:
    """Return the most rows beyond the known ones that can be located."""
    known = len(found.known)
    return max((t for t in range((len(found.parity) - known) // 2 + 1) if may_hold(found, known + t)), default=-1)


def _by_polynomial(found: Evidence, slack: float) -> Rows | None:
    """Return the first set that passes among the roots of the locator polynomials of increasing degree."""
    for t in range(_most(found) + 1):
        rows = _union(found, _ranking(found, t)[:t])
        if certified(found, rows, slack=slack):
            return rows
    return None


def _ranking(found: Evidence, t: int) -> npt.NDArray[np.intp]:
    """Return the rows not known, most suspicious first, by the magnitude of the degree-t locator polynomial."""
    others = np.setdiff1d(np.arange(len(found.nodes)), found.known)
    if t == 0:
        return others
    # The polynomial with roots at the nodes of the a known rows, (a + 1,) coefficients by increasing power.
    erased = np.poly(found.nodes[list(found.known)])[::-1] if found.known else np.ones(1)
    # Syndrome l is sum_i e_i x_i^l with errors e_i. This combination of a + 1 of them in a row has no known rows in it.
    syndrome = found.parity @ found.values  # (p, k)
    length = len(syndrome) - len(found.known)
    syndrome = sum(c * syndrome[m : m + length] for m, c in enumerate(erased))  # (p - a, k)
    # A polynomial with roots at the t nodes gives zero on every t + 1 syndromes in a row. So it is in the null space
    # of the Hankel matrix (k (p - a - t), t + 1). With noise the smallest singular vector stands for it.
    hankel = np.concatenate([[c[i : i + t + 1] for i in range(length - t)] for c in syndrome.T])
    scale = np.abs(hankel).max()
    if not scale > 0:
        return others
    wide = hankel.shape[0] <= t  # with t rows or fewer only the full decomposition has the null vector
    polynomial = np.linalg.svd(hankel / scale, full_matrices=wide)[2][-1].conj()  # (t + 1,) by increasing power
    # The nearer to a root a node is, the smaller the polynomial there.
    size = np.abs(np.polyval(polynomial[::-1], found.nodes[others]))  # (rows not known,)
    return others[np.argsort(size, kind="stable")]


def _union(found: Evidence, more: npt.NDArray[np.intp]) -> Rows:
    return tuple(sorted({*found.known, *(int(i) for i in more)}))


def _by_subsets(found: Evidence, slack: float) -> Rows | None:
    """Try sets by increasing size: all if they are few, else subsets of the best-ranked rows, and a beam."""
    others = [int(i) for i in _ranking(found, 0)]
    frontier: list[Rows] = [()]  # the best sets of t - 1 rows, without the known ones
    for t in range(_most(found) + 1):
        everything = math.comb(len(others), t) <= SEARCH
        pool = others if everything else [int(i) for i in _ranking(found, t)[: t + SPARE]]
        tries = set(itertools.combinations(sorted(pool), t))
        if not everything:  # beside the ranking's sets, each set of the frontier with one row more
            tries |= {tuple(sorted({*kept, i})) for kept in frontier for i in others if i not in kept}
        sets = np.asarray([sorted({*found.known, *c}) for c in sorted(tries)], dtype=np.intp).reshape(len(tries), -1)
        shares = shares_of(found, sets)  # (N,) of the sets (N, t + known)
        order = np.argsort(shares, kind="stable")
        if shares[order[0]] <= slack:
            return tuple(int(i) for i in sets[order[0]])
        frontier = [tuple(int(i) for i in sets[j] if i not in found.known) for j in order[:BEAM]]
    return None


def _pruned(found: Evidence, rows: Rows) -> Rows:
    """Return `rows` without those whose absence leaves hardly more; the known ones stay."""
    limit = max(CLEAR, leftover(found, rows))
    while free := [i for i in rows if i not in found.known]:
        fewer = np.asarray([[j for j in rows if j != i] for i in free], dtype=np.intp)  # (free, t - 1): one row less
        shares = shares_of(found, fewer)
        best = int(np.argmin(shares))
        if shares[best] > limit or not may_hold(found, len(rows) - 1):
            break
        rows = tuple(int(i) for i in fewer[best])
    return rows


def _settled(found: Evidence, rows: Rows) -> Rows | None:
    """Return the set of least residual that swaps lead to from `rows`; None if a rival explains the syndrome as well.

    A rival is a set that passes the certificate too and decodes the projections to something else. Only small errors
    of neighbours have rivals, as the columns of the parity matrix F of neighbours nearly depend on each other.
    """
    sets = np.asarray([rows], dtype=np.intp)
    if len(rows) == len(found.known) or leftover(found, found.known) > _beyond_doubt(found.parity, rows):
        return rows
    while True:  # downhill: to the best rival as long as it leaves less
        least = float(shares_of(found, sets)[0])
        rivals = _rivals(found, tuple(int(i) for i in sets[0]))
        shares = shares_of(found, rivals)
        best = int(np.argmin(shares))
        if not shares[best] < least * (1 - 1e-9):
            break
        sets = rivals[best : best + 1]
    close = rivals[shares <= min(1.0, DISTINCT * least)]  # these explain the syndrome about as well
    chosen = tuple(int(i) for i in sets[0])
    mean = _decoded(found, chosen)
    differences = [np.linalg.norm(_decoded(found, tuple(int(i) for i in other)) - mean) for other in close]
    # The size of the k projections of the mean, and at least that of a mean of n unrelated gradients.
    least_size = np.sqrt(found.squares.mean() * found.values.shape[1] / len(found.nodes))
    size = max(np.linalg.norm(mean), least_size)
    return None if any(d > AMBIGUOUS * size for d in differences) else chosen


def _beyond_doubt(parity: Complex, rows: Rows) -> float:
    """Return how many thresholds large a syndrome of `rows` is where no other set of rows brings it below one.

    The wrong rows and those of another set are at most p together. The nearer rows are, the more their columns of F
    depend on each other. So the nearest rows stand for the other set, with a margin, as others may be a little worse.
    """
    p, n = parity.shape
    nearest = _by_distance(n, rows)[:p]
    # Of an error of norm 1 at least the smallest singular value of these p columns stays outside the other set.
    return DOUBT * math.sqrt(p / n) / float(np.linalg.svd(parity[:, nearest], compute_uv=False)[-1])


def _by_distance(n: int, rows: Rows) -> npt.NDArray[np.intp]:
    """Return all rows, those nearest to one of `rows` first, so that `rows` themselves lead."""
    around = (np.arange(n)[:, None] - np.asarray(rows) + n // 2) % n - n // 2  # (n, t) signed, round the circle
    return np.argsort(np.abs(around).min(1), kind="stable")


def _rivals(found: Evidence, rows: Rows) -> Sets:
    """Return other sets of as many rows: with one row swapped, of the best-ranked rows, and of rows that are near.

    The last are needed as either half of 2t neighbours nearly explains what the other half sent. From one half to the
    other no swap of single rows leads downhill.
    """
    free = [i for i in rows if i not in found.known]
    near = _by_distance(len(found.nodes), rows)[: len(rows) + 2 * len(found.parity)]
    others = [int(j) for j in near if j not in rows]
    sets = {tuple(sorted({*rows} - {i} | {j})) for i in free for j in others}
    # As many of the ranking's rows as give POOL subsets at most, and as many of the near ones as give SEARCH.
    spare = max(k for k in range(SPARE + 1) if math.comb(len(free) + k, k) <= POOL)
    pool = [int(i) for i in _ranking(found, len(free))[: len(free) + spare]]
    wide = max(m for m in range(len(free), 3 * len(free) + 1) if math.comb(m, len(free)) <= SEARCH)
    beside = [int(j) for j in near if j not in found.known][:wide]
    for some in (pool, beside):
        sets |= {tuple(sorted((*found.known, *c))) for c in itertools.combinations(some, len(free))}
    sets.discard(rows)
    return np.asarray(sorted(sets), dtype=np.intp)


def _decoded(found: Evidence, rows: Rows) -> Complex:
    """Return the k projections of the mean as decoded without `rows`, up to the code's own weights."""
    clean = np.full(len(found.nodes), 1 / len(found.nodes))  # (n,) equal weights stand for those of the code
    weights = recombination(found.parity, clean, rows)
    return weights @ found.values
