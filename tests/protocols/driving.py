"""Drive a protocol's coroutine by hand: what each worker says is a function of what it is asked."""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np

from benchmarks.protocol_attacks import answer
from benchmarks.protocol_runs import replayed
from draco.protocols.court import Court
from draco.protocols.rounds import DENIED, SERVER, Answer, Ask, Rounds, Upload

Says = Callable[[Ask], Answer]


def true(step: int, partition: int) -> int:
    """Return the vector of a pair."""
    return 1000 * step + 10 * partition


def honest(ask: Ask) -> Answer:
    """Tell the truth."""
    return answer(ask, true(ask.step, ask.partition))


def lying(ask: Ask) -> Answer:
    """Tell the lie on which all agree."""
    return answer(ask, true(ask.step, ask.partition) + 1)


def upload(step: int, partition: int, *, false: bool = False) -> Upload:
    """Return what was uploaded of a pair."""
    sent = (lying if false else honest)(Ask(1, step, partition, "vector"))
    assert isinstance(sent, Upload)
    return sent


def drive(rounds: Rounds[Any], says: Says) -> tuple[Any, list[Sequence[Ask]]]:
    """Return what the coroutine comes to, and what was asked in each round."""
    asked: list[Sequence[Ask]] = []
    try:
        asks = next(rounds)
        while True:
            asked.append(asks)
            asks = rounds.send({ask: says(ask) for ask in asks})
    except StopIteration as end:
        return end.value, asked


def court(workers: int, adversaries: int, seed: int = 0) -> Court:
    """Return a court of which nobody is expelled."""
    return Court(workers, adversaries, generator=np.random.default_rng(seed))


def with_replays(says: Says, liars: Collection[int] = ()) -> Says:
    """Do what the driver does with transcripts: keep and replay them. Verdicts of liars are what they say.

    A transcript is the number of the vector that it makes.
    """
    deposits: dict[tuple[int, int, int], int] = {}

    def said(ask: Ask) -> Answer:
        right = true(ask.step, ask.partition)
        if ask.worker == SERVER:
            return replayed(deposits[ask.of, ask.step, ask.partition], right)
        came = says(ask)
        if ask.send == "opening" and isinstance(came, Upload):
            return replayed(came.vector, right)
        if ask.send == "deposit" and isinstance(came, Upload):
            deposits[ask.worker, ask.step, ask.partition] = came.vector
            return b""
        if ask.send == "verdict" and came is not None and ask.worker not in liars:
            made = replayed(deposits[ask.of, ask.step, ask.partition], right)
            return made.digest if isinstance(made, Upload) else DENIED
        return came

    return said


def vectors(outcome: Any) -> list[int]:
    """Return the vectors of an outcome."""
    return [upload.vector for upload in outcome.uploads]
