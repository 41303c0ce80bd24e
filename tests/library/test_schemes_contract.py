"""The contract of every scheme of the table; a new scheme is tested by being listed there."""

import itertools

import numpy as np
import pytest
import torch
from attacked import error_of, gradients_for, honest

from draco.schemes import CODES, SCHEMES, DecodeError, Scheme, build, options

ANY = [(1, 0), (5, 0), (3, 1), (4, 1), (9, 1), (8, 2), (11, 5), (15, 3)]
SIZES = {  # where not all numbers will do
    "detox": [(3, 0), (3, 1), (4, 1), (5, 2), (9, 2), (11, 3), (15, 4)],
    "placement": [(12, 0), (12, 2), (15, 4)],
    "solon": [(2, 0), (5, 0), (4, 1), (9, 1), (8, 2), (11, 4), (15, 3)],
}
CASES = [(name, n, s) for name in CODES for n, s in SIZES.get(name, ANY)]
BUILT = {f"{name}-{n}-{s}": build(name, workers=n, adversaries=s) for name, n, s in CASES}
EXACT_ONES = {name: scheme for name, scheme in BUILT.items() if scheme.exact}
EVERY = pytest.mark.parametrize("scheme", BUILT.values(), ids=BUILT)
EXACT = pytest.mark.parametrize("scheme", EXACT_ONES.values(), ids=EXACT_ONES)


@EVERY
def test_the_value_is_consistent(scheme: Scheme) -> None:
    n, k = scheme.assignment.shape
    assert n == scheme.workers
    assert scheme.assignment.dtype == np.bool_
    assert scheme.assignment.any(0).all()
    assert scheme.assignment.any(1).all()
    assert scheme.assignment.sum(1).max() == scheme.redundancy
    assert scheme.name in SCHEMES
    assert scheme.exact == (scheme.name not in {"election"})
    assert str(n) in scheme.summary
    assert "\n" not in scheme.summary
    assert 0 <= 2 * scheme.bad < k or scheme.name == "uncoded"
    if scheme.exact and not scheme.bad:
        assert scheme.assignment.sum(0).min() >= 2 * scheme.adversaries + 1
    if scheme.weights is not None:
        assert scheme.weights.shape == (n, k)
        assert not scheme.weights[~scheme.assignment].any()


@EVERY
def test_rows_of_a_group_compute_the_same_and_nobody_else_any_of_it(scheme: Scheme) -> None:
    """Only then may the server spread a node's workers over groups instead of over all rows."""
    loads = [frozenset(row.nonzero()[0].tolist()) for row in scheme.assignment]
    apart = all(a == b or not a & b for a, b in itertools.combinations(loads, 2))
    groups = scheme.groups()
    if not apart or len({*loads}) == scheme.workers:
        assert groups is None
        return
    assert groups is not None
    assert groups == [min(load) for load in loads]


@EVERY
def test_encode_is_the_weighted_sum_of_its_partitions(scheme: Scheme) -> None:
    gradients = gradients_for(scheme, 6)
    before = gradients.clone()
    sent = honest(scheme, gradients)
    assert sent.shape == (scheme.workers, scheme.elements(6))
    assert sent.dtype == scheme.dtype
    assert torch.equal(gradients, before)
    if scheme.weights is not None:
        torch.testing.assert_close(
            sent.double(), torch.from_numpy(scheme.weights) @ gradients.double(), atol=1e-5, rtol=1e-5
        )


@EVERY
def test_honest_replies_decode_to_their_mean_and_accuse_nobody(scheme: Scheme) -> None:
    for d in (1, 50, 5000):
        gradients = gradients_for(scheme, d) + 1
        decoded = scheme.decode(honest(scheme, gradients))
        assert decoded.suspects == ()
        assert decoded.gradients.dtype == torch.float32
        assert decoded.gradients.ndim == 2
        assert d <= decoded.gradients.shape[1] < d + 64
        assert not scheme.exact or error_of(decoded.gradients[:, :d], gradients) <= 1e-6


@EXACT
def test_zeros_decode_to_zeros(scheme: Scheme) -> None:
    decoded = scheme.decode(torch.zeros(scheme.workers, scheme.elements(9), dtype=scheme.dtype))
    assert not decoded.gradients.any()
    assert decoded.suspects == ()


@EXACT
def test_s_missing_rows_are_tolerated_and_never_read(scheme: Scheme) -> None:
    n, s = scheme.workers, scheme.adversaries
    gradients = gradients_for(scheme, 40)
    replies = honest(scheme, gradients)
    arrived = np.arange(n) >= s if s < n - 1 else np.ones(n, dtype=np.bool_)
    replies[~torch.from_numpy(arrived)] = float("nan")
    decoded = scheme.decode(replies, arrived)
    assert decoded.suspects == ()
    expected = gradients[arrived] if scheme.name == "uncoded" else gradients
    assert error_of(decoded.gradients, expected) <= 1e-6


@EVERY
def test_nothing_arrived_is_an_error(scheme: Scheme) -> None:
    n = scheme.workers
    with pytest.raises(DecodeError, match=scheme.name):
        scheme.decode(torch.zeros(n, scheme.elements(3), dtype=scheme.dtype), np.zeros(n, dtype=np.bool_))


@EVERY
def test_inspected_and_plain_decoding_agree(scheme: Scheme) -> None:
    if scheme.inspect is None:
        return
    gradients = gradients_for(scheme, 700)
    replies = honest(scheme, gradients)
    rows = list(range(scheme.workers))[: scheme.adversaries]
    replies[rows] *= -100
    inspection = scheme.inspect(replies, 3)
    for row in np.random.default_rng(0).permutation(scheme.workers):
        inspection.add(int(row))
    decoded = scheme.decode(replies, inspection=inspection)
    plain = scheme.decode(replies, seed=3)
    assert decoded.suspects == plain.suspects == tuple(rows)
    torch.testing.assert_close(decoded.gradients, plain.gradients, atol=1e-6, rtol=1e-5)


@EVERY
def test_wrong_shapes_and_dtypes_are_refused(scheme: Scheme) -> None:
    n, load = scheme.workers, int(scheme.assignment[0].sum())
    with pytest.raises(ValueError, match=rf"gradients have shape \({load + 1}, 3\), must be \({load}, d\)"):
        scheme.encode(0, torch.zeros(load + 1, 3))
    with pytest.raises(ValueError, match="gradients have shape"):
        scheme.encode(0, torch.zeros(3))
    for replies in (torch.zeros(n + 1, 3), torch.zeros(n), torch.zeros(n, 0)):
        with pytest.raises(ValueError, match="replies have shape"):
            scheme.decode(replies.to(scheme.dtype))
    with pytest.raises(ValueError, match=r"replies are torch\.float16, must be"):
        scheme.decode(torch.zeros(n, 3, dtype=torch.float16))
    with pytest.raises(ValueError, match="column stride"):
        scheme.decode(torch.zeros(n, 8, dtype=scheme.dtype)[:, ::2])
    with pytest.raises(ValueError, match="arrived has shape"):
        scheme.decode(torch.zeros(n, scheme.elements(3), dtype=scheme.dtype), np.ones(n + 1, dtype=np.bool_))


@pytest.mark.parametrize("name", CODES)
def test_decoding_leaves_the_global_random_state_alone(name: str) -> None:
    n, s = SIZES.get(name, ANY)[-1]
    scheme = build(name, workers=n, adversaries=s)
    replies = honest(scheme, gradients_for(scheme, 2000))
    replies[2] = replies[3]
    state, numpy_state = torch.random.get_rng_state(), np.random.get_state()[1].tolist()
    scheme.decode(replies)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert np.random.get_state()[1].tolist() == numpy_state


@pytest.mark.parametrize("name", ["repetition", "cyclic", "cyclic_dft"])
def test_the_same_seed_gives_the_same_bits(name: str) -> None:
    scheme = build(name, workers=9, adversaries=2)
    replies = honest(scheme, gradients_for(scheme, 2000))
    replies[[2, 3]] *= -100
    first, second = (scheme.decode(replies, seed=11) for _ in range(2))
    assert torch.equal(first.gradients, second.gradients)


def test_unknown_names_options_and_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match=f"unknown scheme 'cycle', must be one of {', '.join(SCHEMES)}"):
        build("cycle", workers=3, adversaries=1)
    with pytest.raises(ValueError, match="cyclic: unknown option vote; its options are: redundancy, tolerance"):
        build("cyclic", workers=3, adversaries=1, vote="exact")
    with pytest.raises(ValueError, match="uncoded: unknown option r; its options are: none"):
        build("uncoded", workers=3, adversaries=1, r=2)
    with pytest.raises(ValueError, match="workers is 0, must be 1 or more"):
        build("uncoded", workers=0, adversaries=0)
    with pytest.raises(ValueError, match="adversaries is -1, must be 0 or more"):
        build("cyclic", workers=3, adversaries=-1)
    assert options("repetition") == ("redundancy", "vote", "tolerance")
