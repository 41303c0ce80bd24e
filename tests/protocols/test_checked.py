"""The checked protocol against workers who lie, are late and end, without torch: a vector is a word."""

import numpy as np
import pytest

from draco.errors import TrainingError, WorkerError
from draco.protocols.checked import checked
from draco.protocols.court import Court
from draco.protocols.rounds import Ask, Outcome, Rejected, Upload

STEP = 7


class World:
    """Answers asks as n workers would of whom some always, or at some pairs, lie or are late."""

    def __init__(self, court: Court, lies: dict[int, set[int]], late: dict[int, set[int]]) -> None:
        self.court, self.lies, self.late = court, lies, late
        self.asks: list[Ask] = []
        self.rounds = 0

    def answer(self, ask: Ask) -> Upload | Rejected | None:
        if ask.partition in self.late.get(ask.worker, ()):
            self.court.absent.add(ask.worker)
            return None
        if ask.partition in self.lies.get(ask.worker, ()):
            return Rejected("mm, product 3, is false")
        return Upload(f"digest {ask.partition}".encode(), f"vector {ask.partition}")

    def take(self, protocol, step: int = STEP) -> Outcome:
        rounds = protocol.step(self.court, step, None)
        asks = next(rounds)
        while True:
            self.rounds += 1
            self.asks += asks
            try:
                asks = rounds.send({ask: self.answer(ask) for ask in asks})
            except StopIteration as end:
                return end.value


def world(n: int, s: int, lies=None, late=None, seed: int = 0) -> World:
    court = Court(n, s, generator=np.random.default_rng(seed))
    return World(court, lies or {}, late or {})


def everything(n: int) -> set[int]:
    return set(range(n))


def test_where_nobody_lies_each_worker_computes_one_partition_at_most_and_a_step_is_one_round() -> None:
    at = world(7, 2)
    outcome = at.take(checked(workers=7, adversaries=2))
    assert [upload.vector for upload in outcome.uploads] == [f"vector {j}" for j in range(5)]
    assert at.rounds == 1
    assert len({ask.worker for ask in at.asks}) == 5
    assert {ask.send for ask in at.asks} == {"transcript"}
    assert list(outcome.workers) == [ask.worker for ask in sorted(at.asks, key=lambda ask: ask.partition)]


def test_all_but_one_may_lie_and_the_only_honest_one_then_computes_everything() -> None:
    at = world(5, 4, lies=dict.fromkeys((1, 2, 4, 5), everything(1)))
    for step in range(1, 30):
        outcome = at.take(checked(workers=5, adversaries=4), step)
        assert outcome.uploads[0].vector == "vector 0"
        assert outcome.workers == (3,)
    assert sorted(at.court.expelled) == [1, 2, 4, 5]


def test_a_liar_is_expelled_with_what_was_wrong_and_its_pair_is_computed_by_another_in_the_same_step() -> None:
    at = world(4, 1, lies={2: everything(3)})
    protocol = checked(workers=4, adversaries=1)
    steps = [at.take(protocol, step) for step in range(1, 20)]
    assert all(len(outcome.uploads) == 3 and 2 not in outcome.workers for outcome in steps)
    proof = at.court.expelled.pop(2)
    assert not at.court.expelled
    assert (proof.claimed, proof.true) == ("mm, product 3, is false", "")
    asked = [ask.step for ask in at.asks if ask.worker == 2]
    assert asked == [proof.step]


def test_one_who_is_late_is_not_expelled_and_its_pair_goes_to_another() -> None:
    at = world(4, 1, late={3: everything(3)})
    outcomes = [at.take(checked(workers=4, adversaries=1), step) for step in range(1, 8)]
    assert not at.court.expelled
    assert all(len(outcome.uploads) == 3 and 3 not in outcome.workers for outcome in outcomes)


def test_more_proven_liars_than_declared_end_the_run() -> None:
    at = world(3, 1, lies={1: everything(2), 2: everything(2), 3: everything(2)})
    with pytest.raises(TrainingError, match=r"proven to lie, and scheme\.adversaries is 1"):
        at.take(checked(workers=3, adversaries=1))


def test_where_nobody_is_left_to_ask_it_says_who_is_missing() -> None:
    at = world(3, 1, late=dict.fromkeys((1, 2, 3), everything(2)))
    with pytest.raises(WorkerError, match=r"step 7: nobody is left to ask about partition"):
        at.take(checked(workers=3, adversaries=1))
    at = world(3, 1)
    at.court.absent = {1, 2, 3}
    with pytest.raises(WorkerError, match="ended or late: 1, 2, 3"):
        at.take(checked(workers=3, adversaries=1))


def test_it_refuses_a_job_without_an_honest_worker() -> None:
    with pytest.raises(ValueError, match="3 workers, 3 adversaries"):
        checked(workers=3, adversaries=3)


@pytest.mark.parametrize("seed", range(40))
def test_whoever_lies_and_is_late_at_whatever_pair_the_vectors_are_true_and_only_liars_are_expelled(seed: int) -> None:
    random = np.random.default_rng(seed)
    n = int(random.integers(2, 9))
    s = int(random.integers(0, n))
    liars = random.permutation(np.arange(1, n + 1))[:s].tolist()
    lies = {liar: {j for j in range(n - s) if random.random() < 0.5} for liar in liars}
    patient = [w for w in range(1, n + 1) if w not in liars]
    late = {w: everything(n) for w in patient[1:] if random.random() < 0.3}
    at = world(n, s, lies, late, seed)
    for step in range(1, 11):
        outcome = at.take(checked(workers=n, adversaries=s), step)
        assert [upload.vector for upload in outcome.uploads] == [f"vector {j}" for j in range(n - s)]
    assert set(at.court.expelled) <= set(liars)
    assert len(set(at.asks)) == len(at.asks)
    for ask in at.asks:  # one that was expelled is never asked again
        if ask.worker in at.court.expelled:
            assert ask.step <= at.court.expelled[ask.worker].step
