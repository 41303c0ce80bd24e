"""The cyclic scheme as published, complex and from the discrete Fourier transform: the reference to compare with.

Source: Chen et al., DRACO, ICML 2018 (arXiv:1803.09877), section 3 (cyclic code), and the original's c_coding.
C is the unitary n x n DFT matrix, C_L its first n - 2s columns, and C_R the others. The encoding matrix is W = C_L Q.
The first row of Q is all ones, and W is zero outside cyclic windows of 2s + 1, which determines Q.

Decoding: the replies are projected on one random f ~ N(1, 1)^d to rho (n,), and C_R^H rho is the syndrome. Prony's
method, by pseudo-inverse, gives a polynomial whose roots are the wrong rows. The good rows are recombined.

Two deviations. The paper takes for a root what is below 1e-9; here rows are taken by increasing magnitude of the
polynomial until the certificate of `syndrome` holds. The weights have the least norm over all good rows, not over the
first n - 2s of them.
Shapes: n workers = k partitions, d parameters, m = 1: the mean of the partition gradients. Replies are complex128. The
entries of W grow like (n/2 pi)^2s / (s!)^2, so that rounding to float32 would be amplified too: `cyclic` avoids that.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np

from draco.errors import DecodeError
from draco.lazy import Tensor, torch
from draco.schemes.cyclic import require_finite, require_tolerance, tolerance_option
from draco.schemes.cyclic_code import Code, require_size, worst_amplification
from draco.schemes.declaration import SchemeDeclaration, Sizes, require_workers
from draco.schemes.locate import locate
from draco.schemes.projection import HUGE, runs_of
from draco.schemes.scheme import Decoded, Decoder, Encoder, Inspection, Mask, Scheme
from draco.schemes.syndrome import Evidence, Rows, certified, evidence, recombination

TOLERANCE = 1e-11  # relative; honest workers differ by complex128 rounding alone, 2e-12 at most where measured
ROUNDING = 2.0**-53  # of a float64
PROMISE = 1e-3  # as in `cyclic`, of float64 rounding
MOST = 1e130  # squared norm of a reply that float32 gradients may have; what is larger counts as not finite


def cyclic_dft(*, workers: int, adversaries: int, tolerance: float = TOLERANCE) -> Scheme:
    """Return the paper's complex cyclic scheme for n >= 2s + 1 workers."""
    n, s = workers, adversaries
    require_tolerance("cyclic_dft", tolerance)
    code, worst = _code(n, s)
    return Scheme(
        name="cyclic_dft",
        workers=n,
        adversaries=s,
        redundancy=2 * s + 1,
        assignment=code.window,
        weights=None,
        encoder=_encoder(code),
        decoder=_decoder(code, s, tolerance),
        inspect=None,
        dtype=torch.complex128,
        amplification=worst,
        summary=f"cyclic_dft (complex128, as published): {n} workers, redundancy {2 * s + 1}, up to {s} adversaries; "
        f"worst-case amplification {worst:.3g}",
    )


def _sizes(workers: int, adversaries: int, **_: object) -> Sizes:
    _code(workers, adversaries)
    return Sizes(partitions=workers, gradients=1)


@cache
def _code(n: int, s: int) -> tuple[Code, float]:
    """Return the code and its worst amplification; ValueError where there is none that keeps the promise."""
    require_workers("cyclic_dft", n, s)
    require_size("cyclic_dft", n, 2 * s + 1)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        code = dft_code(n, s)
        worst = worst_amplification(code, s, PROMISE / ROUNDING)
    if not worst * ROUNDING <= PROMISE:
        raise ValueError(
            f"cyclic_dft: {s} adversaries among {n} workers amplify rounding {worst:.0e} times; use cyclic"
        )
    return code, worst


def dft_code(n: int, s: int) -> Code:
    """Return the paper's code.

    Column j of W = C_L Q, in closed form, holds the coefficients of prod_{f=1..2s} (y - w^f), w = e^(-2 pi i/n),
    shifted by j. It is the only vector in its window that is orthogonal to C_R, up to a factor. The factor makes the
    first entry of C_L^H W one.
    """
    root = np.exp(-2j * np.pi / n)
    c = np.poly(root ** np.arange(1, 2 * s + 1)) if s else np.ones(1, dtype=np.complex128)
    c = c[::-1] * math.sqrt(n) / c.sum()
    i, j = np.indices((n, n))
    shift = (i - j) % n
    matrix = np.where(shift <= 2 * s, c[np.minimum(shift, 2 * s)], 0)
    parity = (root ** np.outer(np.arange(n), np.arange(n - 2 * s, n)) / math.sqrt(n)).conj().T
    return Code(matrix, shift <= 2 * s, parity, np.full(n, n**-1.5, dtype=np.complex128))


def _encoder(code: Code) -> Encoder:
    matrix = torch.from_numpy(code.matrix)
    loads = [torch.from_numpy(np.flatnonzero(row)) for row in code.window]

    def encode(row: int, gradients: Tensor) -> Tensor:
        weights = matrix[row, loads[row]].to(gradients.device)
        exact = gradients.double()
        return torch.complex(exact.t() @ weights.real, exact.t() @ weights.imag)

    return encode


def _decoder(code: Code, s: int, tolerance: float) -> Decoder:
    n = len(code.clean)

    def decode(replies: Tensor, here: Mask, seed: int, inspection: Inspection | None) -> Decoded:
        found = _projected(code, tolerance, replies, here, seed)
        rows = _prony(found, s)
        if rows is None:
            rows = locate(found)
        if rows is None:
            raise DecodeError(
                f"cyclic_dft: no admissible set of rows explains the replies; "
                f"at most {s} of {n} may be wrong or missing"
            )
        kept = torch.from_numpy(np.setdiff1d(np.arange(n), rows)).to(replies.device)
        weights = torch.from_numpy(recombination(code.parity, code.clean, rows)).to(replies.device)
        good = replies[kept] if rows else replies
        mean = torch.mv(good.t(), weights[kept]).real.float()
        if found.squares.max() > HUGE**2:
            require_finite("cyclic_dft", mean)
        return Decoded(mean[None], tuple(i for i in rows if here[i]))

    return decode


def projection(seed: int, elements: int) -> Tensor:
    """Return a step's projection f ~ N(1, 1)^d, complex128."""
    generator = torch.Generator().manual_seed(seed)
    return (1 + torch.randn(elements, dtype=torch.float64, generator=generator)).to(torch.complex128)


def _projected(code: Code, tolerance: float, replies: Tensor, here: Mask, seed: int) -> Evidence:
    """Return the evidence of one projection f ~ N(1, 1)^d, with exact row norms."""
    f = projection(seed, replies.shape[1]).to(replies.device)
    values = np.zeros((len(here), 1), dtype=np.complex128)
    squares = np.zeros(len(here))
    for start, stop in runs_of(here):
        rows = replies[start:stop]
        values[start:stop, 0] = torch.mv(rows, f).cpu().numpy()
        squares[start:stop] = torch.linalg.vector_norm(rows, dim=1).square().cpu().numpy()
    known = ~here | ~np.isfinite(values).all(1) | ~(squares <= MOST)
    return evidence(code.parity, values, squares, known, tolerance, elements=0)


def _prony(found: Evidence, s: int) -> Rows | None:
    """Return the certified rows among the roots of x^s - sum_m alpha_m x^m, where all rows are there; else None."""
    if found.known:
        return None
    syndrome = (found.parity @ found.values)[:, 0]  # (2s,)
    # Each syndrome is the same combination alpha (s,) of the s before it: s equations for the s unknowns.
    hankel = np.asarray([syndrome[i : i + s] for i in range(s)]).reshape(s, s)
    alpha = np.linalg.pinv(hankel, rcond=1e-12) @ syndrome[s:]
    # The magnitude of the polynomial at the nodes (n,), and its rows, the most likely roots first.
    size = np.abs(found.nodes**s - found.nodes[:, None] ** np.arange(s) @ alpha)
    order = np.argsort(size, kind="stable")
    for t in range(s + 1):
        rows = tuple(sorted(int(i) for i in order[:t]))
        if certified(found, rows):
            return rows
    return None


CYCLIC_DFT = SchemeDeclaration(
    name="cyclic_dft",
    function=cyclic_dft,
    text="the paper's code, with complex replies",
    options={"tolerance": tolerance_option(TOLERANCE)},
    sizes=_sizes,
    tolerance=TOLERANCE,
    dtype="complex128",
    copies=True,
    project=lambda seed, elements: projection(seed, elements)[None],
)
