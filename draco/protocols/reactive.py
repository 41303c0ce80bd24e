"""The reactive protocol: as many copies as liars are left, and one more; exact at every step.

Theorem. Let at most s of n >= 2s+1 workers be Byzantine, with whatever they know and agree on. Then every vector that
a step gives is the one that an honest worker computes, no honest worker is ever expelled, and in the whole run at most
s workers are. Proof: call `lies` the number s less those who are expelled. Only liars are expelled, so of the others at
most `lies` lie. A vector is used only where lies + 1 of these claim its digest, of which one at least is honest. Who
claims another digest is expelled, and is not honest, as honest workers claim the same. Where claims differ, somebody
lies; so a step in which more is asked than lies + 1 copies has an absent worker or expels one. All who are late are
asked last, and are never expelled for it.

So each partition costs s + 1 computations while Byzantine workers behave, and 1 once all are out. One worker uploads
the vector, and the others send its digest. Source: Gupta & Vaidya, arXiv:1912.09528; Hofmeister et al.,
arXiv:2401.02380.
"""

from __future__ import annotations

from functools import partial

from draco.protocols.court import Court
from draco.protocols.dealing import deal
from draco.protocols.hearing import Hearing
from draco.protocols.rounds import Committed, Outcome, Protocol, Rounds


def reactive(*, workers: int, adversaries: int) -> Protocol:
    """Return the protocol for n workers of which up to s are Byzantine; it has n - s partitions."""
    partitions = workers - adversaries
    return Protocol(
        name="reactive",
        partitions=partitions,
        step=partial(_step, partitions),
        close=None,
        summary=(
            f"exact at every step with up to {adversaries} Byzantine workers of {workers}; {adversaries + 1} copies "
            f"of each of {partitions} partitions, one fewer with each worker that is proven to lie"
        ),
        copies=lambda lies: lies + 1,
    )


def _step(partitions: int, court: Court, step: int, committed: Committed | None) -> Rounds[Outcome]:
    pairs = [(step, partition) for partition in range(partitions)]
    hearing = Hearing(court)
    if len(court.present) <= court.lies:
        raise court.too_few(*pairs[0])
    asks = [
        hearing.ask(worker, pair, "digest" if place else "vector")
        for pair, members in zip(pairs, deal(court.shuffled(court.present), partitions, court.lies + 1), strict=True)
        for place, worker in enumerate(members)
    ]
    while True:
        hearing.take((yield asks))
        hearing.judge(pairs)
        found = {pair: hearing.accepted(pair, court.lies + 1) for pair in pairs}
        missing = [pair for pair, vector in found.items() if vector is None]
        if not missing:
            break
        asks = [ask for pair in missing for ask in hearing.further(pair, court.lies + 1)]
        if not asks:
            raise court.too_few(*missing[0])
    vectors = [vector for vector in found.values() if vector is not None]
    return Outcome(tuple(upload for _, upload in vectors), tuple(worker for worker, _ in vectors))
