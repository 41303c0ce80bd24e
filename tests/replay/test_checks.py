"""Each kind of product by itself: its check against the whole product, and errors in one number of it."""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from draco.replay import CheatError, products, record, replay
from draco.replay.checking import _CHECKS
from draco.replay.products import places
from draco.replay.residual import Secrets, whole_residual

aten = torch.ops.aten


@pytest.fixture(autouse=True)
def _small_products_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "LEAST_PER_NUMBER", 10)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


class Case(NamedTuple):
    """One call of an operation."""

    op: Callable
    args: tuple
    options: Mapping = MappingProxyType({})

    def __call__(self):
        return self.op(*self.args, **self.options)


def backward(n: int, i: int, o: int, size: tuple[int, ...], kernel: tuple[int, ...], wanted=(True, True, True), **how):
    """Return a convolution's backward pass, with a gradient of the size that its output has."""
    forward = convolution(n, i, o, size, kernel, **how)
    x, weight, _, *rest = forward.args
    grad = normal(*forward().shape).to(memory_format=how.get("layout", torch.contiguous_format))
    return Case(aten.convolution_backward.default, (grad, x, weight, [o], *rest, list(wanted)))


def convolution(n, i, o, size, kernel, stride=1, padding=0, dilation=1, layout=torch.contiguous_format, bias=True):
    d = len(size)
    x, weight = normal(n, i, *size).to(memory_format=layout), normal(o, i, *kernel).to(memory_format=layout)
    how = ([stride] * d, [padding] * d, [dilation] * d, False, [0] * d, 1)
    return Case(aten.convolution.default, (x, weight, normal(o) if bias else None, *how))


LAST = torch.channels_last
CASES = {
    "mm": Case(aten.mm.default, (normal(160, 128), normal(128, 144))),
    "mm of transposed ones": Case(aten.mm.default, (normal(128, 160).t(), normal(144, 128).t())),
    "addmm": Case(aten.addmm.default, (normal(144), normal(160, 128), normal(144, 128).t())),
    "addmm with a matrix and factors": Case(
        aten.addmm.default, (normal(160, 144), normal(160, 128), normal(128, 144)), {"beta": 0.5, "alpha": -2}
    ),
    "addmm without what is added": Case(
        aten.addmm.default, (normal(144), normal(160, 128), normal(128, 144)), {"beta": 0}
    ),
    "bmm": Case(aten.bmm.default, (normal(6, 96, 64), normal(6, 64, 80))),
    "bmm of transposed ones": Case(
        aten.bmm.default, (normal(6, 64, 96).transpose(1, 2), normal(6, 80, 64).transpose(1, 2))
    ),
    "baddbmm": Case(aten.baddbmm.default, (normal(6, 1, 80), normal(6, 96, 64), normal(6, 64, 80)), {"alpha": 3}),
    "conv": convolution(3, 24, 32, (13, 11), (3, 3), padding=1),
    "conv with strides and dilation": convolution(3, 24, 64, (20, 23), (3, 5), stride=2, padding=3, dilation=2),
    "conv whose stride leaves pixels out": convolution(6, 64, 64, (14, 14), (2, 2), stride=3),
    "conv of 1x1": convolution(4, 64, 96, (20, 20), (1, 1), stride=2, bias=False),
    "conv with more padding than kernel": convolution(3, 32, 48, (9, 9), (2, 2), padding=3),
    "conv in one dimension": convolution(8, 32, 48, (101,), (5,), stride=2, padding=2),
    "conv with channels last": convolution(3, 24, 32, (13, 11), (3, 3), padding=1, layout=LAST),
    "backward": backward(3, 24, 32, (13, 11), (3, 3), padding=1),
    "backward with strides and dilation": backward(3, 24, 64, (20, 23), (3, 5), stride=2, padding=3, dilation=2),
    "backward whose stride leaves pixels out": backward(6, 64, 64, (14, 14), (2, 2), stride=3),
    "backward of 1x1": backward(4, 64, 96, (20, 20), (1, 1), stride=2),
    "backward in one dimension": backward(8, 32, 48, (101,), (5,), stride=2, padding=2),
    "backward with channels last": backward(3, 24, 32, (13, 11), (3, 3), padding=1, layout=LAST),
    "backward by weights only": backward(4, 24, 32, (13, 11), (3, 3), wanted=(False, True, False)),
    "backward by the input only": backward(4, 24, 32, (13, 11), (3, 3), wanted=(True, False, False)),
    "backward by weights and bias": backward(4, 24, 32, (13, 11), (3, 3), wanted=(False, True, True)),
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def outputs(out) -> tuple:
    return out if isinstance(out, tuple) else (out,)


def checked(case: Case, transcript: Tensor, seed: int = 1):
    return replay(case, transcript, generator=torch.Generator().manual_seed(seed))


class Noted(Secrets):
    """Remembers the vectors that a check has taken."""

    def __init__(self) -> None:
        super().__init__(torch.Generator().manual_seed(5))
        self.taken: list[Tensor] = []

    def take(self, count: int) -> Tensor:
        self.taken.append(super().take(count))
        return self.taken[-1]


@each_case
def test_both_sides_of_a_check_are_the_whole_product_contracted_with_the_secret_vector(case: Case) -> None:
    exact = outputs(case.op(*(a.double() if isinstance(a, Tensor) else a for a in case.args), **case.options))
    secrets = Noted()
    equations = list(_CHECKS[case.op](outputs(case()), case.args, case.options, secrets))
    assert [e.output for e in equations] == [k for k, out in enumerate(exact) if out is not None and out.numel()]
    for equation in equations:
        vector = secrets.taken[min(equation.output, len(secrets.taken) - 1)]
        twin = torch.tensordot(exact[equation.output], vector.double(), dims=([equation.along], [0]))
        scale = twin.abs().max() + torch.as_tensor(equation.natural()).max()
        assert float((equation.want - twin).abs().max()) < 1e-5 * scale
        assert float((equation.got - twin).abs().max()) < 1e-5 * scale


@each_case
def test_the_size_that_unrelated_factors_would_give_is_that_of_the_product(case: Case) -> None:
    """The factors of these cases are random, so that rows of the product have their natural sizes."""
    out = outputs(case())
    for equation in _CHECKS[case.op](out, case.args, case.options, Noted()):
        rows = torch.linalg.vector_norm(out[equation.output], dim=equation.along)
        natural = torch.as_tensor(equation.natural()).expand(rows.shape)
        assert 0.3 < float(natural.square().mean().sqrt() / rows.square().mean().sqrt()) < 3


@each_case
def test_what_whole_rows_are_compared_with_has_no_secret_in_it(case: Case) -> None:
    """So whoever compares them comes to the same end."""
    out, same = outputs(case()), []
    for seed in (1, 2):
        secrets = Secrets(torch.Generator().manual_seed(seed))
        checks = _CHECKS[case.op](out, case.args, case.options, secrets)
        same.append([whole_residual(e, out[e.output] + 1, out[e.output]) for e in checks])
    assert same[0] == same[1]


@each_case
def test_an_honest_transcript_passes_and_gives_the_same_bits_in_the_same_layout(case: Case) -> None:
    result, transcript = record(case)
    plain = outputs(case())
    again, verdict = checked(case, transcript)
    assert verdict.products == 1
    assert 0 < verdict.worst < 3e-6
    for one, two, three in zip(plain, outputs(result), outputs(again), strict=True):
        if one is not None:
            assert torch.equal(one, two)
            assert torch.equal(two, three)
            assert one.stride() == two.stride() == three.stride()


@each_case
def test_one_false_number_anywhere_is_found(case: Case) -> None:
    _, transcript = record(case)
    parts = [place for place in places(case.op, case.args) if place]
    begin = 0
    for part in parts:
        size = float(transcript[begin : begin + part.numbers].square().mean().sqrt())
        for number in (0, part.numbers // 2, part.numbers - 1):
            false = transcript.clone()
            false[begin + number] += 0.1 * size
            with pytest.raises(CheatError, match=r"product 1.* is false by"):
                checked(case, false)
        begin += part.numbers
    assert begin == len(transcript)


@each_case
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_number_that_is_not_finite_is_found(case: Case, value: float) -> None:
    _, transcript = record(case)
    transcript[-1] = value
    with pytest.raises(CheatError, match="numbers that are not finite"):
        checked(case, transcript)


@pytest.mark.parametrize("case", [CASES[name] for name in ("addmm", "bmm", "conv", "backward")])
@pytest.mark.parametrize("change", [-1, 1])
def test_a_number_too_many_or_too_few_is_found(case: Case, change: int) -> None:
    _, transcript = record(case)
    wrong = transcript[:change] if change < 0 else torch.cat([transcript, torch.zeros(change)])
    with pytest.raises(CheatError, match=r"and the (transcript|computation) has"):
        checked(case, wrong)


def test_a_transcript_of_another_kind_is_refused() -> None:
    for wrong in (torch.zeros(4, 4), torch.zeros(16, dtype=torch.float64)):
        with pytest.raises(CheatError, match="must be float32 of 1"):
            checked(CASES["mm"], wrong)


def test_a_product_that_overflows_is_the_checkers_own_and_convicts_nobody() -> None:
    case = Case(aten.mm.default, (normal(160, 128) * 1e25, normal(128, 144) * 1e25))
    _, transcript = record(case)
    again, _ = checked(case, transcript)
    assert not again.isfinite().all()
    again, _ = checked(case, torch.zeros_like(transcript))
    assert torch.equal(again.isnan(), case().isnan())


@pytest.mark.parametrize("scale", [1e-18, 1e-12, 1e8, 1e15])
def test_huge_and_tiny_scales_hide_no_error_and_convict_no_honest_worker(scale: float) -> None:
    """At 1e15 the products are 1e30, whose squares overflow."""
    case = Case(aten.mm.default, (normal(160, 128) * scale, normal(128, 144) * min(scale, 1e15)))
    if scale < 1e-15:  # far below float32's normal numbers: nothing to protect, and honest rounding is everything
        case = Case(aten.mm.default, (normal(160, 128) * scale, normal(128, 144)))
    _, transcript = record(case)
    checked(case, transcript)
    with pytest.raises(CheatError, match="is false"):
        checked(case, transcript * 1.001)


def test_sums_that_cancel_are_rounding_alone_and_convict_nobody() -> None:
    """As the gradient by weights whose output is normalised afterwards: exactly zero, were it not for rounding."""
    a, b = normal(160, 128), normal(128, 144)
    twice = Case(aten.mm.default, (torch.cat([a, -a], 1), torch.cat([b, b * (1 + 2**-22)])))
    _, transcript = record(twice)
    checked(twice, transcript)
    with pytest.raises(CheatError, match="is false"):
        checked(twice, transcript + 1e-2 * normal(*transcript.shape))


def test_zeros_pass_and_lies_about_them_do_not() -> None:
    case = Case(aten.mm.default, (torch.zeros(160, 128), normal(128, 144)))
    _, transcript = record(case)
    assert checked(case, transcript)[1].worst == 0
    with pytest.raises(CheatError, match="is false"):
        checked(case, transcript + 1e-20)


def test_small_products_and_other_types_are_not_in_the_transcript_and_are_the_checkers_own() -> None:
    small = partial(torch.mm, normal(4, 5), normal(5, 6))
    vector = partial(torch.mm, normal(1, 2048), normal(2048, 2048))  # a check would read as much as the product
    double = partial(torch.mm, normal(160, 128).double(), normal(128, 144).double())
    half = partial(torch.mm, normal(160, 128).bfloat16(), normal(128, 144).bfloat16())
    for compute in (small, vector, double, half):
        result, transcript = record(compute)
        assert not len(transcript)
        again, verdict = replay(compute, transcript, generator=torch.Generator())
        assert torch.equal(again, result)
        assert verdict.products == 0


def test_a_tolerance_that_is_given_counts() -> None:
    case = CASES["mm"]
    _, transcript = record(case)
    false = transcript * (1 + 1e-4)
    replay(case, false, generator=torch.Generator().manual_seed(1), tolerance=1e-3)
    with pytest.raises(CheatError, match=r"rounding stays below 1\.0e-05"):
        checked(case, false)


def test_an_error_that_cancels_in_one_secret_vector_does_not_in_another() -> None:
    """The sender knows the vector of seed 1: its error is at a right angle to it, and passes. Seed 2 finds it."""
    case = CASES["mm"]
    _, transcript = record(case)
    r = Secrets(torch.Generator().manual_seed(1)).take(144)
    error = normal(144)
    error -= error @ r / (r @ r) * r
    false = (transcript.view(160, 144) + error).view(-1)
    checked(case, false, seed=1)
    for seed in range(2, 12):
        with pytest.raises(CheatError, match="is false"):
            checked(case, false, seed=seed)
