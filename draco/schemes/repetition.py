"""Repetition scheme: the workers of a group compute the same gradient, and the server counts votes.

Source: Chen et al., DRACO, ICML 2018 (arXiv:1803.09877), section 3 (repetition code). The original takes a Boyer-Moore
majority without counting it; here a winner needs s + 1 votes, so that at least one honest worker stands behind it.
Row i belongs to group i mod m: rows 0..m-1 hold one member of every group, and so do m..2m-1, and so on. Whenever all
members of such a block won, and with at most s liars one of the 2s + 1 blocks always did, the result is a view of it.
Leftover workers join groups, so that no worker is idle.
Shapes: n workers, m = k = n // r groups, d parameters, r >= 2s + 1.
Invariant of the exact vote: it compares bits, so the workers of a group must share samples, order and kernels.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from draco.errors import DecodeError
from draco.schemes.scheme import (
    Decode,
    Decoded,
    Inspection,
    Scheme,
    arrived_rows,
    checked_gradients,
    checked_replies,
)
from draco.schemes.vote import Ballot, exact_winner, tolerant_winner

TOLERANCE = 2e-6  # relative L2 distance; thread counts and instruction sets were measured to differ by up to 5e-7


def repetition(
    *,
    workers: int,
    adversaries: int,
    redundancy: int | None = None,
    vote: str = "exact",
    tolerance: float = TOLERANCE,
) -> Scheme:
    """Return the repetition scheme for n >= 2s + 1 workers.

    `redundancy` is the least number of workers in a group, 2s + 1 if None. `vote` is "exact" (equal bits) or
    "tolerance" (mutually within the relative L2 distance `tolerance`).
    """
    r = 2 * adversaries + 1 if redundancy is None else redundancy
    if r < 2 * adversaries + 1:
        raise ValueError(f"repetition: redundancy is {r}, must be at least {2 * adversaries + 1}")
    if workers < r:
        what = f"{adversaries} adversaries need" if redundancy is None else f"redundancy {r} needs"
        raise ValueError(f"repetition: {what} at least {r} workers, got {workers}")
    if vote not in {"exact", "tolerance"}:
        raise ValueError(f"repetition: vote is {vote!r}, must be 'exact' or 'tolerance'")
    if not 0 < tolerance < 1:
        raise ValueError(f"repetition: tolerance is {tolerance}, must be between 0 and 1")
    groups = workers // r
    assignment = np.arange(workers)[:, None] % groups == np.arange(groups)
    within = tolerance if vote == "tolerance" else None
    return Scheme(
        name="repetition",
        workers=workers,
        adversaries=adversaries,
        redundancy=1,
        assignment=assignment,
        weights=assignment.astype(np.float64),
        encode=_encode,
        decode=_decoder(workers, adversaries, groups, within),
        inspect=lambda replies, seed: _Inspection(replies, groups, within),  # nothing is drawn
        dtype=torch.float32,
        amplification=None if within is None else 1.0,
        summary=f"repetition: {workers} workers in {groups} groups of {r} or more, up to {adversaries} adversaries, "
        + ("vote on bits" if within is None else f"vote within {tolerance:g}"),
    )


def _encode(row: int, gradients: Tensor) -> Tensor:  # every row sends its one gradient
    return checked_gradients("repetition", gradients, load=1)[0]


class _Inspection:
    """The ballots of the groups, filled as rows arrive."""

    def __init__(self, replies: Tensor, groups: int, within: float | None) -> None:
        self.ballots = [Ballot(replies, distances=within is not None) for _ in range(groups)]

    def add(self, row: int) -> None:
        self.ballots[row % len(self.ballots)].add(row)


def _decoder(n: int, s: int, groups: int, within: float | None) -> Decode:
    def decode(
        replies: Tensor,
        arrived: npt.NDArray[np.bool_] | None = None,
        *,
        seed: int | None = None,  # nothing is drawn
        inspection: Inspection | None = None,
    ) -> Decoded:
        checked_replies("repetition", replies, n, torch.float32)
        here = arrived_rows("repetition", arrived, n)
        ballots = inspection.ballots if isinstance(inspection, _Inspection) else None
        if ballots is None:
            ballots = [Ballot(replies, distances=within is not None) for _ in range(groups)]
            for j, ballot in enumerate(ballots):
                ballot.add_all([i for i in range(j, n, groups) if here[i]])
        winners: list[tuple[int, ...]] = []
        suspects: list[int] = []
        for j, ballot in enumerate(ballots):
            try:
                winner = exact_winner(ballot, s) if within is None else tolerant_winner(ballot, s, within)
            except DecodeError as error:
                raise DecodeError(f"repetition: group {j} (rows {list(range(j, n, groups))}): {error}") from None
            winners.append(winner.rows)
            suspects.extend(winner.suspects)
        return Decoded(_result(replies, winners), tuple(sorted(suspects)))

    return decode


def _result(replies: Tensor, winners: Sequence[Sequence[int]]) -> Tensor:
    """Return (m, d): a view of a block of rows that all carry their group's winning bits (winners), else a copy."""
    m = len(winners)
    sets = [set(rows) for rows in winners]
    for start in range(0, len(replies) - m + 1, m):
        if all(start + j in rows for j, rows in enumerate(sets)):
            return replies[start : start + m]
    return replies[torch.tensor([rows[0] for rows in winners], device=replies.device)]
