"""Checked by drawn verifiers: its promise for all placements of liars, framing, collusion, lateness and its price."""

from collections import Counter
from collections.abc import Sequence
from itertools import combinations, permutations, product

import numpy as np
import pytest
from driving import Says, court, drive, honest, lying, true, vectors, with_replays
from hypothesis import given, settings
from hypothesis import strategies as st
from test_verified import with_order

from benchmarks.protocol_attacks import answer
from draco.declaration import OptionError
from draco.protocols.checked import checked
from draco.protocols.court import Court
from draco.protocols.odds import failure_probability, sigma
from draco.protocols.rounds import DENIED, SERVER, Answer, Ask, Rejected, Rounds, Upload


def step(who: Court, n: int, s: int, a: int, number: int = 1) -> Rounds:
    return checked(workers=n, adversaries=s, verifiers=a).step(who, number, None)


def right(n: int, s: int, number: int = 1) -> list[int]:
    return [true(number, partition) for partition in range(n - s)]


@pytest.mark.parametrize(("n", "s", "a"), [(9, 2, 2), (9, 2, 1), (15, 5, 2), (5, 4, 4), (7, 0, 0)])
def test_without_lies_each_pair_is_sent_once_and_replayed_by_others_that_are_drawn_afterwards(
    n: int, s: int, a: int
) -> None:
    outcome, asked = drive(step(court(n, s), n, s, a, 3), with_replays(honest))
    assert vectors(outcome) == right(n, s, 3)
    assert [Counter(ask.send for ask in asks) for asks in asked] == [
        Counter(vector=n - s, deposit=n - s), *([Counter(verdict=a * (n - s))] if a else [])
    ]  # fmt: skip
    for ask in asked[1] if a else ():
        assert ask.worker != ask.of == outcome.workers[ask.partition]
    replays = Counter(ask.worker for ask in asked[-1]) if a else Counter([0])
    assert max(replays.values()) - min(replays.values()) <= max(a, 1)


def test_over_all_circles_every_set_of_verifiers_is_as_probable_as_another() -> None:
    n, s, a = 5, 2, 2
    drawn: Counter[tuple[int, frozenset[int]]] = Counter()
    for order in permutations(range(1, n + 1)):
        who = court(n, s)
        rounds = step(who, n, s, a)
        asks = next(rounds)
        who.generator = with_order(n, s, order).generator
        verdicts = rounds.send({ask: b"" if ask.send == "deposit" else honest(ask) for ask in asks})
        for partition in range(n - s):
            mine = [ask for ask in verdicts if ask.partition == partition]
            drawn[mine[0].of, frozenset(ask.worker for ask in mine)] += 1
    assert len(drawn) == (n - s) * 6
    assert len({*drawn.values()}) == 1


def deny(ask: Ask) -> Answer:
    return DENIED if ask.send == "verdict" else honest(ask)


def unlike(ask: Ask) -> Answer:
    return lying(ask) if ask.send == "vector" else honest(ask)


def covered(ask: Ask) -> Answer:
    return honest(ask) if ask.send == "deposit" else lying(ask)


def garbage(ask: Ask) -> Answer:
    return Rejected("another size")


BEHAVIOURS: dict[str, Says] = {
    "lie": lying, "deny": deny, "vector only": unlike, "cover": covered, "garbage": garbage,
}  # fmt: skip


@pytest.mark.parametrize("how", BEHAVIOURS)
@pytest.mark.parametrize(("n", "s"), [(3, 1), (4, 1), (5, 2), (2, 1), (4, 3), (5, 4), (6, 4)])
def test_with_as_many_verifiers_as_liars_every_placement_is_found_and_nobody_else_is_expelled(
    n: int, s: int, how: str
) -> None:
    for liars, seed in product(combinations(range(1, n + 1), s), range(3)):
        who = court(n, s, seed)
        says = with_replays(lambda ask, liars=liars: (BEHAVIOURS[how] if ask.worker in liars else honest)(ask), liars)
        for number in range(1, 9):
            outcome, _ = drive(step(who, n, s, s, number), says)
            assert vectors(outcome) == right(n, s, number)
        assert set(who.expelled) <= set(liars)
        assert len(who.expelled) >= (how != "deny" or s < n - 1)


def test_who_says_that_true_work_is_false_is_convicted_by_the_servers_own_replay_in_the_same_step() -> None:
    who = court(5, 2)
    outcome, asked = drive(
        step(who, 5, 2, 2), with_replays(lambda ask: (deny if ask.worker == 4 else honest)(ask), [4])
    )
    assert vectors(outcome) == right(5, 2)
    assert [*who.expelled] == [4]
    assert who.expelled[4].claimed == "its check failed"
    assert bytes.fromhex(who.expelled[4].true) == honest(Ask(1, 1, who.expelled[4].partition, "digest"))
    assert [ask.send for ask in asked[2] if ask.worker == SERVER].count("replay") >= 1
    assert 4 not in outcome.workers


def test_the_worker_of_a_false_transcript_is_expelled_and_who_passed_it_may_have_been_unlucky() -> None:
    """The check of a verifier is random. So its pass is no proof, where the server finds a product that is false."""
    who = court(4, 2, seed=1)
    first, *_ = next(step(court(4, 2, seed=1), 4, 2, 2))

    def says(ask: Ask) -> Answer:
        if ask.send in ("vector", "deposit") and ask.worker == first.worker:
            return lying(ask)
        if ask.send == "verdict" and ask.of == first.worker:  # one of them is lucky
            return lying(ask) if ask.worker == min({1, 2, 3, 4} - {first.worker}) else DENIED
        return honest(ask)

    outcome, _ = drive(step(who, 4, 2, 2), with_replays(says, {1, 2, 3, 4}))
    assert vectors(outcome) == right(4, 2)
    assert [*who.expelled] == [first.worker]
    assert who.expelled[first.worker].claimed == "mm, product 1, is false"
    assert first.worker not in outcome.workers


def test_who_covers_a_vector_that_a_true_transcript_does_not_make_is_convicted_with_its_sender() -> None:
    for seed in range(10):
        who = court(5, 2, seed)
        says = with_replays(lambda ask: (covered if ask.worker in (1, 2) else honest)(ask), (1, 2))
        for number in range(1, 6):
            outcome, _ = drive(step(who, 5, 2, 2, number), says)
            assert vectors(outcome) == right(5, 2, number)
        assert {*who.expelled} == {1, 2}


@pytest.mark.parametrize("both", [False, True])
def test_over_all_circles_a_lie_survives_as_often_as_sigma_says_and_no_more_with_several(both: bool) -> None:
    n, s, a = 5, 2, 1
    survived = runs = 0
    for order in permutations(range(1, n + 1)):
        who = court(n, s, seed=3)
        rounds = step(who, n, s, a)
        asks = next(rounds)
        first, second = asks[0].worker, asks[2].worker
        liars = {first, second}
        lies = liars if both else {first}

        def says(ask: Ask, liars=liars, lies=lies) -> Answer:
            false = ask.worker in lies if ask.send != "verdict" else ask.worker in liars and ask.of in lies
            return (lying if false else honest)(ask)

        said = with_replays(says, liars)
        who.generator = FirstGiven(order)  # type: ignore[assignment]
        outcome, _ = drive(resumed(rounds, asks, said), said)
        runs += 1
        survived += vectors(outcome) != right(n, s)
        assert {*who.expelled} <= liars
    assert survived / runs == pytest.approx(sigma(n, s, a)) if not both else survived / runs < sigma(n, s, a)


class FirstGiven:
    """A generator whose first order is given; the others are drawn."""

    def __init__(self, order: Sequence[int]) -> None:
        self.order: Sequence[int] | None = order
        self.others = np.random.default_rng(0)

    def permutation(self, ranks: list[int]) -> Sequence[int]:
        """Return the given order once."""
        order, self.order = self.order, None
        return self.others.permutation(ranks) if order is None else order


def resumed(rounds: Rounds, asks: Sequence[Ask], said: Says) -> Rounds:
    """Go on with rounds of which the first was asked."""
    asks = rounds.send({ask: said(ask) for ask in asks})
    while True:
        answers = yield asks
        try:
            asks = rounds.send(answers)
        except StopIteration as end:
            return end.value


def test_once_a_lie_is_found_every_pair_of_the_step_needs_as_many_verifiers_as_liars_are_left() -> None:
    n, s, a = 15, 4, 1
    for seed in range(5):
        who = court(n, s, seed)
        said = with_replays(lambda ask: (unlike if ask.worker == 3 else honest)(ask))
        for number in range(1, 4):
            _, asked = drive(step(who, n, s, a, number), said)
            if 3 in who.expelled:
                break
        confirmed = Counter(ask.partition for asks in asked for ask in asks if ask.send == "verdict")
        replayed = {ask.partition for asks in asked for ask in asks if ask.send == "replay"}
        assert len(replayed) == 1
        assert all(confirmed[each] >= who.lies for each in range(n - s) if each not in replayed)
        assert who.lies == s - 1


def test_a_verifier_that_is_late_is_replaced_and_nobody_is_expelled() -> None:
    who = court(9, 2)
    outcome, asked = drive(
        step(who, 9, 2, 2),
        with_replays(lambda ask: None if ask.worker in (4, 5) and ask.send == "verdict" else honest(ask)),
    )
    assert vectors(outcome) == right(9, 2)
    assert not who.expelled
    assert {ask.send for ask in asked[2]} == {"verdict"}
    assert not {ask.worker for ask in asked[2]} & {4, 5}


def test_where_too_few_verifiers_are_left_the_server_replays() -> None:
    who = court(5, 4)
    who.absent = {2, 3}
    outcome, asked = drive(step(who, 5, 4, 2), with_replays(honest))
    assert vectors(outcome) == right(5, 4)
    assert [ask.send for ask in asked[1]] == ["replay"]


def test_with_workers_absent_more_are_drawn_for_the_same_odds() -> None:
    who = court(15, 5)
    _, asked = drive(step(who, 15, 5, 2), with_replays(honest))
    assert len(asked[1]) == 2 * 10
    who.absent = {1, 2, 3}
    _, asked = drive(step(who, 15, 5, 2), with_replays(honest))
    assert len(asked[1]) == 3 * 10


def test_a_vector_without_its_transcript_is_not_used() -> None:
    who = court(5, 2)
    outcome, _ = drive(
        step(who, 5, 2, 2),
        with_replays(lambda ask: None if ask.worker == 1 and ask.send == "deposit" else honest(ask)),
    )
    assert vectors(outcome) == right(5, 2)
    assert 1 not in outcome.workers
    assert not who.expelled


def test_the_start_says_how_probable_a_false_step_is_whoever_is_absent() -> None:
    protocol = checked(workers=45, adversaries=5, verifiers=2)
    assert protocol.failure == failure_probability(45, 5, 2)
    assert protocol.summary.startswith("a step of the run is false with probability 0.01 at most")
    assert checked(workers=5, adversaries=4, verifiers=4).summary.startswith("exact up to the check's tolerance")
    chosen = checked(workers=45, adversaries=5, delta=1e-3)
    assert chosen.failure == failure_probability(45, 5, 3) <= 1e-3
    assert [protocol.copies(lies) for lies in (5, 0)] == [1, 1]


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({"sample": 0.1, "verifiers": 1}, "checked: sample has .* and verifiers has workers replay all; leave out one"),
        ({"sample": 0.1, "delta": 0.1}, "checked: sample has .* and delta has workers replay all"),
        ({"verifiers": 1, "delta": 0.1}, "checked: delta chooses the number of verifiers"),
        ({"verifiers": 3}, "checked: verifiers must be from 1 to 2"),
        ({"sample": 0.0}, "checked: sample must be above 0"),
        ({"sample": 1.5}, "checked: sample must be above 0 and at most 1, got 1.5"),
    ],
)
def test_options_that_exclude_each_other_or_are_out_of_range_are_refused(given_: dict, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        checked(workers=5, adversaries=2, **given_)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 8), st.data())
def test_whatever_liars_say_and_whoever_is_late_the_vectors_are_true_and_only_liars_are_expelled(
    seed: int, n: int, data: st.DataObject
) -> None:
    s = data.draw(st.integers(1, n - 1))
    draw = np.random.default_rng(seed)
    liars = {int(each) for each in draw.permutation(np.arange(1, n + 1))[:s]}
    lingering = {w for w in range(1, n + 1) if w not in liars and draw.random() < 0.2}

    def says(ask: Ask) -> Answer:
        if ask.worker in liars:
            wrong = true(ask.step, ask.partition) + int(draw.integers(0, 3))
            return [None, Rejected("cut"), DENIED if ask.send == "verdict" else honest(ask), *[answer(ask, wrong)] * 4][
                int(draw.integers(7))
            ]
        return None if ask.worker in lingering and ask.send == "verdict" else honest(ask)

    who, said = court(n, s, seed), with_replays(says, liars)
    for number in range(1, 5):
        outcome, asked = drive(step(who, n, s, s, number), said)
        assert vectors(outcome) == right(n, s, number)
        every = [ask for asks in asked for ask in asks]
        assert len({*every}) == len(every), "asked twice"
        assert not {ask.worker for ask in asked[0]} & {w for w in who.expelled if who.expelled[w].step < number}
    assert set(who.expelled) <= liars
    assert isinstance(outcome.uploads[0], Upload)
