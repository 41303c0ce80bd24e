"""Dealing and judging: loads, the tally against a twin that looks at every world, and proofs."""

from collections import Counter
from collections.abc import Iterator
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from draco.errors import TrainingError
from draco.protocols.court import Court
from draco.protocols.dealing import deal
from draco.protocols.hearing import Hearing
from draco.protocols.rounds import Ask, Rejected, Upload


@pytest.mark.parametrize("workers", range(1, 12))
def test_loads_and_uploads_differ_by_one_at_most(workers: int) -> None:
    for copies in range(1, workers + 1):
        for pairs in range(1, 2 * workers + 2):
            dealt = deal(range(workers), pairs, copies)
            assert all(len(set(members)) == copies for members in dealt)
            loads = Counter(worker for members in dealt for worker in members)
            uploads = Counter(members[0] for members in dealt)
            for count in (loads, uploads):
                found = [count[worker] for worker in range(workers)]
                assert max(found) - min(found) <= 1, (workers, copies, pairs)


Claims = dict[int, dict[int, bytes]]  # partition -> worker -> digest


def worlds(workers: int, adversaries: int, claims: Claims) -> Iterator[frozenset[int]]:
    """Yield every set of liars with which all claims may have been made: honest workers say the same of a pair."""
    for size in range(adversaries + 1):
        for liars in map(frozenset, combinations(range(1, workers + 1), size)):
            if all(len({d for worker, d in said.items() if worker not in liars}) <= 1 for said in claims.values()):
                yield liars


@st.composite
def situations(draw: st.DrawFn) -> tuple[int, int, Claims]:
    """Draw claims that up to s liars and honest workers may make: the true digest of each pair is b"t"."""
    adversaries = draw(st.integers(0, 3))
    workers = draw(st.integers(2 * adversaries + 1, 8))
    liars = draw(st.sets(st.integers(1, workers), max_size=adversaries))
    claims: Claims = {}
    for partition in range(draw(st.integers(1, 4))):
        said = draw(st.sets(st.integers(1, workers)))
        claims[partition] = {who: draw(st.sampled_from([b"t", b"a", b"b"])) if who in liars else b"t" for who in said}
    return workers, adversaries, claims


@given(situations())
def test_what_is_judged_holds_in_every_world(situation: tuple[int, int, Claims]) -> None:
    workers, adversaries, claims = situation
    court = Court(workers, adversaries)
    hearing = Hearing(court)
    answers = {Ask(who, 1, at, "digest"): digest for at, said in claims.items() for who, digest in said.items()}
    hearing.take(answers)
    hearing.judge([(1, partition) for partition in claims])
    possible = list(worlds(workers, adversaries, claims))
    for liars in possible:
        assert set(court.expelled) <= liars
    for partition, said in claims.items():
        digest, claimants = hearing.leading((1, partition))
        if claimants > court.lies:
            assert digest == b"t"
            for liars in possible:
                assert any(worker not in liars for worker in said if said[worker] == digest)
    for worker, proof in court.expelled.items():
        assert bytes.fromhex(proof.claimed) == claims[proof.partition][worker]
        assert bytes.fromhex(proof.true) == b"t"


def test_claims_of_who_is_expelled_count_no_more_on_other_pairs() -> None:
    court = Court(workers=5, adversaries=2)
    hearing = Hearing(court)
    # Pair 0 proves that 1 lies. On pair 1 two claim each thing; without the word of 1, and lies = 1, "t" has it.
    first = {1: b"a", 2: b"t", 3: b"t", 4: b"t"}
    second = {1: b"a", 5: b"a", 2: b"t", 3: b"t"}
    hearing.take({Ask(who, 1, 1, "digest"): digest for who, digest in second.items()})
    hearing.judge([(1, 0), (1, 1)])
    assert not court.expelled
    hearing.take({Ask(who, 1, 0, "digest"): digest for who, digest in first.items()})
    hearing.judge([(1, 1), (1, 0)])
    assert set(court.expelled) == {1, 5}
    assert court.expelled[5].partition == 1


def test_nothing_that_is_missing_is_a_proof_and_what_is_wrong_by_itself_is() -> None:
    court = Court(workers=3, adversaries=1)
    hearing = Hearing(court)
    hearing.take({Ask(1, 7, 0, "vector"): None, Ask(2, 7, 1, "digest"): None})
    assert not court.expelled
    hearing.take({Ask(3, 7, 1, "vector"): Rejected("another size")})
    assert court.expelled[3] == (7, 1, "another size", "")


def test_who_uploads_another_thing_than_it_claimed_is_expelled_with_both_digests() -> None:
    court = Court(workers=3, adversaries=1)
    hearing = Hearing(court)
    hearing.take({Ask(1, 7, 0, "digest"): b"t"})
    hearing.take({Ask(1, 7, 0, "vector"): Upload(b"a", None)})
    assert court.expelled[1] == (7, 0, b"a".hex(), b"t".hex())


def test_more_liars_than_declared_end_the_run() -> None:
    hearing = Hearing(Court(workers=3, adversaries=1))
    with pytest.raises(TrainingError, match=r"workers 1, 2 have been proven to lie, and scheme.adversaries is 1"):
        hearing.take({Ask(who, 1, who, "digest"): Rejected("garbage") for who in (1, 2)})


def test_a_vector_is_taken_of_live_workers_only_and_asked_for_again_where_its_sender_is_out() -> None:
    court = Court(workers=3, adversaries=1)
    hearing = Hearing(court)
    asks = [hearing.ask(1, (1, 0), "vector"), hearing.ask(2, (1, 0), "digest")]
    hearing.take(dict(zip(asks, [Upload(b"t", 5), b"t"], strict=True)))
    assert hearing.accepted((1, 0), 2) == (1, Upload(b"t", 5))
    hearing.take({Ask(1, 1, 1, "vector"): Rejected("garbage")})
    assert hearing.accepted((1, 0), court.lies + 1) is None
    assert hearing.further((1, 0), court.lies + 1) == [Ask(2, 1, 0, "vector")]
