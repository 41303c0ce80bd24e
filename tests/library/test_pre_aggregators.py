"""Pre-aggregators against slow obvious twins, alone and before every rule, and against hostile rows."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from aggregator_twins import TWINS, rows_of
from torch import Tensor

from draco.aggregators import AGGREGATORS, PRE_AGGREGATORS, aggregate

NAMES = sorted(PRE_AGGREGATORS)


def source(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def options(name: str) -> dict[str, Any]:
    return {"generator": source()} if PRE_AGGREGATORS[name].draws else {}


def nnm_twin(gradients: Tensor, f: int) -> np.ndarray:
    rows = gradients.double().numpy()
    mixed = []
    for row in rows:
        order = np.argsort([np.linalg.norm(row - other) for other in rows], kind="stable")
        mixed.append(rows[order[: len(rows) - f]].mean(0))
    return np.array(mixed)


def bucketing_twin(gradients: Tensor, f: int, size: int = 2, seed: int = 3) -> np.ndarray:
    rows = gradients.double().numpy()[torch.randperm(len(gradients), generator=source(seed)).numpy()]
    return np.array([rows[start : start + size].mean(0) for start in range(0, len(rows), size)])


def clipping_twin(gradients: Tensor, f: int, c: float = 2.0) -> np.ndarray:
    return np.array([row * min(1, c / np.linalg.norm(row)) for row in gradients.double().numpy()])


def arc_twin(gradients: Tensor, f: int) -> np.ndarray:
    rows, n = gradients.double().numpy(), len(gradients)
    longest_first = sorted((np.linalg.norm(row) for row in rows), reverse=True)
    return clipping_twin(gradients, f, c=longest_first[math.floor(2 * f * (n - f) / n + 1e-9)])


PRE_TWINS = {"nnm": nnm_twin, "bucketing": bucketing_twin, "clipping": clipping_twin, "arc": arc_twin}


def distance(result: Tensor, expected: np.ndarray) -> float:
    return float(np.linalg.norm(result.double().numpy() - expected) / np.linalg.norm(expected))


def test_every_pre_aggregator_has_its_minimum_and_a_twin() -> None:
    assert set(PRE_AGGREGATORS) == set(PRE_TWINS)
    assert {name: pre.least(3) for name, pre in PRE_AGGREGATORS.items()} == {
        "nnm": 7, "bucketing": 4, "clipping": 4, "arc": 7,
    }  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("n", "f", "d"), [(5, 1, 1000), (9, 0, 20_000), (15, 3, 5000), (27, 10, 9000)])
def test_a_pre_aggregator_equals_its_twin(name: str, n: int, f: int, d: int) -> None:
    gradients = rows_of(n, d, seed=n)
    result = PRE_AGGREGATORS[name](gradients, f=f, **options(name))
    assert result.shape == (PRE_AGGREGATORS[name].remaining(n, {}), d)
    assert distance(result, PRE_TWINS[name](gradients, f)) < 1e-6


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_pre_aggregator_keeps_its_input_and_dtype_and_takes_strided_rows(name: str, dtype: torch.dtype) -> None:
    storage = rows_of(9, 9050, common=10).to(dtype)
    before, gradients = storage.clone(), storage[:, 20:9020]
    result = PRE_AGGREGATORS[name](gradients, f=2, **options(name))
    assert result.dtype == dtype
    assert torch.equal(result, PRE_AGGREGATORS[name](gradients.contiguous(), f=2, **options(name)))
    assert distance(result, PRE_TWINS[name](gradients, 2)) < (1e-6 if dtype == torch.float32 else 1e-12)
    result.zero_()
    assert torch.equal(storage, before)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("d", [50, 9000])
def test_a_pre_aggregator_may_overwrite_its_input_where_all_rows_are_finite(name: str, d: int) -> None:
    gradients = rows_of(11, d, common=1)
    expected = PRE_AGGREGATORS[name](gradients, f=2, **options(name))
    given = gradients.clone()
    result = PRE_AGGREGATORS[name](given, f=2, overwrite=True, **options(name))
    assert result.data_ptr() == given.data_ptr()
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-6)
    gradients[4, 7] = math.nan
    given = gradients.clone()
    result = PRE_AGGREGATORS[name](given, f=2, overwrite=True, **options(name))
    torch.testing.assert_close(result, PRE_AGGREGATORS[name](gradients, f=2, **options(name)), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_too_few_rows_and_too_many_that_are_not_finite_are_refused(name: str) -> None:
    least = PRE_AGGREGATORS[name].least(2)
    with pytest.raises(ValueError, match=f"{name}: f = 2 needs at least {least} gradients, got {least - 1}"):
        PRE_AGGREGATORS[name](rows_of(least - 1, 4), f=2, **options(name))
    gradients = rows_of(9, 6000)
    gradients[:3, 1] = math.nan
    with pytest.raises(ValueError, match="3 of 9 gradients hold NaN or Inf; the most it tolerates is f = 2"):
        PRE_AGGREGATORS[name](gradients, f=2, **options(name))


@pytest.mark.parametrize("name", ["nnm", "clipping", "arc"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("d", [50, 9000])
def test_rows_that_are_not_finite_are_dropped(name: str, value: float, d: int) -> None:
    gradients = rows_of(11, d)
    expected = PRE_AGGREGATORS[name](gradients[1:], f=1)
    gradients[0, -1] = value
    torch.testing.assert_close(PRE_AGGREGATORS[name](gradients, f=2), expected, rtol=1e-6, atol=1e-6)


def test_bucketing_drops_rows_that_are_not_finite_before_it_fills_buckets() -> None:
    gradients = rows_of(11, 9000)
    gradients[[2, 7], 5] = math.inf
    result = PRE_AGGREGATORS["bucketing"](gradients, f=2, size=3, generator=source())
    assert result.shape == (3, 9000)
    kept = [row for row in range(11) if row not in (2, 7)]
    torch.testing.assert_close(result.mean(0), gradients[kept].mean(0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [1e10, 1e30, 3e38])
@pytest.mark.parametrize("d", [60, 6000])
def test_huge_rows_spoil_no_more_than_themselves(name: str, size: float, d: int) -> None:
    gradients = rows_of(11, d, common=3)
    gradients[[0, 4]] = size * torch.sign(rows_of(2, d, seed=1))
    result = PRE_AGGREGATORS[name](gradients, f=2, **options(name))
    assert torch.isfinite(result).all()
    expected = PRE_TWINS[name](gradients, 2)
    for row, right in zip(result, expected, strict=True):
        assert distance(row, right) < 1e-6


def test_the_same_generator_gives_the_same_buckets_and_another_gives_others() -> None:
    gradients = rows_of(12, 50)
    one, same, other = (PRE_AGGREGATORS["bucketing"](gradients, generator=source(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_options_out_of_range_are_refused() -> None:
    gradients = rows_of(9, 5)
    with pytest.raises(ValueError, match="size must be at least 1 and at most 4096, got 0"):
        PRE_AGGREGATORS["bucketing"](gradients, size=0, generator=source())
    with pytest.raises(ValueError, match=r"c must be above 0\.0 and at most 1e\+30, got 0\.0"):
        PRE_AGGREGATORS["clipping"](gradients, c=0.0)
    with pytest.raises(ValueError, match="size must be at least 1"):
        aggregate(gradients, "cge", pre=[("bucketing", {"size": 0})], generator=source())
    with pytest.raises(ValueError, match="needs a generator"):
        aggregate(gradients, "krum", f=1, pre=[("bucketing", {})])
    with pytest.raises(ValueError, match="'blur' is not one of nnm"):
        aggregate(gradients, "median", pre=[("blur", {})])
    with pytest.raises(ValueError, match="'blur' is not one of mean"):
        aggregate(gradients, "blur")
    with pytest.raises(ValueError, match="neighbours must be at most m - f - 1 = 6"):
        aggregate(gradients, "krum", f=2, pre=[("nnm", {})], neighbours=7)


def test_arc_of_rows_that_are_mostly_zero_is_zero() -> None:
    gradients = torch.zeros(9, 6000)
    gradients[:2] = 5
    assert torch.equal(PRE_AGGREGATORS["arc"](gradients, f=2), torch.zeros(9, 6000))


CHAINS: list[list[tuple[str, dict[str, Any]]]] = [
    [("nnm", {})],
    [("bucketing", {"size": 2})],
    [("bucketing", {"size": 2}), ("nnm", {})],
    [("nnm", {}), ("bucketing", {"size": 3})],
    [("arc", {}), ("nnm", {})],
    [("clipping", {"c": 60.0}), ("bucketing", {})],
]


@pytest.mark.parametrize("rule", sorted(AGGREGATORS))
@pytest.mark.parametrize("chain", CHAINS, ids=lambda chain: "+".join(name for name, _ in chain))
def test_a_chain_is_its_twins_one_after_the_other(rule: str, chain: list[tuple[str, dict[str, Any]]]) -> None:
    """Bucketing draws a permutation of all rows, of which there may be fewer by then: the twin is told the order."""
    f, gradients = 1, rows_of(21, 3000, common=0.5)
    gradients[0] *= 30
    expected = gradients.double()
    for name, its in chain:
        if name == "bucketing":
            order = [row for row in torch.randperm(21, generator=source()).tolist() if row < len(expected)]
            size = its.get("size", 2)
            expected = torch.stack([expected[order[i : i + size]].mean(0) for i in range(0, len(order), size)])
        else:
            expected = torch.from_numpy(PRE_TWINS[name](expected, f, **its))
    before = gradients.clone()
    result = aggregate(gradients, rule, f=f, pre=chain, generator=source())
    assert torch.equal(gradients, before)
    assert distance(result, TWINS[rule](expected, f)) < 2e-6


@pytest.mark.parametrize("rule", sorted(set(AGGREGATORS) - {"mean", "monna", "cge", "centered_clipping"}))
def test_a_chain_lowers_f_by_the_rows_it_drops(rule: str) -> None:
    """And the minimum of the rule is asked of what the chain leaves."""
    f, n = 2, 2 * AGGREGATORS[rule].least(2) + 2
    gradients = rows_of(n, 6000)
    gradients[[1, 5], 9] = math.nan
    kept = [row for row in range(n) if row not in (1, 5)]
    for chain in ([("nnm", {})], [("arc", {}), ("nnm", {})]):
        expected = aggregate(gradients[kept], rule, f=0, pre=chain)
        torch.testing.assert_close(aggregate(gradients, rule, f=f, pre=chain), expected, rtol=1e-5, atol=1e-6)
    chain = [("bucketing", {"size": 2}), ("bucketing", {"size": 2})]
    if 2 * AGGREGATORS[rule].least(0) > (n - 2) // 2:
        return
    assert torch.isfinite(aggregate(gradients, rule, f=f, pre=chain, generator=source())).all()


def test_a_rule_short_of_mixed_rows_says_so() -> None:
    for rule in ("krum", "trimmed_mean"):
        with pytest.raises(ValueError, match=f"{rule}: f = 2 needs at least [57] gradients, got 4"):
            aggregate(rows_of(8, 50), rule, f=2, pre=[("bucketing", {"size": 2})], generator=source())


def test_most_rules_never_see_mixed_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Tensor:
        raise AssertionError("mixed rows were made")

    monkeypatch.setattr("draco.aggregators.mixing.mixed", refuse)
    for rule in (name for name, rule in AGGREGATORS.items() if rule.weighing or rule.by_coordinate):
        aggregate(rows_of(12, 300), rule, f=1, pre=[("nnm", {}), ("bucketing", {})], generator=source())
    with pytest.raises(AssertionError, match="mixed rows were made"):
        aggregate(rows_of(12, 300), "cge", f=1, pre=[("nnm", {})])
