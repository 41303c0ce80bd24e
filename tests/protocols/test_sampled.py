"""Checked by sample: commitments before the draw, what liars can get through, and who is watched."""

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from driving import Says, court, drive, honest, lying, true, vectors, with_replays
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.protocol_attacks import answer, digest
from draco.protocols.checked import checked
from draco.protocols.court import Court
from draco.protocols.rounds import Answer, Ask, Rejected, Rounds
from draco.protocols.sampled import expected_false


def step(who: Court, n: int, s: int, sample: float, number: int = 1) -> Rounds:
    return checked(workers=n, adversaries=s, sample=sample).step(who, number, None)


def right(n: int, s: int, number: int = 1) -> list[int]:
    return [true(number, partition) for partition in range(n - s)]


def test_vectors_and_commitments_come_first_and_only_the_drawn_pairs_are_opened() -> None:
    opened = 0
    for seed in range(40):
        outcome, asked = drive(step(court(9, 2, seed), 9, 2, 0.3), with_replays(honest))
        assert vectors(outcome) == right(9, 2)
        assert Counter(ask.send for ask in asked[0]) == Counter(vector=7, commitment=7)
        assert {ask.send for asks in asked[1:] for ask in asks} <= {"opening"}
        assert len(asked) <= 2
        assert all(ask.worker == outcome.workers[ask.partition] for asks in asked[1:] for ask in asks)
        opened += sum(map(len, asked[1:]))
    assert opened / 280 == pytest.approx(0.3, abs=0.08)


def unlike(ask: Ask) -> Answer:
    return lying(ask) if ask.send == "vector" else honest(ask)


def exchanged(ask: Ask) -> Answer:
    return honest(ask) if ask.send == "opening" else lying(ask)


def other(ask: Ask) -> Answer:
    """Commit to the truth and open another step's transcript."""
    return answer(ask, true(ask.step - 1, ask.partition)) if ask.send == "opening" else honest(ask)


def equivocating(ask: Ask) -> Answer:
    """Send the truth, commit to something else."""
    return lying(ask) if ask.send == "commitment" else honest(ask)


BEHAVIOURS: dict[str, Says] = {
    "lie": lying, "vector only": unlike, "exchange": exchanged, "another step's": other, "equivocate": equivocating,
    "garbage": lambda ask: Rejected("another size"),
}  # fmt: skip


@pytest.mark.parametrize("how", BEHAVIOURS)
@pytest.mark.parametrize(("n", "s"), [(3, 1), (2, 1), (5, 2), (4, 3), (5, 4)])
def test_where_all_pairs_are_drawn_every_placement_of_liars_is_found_and_nobody_else_is_expelled(
    n: int, s: int, how: str
) -> None:
    for liars in combinations(range(1, n + 1), s):
        who = court(n, s)
        says = with_replays(lambda ask, liars=liars: (BEHAVIOURS[how] if ask.worker in liars else honest)(ask))
        for number in range(1, 9):
            outcome, _ = drive(step(who, n, s, 1.0, number), says)
            assert vectors(outcome) == right(n, s, number)
        assert set(who.expelled) <= set(liars)
        assert who.expelled


def test_a_proof_says_what_was_committed_to_or_sent_and_what_is_true() -> None:
    for how, claimed, found in ((exchanged, 11, 10), (unlike, 11, 10)):
        who = court(2, 1)
        who.absent = {2}
        with pytest.raises(Exception, match="nobody is left"):
            drive(step(who, 2, 1, 1.0), with_replays(lambda ask, how=how: how(ask)))
        proof = who.expelled[1]
        assert (proof.claimed, proof.true) == (digest(990 + claimed).hex(), digest(990 + found).hex())


def test_who_does_not_open_is_not_expelled_is_not_used_and_is_watched_from_then_on() -> None:
    who = court(4, 1)
    says = with_replays(lambda ask: (None if ask.send == "opening" else lying(ask)) if ask.worker == 2 else honest(ask))
    used = []
    for number in range(1, 60):
        outcome, asked = drive(step(who, 4, 1, 0.3, number), says)
        false = vectors(outcome) != right(4, 1, number)
        used.append(false)
        opened = {ask.partition for asks in asked for ask in asks if ask.send == "opening" and ask.worker == 2}
        asked_for = {ask.partition for asks in asked for ask in asks if ask.send == "vector" and ask.worker == 2}
        if who.watched:
            assert not false
        if any(used) and number > 1 and who.watched and not opened:
            assert not asked_for, "whoever is watched has everything opened"
    assert who.watched == {2}
    assert not who.expelled


def test_what_else_the_one_who_fails_has_sent_in_the_step_is_given_to_others_unless_it_was_opened() -> None:
    n, s = 5, 2
    seen = 0
    for seed in range(60):
        who = court(n, s, seed)
        who.absent = {3, 4, 5}  # so that two workers have three pairs
        late = with_replays(lambda ask: None if ask.worker == 1 and ask.send == "opening" else honest(ask))
        outcome, asked = drive(step(who, n, s, 0.5), late)
        assert vectors(outcome) == right(n, s)
        if 1 in who.watched:
            seen += 1
            assert 1 not in outcome.workers
        else:
            assert not any(ask.worker == 1 for asks in asked[1:] for ask in asks if ask.send == "opening")
    assert seen > 20


def test_who_has_ended_before_it_is_asked_to_open_is_not_asked_and_not_used() -> None:
    who = court(5, 2)
    rounds = step(who, 5, 2, 1.0)
    asks = next(rounds)
    gone = asks[0].worker
    who.absent = {gone}
    said = with_replays(honest)
    further = rounds.send({ask: said(ask) for ask in asks})
    assert gone not in {ask.worker for ask in further}
    assert asks[0].partition in {ask.partition for ask in further if ask.send == "vector"}
    assert who.watched == {gone}


def test_an_honest_worker_that_is_late_costs_no_more_than_replays() -> None:
    who = court(5, 1)
    late = with_replays(lambda ask: None if ask.worker == 3 and ask.send == "opening" and ask.step < 4 else honest(ask))
    for number in range(1, 30):
        outcome, _ = drive(step(who, 5, 1, 0.5, number), late)
        assert vectors(outcome) == right(5, 1, number)
    assert who.watched == {3}
    assert not who.expelled


@pytest.mark.parametrize("opens", [True, False])
@pytest.mark.parametrize("sample", [0.2, 0.5])
def test_the_mean_of_false_vectors_of_a_long_run_is_the_bound_and_no_more(sample: float, opens: bool) -> None:
    """Two liars who always lie; each run goes on until nobody can any more."""
    n, s, runs = 4, 2, 400
    total = 0
    says = with_replays(
        lambda ask: (unlike(ask) if opens or ask.send != "opening" else None) if ask.worker < 3 else honest(ask)
    )
    for seed in range(runs):
        who = court(n, s, seed)
        number = 0
        while len(who.watched | who.expelled.keys()) < s:
            number += 1
            outcome, _ = drive(step(who, n, s, sample, number), says)
            total += sum(a != b for a, b in zip(vectors(outcome), right(n, s, number), strict=True))
    deviation = (s * (1 - sample) / sample**2 / runs) ** 0.5
    assert total / runs == pytest.approx(expected_false(s, sample), abs=4 * deviation)


def test_the_start_says_that_it_is_not_exact_and_what_is_expected() -> None:
    protocol = checked(workers=9, adversaries=2, sample=0.1)
    assert protocol.summary.startswith("not exact: 18 false vectors at most are used in the whole run on the average")
    assert protocol.expected_false == pytest.approx(18)
    assert checked(workers=9, adversaries=2, sample=1.0).expected_false == 0


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 8), st.data())
def test_whatever_liars_say_only_they_are_expelled_or_watched_and_what_was_opened_is_true(
    seed: int, n: int, data: st.DataObject
) -> None:
    s = data.draw(st.integers(1, n - 1))
    sample = data.draw(st.sampled_from([0.2, 0.6, 1.0]))
    draw = np.random.default_rng(seed)
    liars = {int(each) for each in draw.permutation(np.arange(1, n + 1))[:s]}

    def says(ask: Ask) -> Answer:
        if ask.worker not in liars:
            return honest(ask)
        wrong = true(ask.step, ask.partition) + int(draw.integers(0, 2))
        return [None, Rejected("cut"), honest(ask), *[answer(ask, wrong)] * 5][int(draw.integers(8))]

    who, said = court(n, s, seed), with_replays(says)
    for number in range(1, 6):
        safe = who.watched | who.expelled.keys()
        outcome, asked = drive(step(who, n, s, sample, number), said)
        every = [ask for asks in asked for ask in asks]
        assert len({*every}) == len(every), "asked twice"
        opened = {ask.partition: ask.worker for ask in every if ask.send == "opening"}
        for partition, (vector, worker) in enumerate(zip(vectors(outcome), outcome.workers, strict=True)):
            if vector != true(number, partition):
                assert worker in liars
                assert opened.get(partition) != worker
                assert worker not in safe
    assert set(who.expelled) <= liars
    assert who.watched <= liars
