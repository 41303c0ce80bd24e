"""Who has been proven to lie, as a run's events tell it: for the progress line, the status and the report.

An event `expelled` has a worker's proof when it is found, and a step's event the proofs that were found at it. A run
that goes back to a checkpoint forgets what came after that: the event `resume` then says who is still out.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

_DIGEST = re.compile("[0-9a-f]{16,}")
_SHOWN = 8  # letters of a digest


class Expulsion(NamedTuple):
    """Why a worker was expelled: what it claimed of a partition at a step, and what was true."""

    rank: int
    step: int
    partition: int
    claimed: str  # digest in hexadecimal, or what was wrong with what it sent
    true: str  # digest in hexadecimal; empty where what it sent was wrong by itself


def of(event: Mapping[str, Any]) -> list[Expulsion]:
    """Return the expulsions that one event tells of, by rank."""
    if event["event"] == "expelled":
        return [_read(event["rank"], event)]
    if event["event"] in ("step", "resume"):
        return sorted(_read(int(rank), proof) for rank, proof in (event.get("expelled") or {}).items())
    return []


def expulsions(events: Iterable[Mapping[str, Any]], *, forgets: bool = True) -> dict[int, Expulsion]:
    """Return who is expelled after these events, by rank; of a worker's proofs the first counts.

    `forgets`: who was expelled after the checkpoint of a resumption counts only where the event `resume` names it.
    """
    found: dict[int, Expulsion] = {}
    for event in events:
        if event["event"] == "resume" and forgets:
            if event.get("expelled") is not None:
                found = {}
            else:  # what a checkpoint holds was found by then
                found = {rank: each for rank, each in found.items() if each.step <= event["step"]}
        for each in of(event):
            found.setdefault(each.rank, each)
    return dict(sorted(found.items()))


def sentence(of: Expulsion) -> str:
    """Say that a worker is expelled, and why.

    >>> sentence(Expulsion(3, 12, 0, "3fa9" * 16, "81bc" * 16))
    'step 12: worker 3 is proven to lie and expelled (claimed 3fa93fa9..., true 81bc81bc...)'
    """
    why = f"claimed {shortened(of.claimed)}, true {shortened(of.true)}" if of.true else of.claimed
    return f"step {of.step}: worker {of.rank} is proven to lie and expelled ({why})"


def shortened(claim: str) -> str:
    """Return a digest as far as one reads it; any other text as it is."""
    return f"{claim[:_SHOWN]}..." if _DIGEST.fullmatch(claim) else claim


def undone(event: Mapping[str, Any]) -> str:
    """Say that a step is undone, and by whose vectors."""
    names = {key: ", ".join(map(str, event.get(key) or ())) or "?" for key in ("partitions", "workers")}
    return (
        f"step {event['step']}: undone and taken again, as vectors of partitions {names['partitions']} were false "
        f"(sent by {names['workers']})"
    )


def watched(event: Mapping[str, Any]) -> str:
    """Say that a worker is watched, and why.

    >>> watched({"step": 12, "rank": 3})
    'step 12: worker 3 did not open its commitment; all that it sends is replayed from now on'
    """
    return (
        f"step {event['step']}: worker {event['rank']} did not open its commitment; all that it sends is replayed from "
        "now on"
    )


def _read(rank: int, proof: Mapping[str, Any]) -> Expulsion:
    return Expulsion(rank, proof["step"], proof["partition"], proof["claimed"], proof["true"])
