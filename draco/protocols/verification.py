"""The verification of a step whose vectors were used: who verifies what, how many must confirm, and what was false.

All workers stand in a circle, in an order that is drawn only now. A pair is verified by those who follow its uploader.
So its verifiers are uniform among the others, and nobody who uploaded one pair of a step gets more than the others.
Who does not answer is replaced by the next in the circle.

Once claims differ, or anybody is expelled, every pair of the step needs lies + 1 claimants (draco/protocols/odds.py).
"""

from __future__ import annotations

from collections.abc import Mapping

from draco.protocols.dealing import walks
from draco.protocols.hearing import Hearing, Pair
from draco.protocols.odds import verifiers_for
from draco.protocols.rounds import Ask, Committed, Upload


class Verification:
    """One committed step under verification, as part of a hearing."""

    def __init__(self, hearing: Hearing, committed: Committed, verifiers: int) -> None:
        """Draw the circle. `verifiers` is a; the hearing learns what was uploaded."""
        self.hearing, self.committed, self.verifiers = hearing, committed, verifiers
        court = hearing.court
        self.pairs: list[Pair] = [(committed.step, partition) for partition in range(len(committed.uploads))]
        self.uploaders = dict(zip(self.pairs, committed.workers, strict=True))
        self.expelled_before = len(court.expelled)
        for pair, upload in zip(self.pairs, committed.uploads, strict=True):
            worker = self.uploaders[pair]
            hearing.claims[pair][worker] = upload.digest
            hearing.uploads[pair][worker] = upload
            hearing.asked[pair][worker] = "vector"
        circle = court.shuffled(sorted(set(court.present) - court.lacking | set(committed.workers)))
        self.next = walks(circle, self.uploaders, verifiers)

    @property
    def disputed(self) -> bool:
        """Whether somebody has lied: claims differ, or somebody was expelled since this began."""
        court = self.hearing.court
        return len(court.expelled) > self.expelled_before or any(
            len(self.hearing.live(pair)) > 1 for pair in self.pairs
        )

    def needed(self, disputed: bool) -> dict[Pair, int]:
        """Return how many live workers must claim the same of each pair, its uploader among them."""
        court = self.hearing.court
        able = set(self.hearing.able(self.pairs[0])) if self.pairs else set()
        if self.hearing.answered:
            able = self.hearing.answered - self.hearing.silent - court.lacking - set(court.expelled)
        nominal = max(len(court.standing) - 1 - court.adversaries, 0)
        return {
            pair: court.lies + 1
            if disputed or worker in court.expelled
            else 1 + verifiers_for(len(able) - (worker in able), court.lies, nominal, self.verifiers)
            for pair, worker in self.uploaders.items()
        }

    def asks(self) -> list[Ask]:
        """Return what is to be asked next; nothing where all is verified, or nobody is left to ask."""
        disputed = self.disputed
        asks = []
        for pair, needed in self.needed(disputed).items():
            if disputed or self.uploaders[pair] in self.hearing.court.expelled:
                asks += self.hearing.further(pair, needed)
            else:
                asks += self._draw(pair, needed - self.hearing.leading(pair)[1])
        return asks

    def _draw(self, pair: Pair, number: int) -> list[Ask]:
        able = set(self.hearing.able(pair)) - set(self.hearing.asked[pair]) - self.hearing.silent
        drawn: list[Ask] = []
        while len(drawn) < number and (worker := next(self.next[pair], None)) is not None:
            if worker in able:
                drawn.append(self.hearing.ask(worker, pair, "digest"))
        return drawn

    def open(self) -> Pair | None:
        """Return a pair that is not verified yet; None: the step is verified."""
        needed = self.needed(self.disputed)
        return next((pair for pair in self.pairs if self.hearing.accepted(pair, needed[pair]) is None), None)

    def replaced(self) -> Mapping[int, Upload]:
        """Return the true vectors in the place of false ones, by partition, of pairs that have been judged so far."""
        lies = self.hearing.court.lies
        found = {}
        for (step, partition), upload in zip(self.pairs, self.committed.uploads, strict=True):
            accepted = self.hearing.accepted((step, partition), lies + 1)
            if accepted is not None and accepted[1].digest != upload.digest:
                found[partition] = accepted[1]
        return found
