"""The repetition code with digests: attackers who know it, absent workers, and `repetition` itself as the twin."""

import itertools
from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch
from in_groups import ATTACKS, Band, Vector, answer_with, collude, court, equivocate, play, protocol

from draco.errors import DecodeError, WorkerError
from draco.protocols.rounds import Ask, Upload
from draco.schemes import build

SIZES = [(1, 0, None), (3, 0, None), (3, 1, None), (5, 1, None), (7, 1, 3), (9, 1, 4), (5, 2, None), (6, 2, None)]
D = 7


def honest(rank: int, partition: int) -> Vector:
    return np.random.default_rng(partition).standard_normal(D).astype(np.float32)


def decoded_by_twin(n: int, s: int, r: int | None, groups: list[list[int]], band: Band) -> tuple[list[bytes], set[int]]:
    """Return what `repetition` decodes, and whom it suspects, where all send at once what they stand behind."""
    scheme = build("repetition", workers=n, adversaries=s, redundancy=r)
    row_of = {rank: j + place * len(groups) for j, ranks in enumerate(groups) for place, rank in enumerate(ranks)}
    here = np.zeros(n, np.bool_)
    replies = torch.zeros(n, D)
    for j, ranks in enumerate(groups):
        for rank in ranks:
            if rank in band.ranks and rank not in band.replies:  # refused
                continue
            here[row_of[rank]] = True
            replies[row_of[rank]] = torch.from_numpy(band.replies.get(rank, honest(rank, j)))
    decoded = scheme.decode(replies, here)
    rank_of = {row: rank for rank, row in row_of.items()}
    refused = {rank for rank in band.ranks if rank not in band.replies}
    return [row.numpy().tobytes() for row in decoded.gradients], {rank_of[row] for row in decoded.suspects} | refused


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize(("n", "s", "r"), SIZES)
def test_it_gives_the_bits_and_the_suspects_of_repetition_wherever_liars_are(
    n: int, s: int, r: int | None, name: str
) -> None:
    built = protocol(n, s, r=r)
    for seed, ranks in itertools.product(range(3), itertools.combinations(range(1, n + 1), s)):
        band = Band(ranks, honest)
        played = play(built, court(n, s, seed), band, ATTACKS[name])
        bits, suspects = decoded_by_twin(n, s, r, played.groups, band)
        assert [upload.vector.tobytes() for upload in played.outcome.uploads] == bits
        assert bits == [honest(0, j).tobytes() for j in range(built.partitions)]
        assert played.outcome.suspects == tuple(sorted(suspects | band.equivocated))
        assert {*played.outcome.suspects} <= {*ranks}
        assert played.rounds <= 2 + s
        assert played.vectors <= built.partitions + s
        for j, (worker, ranks_of) in enumerate(zip(played.outcome.workers, played.groups, strict=True)):
            assert worker in ranks_of
            assert honest(worker, j).tobytes() == played.outcome.uploads[j].vector.tobytes()


@pytest.mark.parametrize(("n", "s", "r"), SIZES)
def test_nobody_lies_one_round_and_one_vector_a_group(n: int, s: int, r: int | None) -> None:
    built = protocol(n, s, r=r)
    played = play(built, court(n, s), Band((), honest), collude)
    assert (played.rounds, played.vectors, played.other_bytes) == (1, built.partitions, 32 * (n - built.partitions))
    assert played.vectors * (r or 2 * s + 1) <= n
    assert played.outcome.suspects == ()


def test_groups_and_uploaders_are_drawn_anew_at_each_step_and_evenly() -> None:
    built, uploads, apart = protocol(6, 1), Counter[int](), set()
    drawn = court(6, 1)
    for _ in range(300):
        played = play(built, drawn, Band((), honest), collude)
        uploads.update(played.outcome.workers)
        apart.add(frozenset(frozenset(ranks) for ranks in played.groups))
    assert len(apart) == 10  # all ways to make two groups of three of six workers
    assert min(uploads.values()) > 60 < max(uploads.values()) < 140  # of 100 each


def test_the_workers_of_one_machine_are_spread_over_the_groups() -> None:
    drawn = court(6, 1)
    drawn.nodes = ["a", "a", "b", "b", "c", "c"]
    for _ in range(20):
        played = play(protocol(6, 1), drawn, Band((), honest), collude)
        assert all(len({drawn.nodes[rank - 1] for rank in ranks}) == 3 for ranks in played.groups)


@pytest.mark.parametrize(("n", "s"), [(3, 1), (7, 1), (5, 2), (6, 2)])
def test_a_step_is_taken_where_absent_and_suspects_are_at_most_s_or_others_can_be_asked(n: int, s: int) -> None:
    built, taken, replaced = protocol(n, s), 0, 0
    for missing in range(1, s + 2):
        for gone in itertools.combinations(range(1, n + 1), missing):
            drawn = court(n, s)
            drawn.absent = set(gone[:1])  # known before the step; the others are only late
            liar = next(rank for rank in range(1, n + 1) if rank not in gone)
            groups = play(built, court(n, s), Band((), honest), collude).groups  # of the same generator
            crowded = any(len({*ranks} & {*gone, liar}) > s for ranks in groups)
            late = partial(lambda late, ask, _: ask.worker in late, gone[1:])
            if not crowded or len(groups) > 1:
                played = play(built, drawn, Band((liar,), honest), collude, late)
                assert played.outcome.suspects == (liar,)
                assert [u.vector.tobytes() for u in played.outcome.uploads] == [
                    honest(0, j).tobytes() for j in range(len(groups))
                ]
                assert not crowded or played.rounds > 1
                taken, replaced = taken + 1, replaced + crowded
            else:
                with pytest.raises(WorkerError, match=r"step 1: of the \d workers of partition \d some are missing"):
                    play(built, drawn, Band((liar,), honest), collude, late)
    assert taken or n == 3  # where one absent worker and a liar are in one group
    assert replaced or n != 7


def test_who_claims_the_truth_and_is_late_with_it_is_passed_over() -> None:
    # The liar uploads: of the two others the first that is asked is late.
    late: list[int] = []

    def first_is_late(ask: Ask, number: int) -> bool:
        if number == 2:
            late.append(ask.worker)
        return number == 2

    seed = next(
        seed for seed in range(50) if play(protocol(3, 1), court(3, 1, seed), Band((1,), honest), collude).rounds == 2
    )
    played = play(protocol(3, 1), court(3, 1, seed), Band((1,), honest), collude, first_is_late)
    assert played.rounds == 3
    assert played.outcome.workers[0] not in {1, *late}
    with pytest.raises(WorkerError, match="nobody who claims what won sends it"):
        play(protocol(3, 1), court(3, 1, seed), Band((1,), honest), collude, lambda ask, number: number > 1)


def test_more_liars_than_s_are_an_error_that_names_the_group() -> None:
    with pytest.raises(DecodeError, match=r"repetition: group 0 \(workers \[1, 2, 3\]\): .* classes of \[1, 1, 1\]"):
        play(protocol(3, 1), court(3, 1), Band((1, 2), honest), ATTACKS["split"])
    with pytest.raises(DecodeError, match="0 missing and 3 suspects are too many"):
        play(protocol(7, 2, r=7), court(7, 2), Band((1, 2, 3), honest), ATTACKS["split"])


def test_an_equivocator_is_a_suspect_only_where_it_was_caught() -> None:
    """Whoever claims the truth and is never asked for it has told the truth."""
    caught = Counter[int]()
    for seed in range(40):
        band = Band((1, 2), honest)
        played = play(protocol(5, 2), court(5, 2, seed), band, equivocate)
        expected = band.equivocated | {r for r, v in band.replies.items() if v.tobytes() != honest(r, 0).tobytes()}
        assert {*played.outcome.suspects} == expected
        caught[len(expected)] += 1
    assert {*caught} == {0, 1, 2}


def test_an_upload_counts_by_its_digest_and_vectors_are_opaque() -> None:
    step = protocol(3, 1).step(court(3, 1), 4, None)
    asks = next(step)
    assert [ask.send for ask in asks] == ["vector", "digest", "digest"]
    with pytest.raises(StopIteration) as end:
        step.send({ask: Upload(b"x" * 32, object()) if ask.send == "vector" else b"x" * 32 for ask in asks})
    assert end.value.value.workers == (asks[0].worker,)
    assert isinstance(answer_with(honest(1, 0), asks[1]), bytes)
