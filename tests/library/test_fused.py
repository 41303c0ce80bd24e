"""Fused kernels against the calls on blocks, on a GPU, and in Triton's interpreter on the device that poses as one."""

import math
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from draco.aggregators import AGGREGATORS, PRE_AGGREGATORS, gram, mixing, norms, sorting
from draco.fused import columns, products, rows, source, sums
from draco.schemes import build
from draco.schemes.projection import draw
from draco.schemes.vote import Ballot

SORTED = ("median", "trimmed_mean", "meamed", "sign_majority")


@pytest.fixture
def fused(gpu: torch.device, monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """A device that has kernels; one that cannot be built is an error, as every warning is."""
    monkeypatch.setattr(source, "DEVICES", {gpu.type})
    monkeypatch.setattr(source, "_broken", set())
    with np.errstate(all="ignore"):  # the interpreter computes with numpy
        yield gpu


def strided(gradients: Tensor, device: torch.device) -> Tensor:
    """Return the rows as frames hold them: further apart than they are long, and not aligned."""
    n, d = gradients.shape
    room = torch.empty(n, d + 7, dtype=gradients.dtype, device=device)
    room[:, 3 : 3 + d] = gradients.to(device)
    return room[:, 3 : 3 + d]


def normal(n: int, d: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(n, d, dtype=dtype, generator=torch.Generator().manual_seed(seed))


# --- sorted columns: the bits of the CPU ---------------------------------------------------------------------------


@pytest.mark.parametrize(  # each is a kernel more for each rule, which a GPU's compiler takes a second for
    ("n", "f", "d", "dtype"),
    [
        (1, 0, 5, torch.float32), (4, 1, 1, torch.float32), (5, 1, 1300, torch.float64), (15, 3, 200, torch.float32),
        (15, 3, 200, torch.float64),
    ],
)  # fmt: skip
def test_sorted_columns_have_the_bits_of_the_cpu(
    fused: torch.device, n: int, f: int, d: int, dtype: torch.dtype
) -> None:
    gradients = normal(n, d, dtype)
    gradients[:, d // 2] = torch.finfo(dtype).max * 0.9  # the sum overflows, the mean does not
    gradients[0, 0], gradients[-1, 0] = -0.0, 0.0
    there = strided(gradients, fused)
    for name in SORTED:
        assert torch.equal(AGGREGATORS[name](there, f=f).cpu(), AGGREGATORS[name](gradients, f=f)), name


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_row_that_is_not_finite_is_left_out(fused: torch.device, value: float) -> None:
    gradients = normal(6, 300)
    gradients[2, 299] = value
    for name in SORTED:
        result = AGGREGATORS[name](strided(gradients, fused), f=1)
        assert torch.equal(result.cpu(), AGGREGATORS[name](gradients, f=1)), name
    gradients[3, 0] = value
    with pytest.raises(ValueError, match="2 of 6 gradients hold NaN or Inf"):
        AGGREGATORS["trimmed_mean"](gradients.to(fused), f=1)


def test_rows_are_read_by_one_kernel_where_all_are_finite(fused: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    launch = source.launched
    monkeypatch.setattr(columns, "launched", lambda what, *a, **k: called.append(what) or launch(what, *a, **k))
    monkeypatch.setattr(sorting, "_in_blocks", None)
    AGGREGATORS["median"](normal(5, 40).to(fused), f=1)
    assert called == ["sorting 5 rows"]


def test_without_the_compiler_blocks_do_and_a_warning_says_so_once(
    fused: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: object) -> None:
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(columns, "_kernel", fail)
    gradients = normal(5, 40)
    with pytest.warns(RuntimeWarning, match=r"for sorting 5 rows on this GPU \(Failed to find C compiler\).*gcc"):
        first = AGGREGATORS["median"](gradients.to(fused), f=1)
    with warnings.catch_warnings(record=True) as more:
        second = AGGREGATORS["median"](gradients.to(fused), f=1)
    assert not more
    assert torch.equal(first.cpu(), AGGREGATORS["median"](gradients, f=1))
    assert torch.equal(first, second)


def test_more_rows_than_registers_go_in_blocks(fused: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "MOST", 8)
    for n, dtype, kernel in [(8, torch.float32, True), (9, torch.float32, False), (5, torch.float64, False)]:
        found = sorting.mean_if_finite(normal(n, 6, dtype).to(fused), sorting.middle(n, 1))
        assert (found is not None) is kernel


# --- products, distances, sums -------------------------------------------------------------------------------------


@pytest.mark.parametrize("precise", [False, True])
@pytest.mark.parametrize("centred", [False, True])
def test_products_are_those_of_float64(
    fused: torch.device, precise: bool, centred: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WHOLE", "PRECISE"):
        monkeypatch.setattr(products, name, 3)
    for name in ("GROUP", "PRECISE_GROUP", "NORMS"):
        monkeypatch.setattr(products, name, 3)
    monkeypatch.setattr(products, "PROGRAMS", 2)  # each goes over two blocks of columns, of which the last is short
    gradients = normal(9, 300)
    there = strided(gradients, fused)
    for which in ([3, 0, 8], [1, 0, 2, 4, 8]):  # a set of rows, and groups of which the last is filled
        exact = gradients[which].double() - (gradients[2].double() if centred else 0)
        centre = there[2] if centred else None
        within = {"rtol": 1e-13 if precise else 1e-6, "atol": 1e-10 if precise else 1e-4}
        found = products.gram(there, which, centre, precise)
        assert found is not None
        torch.testing.assert_close(found.cpu(), exact @ exact.T, **within)
        assert torch.equal(found, found.T)
        squares = products.squares(there, which, centre, precise)
        assert squares is not None
        torch.testing.assert_close(squares.cpu(), exact.square().sum(1), **within)


@pytest.mark.parametrize(("count", "dtype"), [(1, torch.float32), (1, torch.float64), (3, torch.float64)])
def test_sums_of_some_rows_are_those_of_float64(fused: torch.device, count: int, dtype: torch.dtype) -> None:
    gradients, weights, which = normal(9, 900), normal(count, 6, dtype, seed=1), [8, 0, 3, 4, 5, 1]
    out = torch.full((count + 1, 900), math.nan, device=fused)
    assert sums.weighted_sums(strided(gradients, fused), which, weights.to(fused), list(out[:count]))
    exact = weights.double() @ gradients[which].double()
    torch.testing.assert_close(out[:count].cpu().double(), exact, rtol=1e-5, atol=1e-6)
    assert out[count].isnan().all()


def test_sums_may_take_the_place_of_the_rows(fused: torch.device) -> None:
    gradients = normal(5, 300)
    there = strided(gradients, fused)
    weights = normal(5, 5, seed=1)
    mixed = mixing.mixed(there, list(range(5)), weights.double().numpy(), overwrite=True)
    assert mixed.data_ptr() == there.data_ptr()
    torch.testing.assert_close(mixed.cpu(), weights @ gradients, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["krum", "geometric_median", "cge", "caf"])
def test_rules_of_distances_are_those_of_the_cpu(
    fused: torch.device, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gram, "SAMPLE", 128)
    gradients = normal(7, 150) + 3
    gradients[0] = 1e20
    result = AGGREGATORS[name](gradients.to(fused), f=2)
    torch.testing.assert_close(result.cpu(), AGGREGATORS[name](gradients, f=2), rtol=1e-5, atol=1e-5)


def test_norms_that_underflow_are_taken_in_float64(fused: torch.device) -> None:
    gradients = normal(4, 300) * 1e-25
    _, found, _ = norms.finite_norms(AGGREGATORS["cge"], gradients.to(fused), 1, tolerated=1)
    np.testing.assert_allclose(found, gradients.double().square().sum(1).numpy(), rtol=1e-6)


def test_mixed_rows_are_those_of_the_cpu(fused: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gram, "SAMPLE", 128)
    gradients = normal(7, 150)
    mixed = PRE_AGGREGATORS["nnm"](gradients.to(fused), f=2)
    torch.testing.assert_close(mixed.cpu(), PRE_AGGREGATORS["nnm"](gradients, f=2), rtol=1e-5, atol=1e-6)


# --- decoders ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [100, 2500])
def test_projections_are_those_of_the_cpu(fused: torch.device, d: int) -> None:
    replies = normal(5, d)
    secret = draw(7, d, fused)
    count, width = secret.directions.shape
    chunks = len(secret.coefficients)
    inner = torch.zeros(5, chunks, count, device=fused)
    assert rows.project(strided(replies, fused), [4, 1], secret.directions, inner)
    whole = torch.nn.functional.pad(replies.double(), (0, chunks * width - d)).view(5, chunks, width)
    exact = torch.einsum("nbw,qw->nbq", whole, secret.directions.cpu().double())
    torch.testing.assert_close(inner.cpu().double()[[1, 4]], exact[[1, 4]], rtol=1e-5, atol=1e-4)
    assert not inner[[0, 2, 3]].any()


@pytest.mark.parametrize(("name", "wrong"), [("cyclic", 0), ("cyclic", 2), ("solon", 2), ("repetition", 2)])
@pytest.mark.parametrize("arriving", [False, True])
def test_decoders_give_what_they_give_on_a_cpu(fused: torch.device, name: str, wrong: int, arriving: bool) -> None:
    scheme = build(name, workers=7, adversaries=2)
    gradients = normal(scheme.assignment.shape[1], 1500)
    replies = torch.stack([scheme.encode(row, gradients[list(scheme.partitions(row))]) for row in range(7)])
    replies[:wrong] *= -3
    there = strided(replies, fused)
    inspection = scheme.inspect(there, 5) if arriving and scheme.inspect else None
    for row in range(7) if inspection else ():
        inspection.add(row)
    found = scheme.decode(there, seed=5, inspection=inspection)
    expected = scheme.decode(replies, seed=5)
    assert found.suspects == expected.suspects == tuple(range(wrong))
    within = 0.0 if name == "repetition" else 1e-5
    torch.testing.assert_close(found.gradients.cpu(), expected.gradients, rtol=within, atol=within)


@pytest.mark.parametrize("distances", [False, True])
def test_votes_see_every_bit(fused: torch.device, distances: bool) -> None:
    replies = normal(1, 1100).repeat(5, 1)
    replies[:, 0] = 0.0
    if not distances:
        replies[:, 1] = math.nan
    replies[2, 1099] += 1
    replies[4, 0] = -0.0
    ballots = []
    for given in (replies, strided(replies, fused)):
        ballots.append(Ballot(given, distances=distances))
        ballots[-1].add_all([0, 1, 2, 3, 4])
    assert ballots[0].classes == ballots[1].classes == [[0, 1, 3], [2], [4]]
    for pair, expected in ballots[0].distances.items():
        assert ballots[1].distances[pair] == pytest.approx(expected, rel=1e-5)
