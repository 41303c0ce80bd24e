"""Whole runs against every attacker: exact modes are exact, nobody honest is expelled, and lies cost their authors."""

import pytest

from benchmarks import protocols
from benchmarks.protocol_attacks import ATTACKS
from benchmarks.protocol_runs import simulate
from benchmarks.protocols import BOLD, SAMPLE, Case, tally

SIZES = ((3, 1), (5, 1), (5, 2), (7, 3), (9, 2), (11, 4))


@pytest.mark.parametrize("attack", ATTACKS)
def test_exact_protocols_give_the_model_of_the_run_without_attackers(attack: str) -> None:
    for seed, (n, s) in enumerate(SIZES * 2):
        for case in (Case(None, n, s), Case(s, n, s), Case(s, n, s, checked=True)):
            run = simulate(case.build, n, s, attack, seed)
            assert not run.wrong, (case, seed)
            assert not run.honest_expelled, (case, seed)
            assert run.uploads < 1.2


@pytest.mark.parametrize("attack", ATTACKS)
def test_by_sample_no_more_false_vectors_are_used_than_expected_and_nobody_honest_is_expelled(attack: str) -> None:
    """In 40 runs of 12 steps, and also where most workers lie; within four deviations of the mean."""
    for n, s in ((5, 3), (7, 2)):
        case = Case(None, n, s, checked=True)
        runs = [simulate(case.build, n, s, attack, seed, 12) for seed in range(40)]
        assert not sum(run.honest_expelled for run in runs)
        deviation = (s * (1 - SAMPLE) / SAMPLE**2 / len(runs)) ** 0.5
        assert sum(run.false for run in runs) / len(runs) < case.most_false + 4 * deviation
        assert not any(run.wrong and not run.false for run in runs)


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize(("n", "s"), BOLD)
def test_as_many_drawn_verifiers_as_liars_are_exact_for_any_s_below_n(n: int, s: int, attack: str) -> None:
    case = Case(s, n, s, checked=True)
    runs = [simulate(case.build, n, s, attack, seed, 12) for seed in range(6)]
    assert not sum(run.honest_expelled for run in runs)
    assert not sum(run.wrong for run in runs)


@pytest.mark.parametrize("attack", ["collude", "linger", "approve", "campaign", "burst"])
def test_with_fewer_drawn_verifiers_runs_are_wrong_no_more_often_than_the_start_says(attack: str) -> None:
    """Within four deviations; with one of 9 workers absent two verifiers are drawn, which are exact."""
    case, runs = Case(1, 9, 2, checked=True), 150
    found = [simulate(case.build, 9, 2, attack, seed, 12, away=0) for seed in range(runs)]
    assert not sum(run.honest_expelled for run in found)
    deviation = (case.bound * (1 - case.bound) * runs) ** 0.5
    assert 0 < sum(run.wrong for run in found) < case.bound * runs + 4 * deviation
    without = [simulate(case.build, 9, 2, attack, seed, 12, away=4) for seed in range(20)]
    assert not sum(run.wrong or run.honest_expelled for run in without)


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
