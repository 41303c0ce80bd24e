"""Aggregators against slow obvious twins, and against rows that are hostile to the arithmetic."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from aggregator_twins import TWINS, feasible, geometric_median_twin, krum_twin, most_f, rows_of
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from draco.aggregators import AGGREGATORS, gram, per_layer
from draco.aggregators.rows import is_finite

ROBUST = sorted(set(AGGREGATORS) - {"mean"})
NAMES = sorted(AGGREGATORS)
# Groups of neighbouring rows; several subsets of the least diameter, of which the first in order is taken.
ANY_ORDER = sorted(set(NAMES) - {"median_of_means", "mda"})
SCALED = sorted(set(NAMES) - {"sign_majority"})  # the result is as large as the gradients


# What makes a rule comparable where its result depends on more than the rows: the rows in, options out.
OPTIONS: dict[str, Callable[[Tensor], dict[str, Any]]] = {
    "monna": lambda gradients: {"reference": gradients[5].clone()}
}


def options(name: str, gradients: Tensor) -> dict[str, Any]:
    return OPTIONS[name](gradients) if name in OPTIONS else {}


def distance(result: Tensor, expected: np.ndarray) -> float:
    """Relative distance between two vectors."""
    return float(np.linalg.norm(result.double().numpy() - expected) / np.linalg.norm(expected))


# --- every rule ----------------------------------------------------------------------------------------------------


def test_every_rule_has_a_twin() -> None:
    assert set(AGGREGATORS) == set(TWINS)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("n", "f", "d"), [(5, 1, 1000), (8, 2, 7), (9, 0, 40_000), (15, 3, 5000), (46, 10, 17_000)])
def test_a_rule_equals_its_twin(name: str, n: int, f: int, d: int) -> None:
    f = most_f(name, n, f)
    if not feasible(name, n, f):
        pytest.skip("too many subsets")
    if name == "bulyan":
        d = min(d, 10_000 // n)  # its twin would take minutes
    gradients = rows_of(n, d, seed=n)
    assert distance(AGGREGATORS[name](gradients, f=f), TWINS[name](gradients, f)) < 1e-6


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("d", [100, 9000])
def test_a_rule_keeps_its_input_and_takes_strided_rows(name: str, d: int) -> None:
    storage = rows_of(9, d + 50, common=10)
    gradients = storage[:, 20 : 20 + d]
    before, f, its = storage.clone(), most_f(name, 9, 2), options(name, gradients)
    result = AGGREGATORS[name](gradients, f=f, **its)
    assert torch.equal(storage, before)
    assert result.shape == (d,)
    assert result.dtype == torch.float32
    assert result.is_contiguous()
    assert torch.equal(result, AGGREGATORS[name](gradients.contiguous(), f=f, **its))
    result.zero_()  # it is not a view of a row
    assert torch.equal(storage, before)


@pytest.mark.parametrize("name", ANY_ORDER)
@pytest.mark.parametrize("d", [100, 9000])
def test_the_order_of_the_rows_does_not_matter(name: str, d: int) -> None:
    gradients = rows_of(9, d, common=10)
    f, its = most_f(name, 9, 2), options(name, gradients)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    permuted = AGGREGATORS[name](gradients[order], f=f, **its)
    torch.testing.assert_close(AGGREGATORS[name](gradients, f=f, **its), permuted, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("name", SCALED)
def test_equal_rows_are_returned_as_they_are(name: str) -> None:
    for d in (3, 6000):
        row = rows_of(1, d, common=1e-12)
        torch.testing.assert_close(AGGREGATORS[name](row.expand(11, d), f=2), row[0], rtol=3e-7, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_a_negative_f_and_what_are_no_gradients_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="it must be 0 or more"):
        AGGREGATORS[name](rows_of(9, 4), f=-1)
    with pytest.raises(ValueError, match=r"must be \(n, d\), float32 or float64"):
        AGGREGATORS[name](rows_of(9, 4)[0])
    with pytest.raises(ValueError, match=r"must be \(n, d\), float32 or float64"):
        AGGREGATORS[name](rows_of(9, 4).to(torch.complex64))


def test_minimums_are_the_papers() -> None:
    assert {name: rule.least(3) for name, rule in AGGREGATORS.items()} == {
        "mean": 1,
        "median": 7,
        "trimmed_mean": 7,
        "meamed": 7,
        "sign_majority": 7,
        "median_of_means": 7,
        "geometric_median": 7,
        "krum": 9,
        "multi_krum": 9,
        "bulyan": 15,
        "mda": 7,
        "smea": 7,
        "caf": 7,
        "centered_clipping": 7,
        "monna": 7,
        "cge": 7,
    }


@pytest.mark.parametrize("name", ROBUST)
@pytest.mark.parametrize("d", [50, 9000])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_rows_that_are_not_finite_are_dropped_and_f_is_reduced(name: str, d: int, value: float) -> None:
    f = 2
    gradients = rows_of(11, d)
    for bad in [(0,), (10,), (0, 1), (4, 9)]:
        spoilt = gradients.clone()
        spoilt[bad, -1] = value
        kept = [row for row in range(11) if row not in bad]
        its = options(name, gradients)
        expected = AGGREGATORS[name](gradients[kept], f=f - len(bad), **its)
        torch.testing.assert_close(AGGREGATORS[name](spoilt, f=f, **its), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "most"),
    [
        (name, 5 if name in ("median", "sign_majority", "geometric_median", "centered_clipping") else 2)
        for name in ROBUST
    ],
)
def test_too_many_rows_that_are_not_finite_are_refused(name: str, most: int) -> None:
    gradients = rows_of(11, 20)
    its = options(name, gradients)
    gradients[:most, 3] = math.nan
    assert torch.isfinite(AGGREGATORS[name](gradients, f=2, **its)).all()
    gradients[most] = math.inf
    with pytest.raises(ValueError, match=f"{most + 1} of 11 gradients hold NaN or Inf; the most it tolerates is"):
        AGGREGATORS[name](gradients, f=2, **its)


def test_the_mean_promises_nothing() -> None:
    gradients = rows_of(4, 3)
    gradients[0, 1] = math.nan
    assert torch.isnan(AGGREGATORS["mean"](gradients, f=1)).tolist() == [False, True, False]


@pytest.mark.parametrize("name", sorted(set(ROBUST) & set(SCALED)))
@pytest.mark.parametrize("d", [60, 6000])
@pytest.mark.parametrize("size", [1e4, 1e10, 1e19, 1e30, 3e38, 3.4028234e38])
def test_huge_rows_neither_win_nor_spoil_the_arithmetic(name: str, d: int, size: float) -> None:
    honest = rows_of(max(11, AGGREGATORS[name].least(4) - 4), d, common=100)
    centre = honest.mean(0)
    radius = (honest - centre).norm(dim=1).max()
    its = options(name, honest) if name != "centered_clipping" else {"tau": float(radius), "centre": centre}
    signs = torch.sign(rows_of(4, d, seed=3))
    sizes = torch.tensor([size, -size, size / 7, size * 1e-5])[:, None]
    for huge in (signs * sizes, signs[:1] * sizes, sizes.expand(4, d)):
        for place in (0, 11):
            gradients = torch.cat([honest[:place], huge, honest[place:]])
            result = AGGREGATORS[name](gradients, f=4, **its)
            if name == "cge":  # it keeps the short ones of the four, whatever their direction
                assert distance(result, TWINS[name](gradients, 4)) < 1e-6
            else:
                assert (result - centre).norm() <= 1.5 * radius


@pytest.mark.parametrize("name", sorted(set(ROBUST) - {"median", "trimmed_mean", "centered_clipping", "sign_majority"}))
@pytest.mark.parametrize("scale", [1e-37, 1e-25, 3e-23, 1e-12, 1e12, 1e25])
@pytest.mark.parametrize("d", [30, 6000])
def test_scale_does_not_matter(name: str, scale: float, d: int) -> None:
    gradients, f = rows_of(9, d), most_f(name, 9, 2)
    scaled = AGGREGATORS[name](gradients * scale, f=f).double() / scale
    assert distance(scaled, AGGREGATORS[name](gradients, f=f).double().numpy()) < 2e-6


@pytest.mark.parametrize("name", NAMES)
def test_float64_stays_float64(name: str) -> None:
    gradients, f = rows_of(9, 5000, common=1e4).double(), most_f(name, 9, 2)
    result = AGGREGATORS[name](gradients, f=f)
    assert result.dtype == torch.float64
    assert distance(result, TWINS[name](gradients, f)) < 1e-12


@pytest.mark.parametrize("name", ROBUST)
def test_honest_rows_near_the_end_of_float32_are_aggregated_as_any(name: str) -> None:
    """Their sums overflow, which does not make them Byzantine."""
    gradients, f = 1e37 * (5 + rows_of(9, 100)), most_f(name, 9, 2)
    assert distance(AGGREGATORS[name](gradients, f=f), TWINS[name](gradients, f)) < 1e-6


# --- krum ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "f"), [(26, 5), (45, 10), (45, 1)])
@pytest.mark.parametrize("d", [3000, 20_000])
def test_krum_selects_the_right_row_under_a_large_common_part(n: int, f: int, d: int) -> None:
    for seed in range(4):
        gradients = rows_of(n, d, seed=seed, common=3000)
        gradients[:f] += 0.3 * rows_of(1, d, seed=seed + 100)  # a little off: a sloppy distance would let them win
        if seed % 2:
            gradients[0] = 1e30
        assert torch.equal(AGGREGATORS["krum"](gradients, f=f), gradients[krum_twin(gradients, f)])


def test_krum_decides_near_ties_as_float64_does() -> None:
    for seed in range(10):
        gradients = rows_of(9, 6000, seed=seed)
        f = 2
        best = krum_twin(gradients, f)
        rival = gradients[best].clone()
        rival[0] += 1e-3  # the same score but for 1e-7 of it
        gradients = torch.cat([rival[None], gradients])
        assert torch.equal(AGGREGATORS["krum"](gradients, f=f), gradients[krum_twin(gradients, f)])


def test_krum_takes_the_first_of_equal_rows() -> None:
    gradients = torch.tensor([[9.0], [1.0], [1.0], [1.0], [2.0], [1.0]])
    scores_only = AGGREGATORS["krum"](gradients, f=1)
    assert scores_only.tolist() == [1.0]
    assert AGGREGATORS["krum"](torch.tensor([[0.0], [1.0], [2.0]]), f=0).tolist() == [0.0]


@pytest.mark.parametrize("value", [300.0, 1e4, 1e12])
def test_an_adversary_who_foresees_the_sample_gains_nothing(value: float) -> None:
    gradients = rows_of(15, 70_000)
    sampled = gram.sample(torch.arange(70_000)[None]).flatten()
    assert len(sampled.unique()) == gram.SAMPLE
    hidden = torch.ones(70_000, dtype=torch.bool)
    hidden[sampled] = False
    gradients[0] = gradients[1:].mean(0)
    gradients[0, hidden] = value
    assert torch.equal(AGGREGATORS["krum"](gradients, f=3), gradients[krum_twin(gradients, 3)])
    expected = geometric_median_twin(gradients, 3)
    assert distance(AGGREGATORS["geometric_median"](gradients, f=3), expected) < 1e-6


@pytest.mark.parametrize(("common", "about_zero"), [(0.0, True), (0.5, True), (1.0, True), (3.0, False), (1e4, False)])
@pytest.mark.parametrize("hidden", [False, True])
def test_products_about_zero_or_a_row_give_the_same_distances(
    monkeypatch: pytest.MonkeyPatch, common: float, about_zero: bool, hidden: bool
) -> None:
    """Also where the common part is not in the sample from which the choice is made."""
    gradients = torch.randn(15, 70_000, generator=torch.Generator().manual_seed(3))
    part = torch.full((70_000,), common)
    if hidden:
        part[gram.sample(torch.arange(70_000)[None]).flatten()] = 0
    gradients += part
    used = []
    whole = gram.products
    monkeypatch.setattr(gram, "products", lambda *given: used.append(given[2:]) or whole(*given))
    found = gram.squared_distances(gram.finite_gram(AGGREGATORS["krum"], gradients, 3, tolerated=3)[1])
    assert (used[1] == (None, np.float32)) == (about_zero or hidden)
    assert (used[-1][1] == np.float64) == (hidden and not about_zero)
    exact = gram.squared_distances(whole(gradients, list(range(15)), 0, np.float64))
    assert np.abs(found - exact).max() <= 3e-6 * exact.max()


def test_a_tie_of_equal_rows_is_certain_and_a_near_tie_is_not() -> None:
    assert gram.least(np.array([3.0, 1.0, 1.0, 2.0]), 1) == ([1], True)
    assert gram.least(np.array([3.0, 1.0, 1.0 + 1e-9, 2.0]), 1) == ([1], False)
    assert gram.least(np.array([0.0, 0.0, 0.0, 2.0]), 2) == ([0, 1], True)


# --- geometric median ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "d"), [(3, 2), (5, 100), (8, 3), (15, 6000), (26, 9000), (45, 5000)])
@pytest.mark.parametrize("common", [0.0, 300.0])
def test_the_geometric_median_agrees_with_hdmedians(n: int, d: int, common: float) -> None:
    gradients = rows_of(n, d, seed=d, common=common)
    gradients[: (n - 1) // 3] *= -100
    own = AGGREGATORS["geometric_median"](gradients)
    options = {"backend": "hdmedians", "tol": 1e-10, "max_iterations": 2000}
    theirs = AGGREGATORS["geometric_median"](gradients.double(), **options)
    assert distance(own, theirs.numpy()) < 1e-6
    gradients[0] = math.nan
    assert torch.isfinite(AGGREGATORS["geometric_median"](gradients, backend="hdmedians")).all()


@pytest.mark.parametrize("d", [50, 6000])
def test_the_pull_of_a_huge_row_is_the_same_as_of_any_row_over_there(d: int) -> None:
    """Its weight times its size is what counts, and the weight alone is too small for float32."""
    gradients = 1e-6 * rows_of(9, d, seed=2)
    gradients[0] = 3e38 * torch.sign(rows_of(1, d))
    expected = geometric_median_twin(gradients, 1)
    assert distance(AGGREGATORS["geometric_median"](gradients, f=1), expected) < 1e-6


def objective(gradients: Tensor, point: Tensor) -> float:
    return float((gradients.double() - point.double()).norm(dim=1).sum())


@given(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 9), st.integers(1, 4)), elements=st.integers(-3, 3).map(float)),
    st.sampled_from([1e-6, 1.0, 1e6]),
)
@example(np.array([[0, 0], [-3, -3], [2, 3], [-2, -2]], np.float32), 1e-6)  # the pulls at the last row add up to one
@settings(max_examples=150, deadline=None)
def test_no_row_and_no_shift_beats_the_geometric_median(values: np.ndarray, scale: float) -> None:
    """Small whole numbers: copies, straight lines and medians that are rows come up all the time."""
    gradients = torch.from_numpy(values) * scale
    result = AGGREGATORS["geometric_median"](gradients)
    least = objective(gradients, result)
    shifts = 0.01 * scale * torch.cat([torch.eye(values.shape[1]), -torch.eye(values.shape[1])])
    for rival in [
        *gradients,
        *(result + shifts),
        gradients.mean(0),
        torch.from_numpy(geometric_median_twin(gradients, 0)),
    ]:
        assert least <= objective(gradients, rival) * (1 + 1e-5) + 1e-30


def test_a_geometric_median_that_is_a_row_is_returned_exactly() -> None:
    for d in (2, 6000):
        centre = rows_of(1, d, seed=5)
        around = rows_of(4, d, seed=6)
        cross = torch.cat([centre + around, centre - around, centre])
        assert torch.equal(AGGREGATORS["geometric_median"](cross), centre[0])
        majority = torch.cat([centre + 1e6 * around, centre.expand(5, d)])
        assert torch.equal(AGGREGATORS["geometric_median"](majority), centre[0])
    assert AGGREGATORS["geometric_median"](torch.tensor([[0.0, 1.0], [2.0, 1.0]])).tolist() == [1.0, 1.0]


@pytest.mark.parametrize(("copies", "pull"), [(1, 0.99), (2, 1.97), (2, 1.99975)])
@pytest.mark.parametrize("d", [2, 500, 6000])
def test_the_slow_approach_to_a_row_is_cut_short(copies: int, pull: float, d: int) -> None:
    """Two rows pull at an obtuse or acute angle, a little less than the copies of the third row hold."""
    plane = torch.linalg.qr(rows_of(d, 2).double()).Q.float()
    centre = rows_of(1, d, seed=1)
    cosine, sine = pull / 2, math.sqrt(1 - pull**2 / 4)
    arms = torch.tensor([[cosine, sine], [1.7 * cosine, -1.7 * sine]]) @ plane.T
    gradients = torch.cat([centre + arms, centre.expand(copies, d)])
    assert torch.equal(AGGREGATORS["geometric_median"](gradients), centre[0])


def test_max_iterations_bounds_the_work_and_an_unknown_backend_is_refused() -> None:
    gradients = rows_of(9, 50)
    gradients[0] *= 50
    exact = geometric_median_twin(gradients, 0)
    assert distance(AGGREGATORS["geometric_median"](gradients, max_iterations=1), exact) > 1e-4
    assert distance(AGGREGATORS["geometric_median"](gradients), exact) < 1e-6
    with pytest.raises(ValueError, match="backend must be one of gram, hdmedians, got 'magic'"):
        AGGREGATORS["geometric_median"](gradients, backend="magic")


# --- per layer -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_per_layer_is_the_rule_on_every_slice(name: str) -> None:
    gradients = rows_of(11, 12)
    bounds = [(0, 1), (1, 7), (7, 12)]
    result = per_layer(AGGREGATORS[name], bounds)(gradients, f=2)
    for start, stop in bounds:
        assert torch.equal(result[start:stop], AGGREGATORS[name](gradients[:, start:stop], f=2))


def test_per_layer_passes_options_on_and_refuses_bounds_that_do_not_fit() -> None:
    layered = per_layer(AGGREGATORS["geometric_median"], [(0, 2), (2, 4)])
    torch.testing.assert_close(layered(rows_of(5, 4), backend="hdmedians"), layered(rows_of(5, 4)))
    with pytest.raises(ValueError, match="do not have 4 columns"):
        layered(rows_of(5, 5))
    for bounds in ([], [(1, 2)], [(0, 2), (3, 4)], [(0, 2), (1, 4)], [(0, 0), (0, 2)]):
        with pytest.raises(ValueError, match="not contiguous"):
            per_layer(AGGREGATORS["mean"], bounds)


@pytest.mark.parametrize("name", NAMES)
def test_a_gpu_gives_the_same(name: str, gpu: torch.device) -> None:
    gradients = rows_of(15, 300_000, common=10)
    gradients[0] = 1e30 if name != "mean" else 1
    gradients[1] = math.nan if name != "mean" else 1
    before = gradients.clone()
    result = AGGREGATORS[name](gradients.to(gpu), f=3)
    assert result.device == gpu
    assert torch.equal(gradients.nan_to_num(), before.nan_to_num())
    torch.testing.assert_close(result.cpu(), AGGREGATORS[name](gradients, f=3), rtol=1e-6, atol=1e-5)


def test_a_finite_vector_with_a_huge_sum_is_finite() -> None:
    assert is_finite(torch.full((4,), 3e38))
    assert not is_finite(torch.tensor([1.0, np.nan]))
    assert not is_finite(torch.tensor([np.inf, -np.inf]))
