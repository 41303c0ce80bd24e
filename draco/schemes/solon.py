"""Solon: replies are c times shorter for c - 1 more partitions per worker; wrong rows are located as in `cyclic`.

Source: Chen, Chen, Wang, Davidson & Dobriban, Solon: Communication-efficient Byzantine-resilient Distributed Training
via Redundant Gradients, 2021 (arXiv:2110.01595). The trade-off is theirs: with r = 2s + c partitions per worker, c
numbers of every partition's gradient share one number of a reply.

The code is our own, of real numbers. The parities are those of `cyclic_code`, around the frequency n/2. The sums of the
c parts are read off at frequencies around 0. The entries of a partition and a part are fixed by r equations. All
parities are zero, the reading of that part is one, and the readings of the other parts are zero.

The rows that compute a partition are a stride apart, chosen for the best worst case. Neighbours hardly see a difference
between low frequencies. At n = 45, s = 1 and c = 3 or 4 neighbours amplify noise 47 or 520 times; the best stride
amplifies it 0.95 or 1.7 times.
Shapes: n workers = k partitions, d parameters cut into c parts of e = ceil(d / c) elements, p parities, m = 1.
Promise: that of `cyclic`.
"""

from __future__ import annotations

import itertools
import math
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from draco.declaration import Option, OptionError
from draco.errors import DecodeError
from draco.lazy import Tensor, torch
from draco.schemes.cyclic import (
    PROMISE,
    ROUNDING,
    TOLERANCE,
    Projections,
    recombined,
    require_tolerance,
    sketch_of,
    tolerance_option,
    wrong_rows,
)
from draco.schemes.cyclic_code import EXHAUSTIVE, PRECISE, drawn_placements, real_basis, real_parity, require_size
from draco.schemes.declaration import SchemeDeclaration, Sizes, require_workers
from draco.schemes.scheme import Decoded, Decoder, Encoder, Inspection, Mask, Scheme
from draco.schemes.syndrome import Complex, Rows, recombination

PARTS = 2
ENTRIES = 1 << 24  # of the matrix: 128 MiB
EFFORT = 50_000_000  # of comparing strides: about a second
SINGULAR = 1e8  # condition number beyond which a window's equations have no usable solution

Floats = npt.NDArray[np.float64]


class Code(NamedTuple):
    """One code over n rows."""

    matrix: Floats  # (n, k, c): row i sends the sum of matrix[i, j, c] * (part c of gradient j)
    window: npt.NDArray[np.bool_]  # (n, k): where the matrix may be non-zero
    parity: Complex  # (p, n), parity @ matrix = 0
    readings: Floats  # (c, n): readings[c] @ matrix = 1/k for part c, 0 for the others


def solon(*, workers: int, adversaries: int, parts: int = PARTS, tolerance: float = TOLERANCE) -> Scheme:
    """Return the scheme whose replies have 1 / `parts` of a gradient's elements.

    A worker computes 2s + c partitions, one more where n is even and c odd. `tolerance` is that of `cyclic`.

    Raises:
        ValueError: there are too few workers, or no stride keeps rounding within the promise.
    """
    n, s, c = workers, adversaries, parts
    require_tolerance("solon", tolerance)
    best, worst, p = _code(n, s, c)
    return Scheme(
        name="solon",
        workers=n,
        adversaries=s,
        redundancy=p + c,
        assignment=best.window,
        weights=None,
        encoder=_encoder(best, worst),
        decoder=_decoder(best, s, tolerance),
        inspect=Projections,
        dtype=torch.float32,
        amplification=worst,
        summary=f"solon (real): {n} workers, redundancy {p + c}, replies of 1/{c} of a gradient, up to {s} "
        f"adversaries; worst-case amplification {worst:.3g} (float32 error {worst * ROUNDING:.0e})",
        elements=lambda d: -(-d // c),
    )


def _sizes(workers: int, adversaries: int, parts: int = PARTS, **_: object) -> Sizes:
    _code(workers, adversaries, parts)
    return Sizes(partitions=workers, gradients=1)


@cache
def _code(n: int, s: int, c: int) -> tuple[Code, float, int]:
    """Return the code of the stride with the best worst case, its amplification, and its number of parities.

    Raises:
        ValueError: there are too few workers, or no stride keeps rounding within the promise.
    """
    require_workers("solon", n, s)
    if c < 2:
        raise OptionError("solon", "parts", f"must be 2 or more (cyclic is the code of one part), got {c}")
    p = 2 * s + (n % 2 == 0 and c % 2 == 1)  # then frequencies of parities and readings are both whole
    if n < p + c:
        raise ValueError(f"solon: {s} adversaries and {c} parts need at least {p + c} workers, got {n}")
    require_size("solon", n, p + c)
    if n * n * c > ENTRIES:
        raise OptionError("solon", "parts", f"must be at most {ENTRIES // n**2} with {n} workers, got {c}")
    codes = [code for stride in _strides(n, p, c) if (code := build_code(n, p, c, stride)) is not None]
    # Strides are compared by one run of s neighbours: all runs are alike. The best is measured on all placements.
    first = tuple(range(s))
    best = min(codes, key=lambda code: amplification(code, first), default=None)
    worst = math.inf if best is None else _worst(best, s)
    if best is None or worst * ROUNDING > PROMISE:
        raise ValueError(
            f"solon: {s} adversaries among {n} workers with {c} parts amplify float32 rounding {worst:.2g} times, "
            f"which is beyond {PROMISE:g} of the result: fewer parts or adversaries would do"
        )
    return best, worst, p


def _strides(n: int, p: int, c: int) -> list[int]:
    """Return the strides of which one is the best, from the equations of the first partition alone.

    The equations of another partition are the first's, turned: they have the same condition number, and their solutions
    the same norm. And only this norm differs between strides in what `amplification` gives.
    """
    most = max(1, EFFORT // (p + c) ** 3) if p + c < n else 1
    system = np.concatenate([real_basis(real_parity(n, p)), _readings(n, c)])
    norms: dict[int, float] = {}
    for stride in range(1, max(1, min(n // 2, most)) + 1):
        rows = stride * np.arange(p + c) % n
        if len({*rows.tolist()}) == p + c and np.linalg.cond(equations := system[:, rows]) <= SINGULAR:
            norms[stride] = float(np.linalg.norm(np.linalg.solve(equations, np.eye(p + c)[:, p:])))
    least = min(norms.values(), default=0.0)
    return [stride for stride, norm in norms.items() if norm <= least * (1 + 1e-6)]


def build_code(n: int, p: int, c: int, stride: int) -> Code | None:
    """Return the code in which rows j, j + stride, ... compute partition j, None where its equations are singular."""
    parity = real_parity(n, p)
    readings = _readings(n, c)
    system = np.concatenate([real_basis(parity), readings])
    matrix, window = np.zeros((n, n, c)), np.zeros((n, n), dtype=np.bool_)
    for j in range(n):
        rows = (j + stride * np.arange(p + c)) % n
        window[rows, j] = True
        equations = system[:, rows]  # (p + c, p + c)
        if window[:, j].sum() < p + c or (j == 0 and np.linalg.cond(equations) > SINGULAR):
            return None
        # Part by part: parities zero, its own reading one, the others zero.
        matrix[rows, j] = np.linalg.solve(equations, np.eye(p + c)[:, p:])
    return Code(matrix, window, parity, readings / n)


def _readings(n: int, c: int) -> Floats:
    """Return c real rows (c, n) of norm 1: cosine and sine of the lowest frequencies, and a constant if c is odd.

    For even n and even c they are half-integers, as those of the parities are.
    """
    lowest = [0.0] if c % 2 else []
    start = 1.0 if c % 2 or n % 2 else 0.5
    angles = [2 * math.pi * (start + m) * np.arange(n) / n for m in range(c // 2)]
    rows = [np.ones(n) for _ in lowest] + [wave(angle) for angle in angles for wave in (np.cos, np.sin)]
    return np.asarray([row / np.linalg.norm(row) for row in rows])


def weights_without(code: Code, rows: Rows) -> Floats:
    """Return the readings (c, n) of least norm that decode with the weights of `rows` zero."""
    return np.asarray([recombination(code.parity, reading, rows).real for reading in code.readings])


def amplification(code: Code, rows: Rows) -> float:
    """Return the relative error of the mean per relative error of a reply, for unrelated gradients of one size."""
    n, _, c = code.matrix.shape
    sizes = np.linalg.norm(code.matrix, axis=(1, 2))
    return float(math.sqrt(n / c) * np.linalg.norm(weights_without(code, rows) * sizes))


def _worst(code: Code, s: int) -> float:
    """Return the largest amplification over all sets of s rows, or neighbours and a sample where there are too many.

    All rows are alike: of all sets those with row 0 stand for the others.
    """
    n, _, c = code.matrix.shape
    sizes = np.linalg.norm(code.matrix, axis=(1, 2))
    every = math.comb(n, s) <= EXHAUSTIVE
    with_first = ((0, *rest) for rest in itertools.combinations(range(1, n), max(s - 1, 0))) if s else [()]
    sets = with_first if every else [tuple(range(s)), *drawn_placements(n, s)]
    norms = []
    for rows in map(list, sets):
        y = code.readings[:, rows] @ np.linalg.pinv(code.parity[:, rows], rcond=1e-15)  # (c, p), as in `recombination`
        norms.append(np.linalg.norm((code.readings - (y @ code.parity).real) * sizes))
    return math.sqrt(n / c) * float(max(norms))


def _encoder(code: Code, worst: float) -> Encoder:
    loads = [np.flatnonzero(row) for row in code.window]
    c = code.matrix.shape[2]

    def encode(row: int, gradients: Tensor) -> Tensor:
        weights = torch.from_numpy(code.matrix[row, loads[row]]).to(gradients.device)  # (load, c)
        exact = torch.float64 if worst > PRECISE else gradients.dtype
        e = -(-gradients.shape[1] // c)
        out = torch.zeros(e, dtype=exact, device=gradients.device)
        for part, weight in zip(torch.split(gradients, e, 1), weights.to(exact).unbind(1), strict=False):
            out[: part.shape[1]] += torch.mv(part.t().to(exact), weight)
        return out.to(gradients.dtype)

    return encode


def _decoder(code: Code, s: int, tolerance: float) -> Decoder:
    def decode(replies: Tensor, here: Mask, seed: int, inspection: Inspection | None) -> Decoded:
        sketch = sketch_of(replies, here, seed, inspection)
        rows = wrong_rows("solon", code.parity, s, tolerance, replies, here, sketch)
        amplified = amplification(code, rows)
        if len(rows) > s and not amplified * ROUNDING <= PROMISE:
            raise DecodeError(f"solon: without rows {list(rows)} rounding alone would cost more than {PROMISE:g}")
        weights = torch.from_numpy(weights_without(code, rows)).to(replies.device)
        mean = recombined("solon", replies, rows, weights, amplified, sketch)  # (c, e): its parts
        return Decoded(mean.view(1, -1), tuple(i for i in rows if here[i]))

    return decode


SOLON = SchemeDeclaration(
    name="solon",
    function=solon,
    text="cyclic with shorter replies, for more computation",
    options={
        "parts": Option(
            int | None,
            None,
            f"Replies have 1/parts of a gradient's elements; a worker computes 2s+parts partitions. null: {PARTS}.",
            ge=2,
            le=64,
        ),
        "tolerance": tolerance_option(TOLERANCE),
    },
    sizes=_sizes,
    least=lambda s, given: 2 * s + (given.get("parts") or PARTS),
    tolerance=TOLERANCE,
)
