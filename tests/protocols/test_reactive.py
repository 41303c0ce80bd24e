"""The reactive protocol: its promise for all placements of liars, its costs, and what is asked when."""

from collections import Counter
from itertools import combinations, product

import pytest
from driving import court, drive, honest, lying, true

from draco.errors import WorkerError
from draco.protocols.reactive import reactive
from draco.protocols.rounds import Answer, Ask, Rejected


@pytest.mark.parametrize(("n", "s"), [(9, 2), (15, 2), (45, 5), (7, 0)])
def test_without_lies_a_step_is_one_round_of_one_more_copy_than_liars(n: int, s: int) -> None:
    outcome, asked = drive(reactive(workers=n, adversaries=s).step(court(n, s), 3, None), honest)
    assert len(asked) == 1
    assert Counter(ask.send for ask in asked[0]) == Counter(vector=n - s) + Counter(digest=s * (n - s))
    assert [upload.vector for upload in outcome.uploads] == [true(3, partition) for partition in range(n - s)]
    loads = Counter(ask.worker for ask in asked[0])
    uploads = Counter(outcome.workers)
    for count in (loads, uploads):
        assert max(count[rank] for rank in range(1, n + 1)) - min(count[rank] for rank in range(1, n + 1)) <= 1


@pytest.mark.parametrize(("n", "s"), [(3, 1), (4, 1), (5, 2), (7, 3)])
def test_every_placement_of_liars_is_found_whether_they_agree_or_not(n: int, s: int) -> None:
    protocol = reactive(workers=n, adversaries=s)
    for liars, agree, seed in product(combinations(range(1, n + 1), s), (True, False), range(2)):
        who = court(n, s, seed)

        def says(ask: Ask, liars: tuple[int, ...] = liars, agree: bool = agree) -> Answer:
            if ask.worker not in liars:
                return honest(ask)
            return lying(ask) if agree else Rejected("nonsense") if ask.send == "vector" else bytes([ask.worker])

        outcome, _ = drive(protocol.step(who, 1, None), says)
        assert [upload.vector for upload in outcome.uploads] == [true(1, partition) for partition in range(n - s)]
        assert set(who.expelled) <= set(liars)
        assert not set(outcome.workers) & set(who.expelled)
        again, _ = drive(protocol.step(who, 2, None), says)
        assert [upload.vector for upload in again.uploads] == [true(2, partition) for partition in range(n - s)]
        drive(protocol.step(who, 3, None), says)
        assert set(who.expelled) == set(liars), "whoever lies always is out after three steps"


def test_all_disputes_of_a_step_are_asked_about_in_the_same_rounds() -> None:
    who = court(15, 4)
    outcome, asked = drive(
        reactive(workers=15, adversaries=4).step(who, 1, None), lambda ask: (lying if ask.worker < 5 else honest)(ask)
    )
    assert set(who.expelled) == {1, 2, 3, 4}
    assert len(asked) <= 4
    assert len({ask.partition for ask in asked[1]}) > 1
    assert len(outcome.uploads) == 11


def test_redundancy_falls_with_every_expulsion() -> None:
    who = court(9, 2)
    protocol = reactive(workers=9, adversaries=2)
    for step, copies in ((1, 3), (2, 1)):
        _, asked = drive(protocol.step(who, step, None), lambda ask: (lying if ask.worker < 3 else honest)(ask))
        assert len(asked[0]) == copies * 7
    assert [protocol.copies(lies) for lies in (2, 1, 0)] == [3, 2, 1]


def test_the_pair_of_a_missing_uploader_goes_to_another_and_nobody_is_expelled() -> None:
    who = court(9, 2)
    outcome, asked = drive(
        reactive(workers=9, adversaries=2).step(who, 1, None), lambda ask: None if ask.worker == 4 else honest(ask)
    )
    assert not who.expelled
    assert len(asked) == 2
    assert 4 not in outcome.workers
    assert all(upload.vector == true(1, partition) for partition, upload in enumerate(outcome.uploads))


def test_absent_and_expelled_workers_are_never_asked() -> None:
    who = court(9, 2)
    who.absent = {1, 2}
    _, asked = drive(reactive(workers=9, adversaries=2).step(who, 1, None), honest)
    assert {ask.worker for asks in asked for ask in asks} == set(range(3, 10))


def test_where_too_few_answer_the_step_is_an_error_that_says_who_is_missing() -> None:
    who = court(5, 2)
    who.absent = {1, 2, 3}
    with pytest.raises(WorkerError, match="step 6: nobody is left to ask about partition 0: 2 of 5 workers can answer"):
        next(reactive(workers=5, adversaries=2).step(who, 6, None))
    who.absent = {1}
    with pytest.raises(WorkerError, match="nobody is left to ask"):
        drive(reactive(workers=5, adversaries=2).step(who, 7, None), lambda ask: None)
