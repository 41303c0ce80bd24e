"""Checked by sample: the server replays a secret part of the pairs, drawn after commitments to their transcripts.

A worker sends its vector and the SHA-256 of its transcript. Only then each pair is drawn, with probability q. A drawn
one is opened: its worker sends the transcript, which must have that digest and make that vector.

Theorem. Let any s < n workers be Byzantine. Then a run uses s (1-q)/q false vectors at most on the average, however
long it is, and no honest worker is ever expelled. A vector is false where the server's replay of its transcript would
not give it. Proof: take one liar's false vectors in the order in which they came. Each is drawn with probability q,
independently of all that was sent before. So on the average (1-q)/q of them come before the first that is drawn, as
their number is geometric. That one is opened, and its sender is expelled; or it is not opened, and is not used. From
then on its sender is out, or *watched*: all of its vectors are drawn. What it sent at the same step and did not open is
given to others. So none of its false vectors is used after the first that is drawn. Summed over s liars the claim
follows, whatever they have agreed on.

Not to open is no proof, as a worker may be late. A watched worker costs the server replays, and can lie no more. A
false transcript may pass its check as `checked` has it; then it is as good as not drawn.

So this form is not exact. Bytes: a vector for each pair, and q of the transcripts. Source: commit, then challenge, is
old; the bound is our own derivation.
"""

from __future__ import annotations

from functools import partial

from draco.protocols.court import Court, Proof
from draco.protocols.dealing import Dealer
from draco.protocols.rounds import Answer, Ask, Committed, Outcome, Protocol, Rejected, Rounds, Send, Upload

_SENT: tuple[Send, ...] = ("vector", "commitment")


def sampled(*, workers: int, adversaries: int, sample: float) -> Protocol:
    """Return the protocol for n workers of which up to s < n are Byzantine; the server replays a part of the pairs."""
    partitions = workers - adversaries
    false = expected_false(adversaries, sample)
    return Protocol(
        name="checked",
        partitions=partitions,
        step=partial(_step, partitions, sample),
        close=None,
        summary=(
            f"not exact: {false:.3g} false vectors at most are used in the whole run on the average, with up to "
            f"{adversaries} Byzantine workers of {workers}; {partitions} partitions are computed once, and the server "
            f"replays {100 * sample:.3g} % of them, drawn after they came"
        ),
        copies=lambda lies: 1,
        sends=(*_SENT, "opening"),
        expected_false=false,
    )


def expected_false(adversaries: int, sample: float) -> float:
    """Return the theorem's bound on the average number of false vectors that a run uses.

    >>> expected_false(2, 0.1)
    18.0
    """
    return adversaries * (1 - sample) / sample


class _Sample:
    """What has come of one step."""

    def __init__(self, court: Court, step: int, sample: float) -> None:
        self.court, self.step, self.sample = court, step, sample
        self.dealer = Dealer(court, step)
        self.sent: dict[int, tuple[int, Upload, bytes]] = {}  # partition -> worker, vector, commitment
        self.drawn: list[int] = []  # partitions that are to be opened
        self.opened: set[int] = set()

    def vectors(self, dealt: dict[int, int], answers: dict[tuple[int, Send], Answer]) -> list[int]:
        """Keep vectors with their commitments; return their partitions."""
        came = []
        for pair, worker in dealt.items():
            vector, commitment = answers[pair, "vector"], answers[pair, "commitment"]
            if worker in self.court.expelled:
                continue
            if isinstance(vector, Upload) and isinstance(commitment, bytes):
                self.sent[pair] = worker, vector, commitment
                came.append(pair)
            else:
                self.dealer.silent.add(worker)
        return came

    def openings(self, answers: dict[tuple[int, Send], Answer]) -> None:
        """Compare what was opened with what was sent; what is not opened is not used."""
        late: set[int] = set()
        for pair in self.drawn:
            worker, vector, commitment = self.sent[pair]
            answer = answers[pair, "opening"]
            if isinstance(answer, Upload):
                if answer.commitment != commitment:
                    self._expel(worker, pair, commitment, answer.commitment)
                elif answer.digest != vector.digest:
                    self._expel(worker, pair, vector.digest, answer.digest)
                else:
                    self.opened.add(pair)
            elif answer is None:
                late.add(worker)
        self._watch(late)
        self._drop({*self.court.expelled})

    def unable(self) -> None:
        """Watch those who are to open something and cannot be asked now, as they are late or have ended."""
        self._watch({self.sent[pair][0] for pair in self.drawn} - {*self.court.present})

    def _watch(self, workers: set[int]) -> None:
        self.court.watched |= workers
        self.dealer.silent |= workers
        self._drop(workers)

    def _drop(self, workers: set[int]) -> None:
        """Use nothing of these workers that they have not opened."""
        self.sent = {pair: sent for pair, sent in self.sent.items() if pair in self.opened or sent[0] not in workers}
        self.drawn = [pair for pair in self.drawn if pair in self.sent]

    def draw(self, pairs: list[int]) -> None:
        """Draw which of the pairs that came are to be opened; of watched workers all are."""
        lots = self.court.generator.random(len(pairs))
        self.drawn = [
            pair
            for pair, lot in zip(pairs, lots, strict=True)
            if pair in self.sent and (lot < self.sample or self.sent[pair][0] in self.court.watched)
        ]

    def _expel(self, worker: int, pair: int, claimed: bytes, true: bytes) -> None:
        self.court.expel(worker, Proof(self.step, pair, claimed.hex(), true.hex()))


def _step(partitions: int, sample: float, court: Court, step: int, committed: Committed | None) -> Rounds[Outcome]:
    state = _Sample(court, step, sample)
    while True:
        state.unable()
        missing = [pair for pair in range(partitions) if pair not in state.sent]
        if not missing and not state.drawn:
            ordered = [state.sent[pair] for pair in range(partitions)]
            return Outcome(tuple(vector for _, vector, _ in ordered), tuple(worker for worker, *_ in ordered))
        dealt = state.dealer.deal(missing) if missing else {}
        asks = [Ask(w, step, pair, send) for pair, w in dealt.items() for send in _SENT]
        came = yield asks + [Ask(state.sent[pair][0], step, pair, "opening") for pair in state.drawn]
        for ask, answer in came.items():
            if isinstance(answer, Rejected):
                court.expel(ask.worker, Proof(step, ask.partition, answer.why, ""))
        answers = {(ask.partition, ask.send): answer for ask, answer in came.items()}
        fresh = state.vectors(dealt, answers)
        state.openings(answers)
        state.draw(fresh)
