"""Chances and bounds of the check, against experiments."""

import math

import pytest
import torch

from draco.replay import record, replay
from draco.replay.likeness import likeness
from draco.replay.tolerance import default_tolerance, passes_with_probability


def test_the_tolerance_grows_with_the_root_of_the_length_and_has_a_least_value() -> None:
    assert default_tolerance(0) == default_tolerance(5000) == 1e-5
    assert default_tolerance(1 << 20) == pytest.approx(2 * default_tolerance(1 << 18)) == 2.0**-13


@pytest.mark.parametrize("rank", [1, 4])
@pytest.mark.parametrize("ratio", [2.0, 10.0, 100.0])
def test_errors_pass_no_more_often_than_the_bound(rank: int, ratio: float) -> None:
    """100,000 vectors on a row whose error is orthogonal to it, or along it; the scale is the row's own."""
    generator = torch.Generator().manual_seed(rank)
    vectors = torch.randn(100_000, 8, generator=generator)
    row = torch.zeros(8)
    row[0] = 1.0
    for along in (0, 1):
        errors = torch.zeros(8, rank)
        errors[along : along + rank] += torch.eye(rank) * ratio / math.sqrt(rank)
        passed = (vectors @ errors).norm(dim=1) <= (vectors @ row).abs()
        assert passed.double().mean() <= passes_with_probability(ratio, 1.0)


def test_vectors_of_signs_let_every_second_error_pass() -> None:
    """Why vectors are Gaussian: two errors of opposite sign vanish under half of all vectors of signs."""
    generator = torch.Generator().manual_seed(1)
    signs = torch.randint(2, (100_000, 2), generator=generator) * 2.0 - 1
    gaussian = torch.randn(100_000, 2, generator=generator)
    error = torch.tensor([1.0, -1.0])
    assert ((signs @ error) == 0).double().mean() == pytest.approx(0.5, abs=0.01)
    assert ((gaussian @ error) == 0).double().mean() == 0


def test_chances_fall_with_the_error_and_with_the_number_of_vectors() -> None:
    chances = [passes_with_probability(error, 1e-5) for error in (1e-5, 1e-4, 1e-3, 1e-1, 1.0)]
    assert chances[0] == 1
    assert chances == sorted(chances, reverse=True)
    assert chances[-1] < 1e-4
    assert passes_with_probability(1e-3, 1e-5, 3) == pytest.approx(passes_with_probability(1e-3, 1e-5) ** 3)
    assert passes_with_probability(math.inf, 1e-5) == 0


def test_numbers_out_of_range_are_refused() -> None:
    for call in (
        lambda: default_tolerance(-1),
        lambda: passes_with_probability(-1, 1),
        lambda: passes_with_probability(1, 0),
    ):
        with pytest.raises(ValueError, match="give"):
            call()


@pytest.mark.filterwarnings("ignore:TF32 acceleration")
@pytest.mark.parametrize("enabled", [True, False], ids=["onednn", "native"])
@pytest.mark.parametrize("positive", [False, True])
def test_honest_weight_gradients_of_many_pixels_pass(positive: bool, enabled: bool) -> None:
    """Sums of 131,072 terms, which oneDNN builds term by term; the checker has oneDNN."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(128, 8, 32, 32, generator=generator)
    by = torch.randn(128, 16, 32, 32, generator=generator)
    x, by = (x.abs(), by.abs()) if positive else (x, by)
    weight = torch.randn(16, 8, 3, 3, generator=generator).requires_grad_()

    def compute() -> torch.Tensor:
        return torch.autograd.grad(torch.nn.functional.conv2d(x, weight, padding=1), weight, by)[0]

    with torch.backends.mkldnn.flags(enabled=enabled):
        _, transcript = record(compute)
    _, verdict = replay(compute, transcript, generator=torch.Generator().manual_seed(2))
    assert verdict.products == 2
    assert verdict.worst <= default_tolerance(128 * 32 * 32) / 2


def test_machines_are_alike_whatever_their_threads() -> None:
    own = likeness()
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3 - min(threads, 2))
        assert likeness() == own
    finally:
        torch.set_num_threads(threads)
