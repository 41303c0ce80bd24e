"""The paper's complex code against its definition, W = C_L Q, and against the original decoder's algebra."""

import math

import numpy as np
import pytest
import torch
from attacked import error_of, every_placement, gradients_for, honest, neighbours, with_wrong, wrong_replies

from draco.schemes import DecodeError, build
from draco.schemes.cyclic_dft import TOLERANCE, dft_code


def as_published(n: int, s: int) -> np.ndarray:
    """W = C_L Q the slow way: each column of Q solves the n - 2s - 1 equations that make W zero outside its window."""
    k = n - 2 * s
    c = np.exp(-2j * np.pi * np.outer(np.arange(n), np.arange(n)) / n) / math.sqrt(n)
    q = np.ones((k, n), dtype=np.complex128)
    for j in range(n):
        outside = [i for i in range(n) if (i - j) % n > 2 * s]
        q[1:, j] = np.linalg.solve(c[outside][:, 1:k], -c[outside, 0]) if outside else 0
    return c[:, :k] @ q


@pytest.mark.parametrize(("n", "s"), [(1, 0), (4, 0), (3, 1), (4, 1), (7, 2), (9, 1), (10, 3), (15, 3), (45, 2)])
def test_the_matrix_is_the_published_one(n: int, s: int) -> None:
    code = dft_code(n, s)
    expected = as_published(n, s)
    np.testing.assert_allclose(code.matrix, expected, atol=1e-9 * np.abs(expected).max())
    np.testing.assert_allclose(code.parity @ code.matrix, 0, atol=1e-9 * np.abs(expected).max())
    np.testing.assert_allclose(code.clean @ code.matrix, 1 / n, atol=1e-9)


def test_entries_grow_as_the_facts_say() -> None:
    for n, s in [(15, 3), (45, 2), (45, 5)]:
        product = np.prod([4 * math.sin(math.pi * m / n) ** 2 for m in range(1, s + 1)])
        assert np.abs(dft_code(n, s).matrix[:, 0]).max() >= math.sqrt(n) / product * (1 - 1e-9)


@pytest.mark.parametrize(("n", "s"), [(3, 1), (4, 1), (5, 2), (7, 2), (8, 3), (9, 3)])
def test_decodes_wherever_the_byzantine_workers_sit(n: int, s: int) -> None:
    scheme = build("cyclic_dft", workers=n, adversaries=s)
    gradients = gradients_for(scheme, 20)
    sent = honest(scheme, gradients)
    for number, rows in enumerate(every_placement(n, s)):
        attacks = list(wrong_replies(scheme, sent, rows, seed=number).items())
        name, wrong = attacks[number % len(attacks)]
        decoded = scheme.decode(with_wrong(sent, rows, wrong))
        assert decoded.suspects == rows, name
        assert error_of(decoded.gradients, gradients) <= 1e-6, name


@pytest.mark.parametrize(("n", "s"), [(9, 1), (15, 2), (15, 3), (45, 2), (44, 5), (45, 5)])
def test_tolerates_every_attack(n: int, s: int) -> None:
    scheme = build("cyclic_dft", workers=n, adversaries=s)
    gradients = gradients_for(scheme, 200)
    sent = honest(scheme, gradients)
    assert scheme.decode(sent).suspects == ()
    for rows in [neighbours(n, s)[2], tuple(range(0, n, n // s))[:s]]:
        for name, wrong in wrong_replies(scheme, sent, rows).items():
            decoded = scheme.decode(with_wrong(sent, rows, wrong))
            assert error_of(decoded.gradients, gradients) <= 1e-6, name
            assert decoded.suspects == rows, name


def test_no_projection_hides_a_small_error_among_neighbours() -> None:
    """With a tolerance of 1e-8 one projection in twenty let four of the five Byzantine rows explain the syndrome."""
    scheme = build("cyclic_dft", workers=45, adversaries=5)
    sent = honest(scheme, gradients_for(scheme, 200))
    rows = neighbours(45, 5)[2]
    replies = with_wrong(sent, rows, wrong_replies(scheme, sent, rows)["just above the noise"])
    assert {scheme.decode(replies, seed=seed).suspects for seed in range(200)} == {rows}


@pytest.mark.parametrize(("n", "s"), [(9, 1), (15, 3), (45, 5), (21, 10)])
def test_honest_rounding_stays_well_within_the_tolerance(n: int, s: int) -> None:
    strict = build("cyclic_dft", workers=n, adversaries=s, tolerance=TOLERANCE / 4)
    gradients = gradients_for(strict, 20_000)
    for near in (gradients, gradients[:1] + 1e-3 * gradients):
        assert strict.decode(honest(strict, near), seed=0).suspects == ()


def test_tolerates_missing_rows_and_refuses_more_than_s_byzantine_workers() -> None:
    scheme = build("cyclic_dft", workers=9, adversaries=2)
    gradients = gradients_for(scheme, 20)
    sent = honest(scheme, gradients)
    replies = with_wrong(sent, (3,), -sent[[3]])
    replies[[0, 8]] = float("nan")
    decoded = scheme.decode(replies, ~np.isin(np.arange(9), [0, 8]))
    assert decoded.suspects == (3,)
    assert error_of(decoded.gradients, gradients) <= 1e-6
    with pytest.raises(DecodeError, match="at most 2 of 9"):
        scheme.decode(with_wrong(sent, (0, 1, 2), torch.randn(3, 20).to(sent.dtype)))


def test_workers_that_differ_by_float32_noise_need_a_tolerance() -> None:
    """The reference takes exact workers; what noise does to it is why `cyclic` exists."""
    gradients = gradients_for(build("cyclic_dft", workers=15, adversaries=3), 50)
    sent = honest(build("cyclic_dft", workers=15, adversaries=3), gradients, noise=3e-7)
    with pytest.raises(DecodeError):
        build("cyclic_dft", workers=15, adversaries=3).decode(sent)
    tolerant = build("cyclic_dft", workers=15, adversaries=3, tolerance=2e-6)
    assert tolerant.decode(sent).suspects == ()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"workers": 6, "adversaries": 3}, "3 adversaries need at least 7 workers, got 6"),
        ({"workers": 201, "adversaries": 10}, "amplify rounding .* times; use cyclic"),
        ({"workers": 9, "adversaries": 1, "tolerance": 0}, "tolerance must be between 0 and 1, got 0"),
    ],
)
def test_refusals_say_why(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build("cyclic_dft", **settings)  # type: ignore[arg-type]
