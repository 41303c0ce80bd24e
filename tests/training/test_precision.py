"""precision: float64_rounded: what is computed and rounded, and what a tie does and does not.

test_unlike_kernels.py shows that it gives equal bits with unlike kernels.
"""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from real_model import Net, Regression, vector, vectors
from torch import Tensor, nn

from draco import schemes
from draco.errors import DecodeError, JobError, OwnCodeError
from draco.job import Job
from draco.training import server
from draco.training.build import TIES, Built, build_scheme, tolerance
from draco.training.greeting import Greeting
from draco.training.rounding import BITS, SPAN, exponents, round_blocks

Make = Callable[..., Job]
ROUNDED = "float64_rounded"


def distance(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


# What is computed


@pytest.mark.parametrize("options", [{}, {"micro_batch": 4}, {"recompute": ("blocks.*",)}])
def test_samples_and_masks_are_those_of_float32(options: dict[str, Any]) -> None:
    task = Regression(norm=True, p=0.3)
    wide, single = vector(vectors(task, precision=ROUNDED, **options)), vector(vectors(task, **options))
    assert wide.dtype == torch.float32
    assert 0 < distance(wide, single) < 1e-6
    assert distance(vector(vectors(Regression(norm=True, p=0.0), precision=ROUNDED)), single) > 1e-2


def test_sums_are_taken_before_the_rounding() -> None:
    task = Regression()
    whole, pieces = (vector(vectors(task, precision=ROUNDED, micro_batch=size)) for size in (None, 3))
    assert torch.equal(whole, pieces)
    singles = [vector(vectors(task, micro_batch=size)) for size in (None, 3)]
    assert not torch.equal(*singles)
    of = vectors(task, precision=ROUNDED)
    fused, one, two = (torch.zeros(of.elements) for _ in range(3))
    of.weighted(1, [0, 1], [0.25, 0.5], fused)
    of.partition(1, 0, one)
    of.partition(1, 1, two)
    assert distance(fused, 0.25 * one + 0.5 * two) < 1e-6


def test_the_model_computes_in_float64_with_the_parameters_of_the_server() -> None:
    seen = set()

    class Looking(Net):
        def blocked(self, block: nn.Module, x: Tensor) -> Tensor:
            seen.add(x.dtype)
            return super().blocked(block, x)

    of = vectors(Regression(norm=True, net=Looking), precision=ROUNDED)
    given = torch.rand(of.parameters)
    of.load(3, given)
    assert torch.equal(torch.cat([p.detach().flatten() for p in of.model.parameters()]), given.double())
    vector(of, step=3)
    assert seen == {torch.float64}
    assert {each.dtype for each in of.model.buffers() if each.is_floating_point()} == {torch.float64}


def test_frozen_weights_are_widened() -> None:
    class Frozen(Regression):
        def model(self) -> nn.Module:
            model = super().model()
            model.first.requires_grad_(False)
            return model

    of = vectors(Frozen(), precision=ROUNDED)
    assert distance(vector(of), vector(vectors(Frozen()))) < 1e-6
    assert of.model.first.weight.dtype == torch.float64


def test_a_loss_of_fewer_bits_is_an_error() -> None:
    class Narrow(Regression):
        def loss(self, model: nn.Module, batch: object) -> Tensor:
            return super().loss(model, batch).float()

    vector(vectors(Narrow()))
    with pytest.raises(OwnCodeError, match="returns float32, and precision: float64_rounded needs float64"):
        vector(vectors(Narrow(), precision=ROUNDED))


# Rounding


def rounded(*blocks: Tensor) -> list[Tensor]:
    out = [torch.full(block.shape, torch.nan) for block in blocks]
    round_blocks([block.clone() for block in blocks], out)
    return out


def twin(block: list[float], least: int) -> list[Fraction]:
    """Return a block rounded number by number, in fractions."""
    largest = max(abs(Fraction(x)) for x in block)
    top = least
    while Fraction(2) ** top <= largest:
        top += 1
    quantum = Fraction(2) ** max(top - BITS, -149)
    return [round(Fraction(x) / quantum) * quantum for x in block]  # Python rounds halves to the even one


@pytest.mark.parametrize("scale", [1.0, 3e-5, 1e30, 1e-38, 1e-44])
def test_each_tensor_is_rounded_to_its_grid(scale: float) -> None:
    source = torch.Generator().manual_seed(1)
    block = torch.randn(50, generator=source, dtype=torch.float64).pow(5) * scale
    (found,) = rounded(block)
    top = max(exponents([block])[0], -149) + BITS if scale > 1e-40 else -10_000
    assert [Fraction(x) for x in found.tolist()] == twin(block.tolist(), min(top - SPAN, top))
    assert distance(found, block) < 1e-6 or scale < 1e-37


def test_halves_go_to_the_even_multiple_and_no_zero_has_a_sign() -> None:
    quantum = 2.0**-BITS
    (found,) = rounded(torch.tensor([0.75, 2.5 * quantum, 3.5 * quantum, -0.25 * quantum, -0.0], dtype=torch.float64))
    assert (found / quantum).tolist() == [0.75 / quantum, 2.0, 4.0, 0.0, 0.0]
    assert not found.signbit().any()


def test_a_tensor_that_is_zero_but_for_rounding_becomes_zero() -> None:
    """Such as the gradient of a key's bias; float32 of its own exponent would keep the noise."""
    real, noise = torch.tensor([0.5, -0.1], dtype=torch.float64), torch.tensor([3e-18, -1e-17], dtype=torch.float64)
    assert rounded(real, noise)[1].tolist() == [0.0, 0.0]
    small = torch.tensor([2.0**-40, 3e-13], dtype=torch.float64)  # 2^-39 of the largest: a few bits are left of it
    assert rounded(real, small)[1].tolist() == pytest.approx(small.tolist(), abs=2.0 ** -(BITS + SPAN))


def test_what_is_not_finite_stays_so_and_touches_no_other_tensor() -> None:
    good, bad = torch.tensor([0.1], dtype=torch.float64), torch.tensor([torch.inf, 1.0], dtype=torch.float64)
    alone, (with_bad, broken) = rounded(good)[0], rounded(good, bad)
    assert torch.equal(with_bad, alone)
    assert not broken.isfinite().all()
    assert rounded(torch.zeros(3, dtype=torch.float64), torch.empty(0, dtype=torch.float64))[0].tolist() == [0.0] * 3


# Ties


def tied(d: int = 40) -> tuple[Tensor, Tensor]:
    """Return what two honest workers send whose float64 results are on both sides of a middle, 1e-16 apart."""
    source = torch.Generator().manual_seed(4)
    exact = torch.randn(d, generator=source, dtype=torch.float64)
    quantum = 2.0 ** exponents([exact])[0]
    exact[7] = (exact[7] / quantum).floor() * quantum + quantum / 2
    below, above = exact.clone(), exact.clone()
    below[7] *= 1 - 2e-16
    above[7] *= 1 + 2e-16
    a, b = rounded(below)[0], rounded(above)[0]
    assert (a != b).nonzero().tolist() == [[7]]
    assert float((a - b).abs().max()) == quantum
    return a, b


def repetition(vote: str) -> Any:
    return schemes.build("repetition", workers=3, adversaries=1, vote=vote, tolerance=TIES)


@pytest.mark.parametrize("place", range(3))
def test_a_tie_makes_nobody_a_suspect_and_lets_no_lie_win(place: int) -> None:
    a, b = tied()
    for lie in (-100 * a, a * (1 + 1e-5), torch.full_like(a, 1e30)):
        replies = [a, b]
        replies.insert(place, lie)
        decoded = repetition("tolerance").decode(torch.stack(replies), seed=1)
        assert decoded.suspects == (place,)
        assert torch.equal(decoded.gradients[0], a) or torch.equal(decoded.gradients[0], b)
        with pytest.raises(DecodeError, match="agree in classes"):
            repetition("exact").decode(torch.stack(replies), seed=1)


@pytest.mark.parametrize("place", range(3))
def test_without_a_tie_a_lie_within_one_changes_no_bit(place: int) -> None:
    a, near = tied()
    replies = [a, a.clone()]
    replies.insert(place, near)
    assert torch.equal(repetition("tolerance").decode(torch.stack(replies), seed=1).gradients[0], a)


@pytest.mark.parametrize("largest", [1.0, 1.999, 2.0**-30])
def test_four_ties_are_always_within_the_tolerance(largest: float) -> None:
    """The worst is a vector of one large element: no other makes a quantum as large a part of its length."""
    vector = torch.tensor([largest, 0, 0, 0, 0], dtype=torch.float64)
    other = vector + torch.tensor([0, 1, 1, 1, 1]) * 2.0 ** exponents([vector])[0]
    a, b = rounded(vector)[0], rounded(other)[0]
    decoded = repetition("tolerance").decode(torch.stack([a, b, -a]), seed=1)
    assert decoded.suspects == (2,)


# Jobs

REPETITION = ("scheme.name=repetition", "scheme.adversaries=1", f"precision={ROUNDED}")


def test_the_vote_of_unlike_workers_is_within_ties(make_job: Make) -> None:
    job, a, b = make_job(*REPETITION), Greeting("a"), Greeting("b")
    assert server.choose_vote(job, [a, a, a])[0] == "exact"
    vote, why = server.choose_vote(job, [a, b, a])
    assert vote == "tolerance"
    assert "honest ones differ by ties only" in why
    assert tolerance(job) == TIES < tolerance(make_job(*REPETITION[:2]))
    assert tolerance(make_job(*REPETITION, "scheme.tolerance=1e-4")) == 1e-4
    assert "vote within 2.38419e-07" in build_scheme(job, vote).summary


def test_autocast_is_refused_beside_it(make_job: Make) -> None:
    with pytest.raises(JobError, match=f"autocast.dtype: computes in fewer bits, and precision {ROUNDED} in more"):
        make_job(f"precision={ROUNDED}", "autocast=bfloat16")


def test_a_replayed_scheme_is_refused_beside_it(make_job: Make) -> None:
    with pytest.raises(JobError, match="precision: checked replays products in float32: must be float32"):
        make_job(f"precision={ROUNDED}", "scheme.name=checked", "scheme.adversaries=1")


def test_a_job_trains_in_it_to_the_attack_free_bits(make_job: Make, train) -> None:
    attacked, honest = train(make_job(*REPETITION, "attack=reverse_gradient")), train(make_job(*REPETITION))
    assert torch.equal(attacked.model, honest.model)
    single = train(make_job(*REPETITION[:2]))
    assert 0 < distance(honest.model, single.model) < 1e-4


def test_float64_does_not_change_what_a_worker_says_it_sees(make_job: Make) -> None:
    from draco.tasks.agreement import digest_of

    lines = []
    for precision in ("float32", ROUNDED):
        built = Built(make_job(f"precision={precision}"))
        lines.append(digest_of(built.task, 1, built.train, built.model))
    assert lines[0] == lines[1]
