"""Workers of the repetition code with digests, honest ones and attackers who know the code, for its tests."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from draco.protocols.court import Court
from draco.protocols.digested import digested
from draco.protocols.rounds import Answer, Ask, Outcome, Protocol, Rejected, Upload
from draco.protocols.sketch import sketch
from draco.schemes import SCHEMES
from draco.schemes.vote import elect

Vector = np.ndarray[tuple[int], np.dtype[np.float32]]
SEED = 20


def protocol(n: int, s: int, *, r: int | None = None, within: float | None = None) -> Protocol:
    groups = SCHEMES["repetition"].sizes(n, s, r).partitions
    return digested(workers=n, adversaries=s, groups=groups, within=within, elect=elect)


def digest(vector: Vector) -> bytes:
    return hashlib.sha256(vector.tobytes()).digest()


def answer_with(vector: Vector, ask: Ask) -> Answer:
    """Return what an honest worker that computed `vector` would answer."""
    if ask.send == "vector":
        return Upload(digest(vector), vector)
    return digest(vector) if ask.send == "digest" else sketch(vector, ask.seed)


@dataclass
class Band:
    """The Byzantine workers of one step, who share all they know, and what each stands behind."""

    ranks: Sequence[int]
    honest: Callable[[int, int], Vector]  # (rank, partition) -> what an honest worker computes
    replies: dict[int, Vector] = field(default_factory=dict)  # rank -> what it stands behind with its first answer
    equivocated: set[int] = field(default_factory=set)

    def lie(self, partition: int) -> Vector:
        """Return the lie on which all of them agree."""
        return self.honest(0, partition) + np.float32(0.25)

    def own_lie(self, rank: int, partition: int) -> Vector:
        return self.honest(0, partition) * np.float32(1 + rank)


Attack = Callable[[Band, Ask], Answer]


def _stand(band: Band, ask: Ask, vector: Vector) -> Answer:
    band.replies.setdefault(ask.worker, vector)
    return answer_with(vector, ask)


def collude(band: Band, ask: Ask) -> Answer:
    return _stand(band, ask, band.lie(ask.partition))


def split(band: Band, ask: Ask) -> Answer:
    return _stand(band, ask, band.own_lie(ask.worker, ask.partition))


def cover(band: Band, ask: Ask) -> Answer:
    """Half of them say the truth, so that the others are not outvoted by more than need be."""
    lies = band.ranks.index(ask.worker) % 2 == 0
    return _stand(band, ask, band.lie(ask.partition) if lies else band.honest(ask.worker, ask.partition))


def equivocate(band: Band, ask: Ask) -> Answer:
    """Claim the truth, and upload something else."""
    if ask.send != "vector":
        return _stand(band, ask, band.honest(ask.worker, ask.partition))
    if ask.worker in band.replies:
        band.equivocated.add(ask.worker)
    return _stand(band, ask, band.lie(ask.partition))


def stall(band: Band, ask: Ask) -> Answer:
    """Claim the truth, and never send it; as uploaders they lie."""
    if ask.send == "vector" and ask.worker in band.replies:
        return None
    return _stand(band, ask, band.lie(ask.partition) if ask.send == "vector" else band.honest(0, ask.partition))


def spoil(band: Band, ask: Ask) -> Answer:
    return Rejected("its payload has 3 bytes instead of 32")


def frame(band: Band, ask: Ask) -> Answer:
    """Claim what is one bit beside the truth: honest workers are to look as if they had changed it."""
    vector = band.honest(0, ask.partition).copy()
    vector.view(np.uint32)[-1] ^= 1
    return _stand(band, ask, vector)


ATTACKS: dict[str, Attack] = {f.__name__: f for f in (collude, split, cover, equivocate, stall, spoil, frame)}


@dataclass
class Played:
    """What came of one step, and how."""

    outcome: Outcome
    groups: list[list[int]]  # the members of each
    rounds: int
    vectors: int  # that were received
    other_bytes: int


def play(
    built: Protocol, court: Court, band: Band, attack: Attack, absent: Callable[[Ask, int], bool] = lambda ask, _: False
) -> Played:
    """Take one step; `absent` says of an ask and the number of its round whether nothing comes."""
    rounds, vectors, other = built.step(court, 1, None), 0, 0
    groups: list[list[int]] = [[] for _ in range(built.partitions)]
    asked: set[Ask] = set()
    answers: dict[Ask, Answer] = {}
    number = 0
    try:
        asks = next(rounds)
        while True:
            number += 1
            assert not asked & {*asks}
            assert len({*asks}) == len(asks)
            asked |= {*asks}
            if number == 1:
                for ask in asks:
                    groups[ask.partition].append(ask.worker)
            for ask in asks:
                assert ask.worker in court.present
                honest = band.honest(ask.worker, ask.partition)
                answer = attack(band, ask) if ask.worker in band.ranks else answer_with(honest, ask)
                answers[ask] = answer = None if absent(ask, number) else answer
                vectors += isinstance(answer, Upload)
                other += len(answer) if isinstance(answer, bytes) else 0
            asks = rounds.send({ask: answers[ask] for ask in asks})
    except StopIteration as end:
        return Played(end.value, groups, number, vectors, other)


def court(n: int, s: int, seed: int = SEED) -> Court:
    return Court(n, s, generator=np.random.default_rng(seed))
