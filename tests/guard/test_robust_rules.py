"""Robust rules over torch.distributed: five processes get the bits that `draco.aggregate` gives."""

import multiprocessing
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import draco
from draco.aggregators import AGGREGATORS
from draco.torch.rules import all_reduce, robust_hook

N = 5
RULES = {name: {"reference": 0} if name == "monna" else {} for name in AGGREGATORS}
SIZES = (1, 1003, 40_961)
BY_COORDINATE = ["mean", "median", "trimmed_mean", "meamed", "sign_majority"]


def liars(rule: str) -> int:
    return max(f for f in range(N) if f == 0 or AGGREGATORS[rule].least(f) <= N)


def gradient(rank: int, size: int, seed: int = 0) -> Tensor:
    """Rank 3 lies."""
    drawn = torch.randn(size, generator=torch.Generator().manual_seed(100 * seed + rank))
    return -100 * drawn if rank == 3 else drawn


def with_nan(rank: int, place: int) -> Tensor:
    made = gradient(rank, 1003)
    if rank == 3:
        made[place] = torch.nan
    return made


def net() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(20, 300), nn.ReLU(), nn.Linear(300, 90), nn.ReLU(), nn.Linear(90, 3))


def loss(model: nn.Module, rank: int) -> Tensor:
    made: Tensor = model(gradient(rank, 20 * 8, seed=7).view(8, 20)).square().mean()
    return made


def error(call: Callable[[], object]) -> str:
    try:
        call()
    except ValueError as caught:
        return str(caught)
    return ""


def work(rank: int) -> dict[str, Any]:
    """All that one rank does."""
    found: dict[str, Any] = {}
    for rule, options in RULES.items():
        for size in SIZES:
            found[f"{rule} {size}"] = made = gradient(rank, size)
            all_reduce(made, rule, liars(rule), **options)
    for rule in BY_COORDINATE:
        found[f"{rule} f = 0"] = made = gradient(rank, 1003)
        all_reduce(made, rule, 0)
    for place in (0, 500, 1002):
        for rule in BY_COORDINATE:
            found[f"{rule} nan {place}"] = made = with_nan(rank, place)
            all_reduce(made, rule, liars(rule))
    found["too many"] = error(lambda: all_reduce(torch.full((9,), torch.nan), "median", 1))
    found["too few"] = error(lambda: all_reduce(torch.ones(9), "krum", 3))
    found["mixed"] = [gradient(rank, 70).view(7, 10), gradient(rank, 5, 1).half(), gradient(rank, 9, 2).bfloat16()]
    all_reduce(found["mixed"], "trimmed_mean", 1)
    found["double"] = gradient(rank, 33).double() / 3
    all_reduce(found["double"], "multi_krum", 1, pre=["nnm"])
    model = net()
    model[0].bias.requires_grad_(False)
    loss(model, rank).backward()
    if rank == 2:
        model[4].bias.grad = None
    all_reduce(model.parameters(), "krum", 1)
    found["model"] = [parameter.grad for parameter in model.parameters()]
    odd = dist.new_group([0, 2, 4])
    found["group"] = gradient(rank, 50)
    if rank in (0, 2, 4):
        all_reduce(found["group"], "median", 1, group=odd)
    for rule in ("median", "trimmed_mean"):
        ddp = DistributedDataParallel(net(), bucket_cap_mb=0.02)
        ddp.register_comm_hook(None, robust_hook(rule, f=1))
        for _ in range(2):  # after the first step the buckets are made anew
            ddp.zero_grad()
            loss(ddp, rank).backward()
        found[f"hook {rule}"] = [parameter.grad.clone() for parameter in ddp.parameters()]
        ddp.zero_grad()
        (loss(ddp, rank) * (torch.nan if rank == 3 else 1)).backward()
        found[f"hook {rule} nan"] = [parameter.grad for parameter in ddp.parameters()]
    return found


def process(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), N)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=N, timeout=timedelta(seconds=60))
    torch.save(work(rank), folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What every rank has."""
    import torch._dynamo  # once, and not in every rank: DistributedDataParallel does

    folder = tmp_path_factory.mktemp("ranks")
    # Forked, they need not import torch again; with a GPU autograd has threads, and nothing may fork.
    context = multiprocessing.get_context("spawn" if torch.cuda.is_available() else "fork")
    ranks = [context.Process(target=process, args=(rank, folder), daemon=True) for rank in range(N)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(120)
    assert [rank.exitcode for rank in ranks] == [0] * N
    return [torch.load(folder / f"{rank}.pt") for rank in range(N)]


def equal(one: Tensor, other: Tensor) -> bool:
    """In bits, where NaN may be."""
    return torch.equal(one.view(torch.uint8), other.view(torch.uint8))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("rule", RULES)
def test_all_ranks_have_the_bits_of_the_aggregate(found: list[dict[str, Any]], rule: str, size: int) -> None:
    expected = draco.aggregate([gradient(rank, size) for rank in range(N)], rule, f=liars(rule), **RULES[rule])
    assert [equal(mine[f"{rule} {size}"], expected) for mine in found] == [True] * N


@pytest.mark.parametrize("place", [0, 500, 1002])
@pytest.mark.parametrize("rule", BY_COORDINATE)
def test_a_rank_with_nan_is_left_out_of_every_slice(found: list[dict[str, Any]], rule: str, place: int) -> None:
    expected = draco.aggregate([with_nan(rank, place) for rank in range(N)], rule, f=liars(rule))
    assert [equal(mine[f"{rule} nan {place}"], expected) for mine in found] == [True] * N


@pytest.mark.parametrize("rule", BY_COORDINATE)
def test_nobody_need_be_distrusted(found: list[dict[str, Any]], rule: str) -> None:
    expected = draco.aggregate([gradient(rank, 1003) for rank in range(N)], rule, f=0)
    assert [equal(mine[f"{rule} f = 0"], expected) for mine in found] == [True] * N


def test_the_rules_errors_are_raised_on_every_rank(found: list[dict[str, Any]]) -> None:
    assert {mine["too many"] for mine in found} == {
        "median: 5 of 5 gradients hold NaN or Inf; the most it tolerates is 2, fewer than half"
    }
    assert {mine["too few"] for mine in found} == {"krum: f = 3 needs at least 9 gradients, got 5"}


def test_tensors_of_several_shapes_and_dtypes_are_one_gradient(found: list[dict[str, Any]]) -> None:
    parts = [(gradient(r, 70), gradient(r, 5, 1).half(), gradient(r, 9, 2).bfloat16()) for r in range(N)]
    expected = draco.aggregate([torch.cat([each.float() for each in row]) for row in parts], "trimmed_mean", f=1)
    for mine in found:
        assert torch.equal(mine["mixed"][0], expected[:70].view(7, 10))
        assert torch.equal(mine["mixed"][1], expected[70:75].half())
        assert torch.equal(mine["mixed"][2], expected[75:].bfloat16())


def test_double_precision_and_what_comes_before_a_rule_are_kept(found: list[dict[str, Any]]) -> None:
    rows = [gradient(rank, 33).double() / 3 for rank in range(N)]
    expected = draco.aggregate(rows, "multi_krum", f=1, pre=["nnm"])
    assert all(equal(mine["double"], expected) for mine in found)


def test_parameters_stand_for_their_gradients(found: list[dict[str, Any]]) -> None:
    rows = []
    for rank in range(N):
        model = net()
        model[0].bias.requires_grad_(False)
        loss(model, rank).backward()
        if rank == 2:
            model[4].bias.grad = torch.zeros(3)
        rows.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    expected = draco.aggregate(rows, "krum", f=1)
    for mine in found:
        assert mine["model"][1] is None
        assert equal(torch.cat([each.flatten() for each in mine["model"] if each is not None]), expected)


def test_only_the_ranks_of_a_group_take_part(found: list[dict[str, Any]]) -> None:
    expected = draco.aggregate([gradient(rank, 50) for rank in (0, 2, 4)], "median", f=1)
    for rank, mine in enumerate(found):
        assert torch.equal(mine["group"], gradient(rank, 50) if rank in (1, 3) else expected)


@pytest.mark.parametrize("nan", ["", " nan"])
@pytest.mark.parametrize("rule", ["median", "trimmed_mean"])
def test_the_hook_gives_the_rule_of_the_gradients_of_all_ranks(
    found: list[dict[str, Any]], rule: str, nan: str
) -> None:
    rows = []
    for rank in range(N):
        model = net()
        (loss(model, rank) * (torch.nan if nan and rank == 3 else 1)).backward()
        rows.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    expected = draco.aggregate(rows, rule, f=1)
    for mine in found:
        assert equal(torch.cat([each.flatten() for each in mine[f"hook {rule}{nan}"]]), expected)


def test_a_hook_refuses_rules_that_need_whole_gradients() -> None:
    with pytest.raises(ValueError, match="robust_hook: krum needs whole gradients, and a hook sees"):
        robust_hook("krum", f=1)
    with pytest.raises(ValueError, match=r"or take median, trimmed_mean, meamed, sign_majority$"):
        robust_hook("median", f=1, pre=["nnm"])


def test_an_unknown_rule_or_no_gradient_is_told_before_anything_is_sent() -> None:
    with pytest.raises(ValueError, match="aggregator 'kurm' is not one of mean, median"):
        all_reduce(torch.ones(3), "kurm")
    with pytest.raises(ValueError, match="aggregator 'kurm' is not one of mean, median"):
        robust_hook("kurm", f=1)
    with pytest.raises(ValueError, match="all_reduce: there is no gradient"):
        all_reduce(nn.Linear(2, 2).requires_grad_(False).parameters(), "median")
