"""Coordinate-wise rules and the networks below them: every input of zeros and ones, ties, overflow, and peers."""

import itertools

import numpy as np
import pytest
import torch
from aggregator_twins import TWINS, geometric_median_twin, meamed_twin, rows_of
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from benchmarks import peers
from draco.aggregators import AGGREGATORS, sorting

SORTING = ("median", "trimmed_mean", "meamed")

# --- networks ------------------------------------------------------------------------------------------------------


def zeros_and_ones(n: int) -> Tensor:
    """By the zero-one principle (Knuth, TAOCP 3, 5.3.4) a network that is right on these is right on all values."""
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=n))).T


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("n", range(1, 12))
def test_the_networks_sort_all_zeros_and_ones(n: int, shifted: bool) -> None:
    columns = zeros_and_ones(n).numpy()
    for low, high in sorting.sorting_network(n, shifted):
        columns[[low, high]] = np.minimum(columns[low], columns[high]), np.maximum(columns[low], columns[high])
    assert (columns[:-1] <= columns[1:]).all()


@pytest.mark.parametrize("n", range(1, 9))
def test_the_trimming_network_is_right_on_all_zeros_and_ones(n: int) -> None:
    columns = zeros_and_ones(n)
    for f in range((n + 1) // 2):
        result = AGGREGATORS["trimmed_mean"](columns, f=f)
        torch.testing.assert_close(result, columns.sort(dim=0).values[f : n - f].mean(0))


def test_an_exchange_that_nothing_reads_is_left_out() -> None:
    full = sorting.sorting_network(15)
    dropped, summed, read = sorting.DROPPED, sorting.SUMMED, sorting.READ
    for fates in [(dropped,) * 7 + (summed,) + (dropped,) * 7, (dropped,) + (summed,) * 13 + (dropped,)]:
        assert len(sorting.pruned(full, fates)) < len(full)
    assert sorting.pruned(full, (summed,) * 15) == []
    assert [(c.low, c.high) for c in sorting.pruned(full, (read,) * 15)] == full


def test_the_better_of_two_networks_is_taken() -> None:
    """The least numbers of calls that either gives; a rule that needs more has lost speed."""
    for n, drop, most in [
        (9, 4, 36),
        (10, 2, 48),
        (10, 4, 44),
        (20, 4, 156),
        (20, 9, 142),
        (45, 10, 552),
        (45, 22, 516),
    ]:
        fates = (sorting.DROPPED,) * drop + (sorting.SUMMED,) * (n - 2 * drop) + (sorting.DROPPED,) * drop
        assert len(sorting.program(fates).steps) <= most


@given(st.lists(st.sampled_from([sorting.READ, sorting.SUMMED, sorting.DROPPED]), min_size=1, max_size=24))
@settings(max_examples=60, deadline=None)
def test_a_program_reads_only_what_is_there_and_never_writes_to_the_rows(fates: list[str]) -> None:
    made = sorting.program(tuple(fates))
    written = set(range(len(fates)))
    for step in made.steps:
        assert {step.a, step.b} <= written
        assert len(fates) <= step.out < made.slots <= 2 * len(fates) + 1
        written.add(step.out)
    needed = [slot for slot, fate in zip(made.places, fates, strict=True) if fate != sorting.DROPPED]
    assert len(set(needed)) == len(needed)
    values = rows_of(len(fates), 40).numpy()
    slots = [*values, *np.zeros((made.slots - len(fates), 40))]
    for larger, a, b, out in made.steps:
        slots[out] = (np.maximum if larger else np.minimum)(slots[a], slots[b])
    ordered = np.sort(values, axis=0)
    for place, fate in enumerate(fates):
        if fate == sorting.READ:
            assert (slots[made.places[place]] == ordered[place]).all()
    summed = [place for place, fate in enumerate(fates) if fate == sorting.SUMMED]
    if summed:
        held = np.sort([slots[made.places[place]] for place in summed], axis=0)
        assert (held == ordered[summed]).all()


# --- rules that sort -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [*range(1, 34), 45, 46, 64, 65])
def test_the_median_is_exact(n: int) -> None:
    gradients = rows_of(n, 300, seed=n)
    expected = gradients.sort(dim=0).values[[(n - 1) // 2, n // 2]].mean(0)
    assert torch.equal(AGGREGATORS["median"](gradients), expected)


@given(
    hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 12), st.integers(1, 5)),
        elements=st.floats(-(2.0**100), 2.0**100, width=32) | st.integers(-4, 4).map(float),
    ),
    st.integers(0, 5),
)
@settings(max_examples=100, deadline=None)
def test_rules_that_sort_equal_their_twins_and_stay_in_range(values: np.ndarray, f: int) -> None:
    """Small whole numbers among them, so that ties come up all the time."""
    f = min(f, (len(values) - 1) // 2)
    gradients = torch.from_numpy(values)
    ordered = np.sort(values.astype(np.float64), axis=0)
    for name in SORTING:
        result = AGGREGATORS[name](gradients, f=f).double().numpy()
        size = 1e-6 * np.abs(ordered if name == "meamed" else ordered[f : len(values) - f]).max(0) + 1e-37
        if name != "meamed":
            assert (result >= ordered[f] - size).all()
            assert (result <= ordered[len(values) - f - 1] + size).all()
        np.testing.assert_array_less(np.abs(result - TWINS[name](gradients, f)), size)


@given(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 9), st.just(6)), elements=st.integers(-9, 9).map(float)),
    st.integers(0, 8),
)
@settings(max_examples=100, deadline=None)
def test_the_mean_near_the_median_keeps_as_few_as_one(values: np.ndarray, drop: int) -> None:
    drop = min(drop, len(values) - 1)
    found = sorting.mean_of_picked(
        torch.from_numpy(values), list(range(len(values))), sorting.near_median(len(values), drop)
    )
    np.testing.assert_allclose(found.numpy(), meamed_twin(torch.from_numpy(values), drop), rtol=1e-6, atol=1e-6)


def test_meamed_takes_the_smaller_of_two_values_at_the_same_distance() -> None:
    gradients = torch.tensor([[-1.0], [0.0], [1.0]])
    assert AGGREGATORS["meamed"](gradients, f=1).tolist() == [-0.5]
    assert AGGREGATORS["meamed"](torch.tensor([[0.0], [3.0], [9.0], [100.0]]), f=1).tolist() == [4.0]


@pytest.mark.parametrize("name", SORTING)
@pytest.mark.parametrize("n", [9, 10])
def test_a_sum_that_overflows_is_no_excuse(name: str, n: int) -> None:
    gradients = 1e38 * (2 + rows_of(n, sorting.SORT_WIDTH + 500).tanh())
    assert not gradients[:6].sum(0).isfinite().any()
    result = AGGREGATORS[name](gradients, f=1).double().numpy()
    np.testing.assert_allclose(result[::100], TWINS[name](gradients[:, ::100].double(), 1), rtol=1e-6)


@pytest.mark.parametrize(("n", "f"), [(9, 2), (10, 2), (20, 4), (45, 10)])
def test_rules_that_sort_equal_the_peers(n: int, f: int) -> None:
    """Not so: byzfl's trimmed mean at f = 0, which is NaN, and byzpy's lower median for even n."""
    gradients = rows_of(n, 5000, seed=n)
    theirs, coordinate_wise = peers.load("byzfl.aggregators"), peers.load("byzpy.aggregators.coordinate_wise")
    own = {name: AGGREGATORS[name](gradients, f=f) for name in SORTING}
    distances = (gradients - gradients.sort(dim=0).values[[(n - 1) // 2, n // 2]].mean(0)).abs().sort(dim=0).values
    apart = distances[n - f] > distances[n - f - 1] * (1 + 1e-6)  # they break near ties in any way
    assert apart.sum() > 4990
    rivals = {
        "median": [theirs.Median()(gradients)],
        "trimmed_mean": [
            theirs.TrMean(f)(gradients),
            coordinate_wise.CoordinateWiseTrimmedMean(f).aggregate(list(gradients)),
        ],
        "meamed": [theirs.Meamed(f)(gradients)],
    }
    if n % 2:
        rivals["median"].append(coordinate_wise.CoordinateWiseMedian().aggregate(list(gradients)))
        rivals["meamed"].append(coordinate_wise.MeanOfMedians(f).aggregate(list(gradients)))
    for name, results in rivals.items():
        for result in results:
            torch.testing.assert_close(own[name][apart], result[apart], rtol=1e-5, atol=1e-6)


# --- signs ---------------------------------------------------------------------------------------------------------


def test_the_majority_of_signs_ignores_sizes_and_a_draw_is_zero() -> None:
    gradients = torch.tensor([[1e-30, 1.0, -0.0, 5.0], [2.0, -9e9, 0.0, -1.0], [-3e38, -1.0, -2.0, 0.0]])
    assert AGGREGATORS["sign_majority"](gradients, f=1).tolist() == [1.0, -1.0, -1.0, 0.0]
    rows = rows_of(11, 9000)
    scaled = rows * torch.logspace(-20, 30, 11)[:, None]
    assert torch.equal(AGGREGATORS["sign_majority"](rows), AGGREGATORS["sign_majority"](scaled))


def test_byzantine_rows_in_the_minority_do_not_turn_what_the_honest_agree_on() -> None:
    honest = rows_of(1, 500).expand(6, 500)
    gradients = torch.cat([-1e30 * honest[:5], honest])
    assert torch.equal(AGGREGATORS["sign_majority"](gradients, f=5), honest[0].sign())


# --- median of means -----------------------------------------------------------------------------------------------


def test_the_median_of_means_is_between_the_mean_and_the_geometric_median() -> None:
    gradients = rows_of(9, 300)
    rule = AGGREGATORS["median_of_means"]
    torch.testing.assert_close(rule(gradients, f=0), gradients.mean(0))
    assert torch.equal(rule(gradients, f=4), AGGREGATORS["geometric_median"](gradients, f=4))
    means = torch.stack([group.mean(0) for group in gradients.split([2, 2, 2, 2, 1])])
    expected = torch.from_numpy(geometric_median_twin(means, 0)).float()
    torch.testing.assert_close(rule(gradients, f=2), expected)
    torch.testing.assert_close(rule(gradients, f=1, groups=5), expected)


def test_too_few_and_too_many_groups_are_refused() -> None:
    for groups in (4, 10):
        with pytest.raises(ValueError, match=f"groups must be from 2f . 1 = 5 to m = 9 gradients, got {groups}"):
            AGGREGATORS["median_of_means"](rows_of(9, 3), f=2, groups=groups)


def test_groups_are_made_of_the_rows_that_are_finite() -> None:
    gradients = rows_of(9, 300)
    gradients[[0, 4]] = float("nan")
    kept = gradients[[1, 2, 3, 5, 6, 7, 8]]
    for groups, left in [(None, None), (6, 6), (8, 7)]:
        found = AGGREGATORS["median_of_means"](gradients, f=2, groups=groups)
        assert torch.equal(found, AGGREGATORS["median_of_means"](kept, f=0, groups=left))
