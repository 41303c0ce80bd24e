"""Gradients of any size: what schemes decode is right relative to the replies, or a DecodeError, from 1e-38 to 1e38.

Byzantine workers know the code, and send what lies just beside the numbers at which arithmetic changes.
"""

import itertools
import math
from collections.abc import Iterator, Sequence

import pytest
import torch
from attacked import every_placement, gradients_for, honest, with_wrong
from torch import Tensor

from draco.schemes import DecodeError, Scheme, build

SCHEMES = {  # with the most by which the result may be off, relative to the honest replies
    "cyclic-7-1": (build("cyclic", workers=7, adversaries=1), 1e-4),
    "cyclic-9-2": (build("cyclic", workers=9, adversaries=2), 1e-4),
    "cyclic-8-2": (build("cyclic", workers=8, adversaries=2), 1e-4),
    "cyclic_dft-9-2": (build("cyclic_dft", workers=9, adversaries=2), 1e-6),
    "solon-9-2": (build("solon", workers=9, adversaries=2), 1e-4),
    "repetition-9-1": (build("repetition", workers=9, adversaries=1, vote="tolerance"), 1e-5),
    "repetition-9-1-exact": (build("repetition", workers=9, adversaries=1), 0.0),
    "placement-9-2": (
        build("placement", workers=9, adversaries=2, design="ramanujan", vote="tolerance", tolerance=1e-5),
        1e-4,
    ),
    "approximate-9-1": (build("approximate", workers=9, adversaries=1, vote="tolerance"), 1e-5),
}
EVERY = pytest.mark.parametrize(("scheme", "limit"), SCHEMES.values(), ids=SCHEMES)
EXPONENTS = (-38, -37, -23, -21, 0, 18, 36, 37)
# Beside the roots of the least and largest float32 and float64, and of the bounds in the decoders' own code.
SIZES = (1e-45, 1.1e-38, 1e-37, 3.7e-23, 1e-21, 1e-19, 1e-15, 1.0, 1.8e19, 1e31, 3e38)
COMPLEX_SIZES = (1e-300, 1e-160, 1e64, 1e66, 1e154)
ROUNDED = 64 * 2.0**-149  # of a number below float32's least normal one, where nothing relative can be promised


def root_mean_square(rows: Tensor) -> float:
    """Return the root of the rows' mean squared norm."""
    return float(torch.linalg.vector_norm(rows.abs().double()) / math.sqrt(len(rows)))


def attacks(sent: Tensor, rows: Sequence[int], seed: int) -> Iterator[Tensor]:
    """Yield what Byzantine `rows` send: nothing wrong; errors of relative and of absolute size; zeros."""
    right = sent[list(rows)]
    wide = right.to(torch.complex128 if right.is_complex() else torch.float64)
    noise = torch.randn(right.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    typical = wide.abs().square().mean().sqrt()
    errors = [noise * typical * relative for relative in (1e-3, 0.2, 11.0)]
    sizes = SIZES + COMPLEX_SIZES if right.is_complex() else SIZES
    yield right
    yield from ((wide + error).to(right.dtype) for error in errors)
    yield from ((noise.clamp(-1, 1) * size).to(right.dtype) for size in sizes)
    yield from ((wide + noise.clamp(-1, 1) * size).to(right.dtype) for size in sizes)
    yield torch.zeros_like(right)


def check(scheme: Scheme, limit: float, gradients: Tensor, sent: Tensor, rows: Sequence[int], inspected: bool) -> bool:
    """Decode; say whether it went through, and fail where it did and is wrong."""
    inspection = scheme.inspect(sent, 5) if inspected and scheme.inspect is not None else None
    if inspection is not None:
        for row in range(scheme.workers):
            inspection.add(row)
    try:
        decoded = scheme.decode(sent, seed=5, inspection=inspection)
    except DecodeError:
        return False
    found = decoded.gradients[:, : gradients.shape[1]].double()
    mean = found.shape[0] == 1
    truth = gradients.double().mean(0, keepdim=True) if mean else gradients.double()
    kept = [row for row in range(scheme.workers) if row not in rows]
    allowed = limit * root_mean_square(sent[kept]) + ROUNDED * math.sqrt(gradients.shape[1])
    off = sum(not bool(((found - each).norm(dim=1) <= allowed).any()) for each in truth)
    assert off <= scheme.bad, (rows, off, float((found[0] - truth[0]).norm()), allowed)
    assert bool(torch.isfinite(found).all())
    assert set(decoded.suspects) <= set(rows)
    return True


@EVERY
@pytest.mark.parametrize("exponent", EXPONENTS)
def test_the_result_is_right_or_an_error_at_any_size(scheme: Scheme, limit: float, exponent: int) -> None:
    placements = itertools.cycle(sorted(every_placement(scheme.workers, scheme.adversaries), key=lambda rows: rows[-1]))
    number = exponent
    for d in (1, 300) if exponent % 2 else (2,):
        gradients = (gradients_for(scheme, d, d).double().clamp(-3, 3) * 10.0**exponent).float()
        sent = honest(scheme, gradients)
        rows = next(placements)
        for place, wrong in enumerate(attacks(sent, rows, d)):
            number += 1
            through = check(scheme, limit, gradients, with_wrong(sent, rows, wrong), rows, number % 2 == 0)
            assert through or place, "honest replies must decode"


@EVERY
@pytest.mark.parametrize("size", [1e-45, 1e-38, 1e-37, 1e-25, 1e-21, 1e-19, 1.0, 1e30, 1e38])
def test_all_zeros_beside_byzantine_parts_of_a_codeword_decode_to_zeros(
    scheme: Scheme, limit: float, size: float
) -> None:
    zeros = torch.zeros(scheme.assignment.shape[1], 3)
    sent, codeword = honest(scheme, zeros), honest(scheme, zeros + size)
    for number, rows in enumerate(every_placement(scheme.workers, scheme.adversaries)):
        if number % 3 == 0:
            replies = with_wrong(sent, rows, codeword[list(rows)])
            through = check(scheme, limit, zeros, replies, rows, inspected=number % 2 == 0)
            assert through or size < 1e-40  # as small as rounding: an error will do


@pytest.mark.parametrize("exponent", [-37, -23, 37])
@pytest.mark.parametrize("name", ["cyclic-7-1", "cyclic-9-2", "cyclic_dft-9-2", "solon-9-2"])
def test_wherever_the_byzantine_workers_are(name: str, exponent: int) -> None:
    scheme, limit = SCHEMES[name]
    gradients = (gradients_for(scheme, 7).double() * 10.0**exponent).float()
    sent = honest(scheme, gradients)
    for rows in every_placement(scheme.workers, scheme.adversaries):
        for inspected, factor in itertools.product((False, True), (1.001, -11.0)):
            replies = with_wrong(sent, rows, (sent[list(rows)] * factor).nan_to_num())
            assert check(scheme, limit, gradients, replies, rows, inspected)


@EVERY
def test_partitions_of_unlike_size(scheme: Scheme, limit: float) -> None:
    """One worker's partitions are of one size, all others of another."""
    for small, large in ((1e-30, 1e10), (1e10, 1e-30), (1e-37, 1e37), (1e-22, 1e-18)):
        gradients = gradients_for(scheme, 40) * large
        gradients[scheme.assignment[0]] = gradients_for(scheme, 40)[scheme.assignment[0]] * small
        sent = honest(scheme, gradients)
        for number, rows in enumerate(itertools.islice(every_placement(scheme.workers, scheme.adversaries), 8)):
            wrong = itertools.islice(attacks(sent, rows, 1), number % 5, None, 5)
            for place, replies in enumerate(with_wrong(sent, rows, each) for each in wrong):
                check(scheme, limit, gradients, replies, rows, inspected=place % 2 == 0)
        assert check(scheme, limit, gradients, sent, (), inspected=False)


@pytest.mark.parametrize("size", [1e-45, 1e-38, 1.0, 3e38])
def test_signs_and_statistics_of_an_election_have_no_size(size: float) -> None:
    scheme = build("election", workers=7, adversaries=2)
    gradients = torch.tensor([[size, -size, size]]).repeat(7, 1)
    sent = honest(scheme, gradients)
    decoded = scheme.decode(with_wrong(sent, (1, 4), 255 - sent[[1, 4]]))
    torch.testing.assert_close(decoded.gradients, gradients[:1].sign() * torch.tensor([1, 1, size]), atol=0, rtol=1e-6)
    assert set(decoded.suspects) <= {1, 4}


@pytest.mark.parametrize("options", [{}, {"code": "bernoulli", "redundancy": 5}])
def test_the_approximate_mean_of_huge_replies_is_no_infinity(options: dict[str, object]) -> None:
    scheme = build("approximate", workers=6, adversaries=0, **options)
    replies = honest(scheme, torch.full((6, 2), 3e37))
    found = scheme.decode(replies)
    reference = scheme.decode(replies * 2.0**-100).gradients * 2.0**100
    torch.testing.assert_close(found.gradients, reference)
    with pytest.raises(DecodeError, match="approximate: the replies add up to numbers that are not finite"):
        scheme.decode(torch.full((6, 2), math.inf))
