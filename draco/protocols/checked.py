"""The checked protocol: one copy, whose computation is replayed; exact for any s < n, up to a float tolerance.

A worker sends the matrix products and convolutions of its computation. The server makes the vector of them itself, by
`draco/replay/`: it checks each product against a fresh secret vector, and computes all else.

Theorem. Let any s < n workers be Byzantine, with whatever they know and agree on. Then the server computes every vector
that a step gives, and takes from workers only products that passed their check. A product whose error is e times the
tolerance passes with a chance of about 1/e, on which docs/checked.md has the bound. Who fails is expelled at that pair,
and no other worker is needed for it. No honest worker on the same platform is ever expelled. Proof: operations, shapes
and factors are the server's own. A product C of A and B passes where C r is A (B r) up to the tolerance, and r is drawn
after C has come. Rounding stays below the tolerance, and a product that fails is computed in full before its sender is
convicted.

So each partition costs the workers 1 computation, whoever lies, and the server a replay. Two other forms cost the
server less: a secret part of the pairs is replayed (`sampled.py`), or workers who are drawn replay them (`drawn.py`).
Sources: Freivalds 1977; Tramèr & Boneh, Slalom, arXiv:1806.03287.
"""

from __future__ import annotations

from functools import partial

from draco.declaration import OptionError
from draco.protocols.court import Court, Proof
from draco.protocols.dealing import Dealer
from draco.protocols.drawn import drawn
from draco.protocols.rounds import Ask, Committed, Outcome, Protocol, Rejected, Rounds, Upload
from draco.protocols.sampled import sampled


def checked(
    *, workers: int, adversaries: int, sample: float | None = None, verifiers: int | None = None,
    delta: float | None = None,
) -> Protocol:  # fmt: skip
    """Return the protocol for n workers of which up to s are Byzantine; it has n - s partitions.

    Args:
        workers: n.
        adversaries: s.
        sample: the part of the pairs that the server replays, above 0 and at most 1; None: it replays all.
        verifiers: a workers that are drawn to replay each pair, 1 to s, instead of the server.
        delta: instead of them, the probability that any step of a run is false; the least a for it is taken.

    Raises:
        OptionError: options exclude each other, or one is out of its range.
        ValueError: all workers may be Byzantine.
    """
    if not 0 <= adversaries < workers:
        raise ValueError(f"checked needs one honest worker at least: {workers} workers, {adversaries} adversaries")
    require_one_form(sample, verifiers, delta)
    if sample is not None:
        return sampled(workers=workers, adversaries=adversaries, sample=sample)
    if verifiers is not None or delta is not None:
        return drawn(workers=workers, adversaries=adversaries, verifiers=verifiers, delta=delta)
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


def require_one_form(sample: float | None, verifiers: int | None, delta: float | None) -> None:
    """Refuse options of which each says in its own way who replays what.

    Raises:
        OptionError: names both.
    """
    other = "verifiers" if verifiers is not None else "delta" if delta is not None else ""
    if sample is not None and other:
        message = (
            f"has the server replay a part of the pairs, and {other} has workers replay all; leave out one of them"
        )
        raise OptionError("checked", "sample", message)
    if sample is not None and not 0 < sample <= 1:
        raise OptionError("checked", "sample", f"must be above 0 and at most 1, got {sample}")


def _step(partitions: int, court: Court, step: int, committed: Committed | None) -> Rounds[Outcome]:
    dealer = Dealer(court, step)
    found: dict[int, tuple[Upload, int]] = {}
    while missing := [pair for pair in range(partitions) if pair not in found]:
        dealt = dealer.deal(missing)
        answers = yield [Ask(worker, step, pair, "transcript") for pair, worker in dealt.items()]
        for ask, answer in answers.items():
            if isinstance(answer, Rejected):
                court.expel(ask.worker, Proof(step, ask.partition, answer.why, ""))
            elif answer is None:
                dealer.silent.add(ask.worker)
            else:
                assert isinstance(answer, Upload), f"a transcript was answered by {type(answer).__name__}"
                found[ask.partition] = (answer, ask.worker)
    ordered = [found[pair] for pair in range(partitions)]
    return Outcome(tuple(upload for upload, _ in ordered), tuple(worker for _, worker in ordered))
