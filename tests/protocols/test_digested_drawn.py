"""The repetition code with digests under attackers and delays that are drawn anew for every single answer."""

from functools import partial

import numpy as np
import pytest
from in_groups import ATTACKS, Attack, Band, Vector, court, play, protocol
from test_digested_tolerance import MORE, WITHIN, distance, honest

from draco.errors import WorkerError
from draco.protocols.rounds import Answer, Ask

RUNS = 60


def alike(rank: int, partition: int) -> Vector:
    return honest(0, partition)


def drawn_attack(source: np.random.Generator) -> Attack:
    """Return an attacker who takes up another attack for each answer, or the truth, or nothing."""
    known = [*ATTACKS.values(), *MORE.values()]

    def attack(band: Band, ask: Ask) -> Answer:
        choice = int(source.integers(len(known) + 1))
        answer = None if choice == len(known) else known[choice](band, ask)
        return answer if ask.send == "digest" or not isinstance(answer, bytes) else None

    return attack


def is_late(source: np.random.Generator, share: float, ask: Ask, number: int) -> bool:
    del ask, number
    return bool(source.random() < share)


@pytest.mark.parametrize("within", [None, WITHIN])
@pytest.mark.parametrize("part", range(2))
def test_no_drawn_attack_makes_a_step_wrong_or_an_honest_worker_suspect(part: int, within: float | None) -> None:
    taken = wrong_bits = 0
    for number in range(RUNS):
        source = np.random.default_rng([part, number, within is None])
        s = int(source.integers(1, 4))
        n = int(source.integers(2 * s + 1, 13))
        ranks = tuple(sorted(int(rank) for rank in source.permutation(np.arange(1, n + 1))[: source.integers(s + 1)]))
        true = alike if within is None else honest
        band = Band(ranks, true)
        late = float(source.choice([0.0, 0.0, 0.1]))
        drawn = court(n, s, number)
        built = protocol(n, s, within=within)
        try:
            played = play(built, drawn, band, drawn_attack(source), partial(is_late, source, late))
        except WorkerError:
            assert late  # honest workers were missing
            continue
        taken += 1
        assert {*played.outcome.suspects} <= {*ranks}
        for j, upload in enumerate(played.outcome.uploads):
            off = distance(upload.vector, true(0, j))
            assert off == 0 if within is None else off <= WITHIN
            wrong_bits += off > 0
    assert taken > 0.8 * RUNS
    assert wrong_bits or within is None
