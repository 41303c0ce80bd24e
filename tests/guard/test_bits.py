"""Digests and sketches: equal for equal bits, unlike for any other, as often as their theorems say."""

import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from draco.torch import bits
from draco.torch.bits import apart, digest, sketch

WORD = 1 << 64
SECRETS = st.integers(0, 2**63 - 1)
SIZES = st.lists(st.integers(1, 900), min_size=1, max_size=4)


def drawn(seed: int, *sizes: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, generator=generator) for size in sizes]


def same(one: Sequence[Tensor], other: Sequence[Tensor], secret: int = 5) -> bool:
    return bool((digest(one, secret) == digest(other, secret)).all())


def split_mix(state: int) -> tuple[int, int]:
    """The generator as it is published: the next state, and the number."""
    state = (state + 0x9E3779B97F4A7C15) % WORD
    z = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % WORD
    z = (z ^ z >> 27) * 0x94D049BB133111EB % WORD
    return state, z ^ z >> 31


def numbers(count: int, secret: int, stream: int) -> list[int]:
    state, found = split_mix((split_mix(secret)[1] + stream) % WORD)[1], []
    for _ in range(count):
        state, z = split_mix(state)
        found.append(z)
    return found


def signed(byte: int) -> int:
    return byte - 256 if byte > 127 else byte


def laid_out(parts: Sequence[bytes]) -> list[bytes]:
    """Rows of 1024 bytes: first whole ones of large tensors, then all that is left, filled up."""
    rows, rest = [], b""
    for part in parts:
        whole = len(part) // 1024 * 1024 if len(part) >= 32 * 1024 else 0
        rows += [part[i : i + 1024] for i in range(0, whole, 1024)]
        rest += part[whole:]
    rest += bytes(max(-(-len(rest) // 1024) * 1024, 32 * 1024) - len(rest))
    return rows + [rest[i : i + 1024] for i in range(0, len(rest), 1024)]


def slow_digest(tensors: Sequence[Tensor], secret: int) -> list[int]:
    """The digest in Python's integers."""
    parts, level = [tensor.contiguous().view(-1).view(torch.int8).numpy().tobytes() for tensor in tensors], 0
    while not level or len(parts[0]) > 4 * bits.FOLDED:
        level += 1
        drawn_bytes = b"".join(z.to_bytes(8, "little") for z in numbers(1024, secret, level))
        multipliers = [signed(byte) >> 1 for byte in drawn_bytes]
        sums = []
        for row in laid_out(parts):
            if any(row):
                sums += [sum(signed(row[i]) * multipliers[8 * i + k] for i in range(1024)) for k in range(8)]
            else:
                sums += [0] * 8
        parts = [b"".join(each.to_bytes(4, "little", signed=True) for each in sums)]
    last = numbers(2 * len(sums), secret, 0)
    totals = [sum(a * b for a, b in zip(sums, last[k * len(sums) :], strict=False)) % WORD for k in (0, 1)]
    return [total - WORD if total >= WORD // 2 else total for total in totals]


def test_the_generator_is_the_published_one() -> None:
    state, found = 1234567, []
    for _ in range(3):
        state, z = split_mix(state)
        found.append(z)
    assert found == [6457827717110365317, 3203168211198807973, 9817491932198370423]
    mine = bits._random(50, 99, 3, torch.device("cpu")).tolist()
    assert [z % WORD for z in mine] == numbers(50, 99, 3)


@pytest.mark.parametrize("sizes", [(1,), (300, 5, 700), (9000, 3, 8300)])
def test_the_digest_is_that_of_pythons_integers(sizes: tuple[int, ...]) -> None:
    tensors = drawn(1, *sizes)
    assert digest(tensors, 2**62 + 77).tolist() == slow_digest(tensors, 2**62 + 77)


def test_the_digest_of_several_levels_and_pieces_is_that_of_pythons_integers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bits, "FOLDED", 256)
    tensors = [torch.zeros(40_000), *drawn(2, 9000, 10)]
    assert digest(tensors, 3).tolist() == slow_digest(tensors, 3)


def test_pieces_of_large_tensors_give_no_other_digest_of_equal_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bits, "PIECE", 64 * 1024)
    tensors = drawn(3, 100_003, 5, 40_000, *[900] * 40)
    assert same(tensors, [tensor.clone() for tensor in tensors])
    for place in (0, 16_383, 16_384, 100_002):
        changed = [tensor.clone() for tensor in tensors]
        changed[0].view(torch.int32)[place] ^= 1
        assert not same(tensors, changed)


@given(SIZES, st.data(), SECRETS)
def test_one_flipped_bit_changes_the_digest(sizes: list[int], data: st.DataObject, secret: int) -> None:
    tensors = drawn(4, *sizes)
    which = data.draw(st.integers(0, len(sizes) - 1))
    place, bit = data.draw(st.integers(0, sizes[which] - 1)), data.draw(st.integers(0, 31))
    changed = [tensor.clone() for tensor in tensors]
    changed[which].view(torch.int32)[place] ^= -(1 << 31) if bit == 31 else 1 << bit
    assert not same(tensors, changed, secret)


@given(st.integers(2, 3000), st.data(), SECRETS)
def test_exchanged_numbers_change_the_digest(size: int, data: st.DataObject, secret: int) -> None:
    (tensor,) = drawn(5, size)
    i, j = data.draw(st.lists(st.integers(0, size - 1), min_size=2, max_size=2, unique=True))
    changed = tensor.clone()
    changed[[i, j]] = tensor[[j, i]]
    assert same([tensor], [changed], secret) == (tensor[i] == tensor[j])


@given(st.integers(1, 600), SECRETS)
def test_exchanged_tensors_change_the_digest(size: int, secret: int) -> None:
    one, other = drawn(6, size, size)
    assert not same([one, other], [other, one], secret)


@given(st.integers(0, 39), st.integers(0, 39), SECRETS)
def test_a_block_that_moved_among_zeros_changes_the_digest(here: int, there: int, secret: int) -> None:
    """A whole row of multipliers' width, which rows alike would not tell apart."""
    tensors = [torch.zeros(40 * 256) for _ in range(2)]
    for tensor, place in zip(tensors, (here, there), strict=True):
        tensor[256 * place : 256 * (place + 1)] = 1.5
    assert same(tensors[:1], tensors[1:], secret) == (here == there)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool])
def test_other_dtypes_are_hashed_by_their_bits(dtype: torch.dtype) -> None:
    tensor = (torch.arange(1000) % 2).to(dtype)
    changed = tensor.clone()
    changed[700] = 1 - changed[700].int()
    assert same([tensor], [tensor.clone()])
    assert not same([tensor], [changed])


def test_bits_count_and_not_values() -> None:
    zeros, nans = torch.tensor([0.0, -0.0]), torch.tensor([0x7FC00000, 0x7FC00001], dtype=torch.int32)
    assert not same([zeros[:1]], [zeros[1:]])
    assert same([nans[:1].view(torch.float32)], [torch.tensor([math.nan])])
    assert not same([nans[:1].view(torch.float32)], [nans[1:].view(torch.float32)])


def test_strides_threads_and_scalars_do_not_matter() -> None:
    square = torch.randn(300, 300)
    found = digest([square, torch.tensor(3.0), torch.empty(0)], 8)
    assert torch.equal(digest([square.T.contiguous().T, torch.tensor(3.0), torch.empty(0)], 8), found)
    torch.set_num_threads(2)
    try:
        assert torch.equal(digest([square, torch.tensor(3.0), torch.empty(0)], 8), found)
    finally:
        torch.set_num_threads(1)
    assert not torch.equal(digest([square, torch.tensor(3.0), torch.empty(0)], 9), found)


def test_extreme_bytes_are_added_exactly() -> None:
    """All bytes -128, and all 127: where products of pairs are added in 16 bits, they come nearest to the end."""
    for byte in (-128, 127, -1):
        tensor = torch.full((33 * 1024,), byte, dtype=torch.int8)
        assert digest([tensor], 12).tolist() == slow_digest([tensor], 12)


def test_processors_without_products_of_int8_add_exactly(tmp_path: Path) -> None:
    """There two products are added in 16 bits, and stay at the largest number where they do not fit: bytes near 127."""
    near = torch.randint(100, 128, (64, 1024), dtype=torch.int8, generator=torch.Generator().manual_seed(1))
    torch.save(near, tmp_path / "near")
    program = f"""
import torch
from draco.torch.bits import digest
near = torch.load({str(tmp_path / "near")!r})
wide = torch.full((1024, 8), 127, dtype=torch.int8)
print(digest([near], 12).tolist(), torch.equal(torch._int_mm(near, wide).long(), near.long() @ wide.long()))
"""
    made = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert made.stdout.strip().startswith(str(digest([near], 12).tolist()))
    if "AVX2" in torch.backends.cpu.get_cpu_capability() or "AVX512" in torch.backends.cpu.get_cpu_capability():
        assert made.stdout.strip().endswith("False"), "eight bits would not do: what the docstring says, shown"


def test_a_column_hides_a_difference_as_often_as_the_proof_says() -> None:
    """1 and -1 in one row hide where two multipliers are equal: 1 of 128 in each of 8 columns, and never in all."""
    one, other = torch.zeros(64, dtype=torch.int8), torch.zeros(64, dtype=torch.int8)
    one[3], other[17] = 1, 1
    trials = 1500
    hidden = torch.stack([
        (bits._products([one], secret, 1)[0] == bits._products([other], secret, 1)[0]) for secret in range(trials)
    ])  # fmt: skip
    expected = trials * 8 / 128
    assert abs(hidden.sum() - expected) < 5 * math.sqrt(expected)
    assert hidden.sum(1).max() <= 3


def test_no_tensors_are_an_error() -> None:
    with pytest.raises(ValueError, match="digest: there are no tensors"):
        digest([], 1)
    with pytest.raises(ValueError, match="sketch: there are no tensors"):
        sketch([], 1)


def test_a_sketch_is_linear_and_ends_with_the_squared_norm() -> None:
    ours, others = drawn(7, 3000, 7, 300_000), drawn(8, 3000, 7, 300_000)
    apart_from = [one.double() - other.double() for one, other in zip(ours, others, strict=True)]
    projected = (sketch(ours, 4) - sketch(others, 4))[:-1]
    torch.testing.assert_close(projected, sketch(apart_from, 4)[:-1], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(sketch(ours, 4)[-1], sum(one.double().square().sum() for one in ours))


@pytest.mark.parametrize("spread", [True, False])
def test_the_squares_of_a_sketch_have_the_norm_as_their_mean(spread: bool) -> None:
    tensor = drawn(9, 5000)[0] if spread else torch.zeros(5000)
    tensor[1234] += 30.0 if not spread else 0.0
    found = torch.cat([sketch([tensor], secret)[:-1] for secret in range(150)]).square()
    # 2400 squares of g h, whose variance is 8 where the matrix has rank one, and less elsewhere.
    assert abs(found.mean() / tensor.double().square().sum() - 1) < 5 * math.sqrt(8 / 2400)


def test_apart_is_relative_and_zero_only_for_equal_sketches() -> None:
    (tensor,) = drawn(10, 20_000)
    one = sketch([tensor], 6)
    assert apart(one, one.clone()) == 0
    assert apart(sketch([torch.zeros(9)], 6), sketch([torch.zeros(9)], 6)) == 0
    near = apart(one, sketch([tensor + 1e-4 * drawn(11, 20_000)[0]], 6))
    assert 0.4e-4 < near < 2e-4
    tensor[5] = math.nan
    assert not apart(one, sketch([tensor], 6)) <= 1e9


def test_the_odds_of_a_sketch_are_those_of_its_docstring() -> None:
    h = np.linspace(-12, 12, 20_001)
    weights = np.exp(-h * h / 2) / math.sqrt(2 * math.pi) * (h[1] - h[0])

    def below(part: float) -> float:
        """Chernoff's bound for 16 squares of g h whose mean is below part^2."""
        bounds = ((x, (weights / np.sqrt(1 + 2 * x * h * h)).sum()) for x in np.logspace(-1, 4, 400))
        return min(math.exp(min(16 * (x * part**2 + math.log(mean)), 0)) for x, mean in bounds)

    for part, said in ((1 / 5, 2.5e-4), (1 / 10, 3e-7), (1 / 25, 1e-11)):
        assert said / 2 < below(part) <= said
    drawn_numbers = np.random.default_rng(1).standard_normal((2, 200_000, 16))
    above = ((drawn_numbers[0] * drawn_numbers[1]) ** 2).mean(1) > 4
    assert 0.005 < above.mean() < 0.007


@settings(max_examples=20)
@given(st.integers(1, 5000), st.integers(1, 40))
def test_sketches_have_as_many_numbers_as_asked_for(size: int, count: int) -> None:
    assert sketch([torch.ones(size)], 1, count).shape == (count + 1,)
    assert sketch([torch.ones(size)], 1, count)[-1] == size
