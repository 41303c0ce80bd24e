"""Solon: its code against the equations it must fulfil, and Byzantine rows in every place of small codes."""

import itertools

import numpy as np
import pytest
from attacked import error_of, gradients_for, honest, with_wrong, wrong_replies

from draco.schemes import DecodeError, build
from draco.schemes.solon import amplification, build_code, weights_without


@pytest.mark.parametrize(("n", "p", "c"), [(9, 2, 2), (9, 4, 3), (8, 2, 2), (8, 3, 3), (15, 6, 4), (44, 6, 2)])
def test_parities_vanish_and_each_reading_gives_its_part_and_no_other(n: int, p: int, c: int) -> None:
    code = build_code(n, p, c, 1)
    assert code is not None
    for part in range(c):
        assert np.abs(code.parity @ code.matrix[:, :, part]).max() < 1e-12
        for other in range(c):
            read = code.readings[other] @ code.matrix[:, :, part]
            np.testing.assert_allclose(read, np.full(n, (part == other) / n), atol=1e-12)
    assert (code.window.sum(0) == p + c).all()
    assert (code.window.sum(1) == p + c).all()
    assert not code.matrix[~code.window].any()


@pytest.mark.parametrize(("n", "p", "c", "stride"), [(9, 4, 2, 4), (8, 4, 2, 3), (8, 5, 3, 1), (15, 4, 3, 4)])
def test_all_runs_of_neighbours_amplify_alike(n: int, p: int, c: int, stride: int) -> None:
    code = build_code(n, p, c, stride)
    assert code is not None
    runs = [tuple(sorted((i + j) % n for j in range(p // 2))) for i in range(n)]
    found = [amplification(code, rows) for rows in runs]
    assert found == pytest.approx([found[0]] * n, rel=1e-6)
    assert all(not weights_without(code, rows)[:, list(rows)].any() for rows in runs)


def test_the_amplification_is_what_noise_suffers() -> None:
    scheme = build("solon", workers=15, adversaries=2, parts=3)
    gradients = gradients_for(scheme, 30_000)
    sent = honest(scheme, gradients, noise=1e-5)
    assert scheme.amplification is not None
    replies = with_wrong(sent, (0, 1), sent[[0, 1]] * -100)
    assert error_of(build("solon", workers=15, adversaries=2, parts=3, tolerance=1e-3).decode(replies).gradients,
                    gradients) <= 1.2e-5 * scheme.amplification  # fmt: skip


@pytest.mark.parametrize(("n", "s", "c"), [(5, 1, 2), (6, 1, 3), (7, 1, 4), (8, 2, 2), (9, 2, 3)])
def test_byzantine_workers_are_found_and_left_out_wherever_they_sit(n: int, s: int, c: int) -> None:
    scheme = build("solon", workers=n, adversaries=s, parts=c)
    gradients = gradients_for(scheme, 301)
    sent = honest(scheme, gradients)
    assert sent.shape == (n, -(-301 // c))
    for number, rows in enumerate(itertools.combinations(range(n), s)):
        for name, wrong in [*wrong_replies(scheme, sent, rows).items()][number % s :: s * s]:
            decoded = scheme.decode(with_wrong(sent, rows, wrong), seed=5)
            assert decoded.suspects == rows, name
            assert error_of(decoded.gradients[:, :301], gradients) <= 1e-5


@pytest.mark.parametrize(("n", "s", "c"), [(45, 3, 2), (44, 5, 4)])
def test_large_codes_keep_rounding_small(n: int, s: int, c: int) -> None:
    scheme = build("solon", workers=n, adversaries=s, parts=c)
    gradients = gradients_for(scheme, 256)
    sent = honest(scheme, gradients)
    for rows, limit in ((tuple(range(s)), 1e-4), (tuple(range(0, 9 * s, 9)), 1e-6)):
        decoded = scheme.decode(with_wrong(sent, rows, sent[list(rows)] * -100), seed=5)
        assert decoded.suspects == rows
        assert error_of(decoded.gradients, gradients) <= limit


def test_more_byzantine_workers_than_promised_are_an_error() -> None:
    scheme = build("solon", workers=9, adversaries=1)
    sent = honest(scheme, gradients_for(scheme, 200))
    for rows in itertools.combinations(range(9), 2):
        with pytest.raises(DecodeError, match="solon: no admissible set of rows"):
            scheme.decode(with_wrong(sent, rows, wrong_replies(scheme, sent, rows)["random"]), seed=5)


@pytest.mark.parametrize(
    ("n", "s", "options", "words"),
    [
        (9, 1, {"parts": 1}, "parts must be 2 or more .*, got 1"),
        (4, 1, {"parts": 3}, "1 adversaries and 3 parts need at least 6 workers, got 4"),
        (9, 1, {"tolerance": 1.0}, "tolerance must be between 0 and 1, got 1.0"),
    ],
)
def test_options_out_of_range_are_refused(n: int, s: int, options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build("solon", workers=n, adversaries=s, **options)


def test_training_is_that_without_byzantine_workers_up_to_rounding(make_job, train) -> None:
    coded = ("workers=7", "batch_size=14", "scheme.name=solon", "scheme.adversaries=1", "scheme.parts=3")
    plain, attacked = train(make_job("workers=7", "batch_size=14")), train(make_job(*coded, "attack=random"))
    assert float((attacked.model - plain.model).norm() / plain.model.norm()) < 1e-5
