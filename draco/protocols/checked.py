"""The checked protocol: one copy, whose computation the server replays; exact for any s < n, up to a float tolerance.

A worker sends the matrix products and convolutions of its computation. The server makes the vector of them itself, by
`draco/replay/`: it checks each product against a fresh secret vector, and computes all else.

Theorem. Let any s < n workers be Byzantine, with whatever they know and agree on. Then the server computes every vector
that a step gives, and takes from workers only products that passed their check. A product whose error is e times the
tolerance passes with a chance of about 1/e, on which docs/checked.md has the bound. Who fails is expelled at that pair,
and no other worker is needed for it. No honest worker on the same platform is ever expelled. Proof: operations, shapes
and factors are the server's own. A product C of A and B passes where C r is A (B r) up to the tolerance, and r is drawn
after C has come. Rounding stays below the tolerance, and a product that fails is computed in full before its sender is
convicted.

So each partition costs the workers 1 computation, whoever lies, and the server a replay. Sources: Freivalds 1977;
Tramèr & Boneh, Slalom, arXiv:1806.03287.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from functools import partial

from draco.protocols.court import Court, Proof
from draco.protocols.dealing import deal
from draco.protocols.rounds import Ask, Committed, Outcome, Protocol, Rejected, Rounds, Upload


def checked(*, workers: int, adversaries: int) -> Protocol:
    """Return the protocol for n workers of which up to s are Byzantine; it has n - s partitions.

    Raises:
        ValueError: all workers may be Byzantine.
    """
    if not 0 <= adversaries < workers:
        raise ValueError(f"checked needs one honest worker at least: {workers} workers, {adversaries} adversaries")
    partitions = workers - adversaries
    return Protocol(
        name="checked",
        partitions=partitions,
        step=partial(_step, partitions),
        close=None,
        summary=(
            f"{partitions} partitions are computed once, with up to {adversaries} Byzantine workers of {workers}; "
            "the server replays it with the worker's matrix products, and checks each of them"
        ),
        copies=lambda lies: 1,
        sends=("transcript",),
    )


def _step(partitions: int, court: Court, step: int, committed: Committed | None) -> Rounds[Outcome]:
    if not court.present:
        raise court.too_few(step, 0)
    found: dict[int, tuple[Upload, int]] = {}
    asked: dict[int, set[int]] = defaultdict(set)  # partition -> who was asked for it
    load: Counter[int] = Counter()
    silent: set[int] = set()  # did not answer in time: asked last
    dealt = {pair: who for pair, (who,) in enumerate(deal(court.shuffled(court.present), partitions, 1))}
    while True:
        for pair, worker in dealt.items():
            asked[pair].add(worker)
            load[worker] += 1
        answers = yield [Ask(worker, step, pair, "transcript") for pair, worker in dealt.items()]
        for ask, answer in answers.items():
            if isinstance(answer, Rejected):
                court.expel(ask.worker, Proof(step, ask.partition, answer.why, ""))
            elif answer is None:
                silent.add(ask.worker)
            else:
                assert isinstance(answer, Upload), f"a transcript was answered by {type(answer).__name__}"
                found[ask.partition] = (answer, ask.worker)
        missing = [pair for pair in range(partitions) if pair not in found]
        if not missing:
            ordered = [found[pair] for pair in range(partitions)]
            return Outcome(tuple(upload for upload, _ in ordered), tuple(worker for _, worker in ordered))
        dealt = {}
        for pair in missing:
            fresh = [worker for worker in court.shuffled(court.present) if worker not in asked[pair]]
            if not fresh:
                raise court.too_few(step, pair)
            given = Counter(dealt.values())
            dealt[pair] = min(fresh, key=lambda worker: (worker in silent, load[worker] + given[worker]))
