"""The approximate scheme: the server does not wait for stragglers, and says how far off the mean of the others is.

Sources: Charles, Papailiopoulos & Ellenberg, Approximate Gradient Coding via Sparse Random Graphs, 2017
(arXiv:1711.06771), for the optimal decoding. Workers send the sum of their partitions' gradients. A (n, k) is the
design, 1 where a worker computes a partition. The server combines the replies that arrived with the weights a (n,) of
least |A^T a - 1|. Charles & Papailiopoulos, Gradient Coding via the Stochastic Block Model, 2018 (arXiv:1805.10378).
In training: Wang, Charles & Papailiopoulos, ErasureHead, 2019 (arXiv:1901.09671). The designs are in `assignments`.

None of these tolerates adversaries. Here the groups of fractional repetition vote as in `repetition`. A group without
s + 1 equal votes for want of rows counts as missing.
Shapes: n workers = k partitions, d parameters, m = 1: the mean of the partition gradients, nearly.

Error: |A^T a - 1| / sqrt(k), which is 0 where the mean is exact. Where the partitions' gradients are uncorrelated and
of one size, it is the relative error of the mean. Where they are equal, it is an upper bound of that.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import numpy.typing as npt

from draco.declaration import OnlyWith, Option, OptionError
from draco.errors import DecodeError
from draco.lazy import Tensor, torch
from draco.schemes.assignments import Design, bernoulli, fractional, stochastic_block
from draco.schemes.cyclic import ENCODING
from draco.schemes.cyclic_code import PRECISE
from draco.schemes.declaration import SchemeDeclaration, Sizes, require_workers
from draco.schemes.projection import block_width, combine, mask_without, runs_of
from draco.schemes.scheme import Decoded, Decoder, Inspection, Mask, Scheme
from draco.schemes.vote import OPTIONS, TOLERANCE, Ballot, checked_vote, winner

CODES = ("fractional", "bernoulli", "stochastic_block")
DRAWN = 1024  # workers of a drawn code at most: least squares over them take a second
INSIDE = 0.8  # probability of a partition of the own group: about one in five of a worker's partitions is of another
CUTOFF = 1e-6  # relative size of singular values of A that count as zero, so that no weight amplifies rounding
EXACT = 1e-9  # an error that is only rounding of the weights

Floats = npt.NDArray[np.float64]


def _sizes(
    workers: int,
    adversaries: int,
    code: str = "fractional",
    redundancy: int | None = None,
    stragglers: int = 0,
    inside: float = INSIDE,
    **_: object,
) -> Sizes:
    require_workers("approximate", workers, adversaries)
    least = 2 * adversaries + 1
    r = least if redundancy is None else redundancy
    if code not in CODES:
        raise OptionError("approximate", "code", f"must be one of {', '.join(CODES)}, got {code!r}")
    if adversaries and code != "fractional":
        message = (
            f"must be fractional, or adversaries 0, got {adversaries}: {code} tolerates no adversaries, as no two of "
            "its workers send the same"
        )
        raise OptionError("approximate", "code", message)
    if not least <= r <= workers:
        raise OptionError("approximate", "redundancy", f"must be from 2s+1 = {least} to {workers} workers, got {r}")
    if not 0 <= stragglers < workers:
        raise OptionError("approximate", "stragglers", f"must be from 0 to {workers - 1}, got {stragglers}")
    if code != "fractional" and workers > DRAWN:
        message = (
            f"must be fractional for more than {DRAWN} workers, got {code}: its weights are solved for at each step"
        )
        raise OptionError("approximate", "code", message)
    if not 0 < inside <= 1:
        raise OptionError("approximate", "inside", f"must be above 0 and at most 1, got {inside}")
    return Sizes(partitions=workers, gradients=1)


def approximate(
    *,
    workers: int,
    adversaries: int,
    code: str = "fractional",
    redundancy: int | None = None,
    stragglers: int = 0,
    inside: float = INSIDE,
    vote: str = "exact",
    tolerance: float = TOLERANCE,
    seed: int = 0,
) -> Scheme:
    """Return the approximate scheme for n workers, up to `stragglers` of which are not waited for.

    `redundancy` r is the least number of workers in a group of a fractional `code`. In a random code it is how many
    partitions a worker computes on average. It is 2s + 2 if None. `assignments.stochastic_block` explains `inside`.
    `repetition` explains `vote` and `tolerance`, which matter to adversaries only. `seed` is that of a random design.

    Raises:
        ValueError: an option is out of its range, or a random code is to tolerate adversaries.
    """
    _sizes(workers, adversaries, code, redundancy, stragglers, inside)
    r = min(2 * adversaries + 2, workers) if redundancy is None else redundancy
    within = checked_vote("approximate", vote, tolerance)
    designs = {
        "fractional": lambda: fractional(workers, r),
        "bernoulli": lambda: bernoulli(workers, r, seed),
        "stochastic_block": lambda: stochastic_block(workers, r, inside, seed),
    }
    design = designs[code]()
    alone = 1 / design.sum(1)  # the least weights where the workers of a group send the same
    everybody = alone if code == "fractional" else weights_for(design, np.arange(workers))
    error = error_of(design, everybody)
    load = int(design.sum(1).max())
    return Scheme(
        name="approximate",
        workers=workers,
        adversaries=adversaries,
        redundancy=load,
        assignment=design,
        weights=design.astype(np.float64),
        encoder=lambda row, gradients: gradients.sum(0),
        decoder=_decoder(design, adversaries, within) if code == "fractional" else _decoder(design),
        inspect=None,
        dtype=torch.float32,
        amplification=amplification(design, everybody),
        summary=f"approximate ({code}): {workers} workers, redundancy {design.sum() / workers:.3g} on average and "
        f"{load} at most, {stragglers} not waited for, up to {adversaries} adversaries; error with everybody there "
        f"{error:.2g}",
        exact=error == 0,
        stragglers=stragglers,
    )


def weights_for(design: Design, rows: npt.NDArray[np.intp]) -> Floats:
    """Return the weights (n,) on `rows`, zero elsewhere, of least |A^T a - 1|, and of those the least norm."""
    weights = np.zeros(len(design))
    part = design[rows].astype(np.float64)
    weights[rows] = np.linalg.lstsq(part.T, np.ones(part.shape[1]), rcond=CUTOFF)[0]
    return weights


def error_of(design: Design, weights: Floats) -> float:
    """Return |A^T a - 1| / sqrt(k), 0 where it is only rounding."""
    k = design.shape[1]
    error = float(np.linalg.norm(weights @ design - 1) / math.sqrt(k))
    return error if error > EXACT else 0.0


def amplification(design: Design, weights: Floats) -> float:
    """Return the relative error of the mean per relative error of a reply, where gradients are uncorrelated."""
    return float(np.sqrt(np.square(weights) @ design.sum(1) / design.shape[1]))


def _decoder(design: Design, s: int = 0, within: float | None = None) -> Decoder:
    n, k = design.shape
    mine = design.argmax(1)  # (n,) the first partition of each row, which names its group
    grouped = np.array_equal(design, mine[:, None] == mine[design.argmax(0)])

    def decode(replies: Tensor, here: Mask, seed: int, inspection: Inspection | None) -> Decoded:
        rows = np.flatnonzero(here)
        suspects: list[int] = []
        if s:
            rows, suspects = _winners(mine, replies, rows, s, within)
        if not len(rows):
            raise DecodeError("approximate: nothing arrived" + " of which a vote could be taken" * bool(s))
        if grouped:  # one row of each group, with the same weight, is the best that can be done
            first = rows[np.unique(mine[rows], return_index=True)[1]]  # of each group
            weights = np.isin(np.arange(n), first).astype(np.float64)
            return Decoded(_mean(replies, first, k)[None], tuple(sorted(suspects)), error_of(design, weights))
        weights = weights_for(design, rows)  # (n,) for the sum over the k partitions; over k for the mean
        used = torch.from_numpy(weights / k).to(replies.device)
        kept = runs_of(mask_without(n, np.flatnonzero(weights == 0).tolist()))
        precise = amplification(design, weights) > PRECISE
        mean = combine(replies, kept, used if precise else used.to(replies.dtype))
        if not bool(torch.isfinite(mean.sum())):
            mean = combine(replies, kept, used)
            _require_finite(mean)
        return Decoded(mean[None], (), error_of(design, weights))

    return decode


def _mean(replies: Tensor, rows: npt.NDArray[np.intp], k: int) -> Tensor:
    """Return the sum of `rows` over k; its bits depend on their order and values, not on which rows they are."""
    n, d = replies.shape
    index = torch.from_numpy(rows).to(replies.device)
    out = torch.empty(d, device=replies.device)
    width = block_width(n, d, replies.device)
    for dtype in (torch.float32, torch.float64):  # the sum may be beyond float32 where the mean is not
        for block, target in zip(torch.split(replies, width, 1), torch.split(out, width), strict=True):
            if dtype == torch.float32:
                torch.sum(block[index], 0, out=target)
                target /= k
            else:
                target.copy_(block[index].sum(0, dtype=dtype) / k)
        if bool(torch.isfinite(out.sum())):
            return out
    _require_finite(out)
    return out


def _require_finite(mean: Tensor) -> None:
    if not bool(torch.isfinite(mean).all()):
        raise DecodeError("approximate: the replies add up to numbers that are not finite in float32")


def _winners(
    mine: npt.NDArray[np.intp], replies: Tensor, rows: npt.NDArray[np.intp], s: int, within: float | None
) -> tuple[npt.NDArray[np.intp], list[int]]:
    """Return a winning row of every group that has one, and the rows that lost.

    Raises:
        DecodeError: 2s + 1 rows of a group arrived, so that absences do not excuse it, and none wins.
    """
    winners: list[int] = []
    suspects: list[int] = []
    for group in np.unique(mine):
        members = [int(row) for row in rows if mine[row] == group]
        ballot = Ballot(replies, distances=within is not None)
        ballot.add_all(members)
        try:
            won = winner(ballot, s, within)
        except DecodeError as error:
            if len(members) > 2 * s:
                raise DecodeError(f"approximate: rows {members} send the same: {error}") from None
            continue
        winners.append(won.rows[0])
        suspects.extend(won.suspects)
    return np.asarray(sorted(winners), dtype=np.intp), suspects


APPROXIMATE = SchemeDeclaration(
    name="approximate",
    function=approximate,
    text="leaves stragglers out, and says how far off the mean is",
    options={
        "code": Option(
            Literal["fractional", "bernoulli", "stochastic_block"] | None,
            None,
            "Who computes what. fractional (null): groups; bernoulli: drawn; stochastic_block: between the two.",
        ),
        "redundancy": Option(
            int | None, None, "Partitions of a worker, on average if code is drawn; null: 2s+2.", ge=1, le=4096
        ),
        "stragglers": Option(int, 0, "A step is taken once all workers but so many have answered.", ge=0, le=4095),
        "inside": Option(
            float | None,
            None,
            f"Probability that a worker computes a partition of its own group; null: {INSIDE}.",
            gt=0.0,
            le=1.0,
            only_with=OnlyWith("code", ("stochastic_block",)),
        ),
        **OPTIONS,
        "encoding": ENCODING,
    },
    sizes=_sizes,
    tolerance=TOLERANCE,
    supplied=("seed",),
)
