"""Checked by drawn verifiers: workers replay each other's transcripts, and the server only what they disagree on.

A worker sends its vector and its transcript. Only then `a` verifiers of each pair are drawn, secretly and uniformly
among the others. The server hands the transcript on, and each of them replays it in a fraction of a gradient. It says
which vector comes out, or that a check failed. Where that is not the vector that was sent, the server replays the pair
itself, comparing every product whole.

Theorem. Let any s < n workers be Byzantine, with whatever they know and agree on, except draws that are still to come.
Then no honest worker is ever expelled, and the probability that any step of the run is false is at most
`failure_probability(n, s, a)`, however long the run is and whoever is absent; with a = s it is 0. A vector is false
where an honest replay of its transcript would not give it. Proof: the server's replay fails only for a product that is
false, which no honest worker sends. Where it passes, every honest verifier has found the same vector; so who said
otherwise lied. A step with a false vector is a try. Take the first that came. Unless all its verifiers collude with its
sender, one says something else, and the sender is expelled in the same step. Then every pair of the step needs as many
verifiers as there are liars left, of whom one is honest, so the other lies of the try are found too. So a try survives
with the probability `sigma` at most, or costs an identity for ever: draco/protocols/odds.py has the rest.

With workers absent more verifiers are drawn for the same probability, and where too few are left the server replays. A
verifier that is late is replaced. An honest verifier passes a false product with the chance that `checked` has; then it
counts as a colluding one. Nothing is ever undone: the step waits for the verdicts. Sources: draco/protocols/checked.py
and verified.py, of which this is the combination; it is ours.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from functools import partial

from draco.protocols.court import Court, Proof
from draco.protocols.dealing import Dealer, walks
from draco.protocols.odds import failure_probability, verifiers_for
from draco.protocols.rounds import (
    DENIED,
    SERVER,
    Answer,
    Ask,
    Committed,
    Outcome,
    Protocol,
    Rejected,
    Rounds,
    Upload,
)
from draco.protocols.verified import checked_verifiers


def drawn(*, workers: int, adversaries: int, verifiers: int | None = None, delta: float | None = None) -> Protocol:
    """Return the protocol for n workers of which up to s < n are Byzantine; drawn workers replay each pair.

    Args:
        workers: n.
        adversaries: s.
        verifiers: a of each pair, 1 to s.
        delta: instead of it, the probability that any step of a run is false; the least a for it is taken.

    Raises:
        OptionError: both are given, or one is out of its range.
    """
    a = checked_verifiers("checked", workers, adversaries, verifiers, delta, absent=0)
    partitions = workers - adversaries
    failure = failure_probability(workers, adversaries, a)
    odds = (
        "exact up to the check's tolerance"
        if failure == 0
        else f"a step of the run is false with probability {failure:.1g} at most"
    )
    return Protocol(
        name="checked",
        partitions=partitions,
        step=partial(_step, partitions, a),
        close=None,
        summary=(
            f"{odds}, with up to {adversaries} Byzantine workers of {workers}; {partitions} partitions are computed "
            f"once, and {a} drawn workers each replay one with its matrix products"
        ),
        copies=lambda lies: 1,
        sends=("vector", "deposit", "verdict", "replay"),
        failure=failure,
    )


@dataclass
class _Pair:
    """One pair of a step: who sent what, and what others have said of it."""

    worker: int
    upload: Upload
    walk: Iterator[int]  # who is drawn next
    verdicts: dict[int, bytes] = field(default_factory=dict)
    true: bool = False  # the server has replayed it

    def confirmed(self, out: Collection[int]) -> int:
        """Return how many say that the vector is right; those in `out` do not count."""
        return sum(said == self.upload.digest for rank, said in self.verdicts.items() if rank not in out)

    def disputed(self, out: Collection[int]) -> bool:
        """Say whether somebody says that it is false."""
        return any(said != self.upload.digest for rank, said in self.verdicts.items() if rank not in out)


class _Step:
    """What has come of one step."""

    def __init__(self, court: Court, step: int, verifiers: int) -> None:
        self.court, self.step, self.verifiers = court, step, verifiers
        self.dealer = Dealer(court, step)
        self.pairs: dict[int, _Pair] = {}
        self.expelled_before = len(court.expelled)

    def take(self, answers: dict[Ask, Answer]) -> None:
        """Keep what came, and expel who has lied.

        Raises:
            TrainingError: more have been proven to lie than the job tolerates.
        """
        for ask, answer in answers.items():
            if ask.send == "replay":
                self._judge(ask.partition, answer)
            elif isinstance(answer, Rejected):
                self.court.expel(ask.worker, Proof(self.step, ask.partition, answer.why, ""))
            elif answer is None:
                self.dealer.silent.add(ask.worker)
            elif ask.send == "verdict":
                assert isinstance(answer, bytes)
                self.pairs[ask.partition].verdicts[ask.worker] = answer
        deposited = {
            (ask.worker, ask.partition) for ask, came in answers.items() if ask.send == "deposit" and came == b""
        }
        self._commit(
            {
                ask.partition: (ask.worker, came)
                for ask, came in answers.items()
                if ask.send == "vector" and isinstance(came, Upload) and (ask.worker, ask.partition) in deposited
            }
        )
        self.pairs = {at: pair for at, pair in self.pairs.items() if pair.worker not in self.court.expelled}

    def _commit(self, vectors: dict[int, tuple[int, Upload]]) -> None:
        """Draw the verifiers of vectors that came, by partition, with who sent them."""
        uploaders = {at: worker for at, (worker, _) in vectors.items() if worker not in self.court.expelled}
        circle = self.court.shuffled(sorted({*self.court.present, *uploaders.values()}))
        for at, walk in walks(circle, uploaders, self.verifiers).items():
            self.pairs[at] = _Pair(*vectors[at], walk)

    def _judge(self, at: int, made: Answer) -> None:
        """Expel who was wrong about a pair that the server has replayed."""
        pair, proof = self.pairs[at], partial(Proof, self.step, at)
        if isinstance(made, Rejected):  # who has passed it may have been unlucky with its secret vector
            self.court.expel(pair.worker, proof(made.why, ""))
            return
        assert isinstance(made, Upload)
        pair.true = True
        claims = {pair.worker: pair.upload.digest, **pair.verdicts}
        for worker, claimed in claims.items():
            if claimed != made.digest and worker not in self.court.expelled:
                said = "its check failed" if claimed == DENIED else claimed.hex()
                self.court.expel(worker, proof(said, made.digest.hex()))

    def asks(self) -> list[Ask]:
        """Return who is to verify what, and what the server replays; nothing where all pairs that came are true."""
        return [ask for at, pair in self.pairs.items() if not pair.true for ask in self._verify(at, pair)]

    def _verify(self, at: int, pair: _Pair) -> list[Ask]:
        court = self.court
        server = [Ask(SERVER, self.step, at, "replay", of=pair.worker)]
        if pair.disputed(court.expelled):
            return server
        able = {*court.present} - self.dealer.silent - {pair.worker}
        nominal = len(court.standing) - 1
        needed = verifiers_for(len(able), court.lies, nominal, self.verifiers)
        if len(court.expelled) > self.expelled_before:
            needed = court.lies
        open_ = needed - pair.confirmed(court.expelled)
        chosen: list[int] = []
        while len(chosen) < open_ and (worker := next(pair.walk, None)) is not None:
            if worker in able:
                chosen.append(worker)
        if len(chosen) < open_:
            return server
        return [Ask(worker, self.step, at, "verdict", of=pair.worker) for worker in chosen]


def _step(partitions: int, verifiers: int, court: Court, step: int, committed: Committed | None) -> Rounds[Outcome]:
    state = _Step(court, step, verifiers)
    while True:
        asks = state.asks()
        missing = [pair for pair in range(partitions) if pair not in state.pairs]
        if missing:
            for pair, worker in state.dealer.deal(missing).items():
                asks += [Ask(worker, step, pair, "vector"), Ask(worker, step, pair, "deposit")]
        if not asks:
            ordered = [state.pairs[pair] for pair in range(partitions)]
            return Outcome(tuple(pair.upload for pair in ordered), tuple(pair.worker for pair in ordered))
        state.take(dict((yield asks)))
