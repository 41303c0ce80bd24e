"""The repetition code with sketches, for workers whose bits differ: attackers who know it, and its one-round twin."""

import itertools
from functools import partial

import numpy as np
import pytest
import torch
from in_groups import ATTACKS, Attack, Band, Vector, answer_with, collude, court, digest, play, protocol

from draco.errors import DecodeError, WorkerError
from draco.protocols.rounds import Answer, Ask, Rejected, Upload
from draco.protocols.sketch import COUNT, sketch
from draco.schemes import build

D = 500
WITHIN = 2e-6


def honest(rank: int, partition: int) -> Vector:
    """Return what worker `rank` computes: the bits of each are others."""
    true = np.random.default_rng(partition).standard_normal(D)
    return (true * (1 + 2e-7 * np.random.default_rng(100 + rank).standard_normal(D))).astype(np.float32)


def distance(a: Vector, b: Vector) -> float:
    """Return the relative distance."""
    return float(np.linalg.norm(a.astype(float) - b) / np.linalg.norm(b.astype(float)))


def adapt(band: Band, ask: Ask) -> Answer:
    """Commit to a lie, answer with the sketch that is nearest to all honest ones, and upload what fits this sketch."""
    truth = np.mean([band.honest(rank, ask.partition) for rank in range(1, 6)], axis=0)
    if ask.send == "digest":
        return digest(band.lie(ask.partition))
    if ask.send == "sketch":
        band.replies[ask.worker] = truth
        return sketch(truth, ask.seed)
    if ask.worker in band.replies:
        band.equivocated.add(ask.worker)
        fits = truth + 1  # it does not with so few numbers, and the server may not look at that
        return Upload(digest(fits), fits)
    return answer_with(band.lie(ask.partition), ask)


def change(band: Band, ask: Ask) -> Answer:
    """Commit to a lie and stand by it when asked for it, after having answered with the sketch of the truth."""
    if ask.send == "sketch":
        return sketch(band.honest(ask.worker, ask.partition), ask.seed)
    return answer_with(band.own_lie(ask.worker, ask.partition), ask)


def back(band: Band, ask: Ask) -> Answer:
    """Upload or commit to the truth, and let one of them upload a lie that all others back by its sketch."""
    lie = band.lie(ask.partition)
    return Upload(digest(lie), lie) if ask.send == "vector" else answer_with(lie, ask)


def pose(band: Band, ask: Ask) -> Answer:
    """Claim to be near everybody, by a norm beyond all others."""
    if ask.send == "sketch":
        return (*sketch(band.lie(ask.partition), ask.seed)[:-1], 1e30)
    return answer_with(band.lie(ask.partition), ask)


def garble(band: Band, ask: Ask) -> Answer:
    if ask.send == "sketch":
        return (float("nan"),) * (COUNT * COUNT + ask.worker % 2)
    return answer_with(band.lie(ask.partition), ask)


def hold_back(band: Band, ask: Ask) -> Answer:
    return Rejected("its payload is too long") if ask.send == "sketch" else answer_with(band.lie(ask.partition), ask)


MORE: dict[str, Attack] = {f.__name__: f for f in (adapt, change, back, pose, garble, hold_back)}


@pytest.mark.parametrize("name", [*ATTACKS, *MORE])
@pytest.mark.parametrize(("n", "s"), [(3, 1), (5, 2), (7, 1)])
def test_what_wins_is_near_an_honest_vector_and_no_honest_worker_is_suspected(n: int, s: int, name: str) -> None:
    built = protocol(n, s, within=WITHIN)
    for seed, ranks in enumerate(itertools.combinations(range(1, n + 1), s)):
        band = Band(ranks, honest)
        played = play(built, court(n, s, seed), band, (ATTACKS | MORE)[name])
        for j, upload in enumerate(played.outcome.uploads):
            assert distance(upload.vector, honest(0, j)) <= WITHIN
        assert {*played.outcome.suspects} <= {*ranks}
        assert played.rounds <= 3 + s
        assert played.vectors <= built.partitions + 2 * s
        if name in {"collude", "split", "back", "pose", "garble", "spoil", "hold_back"}:  # all lie, and stay with it
            assert {*played.outcome.suspects} == {*ranks}


def test_bits_that_differ_cost_one_round_of_sketches_and_bits_that_do_not_cost_none() -> None:
    built = protocol(6, 1, within=WITHIN)
    played = play(built, court(6, 1), Band((), honest), collude)
    assert (played.rounds, played.vectors, played.outcome.suspects) == (2, 2, ())
    played = play(built, court(6, 1), Band((), lambda rank, j: honest(0, j)), collude)
    assert (played.rounds, played.vectors, played.outcome.suspects) == (1, 2, ())


@pytest.mark.parametrize("tolerances", [5, 7, 100])
def test_a_lie_of_5_tolerances_is_found_though_colluders_back_it(tolerances: float) -> None:
    truth = honest(0, 0).astype(float)
    built, found = protocol(5, 2, within=WITHIN), 0
    for seed in range(8):
        lie = truth.copy()
        lie[seed] += tolerances * WITHIN * np.linalg.norm(truth)
        tell = partial(answer_with, lie.astype(np.float32))
        played = play(built, court(5, 2, seed), Band((1, 4), honest), lambda _, ask: tell(ask))  # noqa: B023
        assert played.outcome.suspects == (1, 4)
        assert distance(played.outcome.uploads[0].vector, honest(0, 0)) <= WITHIN
        found += played.rounds == 3
    assert found  # a liar had been drawn to upload


@pytest.mark.parametrize("name", ["collude", "split", "cover"])
def test_suspects_are_those_of_the_vote_within_a_tolerance(name: str) -> None:
    for seed, ranks in enumerate(itertools.combinations(range(1, 6), 2)):
        band = Band(ranks, honest)
        played = play(protocol(5, 2, within=WITHIN), court(5, 2, seed), band, ATTACKS[name])
        scheme = build("repetition", workers=5, adversaries=2, vote="tolerance", tolerance=WITHIN)
        replies = [band.replies.get(rank, honest(rank, 0)) for rank in range(1, 6)]
        decoded = scheme.decode(torch.from_numpy(np.stack(replies)))
        assert played.outcome.suspects == tuple(row + 1 for row in decoded.suspects)
        assert distance(played.outcome.uploads[0].vector, decoded.gradients[0].numpy()) <= WITHIN


def test_the_seed_is_drawn_after_the_commitments_and_is_another_one_at_each_step_and_group() -> None:
    drawn, seeds = court(6, 1), []
    for number in range(2):
        step = protocol(6, 1, within=WITHIN).step(drawn, number, None)
        asks = next(step)
        assert {ask.send for ask in asks} == {"vector", "digest"}
        assert not any(ask.seed for ask in asks)
        before = drawn.generator.bit_generator.state
        second = step.send({ask: answer_with(honest(ask.worker, ask.partition), ask) for ask in asks})
        assert drawn.generator.bit_generator.state != before
        assert {ask.send for ask in second} == {"sketch"}
        assert len(second) == 4  # the server makes the sketch of an upload
        seeds += [ask.seed for ask in second]
    assert len({*seeds}) == 4


def test_a_vector_that_fits_a_sketch_is_not_taken_unless_it_was_committed_to() -> None:
    """The attack for which there are commitments: whoever knows the seed can change what the sketch does not see."""
    caught = 0
    for seed in range(12):
        band = Band((1, 2), honest)
        played = play(protocol(5, 2, within=WITHIN), court(5, 2, seed), band, adapt)
        assert played.outcome.workers[0] in {3, 4, 5}
        assert band.equivocated <= {*played.outcome.suspects}
        caught += bool(band.equivocated)
    assert caught


def test_absent_workers_count_as_suspects_do_and_one_late_with_its_sketch_is_absent() -> None:
    built = protocol(5, 2, within=WITHIN)
    one = Band((1,), honest)
    played = play(built, court(5, 2), one, collude, lambda ask, _: ask.send == "sketch" and ask.worker == 3)
    assert played.outcome.suspects == (1,)
    with pytest.raises(WorkerError, match=r"some are missing \(3, 4\), and repetition cannot do without: no 3"):
        play(built, court(5, 2), Band((1,), honest), collude, lambda ask, _: ask.worker in {3, 4})
    with pytest.raises(DecodeError, match=r"no 2 of the 3 replies that arrived are mutually within 2e-06"):
        play(protocol(3, 1, within=WITHIN), court(3, 1), Band((1, 2), honest), ATTACKS["split"])


def test_who_takes_the_place_of_an_absent_worker_commits_before_a_new_seed_is_drawn() -> None:
    built, seeds, replaced = protocol(7, 1, within=WITHIN), set[tuple[int, int]](), 0

    def late(ask: Ask, number: int) -> bool:
        if ask.send == "sketch":
            seeds.add((number, ask.seed))
        return ask.worker in {2, 3}

    for seed in range(10):
        seeds.clear()
        played = play(built, court(7, 1, seed), Band((1,), honest), collude, late)
        assert played.outcome.suspects == (1,)
        for j, upload in enumerate(played.outcome.uploads):
            assert distance(upload.vector, honest(0, j)) <= WITHIN
        rounds = {number for number, _ in seeds}
        assert len({seed for _, seed in seeds}) == len(seeds)  # every round of sketches has a seed of its own
        replaced += len(rounds) > 1
    assert replaced
