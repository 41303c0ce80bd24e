"""The verified protocol: draws after the upload, undoing, framing, stalling, and who is away."""

from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from itertools import combinations, permutations
from math import comb
from typing import Any

import numpy as np
import pytest
from driving import court, drive, honest, lying, true, upload

from draco.declaration import OptionError
from draco.errors import WorkerError
from draco.protocols.court import Court
from draco.protocols.hearing import Hearing
from draco.protocols.odds import sigma
from draco.protocols.rounds import Committed, Rejected
from draco.protocols.verification import Verification
from draco.protocols.verified import verified


class Given:
    """A generator whose first order is given; the others are as they come."""

    def __init__(self, order: Sequence[int]) -> None:
        self.order: Sequence[int] | None = order

    def permutation(self, ranks: list[int]) -> Sequence[int]:
        """Return the given order once."""
        order, self.order = self.order, None
        return ranks if order is None else order


def committed(n: int, s: int, false: Sequence[int] = (), step: int = 1) -> Committed:
    """Return a step in which worker j + 1 uploaded partition j; those of `false` are lies."""
    uploads = tuple(upload(step, partition, false=partition in false) for partition in range(n - s))
    return Committed(step, uploads, tuple(range(1, n - s + 1)))


def with_order(n: int, s: int, order: Any) -> Court:
    """Return a court that draws this circle."""
    return Court(n, s, generator=Given(order))  # type: ignore[arg-type]


@pytest.mark.parametrize(("n", "s", "a"), [(4, 1, 1), (5, 2, 1), (5, 2, 2), (7, 3, 2)])
def test_over_all_circles_every_set_of_verifiers_is_as_probable_as_another(n: int, s: int, a: int) -> None:
    drawn: dict[int, Counter[frozenset[int]]] = {partition: Counter() for partition in range(n - s)}
    for order in permutations(range(1, n + 1)):
        asks = Verification(Hearing(with_order(n, s, order)), committed(n, s), a).asks()
        for partition, count in drawn.items():
            count[frozenset(ask.worker for ask in asks if ask.partition == partition)] += 1
    for partition, count in drawn.items():
        others = set(range(1, n + 1)) - {partition + 1}
        assert count.keys() == {frozenset(chosen) for chosen in combinations(sorted(others), a)}
        assert len(set(count.values())) == 1


@pytest.mark.parametrize("false", [(0,), (0, 1)])
def test_over_all_circles_a_lie_survives_as_often_as_sigma_says_and_no_more_with_several(
    false: tuple[int, ...],
) -> None:
    n, s, a = 5, 2, 1
    survived = 0
    for order in permutations(range(1, n + 1)):
        who = with_order(n, s, order)
        close = verified(workers=n, adversaries=s, verifiers=a).close
        assert close
        replaced, _ = drive(
            close(who, committed(n, s, false)),
            lambda ask: (lying if ask.worker < 3 and ask.partition in false else honest)(ask),
        )
        survived += not replaced
        assert not replaced or (set(replaced) == set(false) and set(who.expelled) >= {each + 1 for each in false})
    probability = Fraction(survived, 120)
    assert probability == Fraction(sigma(n, s, a)) if len(false) == 1 else probability < sigma(n, s, a)


@pytest.mark.parametrize(("n", "s", "a"), [(9, 2, 2), (15, 2, 2), (45, 5, 2), (15, 5, 5)])
def test_without_lies_one_round_computes_a_step_and_verifies_the_last(n: int, s: int, a: int) -> None:
    protocol = verified(workers=n, adversaries=s, verifiers=a)
    who, before, loads = court(n, s), None, []
    for step in range(1, 12):
        outcome, asked = drive(protocol.step(who, step, before), honest)
        assert len(asked) == 1
        assert Counter((ask.step, ask.send) for ask in asked[0]) == Counter(
            {(step, "vector"): n - s} | ({(step - 1, "digest"): a * (n - s)} if before else {})
        )
        assert [sent.vector for sent in outcome.uploads] == [true(step, partition) for partition in range(n - s)]
        assert len(set(outcome.workers)) == n - s, "nobody uploads twice while others do not"
        assert all(ask.worker != before.workers[ask.partition] for ask in asked[0] if before and ask.step < step)
        loads.append(max(Counter(ask.worker for ask in asked[0]).values()))
        before = Committed(step, outcome.uploads, outcome.workers)
    assert max(loads) <= a + 1
    assert protocol.copies(s) == a + 1
    assert protocol.copies(0) == 1


def test_a_lie_undoes_the_step_and_gives_nothing_of_the_next() -> None:
    who = court(9, 2)
    outcome, asked = drive(
        verified(workers=9, adversaries=2, verifiers=2).step(who, 2, committed(9, 2, false=[3])), honest
    )
    assert not outcome.uploads
    assert {at: sent.vector for at, sent in outcome.replaced.items()} == {3: true(1, 3)}
    assert set(who.expelled) == {4}
    assert who.expelled[4][:2] == (1, 3)
    assert all(ask.step == 1 for ask in asked[-1])


def test_once_one_lie_is_found_every_pair_of_the_step_is_judged_in_full() -> None:
    # 1 and 2 lied. The circle gives the lie of 1 to its accomplice 2, which confirms, and that of 2 to the honest 3.
    who = with_order(7, 3, [1, 2, 3, 4, 5, 6, 7])
    outcome, _ = drive(
        verified(workers=7, adversaries=3, verifiers=1).step(who, 2, committed(7, 3, false=[0, 1])),
        lambda ask: (lying if ask.worker < 3 and ask.step == 1 and ask.partition < 2 else honest)(ask),
    )
    assert set(outcome.replaced) == {0, 1}
    assert set(who.expelled) == {1, 2}


def test_who_calls_a_true_vector_false_is_expelled_and_nothing_is_undone() -> None:
    framer = 9
    who = court(9, 2)
    outcome, _ = drive(
        verified(workers=9, adversaries=2, verifiers=2).step(who, 2, committed(9, 2)),
        lambda ask: lying(ask) if ask.worker == framer and ask.send == "digest" else honest(ask),
    )
    assert set(who.expelled) == {framer}
    assert not outcome.replaced
    assert framer not in outcome.workers
    assert [sent.vector for sent in outcome.uploads] == [true(2, partition) for partition in range(7)]


def test_what_was_sent_by_somebody_who_is_expelled_now_is_claimed_by_others_too() -> None:
    who = court(9, 2)
    outcome, asked = drive(
        verified(workers=9, adversaries=2, verifiers=1).step(who, 2, committed(9, 2, false=[0])),
        lambda ask: (
            Rejected("garbage") if ask.worker == 1 else lying(ask) if ask == (2, 1, 0, "digest", 0) else honest(ask)
        ),
    )
    assert set(outcome.replaced) == {0}
    assert 1 in who.expelled
    claimants = {ask.worker for asks in asked for ask in asks if (ask.step, ask.partition) == (1, 0)}
    assert len(claimants - who.expelled.keys()) >= who.lies + 1


def test_verifiers_who_do_not_answer_are_replaced_and_help_no_lie() -> None:
    for seed in range(20):
        who = court(9, 2, seed)
        outcome, asked = drive(
            verified(workers=9, adversaries=2, verifiers=2).step(who, 2, committed(9, 2, false=[0])),
            lambda ask: None if ask.worker == 2 and ask.send == "digest" else honest(ask),
        )
        assert set(outcome.replaced) == {0}
        assert set(who.expelled) == {1}
        who = court(9, 2, seed)
        outcome, asked = drive(
            verified(workers=9, adversaries=2, verifiers=2).step(who, 2, committed(9, 2)),
            lambda ask: None if ask.worker == 2 and ask.send == "digest" else honest(ask),
        )
        assert len(outcome.uploads) == 7
        confirmed = Counter(ask.partition for asks in asked for ask in asks if ask.step == 1 and ask.worker != 2)
        assert set(confirmed.values()) == {2}
        assert not who.expelled


def test_where_few_can_answer_more_verifiers_are_drawn_for_the_same_odds() -> None:
    n, s, a = 21, 3, 1
    for away, wanted in ((0, 1), (3, 1), (4, 2), (10, 2)):
        who = court(n, s)
        who.lacking = {*range(n - away + 1, n + 1)}
        asks = Verification(Hearing(who, earlier=1), committed(n, s), a).asks()
        drawn = Counter(ask.partition for ask in asks if ask.partition + 1 not in who.lacking)
        assert set(drawn.values()) == {wanted}
        assert not who.lacking & {ask.worker for ask in asks}
        others = n - 1 - away
        assert comb(s - 1, wanted) / comb(others, wanted) <= (s - 1) / (n - 1 - s)


def test_a_step_may_be_verified_alone() -> None:
    protocol = verified(workers=9, adversaries=2, verifiers=2)
    assert protocol.close
    replaced, asked = drive(protocol.close(court(9, 2), committed(9, 2)), honest)
    assert not replaced
    assert [Counter(ask.send for ask in asks) for asks in asked] == [Counter(digest=14)]
    replaced, _ = drive(protocol.close(court(9, 2), committed(9, 2, false=[5, 6])), honest)
    assert set(replaced) == {5, 6}


def test_with_everybody_found_nothing_is_verified_any_more() -> None:
    who = court(9, 2)
    protocol = verified(workers=9, adversaries=2, verifiers=2)
    drive(protocol.step(who, 1, None), lambda ask: Rejected("garbage") if ask.worker > 7 else honest(ask))
    assert who.lies == 0
    assert protocol.close
    assert drive(protocol.close(who, committed(9, 2)), honest) == ({}, [])
    _, asked = drive(protocol.step(who, 2, committed(9, 2)), honest)
    assert [len(asks) for asks in asked] == [7]


def test_a_pair_that_nobody_can_verify_is_an_error() -> None:
    who = court(3, 1)
    who.lacking = {2, 3}
    with pytest.raises(WorkerError, match="step 1: nobody is left to ask about partition 0"):
        drive(verified(workers=3, adversaries=1).step(who, 2, committed(3, 1)), honest)
    who.absent = {1, 2, 3}
    with pytest.raises(WorkerError, match="step 2"):
        next(verified(workers=3, adversaries=1).step(who, 2, None))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"verifiers": 0}, "verified: verifiers must be from 1 to 2, the number of adversaries, got 0"),
        ({"verifiers": 3}, "got 3"),
        ({"delta": 1.0}, "verified: delta must be a probability of 0 or more and less than 1, got 1"),
        ({"delta": 0.1, "verifiers": 1}, "verified: delta chooses the number of verifiers"),
    ],
)
def test_options_out_of_range_say_so(options: dict[str, Any], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        verified(workers=9, adversaries=2, **options)


def test_the_summary_tells_the_odds() -> None:
    assert (
        "probability 0.01 at most (0.01 with 5 workers absent)"
        in verified(workers=45, adversaries=5, verifiers=2).summary
    )
    assert verified(workers=45, adversaries=5, verifiers=5).summary.startswith("exact")
    assert "verified by 3" in verified(workers=45, adversaries=5, delta=1e-3).summary
    assert "verified by 5" in verified(workers=45, adversaries=5).summary


def test_draws_differ_between_steps() -> None:
    drawn = set()
    for seed in range(5):
        who = court(9, 2)
        who.generator = np.random.default_rng(seed)
        asks = Verification(Hearing(who), committed(9, 2), 2).asks()
        drawn.add(tuple(asks))
    assert len(drawn) == 5
