"""Attackers on the check of products: each is found, or within the bound that docs/checked.md states."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from draco.replay import CheatError, record, replay
from draco.replay import products as recorded
from draco.replay.mode import ProductMode
from draco.replay.tolerance import default_tolerance

Compute = Callable[[], Tensor]
SIZES = (1e-3, 1.0, 1e3)  # errors relative to a product
KINDS = ("convolution", "convolution_backward", "addmm", "mm", "bmm")


class _Net(nn.Module):
    """Two convolutions, attention over their pixels, and two linear layers, so that every kind of product occurs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 24, 3, padding=1), nn.Conv2d(24, 32, 3, stride=2)
        self.up, self.out = nn.Linear(32, 96), nn.Linear(96, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.second(torch.relu(self.first(x))))
        tokens = x.flatten(2).transpose(1, 2)
        tokens = torch.softmax(tokens @ tokens.transpose(1, 2) / 6, -1) @ tokens
        logits: Tensor = self.out(torch.relu(self.up(tokens))).mean(1)
        return logits


@pytest.fixture(autouse=True)
def _everything_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small products are recorded too, so that small models have all kinds."""
    monkeypatch.setattr(recorded, "LEAST_MULTIPLY_ADDS", 1)
    monkeypatch.setattr(recorded, "LEAST_PER_NUMBER", 0)


def _computation(seed: int = 0, scale: float = 1.0, net: nn.Module | None = None) -> Compute:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = net or _Net()
        torch.manual_seed(seed)
        x, y = torch.randn(4, 3, 12, 12) * scale, torch.randint(10, (4,))
    parameters = list(model.parameters())

    def compute() -> Tensor:
        return torch.cat([g.flatten() for g in torch.autograd.grad(F.cross_entropy(model(x), y), parameters)])

    return compute


def _secret(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class _Places:
    """Where each product lies in a transcript: kind, which output, and its numbers."""

    def __init__(self, compute: Compute) -> None:
        found: list[tuple[str, int, int, tuple[int, ...]]] = []

        class Mode(ProductMode):  # type: ignore[no-untyped-call]
            def product(self, op: Any, args: Any, options: Any, places: recorded.Places) -> Sequence[Any]:
                for output, place in enumerate(places):
                    if place is not None:
                        start = found[-1][2] + math.prod(found[-1][3]) if found else 0
                        found.append((op.overloadpacket.__name__, output, start, place.shape))
                out = op(*args, **options)
                return out if isinstance(out, (tuple, list)) else (out,)

        with Mode():  # type: ignore[no-untyped-call]
            compute()
        self.all = found

    def parts(self, transcript: Tensor) -> list[tuple[str, Tensor]]:
        """Return (kind and output, numbers that share the transcript's memory) of each product."""
        return [(f"{kind}[{i}]", transcript[at : at + math.prod(shape)].view(shape)) for kind, i, at, shape in self.all]


def _found(compute: Compute, transcript: Tensor, seed: int = 1) -> bool:
    try:
        replay(compute, transcript, generator=_secret(seed))
    except CheatError:
        return True
    return False


def test_the_model_has_every_kind_of_product() -> None:
    kinds = {kind for kind, *_ in _Places(_computation()).all}
    assert kinds == set(KINDS)


def test_an_honest_transcript_passes_under_many_secrets() -> None:
    compute = _computation()
    result, transcript = record(compute)
    for seed in range(10):
        replayed, _ = replay(compute, transcript, generator=_secret(seed))
        assert torch.equal(replayed, result)


@pytest.mark.parametrize("size", SIZES)
def test_an_error_in_any_one_product_is_found(size: float) -> None:
    """Noise of a relative size in the whole product, for each product and output."""
    compute = _computation()
    transcript = record(compute)[1]
    places = _Places(compute)
    drawn = _secret(7)
    for i, (name, part) in enumerate(places.parts(transcript)):
        lie = transcript.clone()
        places.parts(lie)[i][1].add_(
            torch.randn(part.shape, generator=drawn) * size * part.norm() / part.numel() ** 0.5
        )
        assert _found(compute, lie, seed=i), f"{name} of shape {tuple(part.shape)}, error {size}"


def test_one_false_number_in_any_one_product_is_found() -> None:
    """One number alone, by as much as a row's norm: the row's check sees it, however large the product is."""
    compute = _computation()
    transcript = record(compute)[1]
    places = _Places(compute)
    for i, (name, part) in enumerate(places.parts(transcript)):
        lie = transcript.clone()
        target = places.parts(lie)[i][1].view(-1)
        target[len(target) // 2] += float(part.norm()) / math.sqrt(part.shape[0])
        assert _found(compute, lie, seed=i), f"{name} of shape {tuple(part.shape)}"


def test_errors_that_cancel_between_layers_are_found() -> None:
    """What one product has too much the next has corrected, so that the logits are true; also a permutation."""
    net = _Net()
    with torch.no_grad():
        net.up.bias.zero_()
    compute = _computation(net=net)
    transcript = record(compute)[1]
    places = _Places(compute)
    parts = places.parts(transcript)
    first = next(i for i, (name, _) in enumerate(parts) if name == "addmm[0]")
    lie = transcript.clone()
    lies = places.parts(lie)
    lies[first][1].mul_(2)  # relu(2 x) = 2 relu(x); the next layer's product stays as it was
    assert _found(compute, lie)
    lie = transcript.clone()
    column = places.parts(lie)[first][1]
    column.copy_(column.roll(1, dims=-1))  # of the same norm, and the sum of its numbers is the true one
    assert _found(compute, lie)


def test_errors_of_opposite_sign_in_two_columns_are_found() -> None:
    """They cancel under a vector of signs half of the time, and under a Gaussian one never."""
    compute = _computation()
    transcript = record(compute)[1]
    places = _Places(compute)
    last = [i for i, (name, _) in enumerate(places.parts(transcript)) if name == "addmm[0]"][-1]
    for seed in range(30):
        lie = transcript.clone()
        product = places.parts(lie)[last][1]
        product[:, 0] += 0.1
        product[:, 1] -= 0.1
        assert _found(compute, lie, seed)


def test_errors_within_the_tolerance_pass_and_move_the_gradient_by_little() -> None:
    """Errors of a tolerance of each product's norm, in all at once, move the gradient by < 1,000 tolerances."""
    compute = _computation()
    true, transcript = record(compute)
    lie = transcript.clone()
    tolerance = default_tolerance(1)
    drawn = _secret(3)
    for _, part in _Places(compute).parts(lie):
        part.add_(torch.randn(part.shape, generator=drawn) * (0.1 * tolerance * part.norm() / part.numel() ** 0.5))
    got, verdict = replay(compute, lie, generator=_secret())
    assert 0 < verdict.worst <= tolerance
    moved = float((got - true).norm() / true.norm())
    assert 0 < moved < 1000 * tolerance


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t[:-1],
        lambda t: t[:0],
        lambda t: torch.cat([t, t[:1]]),
        lambda t: torch.cat([t, t]),
        lambda t: t.flip(0),
        lambda t: t.roll(1),
    ],
    ids=["short", "empty", "long", "twice", "backwards", "shifted"],
)
def test_transcripts_of_another_length_or_order_are_found(change: Callable[[Tensor], Tensor]) -> None:
    compute = _computation()
    assert _found(compute, change(record(compute)[1]).clone())


def test_a_transcript_of_another_partition_or_step_is_found() -> None:
    """The same model on other samples, and the same samples with a model that is one step of 0.1 % older."""
    compute = _computation()
    assert _found(compute, record(_computation(seed=1))[1])
    net = _Net()
    now = _computation(net=net)
    old = record(now)[1]
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1.001)
    assert _found(now, old)


def test_a_transcript_that_is_sent_twice_for_one_pair_gives_the_same_twice() -> None:
    """Replaying an honest transcript again is harmless: the result is the true one each time."""
    compute = _computation()
    true, transcript = record(compute)
    for seed in (1, 2):
        assert torch.equal(replay(compute, transcript, generator=_secret(seed))[0], true)


@pytest.mark.parametrize("value", [0.0, 1e-30, 1e-42, 1e30, 3e38, math.inf, -math.inf, math.nan])
def test_one_value_in_all_places_of_any_product_is_found(value: float) -> None:
    compute = _computation()
    transcript = record(compute)[1]
    places = _Places(compute)
    for i, (name, _) in enumerate(places.parts(transcript)):
        lie = transcript.clone()
        places.parts(lie)[i][1].fill_(value)
        assert _found(compute, lie, seed=i), name
    assert _found(compute, torch.full_like(transcript, value))


@pytest.mark.parametrize("value", [1e30, 3e38, math.inf, math.nan])
def test_one_number_that_is_huge_or_not_finite_is_found(value: float) -> None:
    compute = _computation()
    transcript = record(compute)[1]
    places = _Places(compute)
    for i, (name, _) in enumerate(places.parts(transcript)):
        lie = transcript.clone()
        places.parts(lie)[i][1].view(-1)[0] = value
        assert _found(compute, lie, seed=i), name


def _product(a: Tensor, b: Tensor) -> Compute:
    return lambda: a @ b


@pytest.mark.parametrize("scale", [1e-36, 1e-30, 1e-24, 1e-18, 1e-10, 1e10, 1e18, 1e24, 1e30])
def test_products_of_any_scale_pass_if_honest_and_are_found_if_false(scale: float) -> None:
    """Squares of these numbers overflow or vanish in float32. An error below 1e-33 is what underflow would do, too."""
    drawn = _secret(2)
    a, b = torch.randn(64, 48, generator=drawn), torch.randn(48, 32, generator=drawn) * scale
    compute = _product(a, b)
    true, transcript = record(compute)
    assert torch.equal(replay(compute, transcript, generator=_secret())[0], true)
    lie = transcript.clone().view(64, 32)
    lie[5] *= 1.01
    if scale >= 1e-30:
        assert _found(compute, lie.view(-1))
    else:
        assert float((lie - true).norm()) < 1e-33


def test_a_row_that_is_tiny_beside_others_may_be_wrong_by_the_tolerance_of_the_typical_row() -> None:
    """The bound is relative to |row| + the typical row; so a tiny row hides an error, of that size and not more."""
    drawn = _secret(2)
    a, b = torch.randn(64, 48, generator=drawn), torch.randn(48, 32, generator=drawn)
    a[7] *= 1e-9
    compute = _product(a, b)
    true, transcript = record(compute)
    typical = float(true.norm()) / 8
    for size, found in ((1e-2, True), (1e-3, True), (1e-7, False)):
        lie = transcript.clone().view(64, 32)
        lie[7] += size * typical / math.sqrt(32) * torch.randn(32, generator=drawn)
        assert _found(compute, lie.view(-1)) == found


def test_a_row_that_is_huge_beside_others_does_not_hide_errors_in_them_beyond_the_bound() -> None:
    """One outlying sample sets the typical row. The others may be wrong by the tolerance of that, and no more."""
    drawn = _secret(2)
    a, b = torch.randn(64, 48, generator=drawn), torch.randn(48, 32, generator=drawn)
    a[0] *= 1e4
    compute = _product(a, b)
    true, transcript = record(compute)
    scale = 3 * float(true.norm()) / 8  # |row| + rms + natural size are below 3 times the typical row here
    lie = transcript.clone().view(64, 32)
    lie[1:] += torch.randn(63, 32, generator=drawn) * (100 * default_tolerance(48) * scale / math.sqrt(32))
    assert _found(compute, lie.view(-1))


def test_errors_where_a_whole_product_is_zero_are_found() -> None:
    """Behind dead units all gradients are zero, and so is every scale: nothing at all may be put there."""
    net = _Net()
    with torch.no_grad():
        net.up.bias.fill_(-1e3)
    compute = _computation(net=net)
    true, transcript = record(compute)
    places = _Places(compute)
    dead = [i for i, (_, part) in enumerate(places.parts(transcript)) if not part.any()]
    assert dead
    assert torch.equal(replay(compute, transcript, generator=_secret())[0], true)
    for i in dead:
        for size in (1e-25, 1e-10, 1.0):
            lie = transcript.clone()
            places.parts(lie)[i][1].add_(size)
            assert _found(compute, lie), f"{places.all[i]}, error {size}"


def test_zeros_for_everything_are_found() -> None:
    compute = _computation()
    assert _found(compute, torch.zeros_like(record(compute)[1]))


def test_who_knows_all_vectors_of_the_past_is_found_by_the_next() -> None:
    """An error orthogonal to the vectors of 31 past secrets, in a product of 32 columns: the largest space there is."""
    drawn = _secret(2)
    a, b = torch.randn(64, 48, generator=drawn), torch.randn(48, 32, generator=drawn)
    compute = _product(a, b)
    transcript = record(compute)[1]
    past = torch.stack([torch.randn(1 << 14, generator=_secret(seed))[:32] for seed in range(31)]).double()
    hidden = torch.linalg.svd(past)[2][-1]  # orthogonal to all of them
    lie = (transcript.view(64, 32) + hidden.float()).view(-1)
    assert not _found(compute, lie, seed=0)  # who guesses the secret wins: these were the vectors
    assert all(_found(compute, lie, seed) for seed in range(100, 130))


def test_low_rank_errors_pass_no_more_often_than_the_bound() -> None:
    """A row of 1,000 tolerances, of rank one: the worst case of the bound, at 400 secrets."""
    from draco.replay.tolerance import passes_with_probability

    drawn = _secret(2)
    a, b = torch.randn(8, 48, generator=drawn), torch.randn(48, 32, generator=drawn)
    compute = _product(a, b)
    true, transcript = record(compute)
    tolerance = default_tolerance(48)
    size = 1000 * tolerance * 3 * float(true.norm()) / math.sqrt(8)
    lie = transcript.clone().view(8, 32)
    lie[3, 4] += size
    passed = sum(not _found(compute, lie.view(-1), seed) for seed in range(400))
    assert passed <= 400 * passes_with_probability(1000 * tolerance, tolerance) + 3


def _verdict(compute: Compute, transcript: Tensor, seed: int, thorough: bool) -> str | Tensor:
    try:
        return replay(compute, transcript.clone(), generator=_secret(seed), thorough=thorough)[0]
    except CheatError as cheat:
        return str(cheat)


def test_a_thorough_replay_comes_to_the_same_end_under_all_secrets_and_what_passes_it_passes_every_replay() -> None:
    """Errors about the tolerance, in one output each: a random check passes some of those that are false."""
    compute = _computation()
    result, true = record(compute)
    honest = _verdict(compute, true, 1, thorough=True)
    assert isinstance(honest, Tensor)
    assert torch.equal(honest, result)
    lucky = passed = 0
    places = _Places(compute)
    for at in range(len(places.all)):
        for size in (1e-5, 2e-4):
            transcript = true.clone()
            _, part = places.parts(transcript)[at]
            part.view(-1)[0] += size * part.norm() / len(part) ** 0.5
            first, *others = [_verdict(compute, transcript, seed, thorough=True) for seed in range(2)]
            usual = [_verdict(compute, transcript, seed, thorough=False) for seed in range(2, 5)]
            if isinstance(first, str):
                assert others == [first]
                lucky += sum(isinstance(each, Tensor) for each in usual)
            else:
                passed += 1
                assert all(isinstance(each, Tensor) and torch.equal(each, first) for each in (*others, *usual))
    assert passed > 0
    assert lucky > 0
