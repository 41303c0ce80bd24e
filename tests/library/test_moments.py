"""What colluders work out from the honest replies, against slow twins: one column at a time, exactly summed."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from draco.attacks import moments
from draco.sampling import generator


def drawn(rows: int, columns: int, size: float, offset: float, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    source = generator(seed)
    common = torch.randn(columns, generator=source, dtype=dtype) * offset
    return torch.randn(rows, columns, generator=source, dtype=dtype) * size + common


def slow_spread(column: list[float]) -> float:
    mean = math.fsum(column) / len(column)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in column) / len(column))


@settings(max_examples=40)
@given(
    st.integers(1, 12), st.integers(1, 40), st.sampled_from([1e-30, 1e-6, 1.0, 1e15]),
    st.sampled_from([0.0, 1.0, 1e6]), st.integers(0, 99), st.sampled_from([1, 30, 80_000]),
)  # fmt: skip
def test_mean_and_spread_are_those_of_exact_sums_in_blocks_of_any_width(
    rows: int, columns: int, size: float, offset: float, seed: int, block: int
) -> None:
    given_rows = drawn(rows, columns, size, size * offset, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moments, "_BLOCK", block)
        mean, spread = moments.mean_and_spread(given_rows)
    assert torch.equal(mean, given_rows.mean(0))
    exact = torch.tensor([slow_spread(column) for column in given_rows.T.tolist()], dtype=torch.float32)
    torch.testing.assert_close(spread, exact, rtol=2.5e-7, atol=0.0)


def test_the_spread_has_the_bits_of_torchs_own() -> None:
    rows = drawn(13, 50_000, 1e-3, 2e-3, 1)
    assert torch.equal(moments.mean_and_spread(rows)[1], rows.std(0, correction=0))


def test_parts_of_complex_replies_are_coordinates_of_their_own() -> None:
    rows = drawn(7, 30, 1.0, 1.0, 2, torch.complex128)
    mean, spread = moments.mean_and_spread(rows)
    torch.testing.assert_close(mean, rows.mean(0))
    parts = [rows.real.std(0, correction=0), rows.imag.std(0, correction=0)]
    torch.testing.assert_close(spread, torch.complex(*parts))


@settings(max_examples=40)
@given(st.integers(1, 9), st.integers(2, 60), st.sampled_from([0.0, 1.0, 30.0]), st.integers(0, 99))
def test_the_furthest_row_is_that_along_the_axis_of_a_whole_decomposition(
    rows: int, columns: int, offset: float, seed: int
) -> None:
    given_rows = drawn(rows, columns, 1.0, offset, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moments, "_BLOCK", 5 * rows)
        found = moments.furthest(given_rows)
    exact = given_rows.double().numpy()
    axis = np.linalg.svd(exact - exact.mean(0))[2][0]
    reach = np.abs(exact @ axis)
    assert reach[found] == pytest.approx(reach.max(), rel=1e-6) or rows == 1  # one row has no axis


def test_without_a_row_there_is_none_that_is_furthest_and_no_moment() -> None:
    with pytest.raises(IndexError):
        moments.furthest(torch.empty(0, 5))
    assert all(torch.isnan(each).all() for each in moments.mean_and_spread(torch.empty(0, 5)))
