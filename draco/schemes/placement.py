"""Placement: workers compute several partitions each, by a design in which few workers win few of the votes on them.

Sources: Konstantinidis & Ramamoorthy, ByzShield (arXiv:2010.04902), for the designs and a vote on every partition. The
k winners go to a robust aggregator (in the paper the coordinate-wise median). The same authors, Aspis
(arXiv:2108.02416), for finding Byzantine workers by who agrees with whom.

DETOX votes in disjoint groups, and a few Byzantine workers win a whole group. Here any two workers share few
partitions. The most partitions that s adversaries can win or spoil are computed (worst_case.py) and are the
aggregator's f.

Workers who are certainly Byzantine (agreement.py) have no vote, and they are the suspects: no honest worker is ever
one. A partition goes to the majority of its other workers, absent ones counted. One without a majority is left out.
Shapes: n workers, k partitions and m = k gradients, r workers a partition, d parameters. A worker sends its
load = k r / n gradients one behind the other, load * d elements. So the server holds k * r * d elements, and k * d more
while it aggregates.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from functools import cache
from typing import Literal

import numpy as np

from draco.declaration import Option
from draco.errors import DecodeError
from draco.lazy import Tensor, torch
from draco.schemes.agreement import certainly_byzantine
from draco.schemes.declaration import SchemeDeclaration, Sizes, require_workers
from draco.schemes.designs import Assignment, place
from draco.schemes.scheme import Decoded, Decoder, Inspection, Mask, Scheme
from draco.schemes.vote import OPTIONS, TOLERANCE, Ballot, checked_vote, disagreements, winner
from draco.schemes.worst_case import WorstCase, worst_case

REDUNDANCY = 3  # workers on a partition


def _sizes(workers: int, adversaries: int, design: str = "mols", redundancy: int = REDUNDANCY, **_: object) -> Sizes:
    assignment, (bad, _exact), _about = _design(workers, adversaries, design, redundancy)
    return Sizes(partitions=assignment.shape[1], gradients=assignment.shape[1], bad=bad)


@cache
def _design(n: int, s: int, design: str, redundancy: int) -> tuple[Assignment, WorstCase, str]:
    """Return who computes what, what s adversaries can do to it, and the design in words.

    Raises:
        ValueError: the design does not exist for these numbers, or s adversaries may spoil half of it.
    """
    require_workers("placement", n, s)
    assignment = place(design, n, redundancy)
    k, load = assignment.shape[1], int(assignment[0].sum())
    net = design != "subset"
    worst = worst_case(assignment, s, net=net)
    about = f"{design}, {n} workers, {k} partitions, {redundancy} workers on each and {load} of them on each worker"
    if 2 * worst.lost >= k:
        # The more adversaries, the more is lost: the most that it tolerates is found by halving, with less effort each.
        first = bisect_left(range(s), True, key=lambda q: 2 * worst_case(assignment, q, net=net, effort=0.05).lost >= k)
        bound = "" if worst.exact else "at most "
        raise ValueError(
            f"placement: {about}: {s} adversaries may win or spoil {bound}{worst.lost} partitions, which must be less "
            f"than half of them for certain; it tolerates {first - 1}"
        )
    return assignment, worst, about


def placement(
    *,
    workers: int,
    adversaries: int,
    design: str = "mols",
    redundancy: int = REDUNDANCY,
    vote: str = "exact",
    tolerance: float = TOLERANCE,
) -> Scheme:
    """Return the scheme for n workers, of which s may win or spoil less than half of the partitions.

    `design` is one of `designs.DESIGNS`, `redundancy` the number r of workers on a partition; `vote` and `tolerance`
    are those of repetition.
    """
    n, s = workers, adversaries
    within = checked_vote("placement", vote, tolerance)
    assignment, (bad, exact), about = _design(n, s, design, redundancy)
    load = int(assignment[0].sum())
    return Scheme(
        name="placement",
        workers=n,
        adversaries=s,
        redundancy=load,
        assignment=assignment,
        weights=None,
        encoder=lambda row, gradients: gradients.reshape(-1),
        decoder=_decoder(assignment, s, bad, within),
        inspect=lambda replies, seed: _Votes(replies, assignment, within),  # nothing is drawn
        dtype=torch.float32,
        amplification=None if within is None else 1.0,
        summary=f"placement ({about}): up to {s} adversaries, who may win or spoil {'' if exact else 'at most '}{bad} "
        f"partitions; vote {'on bits' if within is None else f'within {within:g}'}",
        elements=lambda d: load * d,
        bad=bad,
    )


class _Votes:
    """The ballots of the partitions, filled as rows arrive."""

    def __init__(self, replies: Tensor, assignment: Assignment, within: float | None) -> None:
        self.loads = [np.flatnonzero(row).tolist() for row in assignment]
        self.members: list[list[int]] = [np.flatnonzero(column).tolist() for column in assignment.T]
        d = replies.shape[1] // len(self.loads[0])
        parts = [
            [replies[row, place * d : (place + 1) * d] for row in rows for place in [self.loads[row].index(j)]]
            for j, rows in enumerate(self.members)
        ]
        self.ballots = [Ballot(part, distances=within is not None) for part in parts]  # of indices into members

    def add(self, row: int) -> None:
        """Compare each of a row's gradients with those of the same partition."""
        for j in self.loads[row]:
            self.ballots[j].add(self.members[j].index(row))

    def add_all(self, here: Mask) -> None:
        """Do the same for all rows that are here, reading each about once."""
        for ballot, rows in zip(self.ballots, self.members, strict=True):
            ballot.add_all([index for index, row in enumerate(rows) if here[row]])


def _decoder(assignment: Assignment, s: int, bad: int, within: float | None) -> Decoder:
    load = int(assignment[0].sum())

    def decode(replies: Tensor, here: Mask, seed: int, inspection: Inspection | None) -> Decoded:
        if replies.shape[1] % load:
            raise ValueError(f"placement: replies have {replies.shape[1]} elements, must be {load} gradients of d each")
        votes = inspection if isinstance(inspection, _Votes) else None
        if votes is None:
            votes = _Votes(replies, assignment, within)
            votes.add_all(here)
        byzantine = certainly_byzantine(
            {
                (rows[a], rows[b])
                for ballot, rows in zip(votes.ballots, votes.members, strict=True)
                for a, b in disagreements(ballot, within)
            },
            s,
        )
        if byzantine is None:
            raise DecodeError(
                f"placement: no {s} Byzantine workers explain who disagrees with whom; do honest workers compute other "
                "bits (threads, instruction sets)? Then use vote=tolerance"
            )
        return Decoded(_gradients(votes, byzantine, bad, within), byzantine)

    return decode


def _gradients(votes: _Votes, byzantine: Sequence[int], bad: int, within: float | None) -> Tensor:
    """Return (m, d): the winner of every partition that has one.

    Raises:
        DecodeError: more than `bad` have none.
    """
    won: list[Tensor] = []
    undecided: list[int] = []
    for j, (ballot, rows) in enumerate(zip(votes.ballots, votes.members, strict=True)):
        out = {index for index, row in enumerate(rows) if row in byzantine}
        try:
            first, *_ = winner(ballot.without(out), (len(rows) - len(out)) // 2, within).rows
        except DecodeError as error:
            undecided.append(j)
            if len(undecided) > bad:
                raise DecodeError(
                    f"placement: partitions {undecided} have no majority, at most {bad} may be without; the last of "
                    f"them (rows {rows}): {error}"
                ) from None
            continue
        won.append(ballot.replies[first])
    return torch.stack(won)


PLACEMENT = SchemeDeclaration(
    name="placement",
    function=placement,
    text="several partitions a worker, by a design, and a vote on each, before a robust aggregator",
    options={
        "design": Option(
            Literal["mols", "ramanujan", "subset"],
            "mols",
            "mols: orthogonal Latin squares, n = r l; ramanujan: n = r q or r^2; subset: a partition for every r "
            "workers.",
        ),
        "redundancy": Option(int | None, None, f"Workers on a partition, odd; null: {REDUNDANCY}.", ge=1, le=4096),
        **OPTIONS,
    },
    sizes=_sizes,
    tolerance=TOLERANCE,
)
