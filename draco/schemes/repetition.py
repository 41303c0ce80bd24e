"""The repetition scheme: the workers of a group compute the same gradient, and the server counts votes.

Source: Chen et al., DRACO, ICML 2018 (arXiv:1803.09877), section 3 (repetition code). The original takes a Boyer-Moore
majority without counting it. Here a winner needs s + 1 votes, so that at least one honest worker stands behind it.

Row i belongs to group i mod m. So rows 0..m-1 are a block with one member of every group, and so are rows m..2m-1, and
so on. Where all members of a block won, the result is a view of it. With at most s Byzantine rows one of the 2s + 1
blocks always did. Leftover workers join groups, so that no worker is idle.
Shapes: n workers, m = k = n // r groups, d parameters, r >= 2s + 1.
Invariant of the exact vote: it compares bits, so the workers of a group must share samples, order and kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from draco.declaration import Option, OptionError
from draco.errors import DecodeError
from draco.lazy import Tensor, torch
from draco.protocols.digested import digested
from draco.protocols.rounds import Protocol
from draco.schemes.declaration import SchemeDeclaration, Sizes, require_workers
from draco.schemes.scheme import Decoded, Decoder, Inspection, Mask, Scheme
from draco.schemes.vote import OPTIONS, TOLERANCE, Ballot, checked_vote, elect, winner


def _sizes(workers: int, adversaries: int, redundancy: int | None = None, **_: object) -> Sizes:
    require_workers("repetition", workers, adversaries)
    least = 2 * adversaries + 1
    r = least if redundancy is None else redundancy
    if not least <= r <= workers:
        raise OptionError("repetition", "redundancy", f"must be from 2s+1 = {least} to {workers} workers, got {r}")
    return Sizes(partitions=workers // r, gradients=workers // r)


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
    groups = _sizes(workers, adversaries, redundancy).partitions
    within = checked_vote("repetition", vote, tolerance)
    return in_groups(
        "repetition", workers, adversaries, groups, within, votes=[adversaries + 1] * groups, bad=0,
        summary=f"repetition: {workers} workers in {groups} groups of {workers // groups} or more, "
        f"up to {adversaries} adversaries",
    )  # fmt: skip


def _protocol(
    *,
    workers: int,
    adversaries: int,
    redundancy: int | None = None,
    vote: str = "exact",
    tolerance: float | None = None,
    uplink: str = "full",
) -> Protocol | None:
    """Return the protocol in which one of each group uploads; None: all do, and a step is one round."""
    if uplink == "full":
        return None
    groups = _sizes(workers, adversaries, redundancy).partitions
    within = checked_vote("repetition", vote, tolerance or TOLERANCE)
    return digested(workers=workers, adversaries=adversaries, groups=groups, within=within, elect=elect)


def in_groups(
    name: str, n: int, s: int, groups: int, within: float | None, *, votes: Sequence[int], bad: int, summary: str
) -> Scheme:
    """Return the scheme in which row i sends gradient i mod m, which needs votes[i mod m] votes that are the same.

    `within` is as in `vote.winner`. Of the m = `groups` gradients `bad` may be wrong, or left out for want of votes.
    """
    assignment = np.arange(n)[:, None] % groups == np.arange(groups)

    return Scheme(
        name=name,
        workers=n,
        adversaries=s,
        redundancy=1,
        assignment=assignment,
        weights=assignment.astype(np.float64),
        encoder=lambda row, gradients: gradients[0],
        decoder=_decoder(name, n, votes, bad, within),
        inspect=lambda replies, seed: _Inspection(replies, groups, within),  # nothing is drawn
        dtype=torch.float32,
        amplification=None if within is None else 1.0,
        summary=f"{summary}, " + ("vote on bits" if within is None else f"vote within {within:g}"),
        bad=bad,
    )


class _Inspection:
    """The ballots of the groups, filled as rows arrive."""

    def __init__(self, replies: Tensor, groups: int, within: float | None) -> None:
        self.ballots = [Ballot(replies, distances=within is not None) for _ in range(groups)]

    def add(self, row: int) -> None:
        self.ballots[row % len(self.ballots)].add(row)


def _decoder(name: str, n: int, votes: Sequence[int], bad: int, within: float | None) -> Decoder:
    groups = len(votes)

    def decode(replies: Tensor, here: Mask, seed: int, inspection: Inspection | None) -> Decoded:
        ballots = inspection.ballots if isinstance(inspection, _Inspection) else None
        if ballots is None:
            ballots = [Ballot(replies, distances=within is not None) for _ in range(groups)]
            for j, ballot in enumerate(ballots):
                ballot.add_all([i for i in range(j, n, groups) if here[i]])
        winners: list[tuple[int, ...]] = []
        suspects: list[int] = []
        undecided: list[int] = []
        for j, ballot in enumerate(ballots):
            try:
                won = winner(ballot, votes[j] - 1, within)
            except DecodeError as error:
                undecided.append(j)
                if len(undecided) <= bad:
                    continue
                more = f" (after groups {undecided[:-1]}; at most {bad} may be left out)" if bad else ""
                raise DecodeError(f"{name}: group {j} (rows {list(range(j, n, groups))}): {error}{more}") from None
            winners.append(won.rows)
            suspects.extend(won.suspects)
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


REPETITION = SchemeDeclaration(
    name="repetition",
    function=repetition,
    text="groups of workers that compute the same, and a vote in each",
    options={
        "redundancy": Option(int | None, None, "Workers in a group, 2s+1 to n; null: 2s+1.", ge=1, le=4096),
        **OPTIONS,
        "uplink": Option(
            Literal["full", "digest"],
            "full",
            "full: every worker sends its vector; digest: one of each group does, and the others a digest of theirs, "
            "or projections for a vote within a tolerance.",
            argument=False,
        ),
    },
    sizes=_sizes,
    tolerance=TOLERANCE,
    grouped=True,
    protocol=_protocol,
    rounds=lambda given: given["uplink"] == "digest",
)
