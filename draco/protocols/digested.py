"""The repetition code with digests: one worker of each group uploads its vector, and the others say what theirs is.

Groups of r >= 2s+1 workers compute the same vector, as `draco.schemes.repetition` has it, and are drawn anew at each
step. A vector that s+1 of a group stand behind is right, as one of them is honest. So of n vectors k = n // r are
received, and n - k digests of 32 bytes. A liar who was drawn to upload costs one vector more, and one round. Nobody is
expelled: who lied is a suspect of this step only. Where absent members and suspects are too many for a group, workers
of other groups are asked in the place of the absent ones.

**Equal bits.** A vector's SHA-256 stands for it. Where the upload is not what won, those who claimed what won are asked
for it, one after the other, until one sends what has that digest. Theorem: the step's vectors are those of
`repetition` for the same replies, and its suspects too, with those beside who claimed what they did not send. Proof:
whoever claims a digest and has no vector of it can at most not send it; all else that counts are equal claims.

**Within a tolerance**, for workers whose bits differ. Everybody commits first, then the server draws a seed and asks
for sketches of what was committed to (`sketch.py`); the server makes that of the upload itself. The upload wins where
it is in a set of s+1 that are mutually near by their sketches. An honest worker is among these, and its vector and the
upload were both fixed before the seed was known; so the upload is near an honest vector, but for the chance that
`sketch.py` proves. Sketches of Byzantine workers are but votes: each may stand behind any vector by sending its sketch,
as it could by uploading that vector to `repetition`. Their commitments are not needed for that.

They are needed where the upload does not win. Somebody else is then asked for its vector, and knows the seed by now: to
any vector it may add one of the d - c^2 dimensions that the sketch does not see, however long. What counts is therefore
only the vector of which it sent the SHA-256 before the seed was drawn, and the server makes the sketch of that anew.
Another way would be a new seed and new sketches from everybody after each upload: one more round, and no hash. A round
is what a step waits for, and a hash takes less time than a sketch. Where all commitments of a group are equal, they
decide, and nobody is asked for a sketch.

Source: repetition code, Chen et al., DRACO, ICML 2018 (arXiv:1803.09877). Shapes: n workers, k groups, d numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import NamedTuple
from typing import Protocol as Interface

from draco.errors import DecodeError, WorkerError
from draco.protocols.abreast import abreast
from draco.protocols.court import Court
from draco.protocols.rounds import Ask, Committed, Outcome, Protocol, Rejected, Rounds, Send, Upload
from draco.protocols.sketch import COUNT, distances, sketch
from draco.sampling import draw_rows


class Elected(Interface):
    """Who wins a vote, the chosen one first, and whose reply was not what an honest worker would have sent."""

    @property
    def rows(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def suspects(self) -> tuple[int, ...]: ...  # noqa: D102


# (ranks in classes of equal bits, distances of classes, s, tolerance or None, ranks that are chosen where they may be)
# -> the winner; a DecodeError where there is none: `draco.schemes.vote.elect`
Elect = Callable[
    [Sequence[Sequence[int]], Mapping[tuple[int, int], float], int, float | None, Collection[int]], Elected
]


class Code(NamedTuple):
    """What the groups are, and how they vote."""

    workers: int  # n
    adversaries: int  # s
    groups: int  # k
    within: float | None  # relative distance of what counts as the same; None: equal bits
    elect: Elect


class _Taken(NamedTuple):
    upload: Upload
    worker: int
    suspects: set[int]


def digested(*, workers: int, adversaries: int, groups: int, within: float | None, elect: Elect) -> Protocol:
    """Return the protocol of n workers in k `groups`, each of 2s+1 or more.

    `within` is the relative distance of vectors that count as the same; None: only equal bits do.
    """
    code = Code(workers, adversaries, groups, within, elect)
    vote = "bits" if within is None else f"distance, within {within:g}"
    return Protocol(
        name="repetition",
        partitions=groups,
        step=partial(_step, code),
        close=None,
        summary=(
            f"repetition: {workers} workers in {groups} groups of {workers // groups} or more, up to {adversaries} "
            f"adversaries; one of each group uploads, and digests vote on {vote}"
        ),
        copies=lambda lies: workers // groups,
        sends=("vector", "digest") if within is None else ("vector", "digest", "sketch"),
    )


def _step(code: Code, court: Court, step: int, committed: Committed | None) -> Rounds[Outcome]:
    of_row = [row % code.groups for row in range(code.workers)]
    rows = draw_rows(court.generator.bytes(32), step, code.workers, of_row, court.nodes)
    members: list[list[int]] = [[] for _ in range(code.groups)]
    for rank in court.shuffled(list(range(1, code.workers + 1))):
        members[of_row[rows[rank - 1]]].append(rank)
    taken = yield from abreast([_Group(code, court, step, j, ranks).take() for j, ranks in enumerate(members)])
    suspects = sorted({rank for each in taken for rank in each.suspects})
    return Outcome(tuple(each.upload for each in taken), tuple(each.worker for each in taken), suspects=tuple(suspects))


class _Group:
    """One group at one step: what its members claimed, and the vectors that have come."""

    def __init__(self, code: Code, court: Court, step: int, partition: int, members: Sequence[int]) -> None:
        """`members` in secret order."""
        self.code, self.court, self.step, self.partition, self.members = code, court, step, partition, [*members]
        self.claims: dict[int, bytes] = {}  # rank -> digest, of those whose claims count
        self.uploads: dict[int, Upload] = {}
        self.absent: set[int] = set()
        self.liars: set[int] = set()  # what they sent is wrong by itself, or not what they had claimed
        self.silent: set[int] = set()  # claimed what they did not send when they were asked for it
        self.replaced = 0  # absent members in whose place another worker was asked

    def take(self) -> Rounds[_Taken]:
        """Return the group's vector and suspects."""
        present = [rank for rank in self.members if rank in self.court.present]
        self.absent = {*self.members} - {*present}
        yield from self._hear([self._ask(rank, "digest" if place else "vector") for place, rank in enumerate(present)])
        while True:
            try:
                if self.code.within is None or len({*self.claims.values()}) <= 1:
                    return (yield from self._by_bits())
                return (yield from self._by_sketches(self.code.within))
            except WorkerError:
                others = self._others()
                if not others:
                    raise
            self.members += others
            self.replaced += len(others)
            yield from self._hear([self._ask(rank, "digest") for rank in others])

    def _others(self) -> list[int]:
        """Return workers of other groups, in secret order, who may take the place of absent members."""
        others = [rank for rank in self.court.present if rank not in self.members]
        return self.court.shuffled(others)[: len(self.absent) - self.replaced] if others else []

    def _ask(self, rank: int, send: Send, seed: int = 0) -> Ask:
        return Ask(rank, self.step, self.partition, send, seed)

    def _hear(self, asks: Sequence[Ask]) -> Rounds[None]:
        """Ask for the upload and digests, and take note of what comes."""
        answers = yield asks
        for ask in asks:
            answer, rank = answers[ask], ask.worker
            if answer is None:
                self.absent.add(rank)
            elif isinstance(answer, Upload):
                self.uploads[rank], self.claims[rank] = answer, answer.digest
            elif isinstance(answer, bytes):
                self.claims[rank] = answer
            else:
                self.liars.add(rank)

    def _by_bits(self) -> Rounds[_Taken]:
        classes: dict[bytes, list[int]] = {}
        for rank, claim in self.claims.items():  # in secret order
            classes.setdefault(claim, []).append(rank)
        winner = self._elect([*classes.values()], {}, None)
        for rank in sorted(winner.rows, key=lambda rank: rank not in self.uploads):
            if rank not in self.uploads and not (yield from self._fetch(rank)):
                continue
            return _Taken(self.uploads[rank], rank, {*winner.suspects} | self.liars)
        raise self._missing("nobody who claims what won sends it")

    def _by_sketches(self, within: float) -> Rounds[_Taken]:
        seed = int(self.court.generator.integers(1 << 63))  # after all have committed
        sketches = yield from self._sketches(seed)
        while True:
            ranks = sorted(sketches)
            found = distances([sketches[rank] for rank in ranks])
            winner = self._elect([[rank] for rank in ranks], found, within)
            chosen = winner.rows[0]
            if chosen in self.uploads:
                return _Taken(self.uploads[chosen], chosen, {*winner.suspects} | self.liars)
            if (yield from self._fetch(chosen)):
                sketches[chosen] = sketch(self.uploads[chosen].vector, seed)
            else:
                del sketches[chosen], self.claims[chosen]

    def _sketches(self, seed: int) -> Rounds[dict[int, tuple[float, ...]]]:
        """Return the sketches of what was committed to: of uploads the server's own, of the others what they say."""
        asks = [self._ask(rank, "sketch", seed) for rank in self.claims if rank not in self.uploads]
        answers = (yield asks) if asks else {}
        sketches = {rank: sketch(upload.vector, seed) for rank, upload in self.uploads.items()}
        for ask in asks:
            answer = answers[ask]
            if answer is None:
                self.absent.add(ask.worker)
            elif isinstance(answer, (bytes, Upload, Rejected)) or len(answer) != COUNT * COUNT + 1:
                self.liars.add(ask.worker)
            else:
                sketches[ask.worker] = answer
                continue
            del self.claims[ask.worker]
        return sketches

    def _elect(
        self, classes: Sequence[Sequence[int]], found: Mapping[tuple[int, int], float], within: float | None
    ) -> Elected:
        """Return the winner, where it is right whoever the Byzantine workers are; see `Scheme.tolerates`."""
        s = self.code.adversaries
        try:
            winner = self.code.elect(classes, found, s, within, [*self.uploads])
            a, w = len(self.absent) - self.replaced, len(winner.suspects)
            if a + w > s:
                raise DecodeError(f"{a} missing and {w} suspects are too many")
            return winner
        except DecodeError as error:
            if not self.absent:
                members = f"group {self.partition} (workers {sorted(self.members)})"
                raise DecodeError(f"repetition: {members}: {error}") from None
            raise self._missing(str(error)) from None

    def _fetch(self, rank: int) -> Rounds[bool]:
        """Ask for the vector that a worker has claimed; say whether it came."""
        if rank in self.silent | self.liars:
            return False
        ask = self._ask(rank, "vector")
        answer = (yield [ask])[ask]
        if isinstance(answer, Upload) and answer.digest == self.claims[rank]:
            self.uploads[rank] = answer
            return True
        if answer is None:
            self.absent.add(rank)
            self.silent.add(rank)
        else:
            self.liars.add(rank)
        return False

    def _missing(self, why: str) -> WorkerError:
        ranks = ", ".join(map(str, sorted(self.absent))) or "none"
        return WorkerError(
            f"step {self.step}: of the {len(self.members)} workers of partition {self.partition} some are missing "
            f"({ranks}), and repetition cannot do without: {why}"
        )
