"""Sketches: that they are what they are said to be, the theorem's bounds against drawn ones."""

import numpy as np
import pytest
import torch

from draco.errors import DecodeError
from draco.protocols import sketch as of
from draco.protocols.sketch import COUNT, MARGIN, chance, distances, sketch
from draco.schemes.vote import elect

Floats = np.ndarray[tuple[int], np.dtype[np.float32]]


def some(d: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal(d).astype(np.float32)


@pytest.mark.parametrize("d", [1, 2, 3, 24, 25, 26, 1003])
def test_a_sketch_is_the_matrix_between_two_gaussian_ones(d: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(of, "_BLOCK", 70)
    vector = some(d)
    columns = int(d**0.5)
    rows = -(-d // columns)
    left, right = of._projections(rows, columns, 5, 3)
    whole = np.zeros(rows * columns)
    whole[:d] = vector
    *numbers, norm = sketch(vector, 5, 3)
    np.testing.assert_allclose(numbers, (left.T @ whole.reshape(rows, columns) @ right).reshape(-1), atol=1e-12 * d)
    assert norm == pytest.approx(np.linalg.norm(vector.astype(np.float64)))


DRAWN = (1.6477639053803785, -0.12010171363827085, 0.7014837627078956, -1.7491470871594264)


def test_seeds_count_and_the_stream_is_the_one_of_every_machine() -> None:
    vector = some(50)
    assert sketch(vector, 1) == sketch(torch.from_numpy(vector), 1) != sketch(vector, 2)
    assert len(sketch(vector, 1)) == COUNT * COUNT + 1
    left, right = of._projections(2, 2, 2**63 - 1, 2)
    assert left[0].tolist() == pytest.approx([DRAWN[0], DRAWN[1]], rel=1e-12)
    assert right[-1].tolist() == pytest.approx([DRAWN[2], DRAWN[3]], rel=1e-12)


def test_it_is_linear_so_a_distance_is_that_of_the_difference() -> None:
    a, b = some(400), some(400, 1)
    found = distances([sketch(a, 3), sketch(b, 3), sketch(a, 3)])
    expected = np.linalg.norm(np.array(sketch(a - b, 3)[:-1])) / COUNT / MARGIN
    assert found[0, 1] == pytest.approx(expected * max(found[0, 0], found[1, 1]) / min(found[0, 0], found[1, 1]))
    assert found[0, 2] == 0.0
    assert found[0, 0] == pytest.approx(np.linalg.norm(a.astype(float)))


@pytest.mark.parametrize("norm", [1e30, 1.0, -1.0, 0.0, float("inf"), float("nan")])
def test_no_claimed_norm_makes_what_is_far_near(norm: float) -> None:
    true = sketch(some(400), 3)
    far = (*sketch(some(400) * np.float32(1 + 1e-5), 3)[:-1], norm)
    with pytest.raises(DecodeError):
        elect([[1], [2]], distances([true, far]), 1, 1e-6)
    with pytest.raises(DecodeError):
        elect([[1], [2]], distances([far, true]), 1, 1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_so(value: float) -> None:
    vector = some(100)
    vector[50] = value
    assert not np.isfinite(sketch(vector, 1)[-1])
    assert np.isfinite(sketch(np.full(100, 3e38, np.float32), 1)).all()
    assert not any(sketch(np.zeros(100), 1))


def test_the_table_of_the_theorem() -> None:
    assert chance(0.5) <= 4e-46
    assert chance(1.0) <= 2e-9
    assert chance(5.0) <= 4e-9
    assert chance(10.0) <= 2e-22
    assert [chance(x) for x in (3, 4, 5, 8)] == sorted((chance(x) for x in (3, 4, 5, 8)), reverse=True)


@pytest.mark.parametrize("shape", ["one number", "spread"])
@pytest.mark.parametrize(("count", "error"), [(4, 5.0), (6, 4.0), (6, 1.0)])
def test_bounds_hold_and_are_met_within_a_decade_by_one_wrong_number(count: int, error: float, shape: str) -> None:
    """With few projections chances are large enough to be counted."""
    wrong = np.zeros(81)
    wrong[40] = 1.0
    vector = wrong if shape == "one number" else some(81).astype(np.float64)
    vector = vector / np.linalg.norm(vector) * error
    trials = 1000
    squares = [np.square(sketch(vector, seed, count)[:-1]).mean() for seed in range(trials)]
    outside = sum(square > MARGIN**2 if error <= MARGIN else square <= MARGIN**2 for square in squares) / trials
    bound = chance(error, count)
    assert outside <= bound + 3 * np.sqrt(bound / trials)
    assert shape == "spread" or outside >= bound / 12
    assert np.mean(squares) == pytest.approx(error**2, rel=0.1)
