"""The cyclic scheme, real-valued: a worker sends one combination of 2s + 1 gradients, the server solves for the mean.

Source: Chen et al., DRACO, ICML 2018 (arXiv:1803.09877), section 3, with the parity frequencies of `cyclic_code`, the
locator of `locate` and the certificate of `syndrome`. The decoding weights have the least norm over all kept rows. The
original solves for the first n - 2s good rows, which amplifies errors up to 200 times more.
Shapes: n workers = k partitions, d parameters, m = 1: the mean of the partition gradients.

Promise: the mean is exact up to amplification x (honest noise), on two conditions. 2 (Byzantine rows) + (missing or
non-finite rows) is at most 2s. And, where s > 0, a parity is left to check the result. Errors within the tolerance
cannot be told from honest noise.

Limit: s is large, n = 45 and s = 5 say, and all Byzantine rows are neighbours. Then colluding errors can look like
errors of the rows beside them, up to honest noise. Explanations that differ by 1e-3 of the result are refused. So such
rows move the result by that much at most, or end the run. The secret permutation of rows makes the placement rare (45
of 1.2 million sets).
"""

from __future__ import annotations

from bisect import bisect_left
from functools import cache
from typing import Literal

import numpy as np

from draco.declaration import Option, OptionError
from draco.errors import DecodeError
from draco.fused.rows import project
from draco.lazy import Tensor, torch
from draco.schemes.cyclic_code import (
    PRECISE,
    REDUNDANCY,
    Code,
    amplifications,
    neighbours_amplification,
    real_basis,
    real_code,
    require_size,
    worst_amplification,
)
from draco.schemes.declaration import SchemeDeclaration, Sizes, require_workers
from draco.schemes.locate import locate, locate_clearly
from draco.schemes.optimistic import optimistic
from draco.schemes.projection import (
    HUGE,
    Sketch,
    combine,
    combine_all,
    dense,
    draw,
    finish,
    mask_without,
    project_row,
    runs_of,
    squared_norms,
)
from draco.schemes.scheme import Decoded, Decoder, Encoder, Inspection, Mask, Scheme
from draco.schemes.syndrome import CLEAR, Complex, Rows, admissible, certified, evidence, recombination

# Relative difference between honest replies. The backward pass of each row may be over other samples. In 130 steps of
# LeNet on MNIST rows missed the code by up to 1.0e-6, and more for a trained model, whose gradients cancel. The decoder
# sees them through few random projections, which may triple it.
TOLERANCE = 1e-5
ROUNDING = 2.0**-24  # of a float32
PROMISE = 1e-3  # relative float32 error of the result that no placement of s Byzantine rows may exceed


def cyclic(*, workers: int, adversaries: int, redundancy: int | None = None, tolerance: float = TOLERANCE) -> Scheme:
    """Return the real cyclic scheme for n >= 2s + 1 workers.

    `redundancy` is the number of partitions per worker. If None it is 2s + 1, or 2s + 2 where n is even and only that
    keeps the promise. More of it tolerates more missing rows. `tolerance` is the relative difference between honest
    replies that the certificate allows.
    """
    require_tolerance("cyclic", tolerance)
    code, worst = _code(workers, adversaries, redundancy)
    r = len(code.parity) + 1
    return Scheme(
        name="cyclic",
        workers=workers,
        adversaries=adversaries,
        redundancy=r,
        assignment=code.window,
        weights=np.asarray(code.matrix, dtype=np.float64),
        encoder=_encoder(code, worst),
        decoder=_decoder(code, adversaries, tolerance),
        inspect=Projections,
        dtype=torch.float32,
        amplification=worst,
        summary=f"cyclic (real): {workers} workers, redundancy {r}, up to {adversaries} adversaries; "
        f"worst-case amplification {worst:.3g} (float32 error {worst * ROUNDING:.0e})",
    )


def require_tolerance(name: str, tolerance: float) -> None:
    """Raise a ValueError unless the tolerance is a relative distance that can tell anything."""
    if not 0 < tolerance < 1:
        raise OptionError(name, "tolerance", f"must be between 0 and 1, got {tolerance}")


def _sizes(workers: int, adversaries: int, redundancy: int | None = None, **_: object) -> Sizes:
    _code(workers, adversaries, redundancy)
    return Sizes(partitions=workers, gradients=1)


@cache
def _code(n: int, s: int, redundancy: int | None) -> tuple[Code, float]:
    """Return the code of the least redundancy that keeps the promise, or of the one asked for, and its amplification.

    Raises:
        ValueError: there are too few workers, or no such code keeps the promise.
    """
    require_workers("cyclic", n, s)
    if redundancy is not None and not 2 * s + 1 <= redundancy <= n:
        message = f"must be between 2s + 1 = {2 * s + 1} and {n} workers, got {redundancy}"
        raise OptionError("cyclic", "redundancy", message)
    if redundancy is not None and n % 2 and redundancy % 2 == 0:
        message = f"must be odd where the number of workers ({n}) is odd, got {redundancy}"
        raise OptionError("cyclic", "redundancy", message)
    require_size("cyclic", n, redundancy or 2 * s + 1)
    last = 2 * s + 1 if n % 2 == 0 else 2 * s  # parities that are tried at most; redundancy is one more
    tries = range(2 * s, min(last, n - 1) + 1) if redundancy is None else (redundancy - 1,)
    most = PROMISE / ROUNDING
    for p in tries:
        code = real_code(n, p)
        if (worst := worst_amplification(code, s, most)) <= most:
            return code, worst
    # None keeps the promise: name a redundancy that would, found by halving, as more of it makes rounding matter less.
    odd = [p for p in range(tries[-1] + 1, min(n, REDUNDANCY)) if (n - p) % 2]
    place = bisect_left(odd, True, key=lambda p: neighbours_amplification(real_code(n, p), s) <= most)
    enough = place < len(odd) and worst_amplification(real_code(n, odd[place]), s, most) <= most
    raise ValueError(
        f"cyclic: {s} adversaries among {n} workers with redundancy {tries[-1] + 1} amplify float32 rounding beyond "
        f"{PROMISE:g} of the result; {f'redundancy {odd[place] + 1} would do, or ' if enough else ''}fewer adversaries"
        f"{'' if enough else ' would do'}"
    )


def _encoder(code: Code, worst: float) -> Encoder:
    matrix = torch.from_numpy(np.asarray(code.matrix))
    loads = [torch.from_numpy(np.flatnonzero(row)) for row in code.window]

    def encode(row: int, gradients: Tensor) -> Tensor:
        load = len(loads[row])
        weights = matrix[row, loads[row]].to(gradients.device)
        if worst > PRECISE:
            return combine(gradients, [(0, load)], weights)
        return torch.mv(gradients.t(), weights.to(gradients.dtype))

    return encode


class Projections:
    """The projections of the rows that have arrived: an `Inspection`."""

    def __init__(self, replies: Tensor, seed: int) -> None:
        n, d = replies.shape
        self.replies = replies
        self.secret = draw(seed, d, replies.device)
        shape = (n, len(self.secret.coefficients), len(self.secret.directions))
        self.inner = torch.zeros(shape, device=replies.device)

    def add(self, row: int) -> None:
        """See `Inspection`."""
        self.inner[row] = project_row(self.replies[row], self.secret)

    def add_all(self, rows: list[int]) -> None:
        """Do what `add` does for every row, on a GPU at once."""
        if self.replies.is_cpu or not project(self.replies, rows, self.secret.directions, self.inner):
            for row in rows:
                self.add(row)


def sketch_of(replies: Tensor, here: Mask, seed: int, inspection: Inspection | None) -> Sketch:
    """Return the sketch of the rows that are here, which `inspection` has projected already if there is one."""
    if not isinstance(inspection, Projections):
        inspection = Projections(replies, seed)
        inspection.add_all([int(row) for row in np.flatnonzero(here)])
    return finish(inspection.inner, replies, inspection.secret)


def _decoder(code: Code, s: int, tolerance: float) -> Decoder:
    basis = real_basis(code.parity)

    def decode(replies: Tensor, here: Mask, seed: int, inspection: Inspection | None) -> Decoded:
        missing = tuple(int(i) for i in np.flatnonzero(~here))
        if not isinstance(inspection, Projections):
            # All rows are there at once: one pass decodes and checks them, or says that it cannot tell.
            tried = (
                optimistic(code, basis, replies, missing, tolerance, seed) if admissible(code.parity, missing) else None
            )
            if tried is not None:
                mean, rows = tried
                return Decoded(mean[None], tuple(i for i in _conditioned(code, s, rows) if here[i]))
        # Locate the wrong rows by their projections, then decode with weights that are zero on these rows.
        sketch = sketch_of(replies, here, seed, inspection)
        rows = _conditioned(code, s, wrong_rows("cyclic", code.parity, s, tolerance, replies, here, sketch))
        weights = torch.from_numpy(recombination(code.parity, code.clean, rows).real.copy()).to(replies.device)
        amplified = float(amplifications(code, np.asarray([rows], dtype=np.intp))[0])
        mean = recombined("cyclic", replies, rows, weights[None], amplified, sketch)
        return Decoded(mean, tuple(i for i in rows if here[i]))

    return decode


def recombined(name: str, replies: Tensor, rows: Rows, weights: Tensor, amplified: float, sketch: Sketch) -> Tensor:
    """Return weights (m, n) @ replies (n, e), (m, e), without `rows`, summed in float64 where float32 would not do.

    Raises:
        DecodeError: the result is beyond float32.
    """
    kept = mask_without(len(replies), rows)
    huge = bool(sketch.squares[kept].max(initial=0) > HUGE**2)
    used = weights if huge or amplified > PRECISE else weights.to(replies.dtype)
    result = combine_all(replies, runs_of(kept), used)
    if huge:
        require_finite(name, result)
    return result


def require_finite(name: str, result: Tensor) -> None:
    """Raise a DecodeError unless all numbers are finite."""
    if not bool(torch.isfinite(result).all()):
        raise DecodeError(f"{name}: the replies that are right decode to numbers that are beyond float32")


def wrong_rows(
    name: str,
    parity: Complex,
    s: int,
    tolerance: float,
    replies: Tensor,
    here: Mask,
    sketch: Sketch,
) -> Rows:
    """Return the rows to leave out: missing, not finite, or located, the fewest that the certificate accepts.

    Raises:
        DecodeError: it accepts none.
    """
    with np.errstate(invalid="ignore"):
        known = ~here | ~np.isfinite(sketch.values).all(1) | ~np.isfinite(sketch.squares)
    found = evidence(parity, sketch.values, sketch.squares, known, tolerance, replies.shape[1])
    if certified(found, found.known, slack=CLEAR):
        return found.known
    rows = locate_clearly(found)
    if rows is None:  # where it is not clear, exact norms decide, not their estimates
        exact = squared_norms(replies, runs_of(~known))
        rows = locate(evidence(parity, sketch.values, exact, known, tolerance, replies.shape[1]))
    if rows is None:
        where = f"rows {list(found.known)} are missing or not finite, and " if found.known else ""
        raise DecodeError(
            f"{name}: {where}no admissible set of rows explains the rest of the replies; at most {s} of {len(here)} "
            "may be wrong or missing. Are more workers Byzantine, or do honest ones differ by more than tolerance="
            f"{tolerance:g}?"
        )
    return rows


def _conditioned(code: Code, s: int, rows: Rows) -> Rows:
    """Return `rows` if the others decode within the promise."""
    if len(rows) > s:
        error = float(amplifications(code, np.asarray([rows], dtype=np.intp))[0]) * ROUNDING
        if not error <= PROMISE:
            raise DecodeError(
                f"cyclic: without rows {list(rows)} rounding alone would cost {error:.0e} of the result, "
                f"must be at most {PROMISE:g}"
            )
    return rows


def _project(seed: int, elements: int) -> Tensor:
    """Return a step's projections (number, e), whole: for attacks that know the last step's seed."""
    return dense(draw(seed, elements, torch.device("cpu")), elements)


def tolerance_option(usual: float) -> Option:
    """Return the option `tolerance` of a code whose rows are compared through projections."""
    text = f"Relative distance by which honest replies may differ, beside the wire's rounding; null: {usual:g}."
    return Option(float | None, None, text, gt=0.0, le=1e-2)


ENCODING = Option(
    Literal["auto", "explicit"],
    "auto",
    "auto: one backward pass over the weighted losses wherever the model allows it; explicit: combine gradients.",
    argument=False,
)
CYCLIC = SchemeDeclaration(
    name="cyclic",
    function=cyclic,
    text="a real code: every worker sends one combination of 2s+1 gradients",
    options={
        "redundancy": Option(
            int | None,
            None,
            "Partitions of a worker, from 2s+1 to n, odd where n is; null: 2s+1, or 2s+2 where only that keeps the "
            "promise. More of them make rounding matter less.",
            ge=1,
            le=4096,
        ),
        "tolerance": tolerance_option(TOLERANCE),
        "encoding": ENCODING,
    },
    sizes=_sizes,
    tolerance=TOLERANCE,
    project=_project,
)
