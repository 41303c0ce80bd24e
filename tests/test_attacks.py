"""Attacks: what they send, and who misbehaves when."""

import math
from collections import Counter

import pytest
import torch
from torch import Tensor

from draco.attacks import ATTACKS, attackers
from draco.sampling import generator

DTYPES = [torch.float32, torch.complex128]


def reply_of(dtype: torch.dtype, d: int = 50) -> Tensor:
    return torch.randn(d, dtype=dtype, generator=generator(3))


def send(name: str, reply: Tensor, magnitude: float = 100.0, seed: int = 1) -> Tensor:
    return ATTACKS[name](reply, magnitude=magnitude, generator=generator(seed))


@pytest.mark.parametrize("name", sorted(ATTACKS))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_attack_sends_a_new_tensor_and_depends_only_on_its_arguments(name: str, dtype: torch.dtype) -> None:
    reply = reply_of(dtype)
    before = reply.clone()
    torch.manual_seed(1)
    sent = send(name, reply)
    torch.manual_seed(2)
    assert torch.equal(sent, send(name, reply))
    assert (sent.shape, sent.dtype) == (reply.shape, reply.dtype)
    sent.zero_()
    assert torch.equal(reply, before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_attacks_send_what_they_say(dtype: torch.dtype) -> None:
    reply = reply_of(dtype)
    assert torch.equal(send("none", reply), reply)
    assert torch.equal(send("reverse_gradient", reply), -100 * reply)
    assert torch.equal(send("reverse_gradient", reply, 0.5), -0.5 * reply)
    assert torch.equal(send("constant", reply, 7), torch.full_like(reply, -7))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_random_is_gaussian_and_new_at_every_call(dtype: torch.dtype) -> None:
    source = generator(5)
    reply = reply_of(dtype, 100_000)
    first, second = (ATTACKS["random"](reply, magnitude=3.0, generator=source) for _ in range(2))
    for sent in (first, second):
        assert abs(sent.mean()) < 0.05
        assert sent.std().item() == pytest.approx(3.0, rel=0.02)
    assert torch.vdot(first, second).abs() / (first.norm() * second.norm()) < 0.02
    assert torch.vdot(first, reply).abs() / (first.norm() * reply.norm()) < 0.02


def test_fixed_attackers_are_the_same_at_every_step() -> None:
    first = attackers(7, 1, 9, 3, "fixed")
    assert all(attackers(7, step, 9, 3, "fixed") == first for step in range(2, 20))
    assert len({attackers(seed, 1, 9, 3, "fixed") for seed in range(20)}) > 5


def test_drawn_attackers_are_fresh_repeatable_and_uniform() -> None:
    steps = [attackers(7, step, 9, 2, "drawn") for step in range(1, 2001)]
    assert steps == [attackers(7, step, 9, 2, "drawn") for step in range(1, 2001)]
    counts = Counter(rank for ranks in steps for rank in ranks)
    assert sorted(counts) == list(range(1, 10))
    expected = 2000 * 2 / 9
    assert all(abs(count - expected) < 5 * math.sqrt(expected) for count in counts.values())
    assert len(set(steps)) == 36
    assert steps[:10] != [attackers(8, step, 9, 2, "drawn") for step in range(1, 11)]


@pytest.mark.parametrize("who", ["fixed", "drawn"])
def test_attackers_are_increasing_ranks_of_workers(who: str) -> None:
    for count in range(6):
        ranks = attackers(1, 4, 5, count, who)
        assert len(set(ranks)) == count
        assert list(ranks) == sorted(ranks)
        assert all(type(rank) is int and 1 <= rank <= 5 for rank in ranks)


def test_impossible_attackers_are_refused() -> None:
    for count in (-1, 6):
        with pytest.raises(ValueError, match=f"{count} attackers among 5 workers; it must be 0 to 5"):
            attackers(1, 1, 5, count, "fixed")
    with pytest.raises(ValueError, match="'all'; it must be fixed or drawn"):
        attackers(1, 1, 5, 2, "all")
