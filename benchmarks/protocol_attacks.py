"""Attackers of protocols: what Byzantine workers answer who know the code, each other, and all that was asked so far.

They see every ask of a round before they answer it, and never a draw that is still to come. Vectors are whole numbers.
A transcript is the number of the vector that its products make, and is false where that is not the true vector.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from draco.protocols.rounds import DENIED, Answer, Ask, Rejected, Upload

Key = tuple[int, int, int]  # model, step, partition: what a lie was told about


def digest(vector: int) -> bytes:
    """Return the digest of a simulated vector: its own bytes, so that no two are the same."""
    return vector.to_bytes(16, "big")


def answer(ask: Ask, vector: int) -> Upload | bytes:
    """Return what somebody answers who says that `vector` is right; of a transcript, which it sends."""
    return Upload(digest(vector), vector) if ask.send in ("vector", "opening", "deposit") else digest(vector)


@dataclass
class Gang:
    """The Byzantine workers of a run, and what they have agreed on."""

    liars: frozenset[int]
    steps: int
    draw: random.Random
    lies: dict[Key, int] = field(default_factory=dict)  # what some of them have uploaded
    told: dict[int, int] = field(default_factory=dict)  # liar -> in how many steps it has lied
    at: dict[int, int] = field(default_factory=dict)  # liar -> the step that it has chosen
    round: Sequence[Ask] = ()  # all asks of this round
    expelled: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        """Choose a step for each."""
        self.at = {liar: self.draw.randrange(1, self.steps + 1) for liar in sorted(self.liars)}

    def lie(self, key: Key, true: int, by: int = 1) -> int:
        """Return the false vector that they have agreed on for a pair."""
        return self.lies.setdefault(key, true ^ by)

    def asked(self, ask: Ask) -> set[int]:
        """Return who is asked about the same pair in this round."""
        return {other.worker for other in self.round if other[1:3] == ask[1:3]}

    def first(self) -> int:
        """Return the first of those who are not expelled."""
        return min(self.liars - self.expelled)


Attack = Callable[[Gang, Ask, Key, int], Answer]  # (gang, what a liar is asked, the pair at this model, the truth)


def honest(gang: Gang, ask: Ask, key: Key, true: int) -> Answer:
    """Tell the truth."""
    return answer(ask, true)


def always(gang: Gang, ask: Ask, key: Key, true: int) -> Answer:
    """Tell the same lie, whatever is asked."""
    return answer(ask, gang.lie(key, true, 1 << 40))


def alone(gang: Gang, ask: Ask, key: Key, true: int) -> Answer:
    """Tell a lie of one's own, whatever is asked."""
    return answer(ask, true ^ ask.worker << 40)


def _upload(gang: Gang, ask: Ask, key: Key, true: int, wanted: bool) -> Answer:
    """Upload a lie where it is wanted, and confirm the lies of others."""
    if ask.send == "vector" and wanted and key not in gang.lies:
        gang.told[ask.worker] = gang.told.get(ask.worker, 0) + 1
        gang.lie(key, true)
    return answer(ask, gang.lies.get(key, true))


def once(gang: Gang, ask: Ask, key: Key, true: int) -> Answer:
    """Upload one lie each, from a random step on."""
    return _upload(gang, ask, key, true, ask.step >= gang.at[ask.worker] and not gang.told.get(ask.worker))


def last(gang: Gang, ask: Ask, key: Key, true: int) -> Answer:
    """Lie in the last two steps only."""
    return _upload(gang, ask, key, true, ask.step > gang.steps - 2)


def rarely(gang: Gang, ask: Ask, key: Key, true: int) -> Answer:
    """Lie in one of thirty uploads."""
    return _upload(gang, ask, key, true, gang.draw.random() < 1 / 30)


def tiny(gang: Gang, ask: Ask, key: Key, true: int) -> Answer:
    """Change the last bit, always."""
    return answer(ask, gang.lie(key, true, 1))


def cover(gang: Gang, ask: Ask, key: Key, true: int) -> Answer:
    """Lie in a fifth of the uploads, and confirm each other's lies."""
    return _upload(gang, ask, key, true, gang.draw.random() < 0.2)


def burst(gang: Gang, ask: Ask, key: Key, true: int) -> Answer:
    """Lie all at once, in every upload of one step, and confirm each other's lies."""
    return _upload(gang, ask, key, true, ask.step == min(gang.at.values()))


def campaign(gang: Gang, ask: Ask, key: Key, true: int) -> Answer:
    """Lie in steps that are spread over the run, one liar after the other."""
    return _upload(gang, ask, key, true, ask.step % 4 == 0 and ask.worker == gang.first())


def frame(gang: Gang, ask: Ask, key: Key, true: int) -> Answer:
    """Upload the truth, and claim that what honest workers uploaded is false."""
    return answer(ask, true if ask.send == "vector" or gang.draw.random() < 0.7 else gang.lie(key, true))


def equivocate(gang: Gang, ask: Ask, key: Key, true: int) -> Answer:
    """Send the digest of one thing and upload another."""
    if ask.send == "vector":
        return answer(ask, true ^ 2) if gang.draw.random() < 0.3 else answer(ask, true)
    return answer(ask, true ^ (gang.draw.random() < 0.1))


def stall(gang: Gang, ask: Ask, key: Key, true: int) -> Answer:
    """Lie in some uploads, and never answer when a digest is asked for."""
    return _upload(gang, ask, key, true, gang.draw.random() < 0.1) if ask.send == "vector" else None


def collude(gang: Gang, ask: Ask, key: Key, true: int) -> Answer:
    """Lie one at a time, and confirm only where all who are asked collude; give up the liar otherwise."""
    if ask.send == "vector":
        return _upload(gang, ask, key, true, ask.worker == gang.first() and gang.asked(ask) <= gang.liars)
    return answer(ask, gang.lies.get(key, true) if gang.asked(ask) <= gang.liars else true)


def linger(gang: Gang, ask: Ask, key: Key, true: int) -> Answer:
    """Lie one at a time; say nothing where an honest worker is asked too, so that others are drawn."""
    if ask.send == "vector":
        return _upload(gang, ask, key, true, ask.worker == gang.first())
    return answer(ask, gang.lies.get(key, true)) if gang.asked(ask) <= gang.liars else None


def waste(gang: Gang, ask: Ask, key: Key, true: int) -> Answer:
    """Force as much arbitration as one identity buys: contradict everything of a step, one liar after the other."""
    if ask.worker == gang.first() and ask.step % 3 == 0:
        return answer(ask, true ^ 4)
    return answer(ask, true)


def garbage(gang: Gang, ask: Ask, key: Key, true: int) -> Answer:
    """Send what proves itself to be false, sometimes."""
    return Rejected("another size") if gang.draw.random() < 0.1 else answer(ask, true)


def unopened(gang: Gang, ask: Ask, key: Key, true: int) -> Answer:
    """Lie in half of the vectors, and open no commitment to a lie."""
    came = _upload(gang, ask, key, true, gang.draw.random() < 0.5)
    return None if ask.send == "opening" and key in gang.lies else came


def unlike(gang: Gang, ask: Ask, key: Key, true: int) -> Answer:
    """Lie in the vector only: commitment, transcript and verdicts are honest."""
    return answer(ask, true ^ 8) if ask.send == "vector" else answer(ask, true)


def exchange(gang: Gang, ask: Ask, key: Key, true: int) -> Answer:
    """Commit to one transcript and open another, the true one."""
    return answer(ask, true ^ 8 if ask.send in ("vector", "commitment") else true)


def stale(gang: Gang, ask: Ask, key: Key, true: int) -> Answer:
    """Send the transcript of another step, committed to, beside a true vector."""
    return answer(ask, true if ask.send in ("vector", "digest", "verdict") else true ^ ask.step)


def deny(gang: Gang, ask: Ask, key: Key, true: int) -> Answer:
    """Say that honest transcripts fail their check, one liar after the other, at some steps."""
    if ask.send == "verdict" and ask.worker == gang.first() and ask.step % 3 == 0:
        return DENIED
    return answer(ask, true)


def approve(gang: Gang, ask: Ask, key: Key, true: int) -> Answer:
    """Lie in a fifth of the vectors, and approve of all that colluders sent, whoever else is asked."""
    return _upload(gang, ask, key, true, ask.of == 0 and gang.draw.random() < 0.2)


def anything(gang: Gang, ask: Ask, key: Key, true: int) -> Answer:
    """Do something else at each ask."""
    return gang.draw.choice(MIXED)(gang, ask, key, true)


MIXED = (always, alone, equivocate, frame, stall, garbage, cover, unopened, unlike, exchange, deny, *[honest] * 8)
ALL: tuple[Attack, ...] = (
    honest,
    always,
    alone,
    once,
    last,
    rarely,
    tiny,
    cover,
    burst,
    campaign,
    frame,
    equivocate,
    stall,
    collude,
)
ALL += (linger, waste, garbage, unopened, unlike, exchange, stale, deny, approve, anything)
ATTACKS: dict[str, Attack] = {attack.__name__: attack for attack in ALL}
