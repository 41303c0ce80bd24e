"""Bounds of the rules: what f arbitrary rows can do, how results move with the rows, and that byzfl gives the same."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from aggregator_twins import centered_clipping_twin, most_f, rows_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from benchmarks import peers
from draco.aggregators import AGGREGATORS, PRE_AGGREGATORS


def attacked(n: int, f: int, size: float, seed: int) -> Tensor:
    """n - f honest rows, then f that are anywhere within `size`, some of them together."""
    gradients = rows_of(n, 40, seed=seed, common=2)
    bad = size * rows_of(f, 40, seed=seed + 1)
    gradients[n - f :] = bad[: 1 if seed % 2 else f]
    return gradients


def bound(name: str, n: int, f: int, honest: Tensor) -> float:
    """How far from the honest rows' mean a rule may be, by the argument that is given."""
    centre = honest.mean(0)
    diameter, radius = float(torch.cdist(honest, honest).max()), float((honest - centre).norm(dim=1).max())
    if name == "geometric_median":  # Minsker 2015: C times the radius about any point
        return 2 * (n - f) / (n - 2 * f) * radius
    if name in ("krum", "multi_krum"):  # a score at most an honest one's; n - 2f - 1 of the neighbours are honest
        return diameter * (1 + math.sqrt((n - f - 2) / (n - 2 * f - 1)))
    if name == "smea":  # two subsets, of eigenvalues at most the honest one's, with n - 2f rows in common
        eigenvalue = float(torch.linalg.matrix_norm(honest - centre, 2)) ** 2 / len(honest)
        return 2 * math.sqrt(eigenvalue * f / (n - 2 * f))
    if name == "bulyan":  # in every coordinate no further from the median than an honest value
        return 2 * float((honest.max(0).values - honest.min(0).values).norm())
    return 2 * diameter  # mda, monna: every row that is averaged is that near to an honest one


@given(
    st.sampled_from(["geometric_median", "krum", "multi_krum", "mda", "smea", "monna", "bulyan"]),
    st.integers(5, 14), st.integers(1, 4), st.sampled_from([0.1, 1.0, 3.0, 30.0, 1e5]), st.integers(0, 999),
)  # fmt: skip
@settings(max_examples=120, deadline=None)
def test_f_arbitrary_rows_move_a_rule_by_no_more_than_its_bound(
    name: str, n: int, f: int, size: float, seed: int
) -> None:
    f = most_f(name, n, f)
    gradients = attacked(n, f, size, seed)
    honest = gradients[: n - f]
    moved = float((AGGREGATORS[name](gradients, f=f) - honest.mean(0)).norm())
    assert moved <= bound(name, n, f, honest) * (1 + 1e-5) + 1e-5


@given(st.sampled_from(sorted(AGGREGATORS)), st.integers(3, 12), st.integers(0, 3), st.integers(0, 999))
@settings(max_examples=100, deadline=None)
def test_rules_move_and_grow_with_their_rows(name: str, n: int, f: int, seed: int) -> None:
    f = most_f(name, n, f)
    gradients = rows_of(n, 30, seed=seed).double()
    result, shift = AGGREGATORS[name](gradients, f=f), 5 * rows_of(1, 30, seed=seed + 1).double()
    if name not in ("cge", "centered_clipping", "sign_majority"):  # which look at the rows from zero
        torch.testing.assert_close(AGGREGATORS[name](gradients + shift, f=f), result + shift[0], rtol=1e-6, atol=1e-6)
    if name not in ("centered_clipping", "sign_majority"):
        torch.testing.assert_close(AGGREGATORS[name](8 * gradients, f=f), 8 * result, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("iterations", [1, 2, 7])
@pytest.mark.parametrize("d", [40, 9000])
def test_centered_clipping_equals_its_twin_and_f_rows_move_a_step_by_little(iterations: int, d: int) -> None:
    gradients, centre, tau = rows_of(9, d, common=2), rows_of(1, d, seed=4)[0], 0.7 * math.sqrt(d)
    options: dict[str, Any] = {"tau": tau, "iterations": iterations, "centre": centre}
    result = AGGREGATORS["centered_clipping"](gradients, f=2, **options)
    expected = centered_clipping_twin(gradients, 2, **options)
    assert np.linalg.norm(result.numpy() - expected) < 1e-6 * np.linalg.norm(expected)
    gradients[:2] = 1e30
    moved = AGGREGATORS["centered_clipping"](gradients, f=2, **options) - result
    assert moved.norm() <= iterations * 2 * 2 * tau / 9 * (1 + 1e-5)


def test_options_out_of_range_are_refused() -> None:
    gradients = rows_of(9, 50)
    for name, options, words in (
        ("centered_clipping", {"tau": 0.0}, "tau must be above 0"),
        ("centered_clipping", {"centre": torch.zeros(3)}, r"must be \(50,\)"),
        ("centered_clipping", {"centre": torch.full((50,), math.nan)}, "centre holds NaN"),
        ("monna", {"reference": 9}, "must be a row, 0 to 8"),
        ("monna", {"reference": torch.full((50,), math.inf)}, "reference holds NaN"),
        ("multi_krum", {"m": 8}, "m must be at most m - f = 7 of m = 9 gradients, got 8"),
        ("krum", {"neighbours": 7}, "neighbours must be at most m - f - 1 = 6 of m = 9 gradients, got 7"),
        ("geometric_median", {"nu": -1.0}, "nu must be at least 0.0 and at most 1e\\+30, got -1.0"),
    ):
        with pytest.raises(ValueError, match=words):
            AGGREGATORS[name](gradients, f=2, **options)
    with pytest.raises(ValueError, match="looks at 30045015 subsets of 30 gradients; the most is 100000"):
        AGGREGATORS["smea"](rows_of(30, 5), f=10)


def test_a_search_for_a_subset_that_is_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("draco.aggregators.mda.BRANCHES", 0)
    with pytest.raises(ValueError, match="no subset found in 0 branches"):
        AGGREGATORS["mda"](rows_of(30, 50), f=10)


@pytest.mark.parametrize("seed", range(3))
def test_byzfl_gives_the_same(seed: int) -> None:
    """Where it follows the paper; without NaN and ties, and on a copy, since it overwrites what it clips."""
    theirs, pre = peers.load("byzfl.aggregators.aggregators"), peers.load("byzfl.aggregators.preaggregators")
    n, f = (11, 20, 9)[seed], (2, 3, 4)[seed]
    gradients = rows_of(n, 5000, seed=seed, common=3)
    gradients[:f] *= 1.5
    pairs = [
        (AGGREGATORS["krum"](gradients, f=f, neighbours=n - f - 1) if n >= 2 * f + 3 else None, theirs.Krum(f)),
        (AGGREGATORS["multi_krum"](gradients, f=f, neighbours=n - f - 1) if n >= 2 * f + 3 else None,
         theirs.MultiKrum(f)),
        (AGGREGATORS["mda"](gradients, f=f), theirs.MDA(f)),
        (AGGREGATORS["monna"](gradients, f=f, reference=n - 1), theirs.MoNNA(f, n - 1)),
        (AGGREGATORS["centered_clipping"](gradients, tau=90.0), theirs.CenteredClipping(tau=90.0)),
        (AGGREGATORS["centered_clipping"](gradients, tau=90.0, iterations=4), theirs.CenteredClipping(L=4, tau=90.0)),
        (AGGREGATORS["geometric_median"](gradients, nu=0.1), theirs.GeometricMedian(nu=0.1, T=100)),
        (AGGREGATORS["geometric_median"](gradients, nu=300.0), theirs.GeometricMedian(nu=300.0, T=100)),
        (PRE_AGGREGATORS["nnm"](gradients, f=f), pre.NNM(f)),
        (PRE_AGGREGATORS["clipping"](gradients, f=f, c=200.0), pre.Clipping(200.0)),
        (PRE_AGGREGATORS["arc"](gradients, f=f), pre.ARC(f)),
    ]  # fmt: skip
    for own, rule in pairs:
        if own is not None:
            expected = rule(gradients.clone())
            assert (own - expected).norm() < 2e-6 * expected.norm(), type(rule).__name__
