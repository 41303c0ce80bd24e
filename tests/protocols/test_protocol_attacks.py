"""Whole runs against every attacker: exact modes are exact, nobody honest is expelled, and lies cost their authors."""

import pytest

from benchmarks import protocols
from benchmarks.protocol_attacks import ATTACKS
from benchmarks.protocol_runs import simulate
from benchmarks.protocols import Case, tally

SIZES = ((3, 1), (5, 1), (5, 2), (7, 3), (9, 2), (11, 4))


@pytest.mark.parametrize("attack", ATTACKS)
def test_exact_protocols_give_the_model_of_the_run_without_attackers(attack: str) -> None:
    for seed, (n, s) in enumerate(SIZES * 2):
        for case in (Case(None, n, s), Case(s, n, s)):
            run = simulate(case.build, n, s, attack, seed)
            assert not run.wrong, (case, seed)
            assert not run.honest_expelled, (case, seed)
            assert run.uploads < 1.2


@pytest.mark.parametrize("attack", ["always", "tiny", "alone", "waste", "garbage", "equivocate"])
def test_who_lies_and_is_found_lowers_the_price(attack: str) -> None:
    for case in (Case(None, 9, 2), Case(2, 9, 2)):
        run = simulate(case.build, 9, 2, attack, seed=3, steps=60, away=0)
        assert run.liars_expelled == 2
        assert run.copies < 1.6


def test_costs_without_attackers_are_as_announced() -> None:
    for case, copies in ((Case(None, 15, 2), 3.0), (Case(2, 15, 2), 3.0), (Case(1, 15, 2), 2.0)):
        run = simulate(case.build, 15, 2, "honest", seed=3, steps=20, away=0)
        assert run.copies == copies
        assert run.uploads == pytest.approx(13 / 15)
        assert not run.undone


def test_the_benchmark_counts_what_its_runs_come_to() -> None:
    found = tally((Case(1, 5, 2), "collude", 30))
    assert (found.runs, found.honest_expelled) == (30, 0)
    assert 0 < found.wrong < 30 * Case(1, 5, 2).bound + 12
    rows = list(protocols.rows(quick=True))
    assert {row.what for row in rows} >= {"gradients: reactive, nobody lies", "bytes up: verified, a=2, all s lie"}
    assert all(row.verdict == "met" for row in rows if row.target)
    assert all(row.ratio < 1.3 for row in rows if row.target is None)
