"""The real cyclic code: locator and decoder, on every attack, against an exhaustive search."""

import itertools
import secrets
from collections.abc import Callable

import numpy as np
import pytest
import torch
from attacked import error_of, every_placement, gradients_for, honest, neighbours, with_wrong, wrong_replies
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from draco.schemes import Decoded, DecodeError, Scheme, build
from draco.schemes.cyclic_code import real_code, worst_amplification

SMALL = [(n, s) for n in range(3, 12) for s in range(1, (n - 1) // 2 + 1)]


def plainly(scheme: Scheme, replies: Tensor) -> Decoded:
    return scheme.decode(replies, seed=1)


def inspected(scheme: Scheme, replies: Tensor) -> Decoded:
    assert scheme.inspect is not None
    inspection = scheme.inspect(replies, 1)
    for row in reversed(range(len(replies))):
        inspection.add(row)
    return scheme.decode(replies, inspection=inspection)


WAYS = pytest.mark.parametrize("decode", [plainly, inspected])
Way = Callable[[Scheme, Tensor], Decoded]


@WAYS
@pytest.mark.parametrize(("n", "s"), SMALL)
def test_decodes_wherever_the_byzantine_workers_sit(n: int, s: int, decode: Way) -> None:
    """Every placement, with projections every fourth; the attacks take turns."""
    scheme = build("cyclic", workers=n, adversaries=s)
    gradients = gradients_for(scheme, 30)
    sent = honest(scheme, gradients)
    placements = itertools.islice(enumerate(every_placement(n, s)), 0, None, 1 if decode is plainly else 4)
    for number, rows in placements:
        attacks = list(wrong_replies(scheme, sent, rows, seed=number).items())
        name, wrong = attacks[number % len(attacks)]
        decoded = decode(scheme, with_wrong(sent, rows, wrong))
        assert decoded.suspects == rows, name
        assert error_of(decoded.gradients, gradients) <= 1e-6, name


@WAYS
@pytest.mark.parametrize("noise", [0.0, 3e-7])
@pytest.mark.parametrize(("n", "s"), [(3, 1), (4, 1), (9, 1), (8, 2), (15, 2), (15, 3), (44, 2), (45, 2)])
def test_tolerates_every_attack_on_exact_and_on_noisy_replies(n: int, s: int, noise: float, decode: Way) -> None:
    scheme = build("cyclic", workers=n, adversaries=s, tolerance=2e-6)  # the noise is less than the usual one allows
    assert scheme.amplification is not None
    gradients = gradients_for(scheme, 600)
    sent = honest(scheme, gradients, noise)
    assert decode(scheme, sent).suspects == ()
    limit = 1e-6 if noise == 0 else 2e-6 + 4 * scheme.amplification * noise
    for rows in [neighbours(n, s)[1], neighbours(n, s)[-1], tuple(range(0, n, n // s))[:s]]:
        for name, wrong in wrong_replies(scheme, sent, rows).items():
            decoded = decode(scheme, with_wrong(sent, rows, wrong))
            if name == "just above the noise" and noise and n > 15:  # one of two neighbours can pass for both
                assert error_of(decoded.gradients, gradients) <= 1e-4
                continue
            assert decoded.suspects == rows, name
            assert error_of(decoded.gradients, gradients) <= limit, name


@WAYS
@pytest.mark.parametrize(("n", "s"), [(45, 5), (44, 5)])
def test_tolerates_five_neighbours_of_45(n: int, s: int, decode: Way) -> None:
    scheme = build("cyclic", workers=n, adversaries=s)
    gradients = gradients_for(scheme, 600)
    sent = honest(scheme, gradients)
    placements = [*neighbours(n, s)[:: n // 2], (0, 3, 17, 18, 40)]
    for rows in placements if decode is plainly else placements[::3]:
        for name, wrong in wrong_replies(scheme, sent, rows).items():
            decoded = decode(scheme, with_wrong(sent, rows, wrong))
            thin = name == "just above the noise"
            assert error_of(decoded.gradients, gradients) <= (1e-4 if thin else 1e-5), name
            assert thin or decoded.suspects == rows, name


def test_fewer_than_s_byzantine_workers_are_found_without_accusing_others() -> None:
    scheme = build("cyclic", workers=15, adversaries=3)
    gradients = gradients_for(scheme, 50)
    sent = honest(scheme, gradients)
    for size in (1, 2):
        for rows in itertools.islice(every_placement(15, size), 0, None, 3):
            for wrong in (-sent[list(rows)], sent[list(rows)] + torch.randn(50)):
                decoded = scheme.decode(with_wrong(sent, rows, wrong))
                assert decoded.suspects == rows
                assert error_of(decoded.gradients, gradients) <= 1e-6


def smallest_explanation(scheme: Scheme, replies: Tensor, most: int) -> tuple[int, ...] | None:
    """The twin of the locator: the first set, by size, without which the rows are a codeword in full length."""
    assert scheme.weights is not None
    n = len(replies)
    for size in range(most + 1):
        for rows in itertools.combinations(range(n), size):
            kept = np.setdiff1d(np.arange(n), rows)
            w, z = scheme.weights[kept], replies[kept].double().numpy()
            rest = z - w @ np.linalg.lstsq(w, z, rcond=1e-10)[0]
            if np.linalg.norm(rest) <= 1e-6 * np.linalg.norm(z):
                return rows
    return None


@WAYS
@pytest.mark.parametrize(("n", "s", "wrong"), [(7, 2, 2), (7, 2, 3), (8, 1, 2), (9, 2, 4), (6, 2, 3)])
def test_locates_what_an_exhaustive_search_locates_or_refuses(n: int, s: int, wrong: int, decode: Way) -> None:
    """More than s wrong rows included: an error, never another result than the search's."""
    scheme = build("cyclic", workers=n, adversaries=s)
    sent = honest(scheme, gradients_for(scheme, 40))
    for rows in every_placement(n, wrong):
        replies = with_wrong(sent, rows, sent[list(rows)] + torch.randn(wrong, 40))
        expected = smallest_explanation(scheme, replies, s)
        if expected is None:
            with pytest.raises(DecodeError, match="no admissible set of rows"):
                decode(scheme, replies)
        else:
            assert decode(scheme, replies).suspects == expected


@WAYS
@pytest.mark.parametrize(("n", "s"), [(5, 1), (7, 2), (8, 2), (9, 3)])
def test_tolerates_missing_rows_among_the_byzantine_workers_without_reading_them(n: int, s: int, decode: Way) -> None:
    scheme = build("cyclic", workers=n, adversaries=s)
    gradients = gradients_for(scheme, 40)
    sent = honest(scheme, gradients)
    generator = np.random.default_rng(n)
    for gone in range(1, 2 * s):
        for _ in range(10):
            rows = generator.permutation(n)[: gone + (2 * s - gone) // 2]
            missing, byzantine = rows[:gone], np.sort(rows[gone:])
            replies = with_wrong(sent, byzantine.tolist(), -sent[byzantine])
            replies[missing] = float("nan")
            arrived = ~np.isin(np.arange(n), missing)
            if decode is inspected:
                assert scheme.inspect is not None
                inspection = scheme.inspect(replies, 5)
                for row in np.flatnonzero(arrived):
                    inspection.add(int(row))
                decoded = scheme.decode(replies, arrived, inspection=inspection)
            else:
                decoded = scheme.decode(replies, arrived)
            assert decoded.suspects == tuple(byzantine)
            assert error_of(decoded.gradients, gradients) <= 1e-6


def test_refuses_when_no_parity_is_left_to_check_with() -> None:
    scheme = build("cyclic", workers=7, adversaries=2)
    sent = honest(scheme, gradients_for(scheme, 4))
    with pytest.raises(DecodeError, match=r"rows \[0, 1, 2, 3\] are missing or not finite"):
        scheme.decode(sent, np.arange(7) > 3)
    with pytest.raises(DecodeError):
        scheme.decode(sent, np.zeros(7, dtype=np.bool_))


def test_more_redundancy_tolerates_more_missing_rows() -> None:
    scheme = build("cyclic", workers=9, adversaries=1, redundancy=7)
    gradients = gradients_for(scheme, 40)
    sent = honest(scheme, gradients)
    sent[4] *= -100
    arrived = ~np.isin(np.arange(9), [0, 1, 7, 8])
    decoded = scheme.decode(sent, arrived)
    assert decoded.suspects == (4,)
    assert error_of(decoded.gradients, gradients) <= 1e-6


@WAYS
@pytest.mark.parametrize("scale", [0.0, 1e-42, 1e-30, 1e30])
def test_tolerates_any_scale_of_gradients(scale: float, decode: Way) -> None:
    scheme = build("cyclic", workers=9, adversaries=2)
    gradients = gradients_for(scheme, 40) * scale
    sent = honest(scheme, gradients)
    decoded = decode(scheme, sent)
    assert decoded.suspects == ()
    torch.testing.assert_close(decoded.gradients[0].double(), gradients.double().mean(0), rtol=1e-4, atol=1e-43)
    decoded = decode(scheme, with_wrong(sent, (3, 4), torch.ones(2, 40)))
    if scale in {0.0, 1e-30}:
        assert decoded.suspects == (3, 4)
    torch.testing.assert_close(decoded.gradients[0].double(), gradients.double().mean(0), rtol=1e-3, atol=1e-38)


@WAYS
def test_honest_rows_of_very_different_sizes_are_not_accused(decode: Way) -> None:
    """One partition far larger than the others, and one block of columns far larger than the rest."""
    scheme = build("cyclic", workers=15, adversaries=2)
    gradients = gradients_for(scheme, 40)
    gradients[3] *= 1e9
    assert decode(scheme, honest(scheme, gradients)).suspects == ()
    gradients = gradients_for(scheme, 200_000)
    gradients[:, 777] *= 1e5
    sent = honest(scheme, gradients, noise=3e-7)
    assert decode(scheme, sent).suspects == ()
    decoded = decode(scheme, with_wrong(sent, (2, 9), -sent[[2, 9]]))
    assert decoded.suspects == (2, 9)
    assert error_of(decoded.gradients, gradients) <= 1e-6


@WAYS
@pytest.mark.parametrize("where", [0, 65_535, 65_536, 999_999])
def test_errors_in_one_place_of_a_long_row_are_found(where: int, decode: Way) -> None:
    """Too long for every parity to be checked: two secret ones in the pass, or projections."""
    scheme = build("cyclic", workers=9, adversaries=2)
    gradients = gradients_for(scheme, 1_000_000)
    sent = honest(scheme, gradients)
    sent[2, where : where + 3] += 10
    sent[3, where] += 10
    decoded = decode(scheme, sent)
    assert decoded.suspects == (2, 3)
    assert error_of(decoded.gradients, gradients) <= 1e-6


def test_byzantine_workers_that_appear_and_vanish_along_the_row_are_all_found() -> None:
    scheme = build("cyclic", workers=9, adversaries=3)
    gradients = gradients_for(scheme, 1_000_000)
    sent = honest(scheme, gradients)
    sent[1, :10] = -5
    sent[5, 400_000:500_000] *= -1
    sent[7, 900_000:] = float("nan")
    decoded = scheme.decode(sent)
    assert decoded.suspects == (1, 5, 7)
    assert error_of(decoded.gradients, gradients) <= 1e-6


def test_an_error_too_thin_for_any_block_is_found_after_the_pass() -> None:
    scheme = build("cyclic", workers=9, adversaries=1)
    gradients = gradients_for(scheme, 1_000_000)
    sent = honest(scheme, gradients)
    sent[4] += 2e-5 * torch.randn(1_000_000, generator=torch.Generator().manual_seed(0))
    assert scheme.decode(sent).suspects == (4,)


@settings(max_examples=60)
@given(st.data())
def test_decodes_any_n_s_d(data: st.DataObject) -> None:
    s = data.draw(st.integers(0, 4), "s")
    n = data.draw(st.integers(2 * s + 1, 2 * s + 14), "n")
    d = data.draw(st.sampled_from([1, 2, 3, 17, 513, 1500]), "d")
    scheme = build("cyclic", workers=n, adversaries=s)
    gradients = gradients_for(scheme, d, data.draw(st.integers(0, 1000), "seed"))
    gradients += 3  # so that the mean is not nearly zero where d is small
    sent = honest(scheme, gradients)
    rows = tuple(sorted(data.draw(st.permutations(range(n)), "rows")[:s]))
    buffer = torch.full((n, d + 5), float("nan"))
    replies = buffer[:, 2 : d + 2]
    replies.copy_(with_wrong(sent, rows, -sent[list(rows)]))
    before = replies.clone()
    for decoded in (plainly(scheme, replies), inspected(scheme, replies)):
        assert decoded.suspects == rows
        assert error_of(decoded.gradients, gradients) <= 2e-6
    assert torch.equal(replies, before)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_works_where_the_replies_are(device: str) -> None:
    scheme = build("cyclic", workers=9, adversaries=2)
    gradients = gradients_for(scheme, 100_000).to(device)
    sent = torch.stack([scheme.encode(i, gradients[np.flatnonzero(scheme.assignment[i])]) for i in range(9)])
    sent[[0, 1]] *= -100
    for decoded in (plainly(scheme, sent), inspected(scheme, sent)):
        assert decoded.gradients.device == gradients.device
        assert decoded.suspects == (0, 1)
        assert error_of(decoded.gradients, gradients) <= 1e-6


def test_the_secret_is_drawn_anew_when_no_seed_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    original = secrets.randbits
    monkeypatch.setattr(secrets, "randbits", lambda bits: drawn.append(bits) or original(bits))
    scheme = build("cyclic", workers=5, adversaries=1)
    scheme.decode(torch.zeros(5, 3))
    assert drawn == [63]
    scheme.decode(torch.zeros(5, 3), seed=4)
    assert drawn == [63]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"workers": 6, "adversaries": 3}, "3 adversaries need at least 7 workers, got 6"),
        ({"workers": 101, "adversaries": 20}, r"redundancy 41 amplify float32 rounding .* redundancy \d+ would do"),
        ({"workers": 9, "adversaries": 1, "redundancy": 4}, "must be odd where the number of workers"),
        ({"workers": 9, "adversaries": 2, "redundancy": 3}, r"must be between 2s \+ 1 = 5 and 9 workers"),
        ({"workers": 9, "adversaries": 2, "tolerance": 2.0}, "tolerance must be between 0 and 1, got 2.0"),
    ],
)
def test_refusals_say_why(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build("cyclic", **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("n", "s"), [(3, 1), (9, 1), (15, 2), (15, 3), (20, 9), (44, 2), (44, 5), (45, 2), (45, 5), (405, 2)]
)
def test_the_promise_is_kept_and_printed(n: int, s: int) -> None:
    scheme = build("cyclic", workers=n, adversaries=s)
    assert scheme.amplification == pytest.approx(worst_amplification(real_code(n, 2 * s), s))
    assert scheme.amplification * 2**-24 <= 1e-3
    assert f"amplification {scheme.amplification:.3g}" in scheme.summary


@WAYS
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_without_redundancy_a_row_that_is_not_finite_is_an_error(value: float, decode: Way) -> None:
    scheme = build("cyclic", workers=4, adversaries=0)
    sent = honest(scheme, gradients_for(scheme, 9))
    sent[2, 5] = value
    with pytest.raises(DecodeError, match=r"rows \[2\] are missing or not finite"):
        decode(scheme, sent)


@WAYS
def test_a_huge_row_does_not_hide_another_byzantine_worker(decode: Way) -> None:
    """1e30 next to ordinary numbers: float64 would round the others away, and what is left would look clean."""
    for n, s in [(9, 2), (15, 3), (44, 2)]:
        scheme = build("cyclic", workers=n, adversaries=s)
        gradients = gradients_for(scheme, 50)
        sent = honest(scheme, gradients)
        for other in range(1, n, 3):
            replies = sent.clone()
            replies[0] *= 1e30
            replies[other] *= -1
            decoded = decode(scheme, replies)
            assert decoded.suspects == (0, other)
            assert error_of(decoded.gradients, gradients) <= 1e-6
