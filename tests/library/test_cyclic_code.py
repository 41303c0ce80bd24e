"""The real cyclic code's matrices, its projections and sums, each against a slow obvious twin."""

import math

import numpy as np
import pytest
import torch
from attacked import every_placement, neighbours

from draco.schemes import build
from draco.schemes.cyclic_code import amplifications, real_code
from draco.schemes.projection import combine, draw, finish, project_row, runs_of
from draco.schemes.syndrome import recombination

SIZES = [(n, s) for n in range(1, 16) for s in range((n - 1) // 2 + 1)]


@pytest.mark.parametrize(("n", "s"), [*SIZES, (44, 2), (44, 5), (45, 5), (20, 9), (101, 5)])
def test_columns_are_the_only_codewords_in_their_windows_and_decode_to_the_mean(n: int, s: int) -> None:
    """The twin of the closed form: solve for the vector in the window that all parities annihilate."""
    code = real_code(n, 2 * s)
    scheme = build("cyclic", workers=n, adversaries=s)
    assert scheme.redundancy == 2 * s + 1
    assert scheme.assignment.sum(0).tolist() == scheme.assignment.sum(1).tolist() == [2 * s + 1] * n
    np.testing.assert_allclose(code.clean @ code.matrix, 1 / n, rtol=1e-9)
    for j in range(0, n, max(1, n // 7)):
        inside = np.flatnonzero(scheme.assignment[:, j])
        null = np.linalg.svd(code.parity[:, inside])[2][-1].conj()
        null = null / (code.clean[inside] @ null) / n
        np.testing.assert_allclose(code.matrix[inside, j], null, rtol=0, atol=1e-9 * np.abs(null).max() * 10**s)


@pytest.mark.parametrize("n", range(3, 50, 2))
def test_entries_are_positive_and_at_most_one_for_odd_n(n: int) -> None:
    for s in range(min(6, (n - 1) // 2) + 1):
        code = real_code(n, 2 * s)
        assert (code.matrix[code.window] > 0).all()
        assert code.matrix.max() <= 1


@pytest.mark.parametrize(("n", "s"), [(5, 2), (9, 1), (8, 2), (15, 3), (14, 3), (20, 9)])
def test_recombination_is_the_least_norm_solution(n: int, s: int) -> None:
    """The twin: least squares for v^T W = 1/n with the excluded entries struck out."""
    code = real_code(n, 2 * s)
    for rows in neighbours(n, s):
        kept = np.setdiff1d(np.arange(n), rows)
        expected = np.zeros(n)
        expected[kept] = np.linalg.lstsq(code.matrix[kept].T, np.full(n, 1 / n), rcond=1e-10)[0]
        weights = recombination(code.parity, code.clean, rows)
        np.testing.assert_allclose(weights.real, expected, atol=1e-8)
        assert (weights[list(rows)] == 0).all()
        slow = math.sqrt(n) * math.hypot(*(expected * np.linalg.norm(code.matrix, axis=1)))
        assert amplifications(code, np.asarray([rows]))[0] == pytest.approx(slow, rel=1e-6)


@pytest.mark.parametrize(("n", "s"), [(9, 2), (10, 2), (13, 3), (14, 3)])
def test_neighbours_are_the_worst_placement(n: int, s: int) -> None:
    code = real_code(n, 2 * s)
    everywhere = amplifications(code, np.asarray(list(every_placement(n, s)))).max()
    assert amplifications(code, np.asarray(neighbours(n, s))).max() == pytest.approx(everywhere)


@pytest.mark.parametrize("d", [1, 7, 1023, 1024, 1025, 5000, 70_000])
def test_projections_are_those_of_the_vectors_they_stand_for(d: int) -> None:
    """The twin: write out f, chunk after chunk."""
    secret = draw(3, d, torch.device("cpu"))
    g, c = secret.directions.double().numpy(), secret.coefficients
    width = g.shape[1]
    row = torch.randn(d, generator=torch.Generator().manual_seed(0))
    sketch = finish(project_row(row, secret)[None], row[None], secret)
    for k in range(c.shape[1]):
        f = np.concatenate([c[b, k] * g[k % len(g)] for b in range(len(c))])[:d]
        assert len(c) == -(-d // width)
        assert sketch.values[0, k] == pytest.approx(f @ row.double().numpy(), abs=1e-4 * math.sqrt(d))


def test_combine_reads_only_the_rows_it_is_told() -> None:
    replies = torch.randn(5, 100_003)
    replies[2] = float("nan")
    weights = torch.randn(5)
    kept = np.array([True, True, False, True, True])
    expected = weights[kept].double() @ replies[kept].double()
    torch.testing.assert_close(combine(replies, runs_of(kept), weights).double(), expected, atol=1e-5, rtol=1e-5)
