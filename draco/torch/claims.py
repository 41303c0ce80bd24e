"""The words of a dispute: what ranks claim, what they are asked to do, and what is found. Plain values only."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Claim:
    """What a rank says of its step: a value for each link of the chain, equal if and only if the bits are."""

    inputs: Hashable
    outputs: Hashable
    seeds: Hashable  # the loss gradients
    gradient: Hashable


@dataclass(frozen=True)
class Weigh:
    """All ranks tell the digest of their weights: the answer maps each rank to it."""


@dataclass(frozen=True)
class Heal:
    """Rank `source` sends its weights and optimizer states to `ranks`, which keep their own for an Undo. No answer."""

    source: int
    ranks: tuple[int, ...]


@dataclass(frozen=True)
class Undo:
    """The ranks of the last Heal take their own weights and states back. There is no answer."""


@dataclass(frozen=True)
class Recompute:
    """Each rank of the pairs (rank, lender) recomputes the step from what the lender recorded, which may be itself.

    The answer maps each of these ranks to a Claim, of which `outputs` and `gradient` count.
    """

    runs: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Finding:
    """One rank, which link of the chain was wrong there, how that was found, how it was repaired; whether it lasts."""

    rank: int
    what: str
    found: str
    repaired: str
    lasting: bool = False  # it computed wrongly when it recomputed


@dataclass(frozen=True)
class Repair:
    """Rank `rank` takes the gradient of `source`: what it `kept` of its backward pass, or its last recomputation."""

    rank: int
    source: int
    kept: bool


@dataclass(frozen=True)
class Mend:
    """The ranks of the repairs take the right gradients, before anybody recomputes for another group. No answer."""

    repairs: tuple[Repair, ...]


Ask = Weigh | Heal | Undo | Recompute | Mend
Answers = Mapping[int, Hashable]


@dataclass(frozen=True)
class Verdict:
    """What a dispute ended with: who was wrong, and whose bits go where."""

    findings: tuple[Finding, ...]
    repairs: tuple[Repair, ...]


def truth(votes: Iterable[tuple[int, Hashable]]) -> Hashable | None:
    """Return the value that at least two different ranks claim, and more ranks than any other; None if there is none.

    A rank may claim several values, as one that recomputes does. It counts once for each.
    """
    support: dict[Hashable, set[int]] = {}
    for rank, value in votes:
        support.setdefault(value, set()).add(rank)
    order = sorted(support, key=lambda value: -len(support[value]))
    if not order or len(support[order[0]]) < 2:
        return None
    if len(order) > 1 and len(support[order[1]]) == len(support[order[0]]):
        return None
    return order[0]


def parties(votes: Mapping[int, Hashable]) -> str:
    """Return which ranks agree with which: ranks [0, 2] against [1] against [3]."""
    parties: dict[Hashable, list[int]] = {}
    for rank, value in votes.items():
        parties.setdefault(value, []).append(rank)
    return "ranks " + " against ".join(str(ranks) for ranks in parties.values())
