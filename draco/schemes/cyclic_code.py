"""The real cyclic code: encoding matrix, parity matrix, and the weights that decode when no row is wrong.

Source: the cyclic code of Chen et al., DRACO, ICML 2018 (arXiv:1803.09877), section 3. It is a real-number BCH code
whose parity frequencies are next to zero. Here they are around n/2: parity frequencies of a DFT code may be any
consecutive band that is closed under conjugation (Marshall 1984). Redundancy 2s + 1, distance 2s + 1 and the decoder
stay. The matrix becomes real. For odd n its entries are positive and at most 1, where the paper's grow like
(n/2 pi)^2s / (s!)^2.

Odd n: the p = 2s parities have integer frequencies f around n/2. Column j of the encoding matrix W (n, n) holds the
coefficients of c(y) = prod_f (y - w^f), w = e^(-2 pi i/n), cyclically shifted by j. Columns are scaled to sum to 1, so
the mean of the replies is the mean of the gradients.

Even n: an even number of frequencies around n/2 are half-integers. Then the shifts are negacyclic (a wrapped entry
changes its sign) and no constant weights decode. The weights v approximate the all-ones vector by the lowest odd
half-harmonics, and column j is divided by (v^T W)_j. With an odd number of parities the frequencies are integers, and
all is as for odd n.
Shapes: n workers = n partitions, p parities, redundancy r = p + 1, t rows in a set, N sets.
"""

import itertools
import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from draco.schemes.syndrome import Complex

Floats = npt.NDArray[np.float64]

EXHAUSTIVE = 1_000  # placements that are all tried; of more, runs of neighbours (the worst known) and a random sample
RANDOM_PLACEMENTS = 200  # of the sample
WORKERS = 512  # the most that a code may have: its matrix and the check of its placements grow as their square
REDUNDANCY = 65  # the most partitions of a worker, 2s + 1 for s = 32: a placement costs its cube
EFFORT = 5_000_000  # of the random placements: a second at most
PRECISE = 8.0  # amplification from which sums are taken in float64, so that only the replies' own rounding counts
HARMONICS = (*range(1, 17), 20, 24, 32, 48, 64)  # numbers of half-harmonics that are tried


class Code(NamedTuple):
    """One linear code over n rows."""

    matrix: Complex | Floats  # (n, n): row i sends matrix[i] @ gradients
    window: npt.NDArray[np.bool_]  # (n, n): where the matrix may be non-zero
    parity: Complex  # (p, n), orthonormal rows, parity @ matrix = 0
    clean: Complex | Floats  # (n,): clean @ matrix = 1/n everywhere


def require_size(name: str, n: int, r: int) -> None:
    """Raise a ValueError where a code of n workers and redundancy r cannot be checked within seconds."""
    if n > WORKERS or r > REDUNDANCY:
        raise ValueError(
            f"{name}: {n} workers with redundancy {r} are more than can be checked: it takes up to {WORKERS} workers "
            f"and redundancy {REDUNDANCY}, which is {REDUNDANCY // 2} adversaries"
        )


def real_code(n: int, p: int) -> Code:
    """Return the real code of n rows and p parities; p is even where n is odd."""
    parity = real_parity(n, p)
    window = (np.arange(n)[:, None] - np.arange(n)) % n <= p  # column j: rows j to j + p, around the circle
    negacyclic = n % 2 == 0 and p % 2 == 0 and p > 0
    shifts = _shifts(_coefficients(n, p), n, sign=-1 if negacyclic else 1)
    if not negacyclic:
        return Code(shifts / shifts.sum(0), window, parity, np.full(n, 1 / n))
    return _rescaled(shifts, window, parity)


def real_parity(n: int, p: int) -> Complex:
    """Return the parity matrix (p, n) of the real code."""
    frequencies = (n - p + 1) / 2 + np.arange(p)  # (p,) consecutive, with n/2 in the middle
    angles = -2 * np.pi * np.outer(frequencies, np.arange(n)) / n  # (p, n)
    parity: Complex = (np.cos(angles) + 1j * np.sin(angles)) / math.sqrt(n)
    return parity


def real_basis(parity: Complex) -> Floats:
    """Return an orthonormal real basis (p, n) of the parity space."""
    p = len(parity)
    # The complex parities come in conjugate pairs. So their 2p real and imaginary parts span p real dimensions.
    basis: Floats = np.linalg.svd(np.concatenate([parity.real, parity.imag]))[2][:p]
    return basis


def _coefficients(n: int, p: int) -> Floats:
    """Return c(y) = prod over the parity frequencies of (y - w^f), lowest power first, as a product of real factors."""
    if p == n - 1:
        return np.ones(n)  # all frequencies but zero: full replication
    c = np.ones(1) if p % 2 == 0 else np.ones(2)  # the frequency n/2, of odd p, is the factor y + 1
    for m in range(p // 2):  # the frequencies f and n - f together are one real quadratic factor
        f = (n - p + 1) / 2 + m
        c = np.convolve(c, [1.0, -2 * math.cos(2 * math.pi * f / n), 1.0])
    return c


def _shifts(c: Floats, n: int, *, sign: int) -> Floats:
    """Return the (n, n) matrix whose column j is c shifted down by j, wrapped entries multiplied by `sign`."""
    matrix = np.zeros((n, n))
    j = np.arange(n)
    for m, value in enumerate(c):
        matrix[(j + m) % n, j] = np.where(j + m < n, value, sign * value)
    return matrix


def _rescaled(shifts: Floats, window: npt.NDArray[np.bool_], parity: Complex) -> Code:
    """Return the negacyclic code with the weights whose worst run of p/2 neighbours is best.

    Candidates are the fits of the all-ones vector by the K lowest odd half-harmonics. A small K keeps the weights
    smooth. But a K that makes some column sum nearly 0 is useless, hence the search.
    """
    n, p = len(shifts), len(parity)
    runs = (np.arange(n)[:, None] + np.arange(p // 2)) % n  # (n, p/2) rows: every run of neighbours
    inverses = run_inverses(parity, p // 2)
    best, least = None, math.inf
    for count in HARMONICS:
        if count > (n - p) // 2:
            break
        angles = 2 * np.pi * np.outer(np.arange(n), np.arange(count) + 0.5) / n  # (n, K)
        basis = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)  # (n, 2K)
        v = basis @ np.linalg.lstsq(basis, np.ones(n), rcond=None)[0]  # (n,) the fit
        sums = v @ shifts  # (n,) what v makes of each column; the column is divided by it
        if np.abs(sums).min() <= 1e-12 * np.abs(sums).max():  # zero but for rounding
            continue
        code = Code(shifts / sums, window, parity, v / n)
        worst = float(_amplifications(code, runs, inverses).max())
        if best is None or worst < least:
            best, least = code, worst
    assert best is not None, f"no weights decode the negacyclic code of {n} rows and {p} parities"
    return best


def _inverses(parity: Complex, sets: npt.NDArray[np.intp]) -> Complex:
    """Return, for N sets (N, t), the pseudo-inverses (N, p, t) of F_V^T, where F_V are the set's columns of F."""
    return np.linalg.pinv(parity[:, sets].transpose(1, 2, 0), rcond=1e-15).astype(np.complex128)


def run_inverses(parity: Complex, t: int) -> Complex:
    """Return what `_inverses` does, (n, p, t), for the n runs of t neighbours, of which it takes only the first.

    A run further on has the columns of the first, turned: F[l, i + m] = F[l, i] / F[l, 0] * F[l, m]. For half-integer
    frequencies the sign changes on the way round.
    """
    n = parity.shape[1]
    turns = (parity / parity[:, :1]).T  # (n, p)
    first = _inverses(parity, np.arange(t)[None])[0]  # (p, t)
    around = float(np.sign((parity[:1, -1] * parity[:1, 1] / parity[:1, 0] ** 2).real.sum() or 1.0))
    signs = np.where(np.arange(n)[:, None] + np.arange(t) < n, 1.0, around)  # (n, t)
    inverses: Complex = turns.conj()[:, :, None] * first * signs[:, None]
    return inverses


def _amplifications(code: Code, sets: npt.NDArray[np.intp], inverses: Complex) -> Floats:
    # The weights clean - F^T y that are zero on the set, as in `recombination`.
    y = (inverses @ code.clean[sets][..., None])[..., 0]  # (N, p)
    weights = code.clean - y @ code.parity  # (N, n)
    norms = np.linalg.norm(code.matrix, axis=1)  # (n,) of the replies, for gradients of norm 1
    result: Floats = math.sqrt(len(norms)) * np.linalg.norm(weights * norms, axis=1)
    return result


def amplifications(code: Code, sets: npt.NDArray[np.intp]) -> Floats:
    """Return, for N sets (N, t) of excluded rows, the relative error of the mean per relative error of a reply.

    It is that of uncorrelated partition gradients of equal norm, the worst case in practice. For norm 1 the reply of
    row i has the norm |W_i| and the mean 1/sqrt(n). Gradients that agree cost less, as their mean is larger.
    """
    return _amplifications(code, sets, _inverses(code.parity, sets))


def neighbours_amplification(code: Code, adversaries: int) -> float:
    """Return the largest amplification over the runs of s excluded neighbours, the worst placements known."""
    runs = (np.arange(len(code.clean))[:, None] + np.arange(adversaries)) % len(code.clean)  # (n, s)
    return float(_amplifications(code, runs, run_inverses(code.parity, adversaries)).max())


def worst_amplification(code: Code, adversaries: int, most: float = math.inf) -> float:
    """Return the largest amplification over placements of s excluded rows: all of them, or runs and a sample.

    Where the runs exceed `most`, what they give is returned, and no other placement is tried.
    """
    n, s = len(code.clean), adversaries
    if s == 0:
        return float(amplifications(code, np.empty((1, 0), dtype=np.intp))[0])
    if math.comb(n, s) <= EXHAUSTIVE:
        return float(amplifications(code, np.asarray(list(itertools.combinations(range(n), s)), dtype=np.intp)).max())
    worst = neighbours_amplification(code, s)
    if not worst <= most:
        return worst
    return max(worst, float(amplifications(code, np.asarray(drawn_placements(n, s), dtype=np.intp)).max()))


def drawn_placements(n: int, s: int) -> list[Any]:
    """Return random sets of s rows: fewer where each costs more, as its inverse does."""
    generator = np.random.default_rng(0)
    count = max(1, min(RANDOM_PLACEMENTS, EFFORT // (2 * s**3)))
    return [generator.choice(n, s, replace=False) for _ in range(count)]
