"""The verified protocol: one copy, checked by verifiers who are drawn after the upload; a step is undone at most.

Theorem. Let at most s of n >= 2s+1 workers be Byzantine, with whatever they know and agree on, except draws that are
still to come. Then no honest worker is ever expelled, at most s workers are, and the probability that any step of the
run stays false is at most `failure_probability(n, s, a)`, however many steps there are; with a >= s it is 0. Proof:
only who is contradicted by lies + 1 claimants is expelled, of whom one is honest. A false vector stays only where all
its verifiers collude with the uploader; else its step is judged in full, and the uploader is expelled. So there are at
most s tries (draco/protocols/odds.py has the rest, and what is assumed).

A step's vectors are used as they come, one copy of each. At the next step, or by `close`, each pair is verified: `a`
workers that are drawn now, or as many as there are liars left, compute it too and send its digest. Where claims differ,
all pairs of that step are judged as in draco/protocols/reactive.py. False ones are replaced, and the step is taken
again.

Sources: Gupta & Vaidya, arXiv:1912.09528, for expulsion by proof; verifying after the commitment and its odds are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from draco.declaration import OptionError
from draco.protocols.court import Court
from draco.protocols.hearing import Hearing
from draco.protocols.odds import failure_probability, least_verifiers
from draco.protocols.rounds import Ask, Committed, Outcome, Protocol, Rounds, Upload
from draco.protocols.verification import Verification

DELTA = 1e-6


def verified(*, workers: int, adversaries: int, verifiers: int | None = None, delta: float | None = None) -> Protocol:
    """Return the protocol for n workers of which up to s are Byzantine; it has n - s partitions.

    Args:
        workers: n.
        adversaries: s.
        verifiers: a of each pair, 1 to s.
        delta: instead of it, the probability that any step of a run stays false, with up to s workers absent; the
            least a for it is taken. 1e-6 where neither is given.

    Raises:
        OptionError: both are given, or one is out of its range.
    """
    a = checked_verifiers("verified", workers, adversaries, verifiers, delta, absent=adversaries)
    partitions = workers - adversaries
    present, away = (failure_probability(workers, adversaries, a, absent) for absent in (0, adversaries))
    odds = "exact" if a >= adversaries else f"a step of the run stays false with probability {present:.1g} at most"
    if away > present:
        odds += f" ({away:.1g} with {adversaries} workers absent)"
    return Protocol(
        name="verified",
        partitions=partitions,
        step=partial(_step, partitions, a),
        close=partial(_close, a),
        summary=(
            f"{odds}, with up to {adversaries} Byzantine workers of {workers}; each of {partitions} partitions is "
            f"computed once and verified by {a}"
        ),
        copies=lambda lies: 1 + min(a, lies),
        failure=max(present, away),
    )


def checked_verifiers(
    owner: str, workers: int, adversaries: int, verifiers: int | None, delta: float | None, absent: int
) -> int:
    """Return a, the number of verifiers of each pair; `delta` must hold with so many workers absent.

    Raises:
        OptionError: both are given, or one is out of its range.
    """
    if verifiers is not None and delta is not None:
        raise OptionError(owner, "delta", "chooses the number of verifiers; leave out verifiers, or delta")
    if verifiers is None:
        wanted = DELTA if delta is None else delta
        if not 0 <= wanted < 1:
            raise OptionError(owner, "delta", f"must be a probability of 0 or more and less than 1, got {wanted}")
        return least_verifiers(workers, adversaries, wanted, absent=absent)
    if not min(1, adversaries) <= verifiers <= adversaries:
        raise OptionError(
            owner, "verifiers", f"must be from 1 to {adversaries}, the number of adversaries, got {verifiers}"
        )
    return verifiers


def _step(partitions: int, verifiers: int, court: Court, step: int, committed: Committed | None) -> Rounds[Outcome]:
    pairs = [(step, partition) for partition in range(partitions)]
    if not court.present:
        raise court.too_few(*pairs[0])
    hearing = Hearing(court, earlier=None if committed is None else committed.step)
    verification = None if committed is None else Verification(hearing, committed, verifiers)
    asks = [] if verification is None else verification.asks()
    order = sorted(court.shuffled(court.present), key=hearing.load.__getitem__)
    asks += [hearing.ask(order[place % len(order)], pair, "vector") for place, pair in enumerate(pairs)]
    while True:
        hearing.take((yield asks))
        hearing.judge([*pairs, *(verification.pairs if verification else ())])
        unverified = verification.open() if verification else None
        replaced = verification.replaced() if verification else {}
        if replaced and not unverified:
            return Outcome((), (), replaced)
        found = {pair: hearing.accepted(pair, 1) for pair in pairs}
        missing = [pair for pair, vector in found.items() if vector is None]
        if not missing and not unverified:
            vectors = [vector for vector in found.values() if vector is not None]
            return Outcome(tuple(upload for _, upload in vectors), tuple(worker for worker, _ in vectors))
        asks = verification.asks() if verification else []
        if not replaced:
            asks += [ask for pair in missing for ask in hearing.further(pair, 1)]
        if not asks:
            raise court.too_few(*(unverified or missing[0]))


def _close(verifiers: int, court: Court, committed: Committed) -> Rounds[Mapping[int, Upload]]:
    hearing = Hearing(court, earlier=committed.step)
    verification = Verification(hearing, committed, verifiers)
    while unverified := verification.open():
        asks: list[Ask] = verification.asks()
        if not asks:
            raise court.too_few(*unverified)
        hearing.take((yield asks))
        hearing.judge(verification.pairs)
    return verification.replaced()
