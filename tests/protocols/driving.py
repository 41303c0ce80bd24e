"""Drive a protocol's coroutine by hand: what each worker says is a function of what it is asked."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.protocol_attacks import answer
from draco.protocols.court import Court
from draco.protocols.rounds import Answer, Ask, Rounds, Upload

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
