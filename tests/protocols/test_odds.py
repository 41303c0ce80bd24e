"""The odds of a surviving lie: against all draws, all strategies of a small game, and simulated attackers."""

from functools import cache
from itertools import combinations
from math import comb, sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.protocol_runs import simulate
from draco.protocols.odds import failure_probability, least_verifiers, sigma, verifiers_for
from draco.protocols.verified import verified


@pytest.mark.parametrize("n", range(3, 10))
def test_sigma_is_the_share_of_draws_in_which_all_verifiers_collude(n: int) -> None:
    for s in range(1, (n - 1) // 2 + 1):
        for a in range(s + 1):
            draws = list(combinations(range(1, n), a))  # worker 0 lies, and so do 1..s-1
            colluding = sum(all(verifier < s for verifier in draw) for draw in draws)
            assert sigma(n, s, a) == pytest.approx(colluding / len(draws), abs=1e-15)


@cache
def best(n: int, s: int, a: int) -> float:
    """Return the most that liars reach who may try, alone or several at once, or burn identities without a try.

    A try of several survives only if each of its lies does, and fails at the cost of one identity or more.
    """
    if s == 0:
        return 0.0
    reached = 0.0
    for lost in range(1, s + 1):
        rest = best(n - lost, s - lost, a)
        survive = sigma(n, s, min(a, s))
        reached = max(reached, rest, survive + (1 - survive) * rest)
    return reached


@pytest.mark.parametrize("n", range(3, 16))
def test_no_strategy_of_tries_and_sacrifices_beats_the_bound(n: int) -> None:
    for s in range(1, (n - 1) // 2 + 1):
        for a in range(1, s + 1):
            assert failure_probability(n, s, a) == pytest.approx(best(n, s, a), abs=1e-12)


def test_the_odds_of_known_sizes() -> None:
    known = {(15, 2, 1): 7.1e-2, (45, 5, 2): 1.1e-2, (45, 5, 4): 7.4e-6, (100, 5, 3): 3.2e-5, (1000, 10, 4): 6.1e-9}
    for (n, s, a), odds in known.items():
        assert failure_probability(n, s, a) == pytest.approx(odds, rel=0.02)
    assert failure_probability(45, 5, 5) == failure_probability(9, 0, 0) == 0
    assert failure_probability(45, 5, 2) < failure_probability(45, 5, 2, absent=5) < 1.5e-2


@given(st.integers(0, 6), st.integers(0, 60), st.floats(1e-12, 0.9))
def test_the_least_number_of_verifiers_is_the_least(s: int, more: int, delta: float) -> None:
    n = 2 * s + 1 + more
    least = least_verifiers(n, s, delta)
    assert failure_probability(n, s, least) <= delta
    assert all(failure_probability(n, s, fewer) > delta for fewer in range(least))


@given(st.integers(1, 8), st.integers(1, 8), st.integers(0, 40), st.integers(0, 40))
def test_fewer_others_get_more_verifiers_and_no_worse_odds(lies: int, verifiers: int, more: int, fewer: int) -> None:
    nominal = lies + more
    others = max(nominal - fewer, 0)
    drawn = verifiers_for(others, lies, nominal, verifiers)
    assert min(verifiers, lies) <= drawn <= lies
    promised = comb(lies - 1, min(verifiers, lies)) / comb(nominal, min(verifiers, lies))
    if drawn < lies:
        assert comb(lies - 1, drawn) / comb(others, drawn) <= promised * (1 + 1e-12)
    if drawn > min(verifiers, lies):
        assert others < nominal
        one_less = comb(others, drawn - 1)
        assert one_less == 0 or comb(lies - 1, drawn - 1) / one_less > promised * (1 - 1e-12)


@pytest.mark.parametrize(
    ("n", "s", "a", "attack"),
    [(7, 3, 1, "collude"), (9, 4, 2, "collude"), (7, 3, 1, "linger"), (7, 3, 1, "burst"), (7, 3, 1, "campaign")],
)
def test_attackers_who_see_all_draws_reach_the_bound_and_do_not_pass_it(n: int, s: int, a: int, attack: str) -> None:
    runs, bound = 200, failure_probability(n, s, a)
    results = [
        simulate(lambda: verified(workers=n, adversaries=s, verifiers=a), n, s, attack, seed, steps=12, away=0)
        for seed in range(runs)
    ]
    share = sum(run.wrong for run in results) / runs
    error = sqrt(bound * (1 - bound) / runs)
    assert share <= bound + 4 * error
    if attack == "collude":
        assert share >= bound - 4 * error, "the bound is no looser than it must be"
    assert not sum(run.honest_expelled for run in results)


def test_the_promise_holds_with_workers_that_are_late_absent_or_without_the_model() -> None:
    n, s, a, runs = 11, 3, 1, 200
    bound = failure_probability(n, s, a, absent=s)
    share = sum(
        simulate(lambda: verified(workers=n, adversaries=s, verifiers=a), n, s, "collude", seed, steps=10).wrong
        for seed in range(runs)
    )
    assert share / runs <= bound + 4 * sqrt(bound * (1 - bound) / runs)
