"""Several coroutines of rounds as one, whose rounds are asked together: a step lasts as long as its longest part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from draco.protocols.rounds import Answer, Ask, Rounds, T


def abreast(parts: Sequence[Rounds[T]]) -> Rounds[list[T]]:
    """Return what each part returns, in their order. No two parts may ask the same.

    Each round asks what all parts ask that have not ended, and each of them is sent all that came.
    """
    ended: dict[int, T] = {}
    answers: Mapping[Ask, Answer] | None = None
    while True:
        asks: list[Ask] = []
        for place, part in enumerate(parts):
            if place in ended:
                continue
            try:
                asks += next(part) if answers is None else part.send(answers)
            except StopIteration as end:
                ended[place] = end.value
        if len(ended) == len(parts):
            return [ended[place] for place in range(len(parts))]
        answers = yield asks
