"""The hearing of a step: what workers have claimed and sent of its pairs, who has lied, and who is to be asked next.

Honest workers claim the same of a pair. So once lies + 1 workers that are not expelled claim the same, it is the truth,
and the others have lied. Each expulsion takes one claimant at most from a pair, and lowers what is needed by one: what
was the truth once keeps enough claimants. A pair that is still open is counted anew, without the word of those who are
out. All open pairs are asked about in the same round.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from operator import itemgetter

from draco.protocols.court import Court, Proof
from draco.protocols.rounds import Answer, Ask, Rejected, Upload

Pair = tuple[int, int]  # step, partition


class Hearing:
    """What is known of pairs within one step. It expels by `court`, and never asks anybody the same twice."""

    def __init__(self, court: Court, earlier: int | None = None) -> None:
        """Begin with nothing known. `earlier` is the step of which not every worker has the model."""
        self.court = court
        self.earlier = earlier
        self.claims: dict[Pair, dict[int, bytes]] = defaultdict(dict)  # worker -> digest that it says is right
        self.uploads: dict[Pair, dict[int, Upload]] = defaultdict(dict)  # worker -> what it sent
        self.asked: dict[Pair, dict[int, str]] = defaultdict(dict)  # worker -> what it was asked for last
        self.load: Counter[int] = Counter()  # pairs that each worker was given
        self.sent: Counter[int] = Counter()  # vectors that each worker was asked for
        self.answered: set[int] = set()
        self.silent: set[int] = set()  # did not answer in time: asked last

    def ask(self, worker: int, pair: Pair, send: str) -> Ask:
        """Return this ask, and keep in mind that it was made."""
        self.load[worker] += worker not in self.asked[pair]
        self.sent[worker] += send == "vector"
        self.asked[pair][worker] = send
        return Ask(worker, *pair, "vector" if send == "vector" else "digest")

    def take(self, answers: Mapping[Ask, Answer]) -> None:
        """Keep what came. Who sent what is wrong by itself, or not what it had claimed, is expelled.

        Raises:
            TrainingError: more have been proven to lie than the job tolerates.
        """
        for ask, answer in answers.items():
            pair = (ask.step, ask.partition)
            (self.silent if answer is None else self.answered).add(ask.worker)
            if answer is None:
                continue
            if isinstance(answer, Rejected):
                self.court.expel(ask.worker, Proof(*pair, answer.why, ""))
            elif isinstance(answer, Upload):
                self.uploads[pair][ask.worker] = answer
                self._claim(ask.worker, pair, answer.digest)
            else:
                assert isinstance(answer, bytes), f"a {ask.send} was answered by {type(answer).__name__}"
                self._claim(ask.worker, pair, answer)

    def _claim(self, worker: int, pair: Pair, digest: bytes) -> None:
        # Who claimed something is asked again only where its claim was found to be the truth.
        before = self.claims[pair].setdefault(worker, digest)
        if before != digest:
            self.court.expel(worker, Proof(*pair, digest.hex(), before.hex()))

    def live(self, pair: Pair) -> dict[bytes, int]:
        """Return how many of those who are not expelled claim which digest."""
        count: dict[bytes, int] = {}
        for worker, digest in self.claims[pair].items():
            if worker not in self.court.expelled:
                count[digest] = count.get(digest, 0) + 1
        return count

    def leading(self, pair: Pair) -> tuple[bytes | None, int]:
        """Return the digest that most of those who are not expelled claim, and how many they are."""
        return max(self.live(pair).items(), key=itemgetter(1), default=(None, 0))

    def judge(self, pairs: Collection[Pair]) -> None:
        """Expel who claims something else than lies + 1 others, until nothing more follows.

        Raises:
            TrainingError: more have been proven to lie than the job tolerates.
        """
        known = -1
        while len(self.court.expelled) > known:
            known = len(self.court.expelled)
            for pair in pairs:
                true, claimants = self.leading(pair)
                if true is None or claimants <= self.court.lies:
                    continue
                for worker, digest in self.claims[pair].items():
                    if digest != true and worker not in self.court.expelled:
                        self.court.expel(worker, Proof(*pair, digest.hex(), true.hex()))

    def accepted(self, pair: Pair, needed: int) -> tuple[int, Upload] | None:
        """Return a vector that `needed` workers claim, and who sent it, none of them expelled; None: not yet."""
        digest, claimants = self.leading(pair)
        return self._sent(pair, digest) if claimants >= needed else None

    def _sent(self, pair: Pair, digest: bytes | None) -> tuple[int, Upload] | None:
        for worker, upload in self.uploads[pair].items():
            if upload.digest == digest and worker not in self.court.expelled:
                return worker, upload
        return None

    def able(self, pair: Pair) -> list[int]:
        """Return the workers that may be asked about the pair now."""
        lacking = self.court.lacking if pair[0] == self.earlier else ()
        return [worker for worker in self.court.present if worker not in lacking]

    def further(self, pair: Pair, needed: int) -> list[Ask]:
        """Return what is to be asked so that `accepted` may give a vector; nothing where nobody is left to ask.

        One more upload is asked for where nobody has sent what most claim.
        """
        digest, claimants = self.leading(pair)
        uploaded = self._sent(pair, digest) is not None
        able = self.able(pair)
        fresh = [worker for worker in able if worker not in self.asked[pair]]
        if claimants < needed:
            chosen = self.least_loaded(fresh, needed - claimants)
            return [
                self.ask(worker, pair, "digest" if uploaded or place else "vector")
                for place, worker in enumerate(chosen)
            ]
        if uploaded:
            return []
        theirs = [
            worker
            for worker in able
            if self.claims[pair].get(worker) == digest and self.asked[pair][worker] == "digest"
        ]
        return [self.ask(worker, pair, "vector") for worker in self.least_loaded(theirs or fresh, 1)]

    def least_loaded(self, workers: Iterable[int], number: int) -> list[int]:
        """Return up to `number` of the workers: those who answered before the silent, then by load, then at random."""
        shuffled = self.court.shuffled(list(workers))
        return sorted(shuffled, key=lambda worker: (worker in self.silent, self.load[worker], self.sent[worker]))[
            :number
        ]
