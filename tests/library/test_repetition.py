"""Repetition: votes on bits and votes within a tolerance, against votes counted the slow way."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from attacked import error_of, every_placement, gradients_for, honest, with_wrong, wrong_replies
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from draco.schemes import DecodeError, Scheme, build
from draco.schemes.vote import Ballot, same_bits, tolerant_winner


def counted(replies: Tensor, m: int, s: int) -> list[bytes]:
    """Return the winners' bytes, by counting whole rows in a dictionary."""
    winners = []
    for j in range(m):
        votes = Counter(row.numpy().tobytes() for row in replies[j::m])
        winners += [row for row, count in votes.items() if count > s]
    return winners


@pytest.mark.parametrize(("n", "s"), [(n, s) for n in range(3, 12) for s in range(1, (n - 1) // 2 + 1)])
def test_exact_vote_gives_the_honest_bits_wherever_the_byzantine_workers_sit(n: int, s: int) -> None:
    scheme = build("repetition", workers=n, adversaries=s)
    gradients = gradients_for(scheme, 5)
    sent = honest(scheme, gradients)
    for number, rows in enumerate(every_placement(n, s)):
        attacks = list(wrong_replies(scheme, sent, rows).values())
        replies = with_wrong(sent, rows, attacks[number % len(attacks)])
        decoded = scheme.decode(replies)
        assert torch.equal(decoded.gradients, gradients)
        assert decoded.suspects == rows
        assert [row.numpy().tobytes() for row in decoded.gradients] == counted(replies, len(gradients), s)


@pytest.mark.parametrize(("n", "s", "r"), [(7, 1, None), (8, 1, None), (11, 1, 4), (9, 0, 2), (13, 2, 6)])
def test_leftover_workers_join_groups_and_no_row_is_idle(n: int, s: int, r: int | None) -> None:
    scheme = build("repetition", workers=n, adversaries=s, redundancy=r)
    assert scheme.assignment.sum(1).tolist() == [1] * n
    assert scheme.assignment.sum(0).min() >= (r or 2 * s + 1)
    assert scheme.assignment.shape[1] == n // (r or 2 * s + 1)


def test_result_is_a_view_with_up_to_s_byzantine_workers_and_a_copy_only_beyond() -> None:
    scheme = build("repetition", workers=9, adversaries=1)
    replies = honest(scheme, gradients_for(scheme, 6))
    start, end = replies.data_ptr(), replies.data_ptr() + replies.numel() * 4
    replies[1] *= -100
    decoded = scheme.decode(replies)
    assert decoded.gradients.data_ptr() == replies[3].data_ptr()
    replies[[3, 8]] *= -1  # one Byzantine row in every group, and in every block of rows: beyond s, but still decodable
    decoded = scheme.decode(replies)
    assert not start <= decoded.gradients.data_ptr() < end
    assert decoded.suspects == (1, 3, 8)


def test_honest_nan_wins_and_signed_zeros_differ() -> None:
    scheme = build("repetition", workers=3, adversaries=1)
    replies = torch.full((3, 4), float("nan"))
    replies[1] = 0.0
    decoded = scheme.decode(replies)
    assert decoded.gradients.isnan().all()
    assert decoded.suspects == (1,)
    replies = torch.zeros(3, 4)
    replies[2, 3] = -0.0
    assert scheme.decode(replies).suspects == (2,)


@pytest.mark.parametrize("vote", ["exact", "tolerance"])
def test_no_majority_is_an_error_that_names_the_group(vote: str) -> None:
    scheme = build("repetition", workers=6, adversaries=1, vote=vote)
    replies = honest(scheme, gradients_for(scheme, 4))
    replies[1], replies[3] = 1.0, 2.0
    with pytest.raises(DecodeError, match=r"group 1 \(rows \[1, 3, 5\]\)") as caught:
        scheme.decode(replies)
    assert ("vote=tolerance" in str(caught.value)) == (vote == "exact")


@pytest.mark.parametrize("vote", ["exact", "tolerance"])
def test_missing_rows_are_not_read_and_the_rest_still_needs_s_plus_1_votes(vote: str) -> None:
    scheme = build("repetition", workers=5, adversaries=2, vote=vote)
    gradients = gradients_for(scheme, 4)
    replies = honest(scheme, gradients)
    replies[:2] = 7.0  # two equal rows, which are not there
    arrived = np.array([False, False, True, True, True])
    decoded = scheme.decode(replies, arrived)
    assert torch.equal(decoded.gradients, gradients)
    assert decoded.suspects == ()
    arrived[2] = False
    with pytest.raises(DecodeError):
        scheme.decode(replies, arrived)


@pytest.mark.parametrize("d", [1, 2, 32767, 32768, 32769, 70001])
@pytest.mark.parametrize("where", [0, -1])
def test_a_single_bit_decides_wherever_it_is(d: int, where: int) -> None:
    scheme = build("repetition", workers=3, adversaries=1)
    sent = honest(scheme, gradients_for(scheme, d))
    replies = torch.zeros(3, d + 3)[:, :d]  # strided, as in a larger buffer
    replies.copy_(sent)
    replies[0].view(torch.int32)[where] ^= 1
    decoded = scheme.decode(replies)
    assert decoded.suspects == (0,)
    assert torch.equal(decoded.gradients[0], sent[1])


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_same_bits_on_every_device(device: str) -> None:
    a = torch.tensor([1.0, float("nan"), 0.0], device=device)
    b = a.clone()
    assert same_bits(a, b)
    b[2] = -0.0
    assert not same_bits(a, b)


def slow_clique(rows: Tensor, s: int, tolerance: float) -> set[tuple[int, ...]]:
    """Return the largest sets of rows that are mutually within the tolerance, by trying all of them."""
    x = rows.double()

    def near(a: int, b: int) -> bool:
        scale = max(float(x[a].norm()), float(x[b].norm()))
        return np.isfinite(scale) and float((x[a] - x[b]).norm()) <= tolerance * scale

    for size in range(len(rows), s, -1):
        sets = itertools.combinations(range(len(rows)), size)
        found = {c for c in sets if all(near(a, b) for a, b in itertools.combinations(c, 2))}
        if found:
            return found
    return set()


@given(st.integers(1, 3), st.integers(0, 2), st.integers(0, 2**32))
def test_tolerance_vote_takes_a_largest_clique_and_its_medoid(s: int, extra: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    n = 2 * s + 1 + extra
    steps = generator.integers(0, 4, n)  # on a line, so that chains that are no cliques arise
    replies = torch.ones(n, 3)
    replies[:, 0] += torch.from_numpy(steps).float() * 1e-3
    tolerance = 1e-3
    expected = slow_clique(replies, s, tolerance)
    ballot = Ballot(replies, distances=True)
    ballot.add_all(range(n))
    if not expected:
        with pytest.raises(DecodeError):
            tolerant_winner(ballot, s, tolerance)
        return
    winner = tolerant_winner(ballot, s, tolerance)
    chosen = winner.rows[0]
    x = replies.double()
    totals = {c: sum(float((x[a] - x[b]).norm()) for a, b in itertools.combinations(c, 2)) for c in expected}
    best = [c for c in expected if totals[c] <= min(totals.values()) + 1e-12]
    medoids = {min(c, key=lambda a: (round(sum(float((x[a] - x[b]).norm()) for b in c), 12), a)) for c in best}
    assert chosen in medoids


def test_tolerance_vote_lets_no_bridge_move_the_result() -> None:
    """Two Byzantine rows chain from the honest value outwards; the result stays an honest neighbour's."""
    scheme = build("repetition", workers=5, adversaries=2, vote="tolerance", tolerance=1e-3)
    replies = torch.ones(5, 4)
    replies[3] *= 1 + 9e-4
    replies[4] *= 1 + 18e-4
    decoded = scheme.decode(replies)
    assert torch.equal(decoded.gradients[0], torch.ones(4))
    assert decoded.suspects == (4,)


@pytest.mark.parametrize(("n", "s"), [(3, 1), (5, 2), (8, 2), (9, 1)])
def test_tolerance_vote_never_accuses_an_honest_row(n: int, s: int) -> None:
    scheme = build("repetition", workers=n, adversaries=s, vote="tolerance")
    gradients = gradients_for(scheme, 40)
    sent = honest(scheme, gradients, noise=3e-7)
    assert scheme.decode(sent).suspects == ()
    for rows in every_placement(n, s):
        for name, wrong in wrong_replies(scheme, sent, rows).items():
            decoded = scheme.decode(with_wrong(sent, rows, wrong))
            assert set(decoded.suspects) <= set(rows), name
            assert error_of(decoded.gradients, gradients) <= 2e-6, name


def extreme() -> Scheme:
    return build("repetition", workers=3, adversaries=1, vote="tolerance")


@pytest.mark.parametrize("value", [3e38, -3e38, float("inf"), float("nan"), 1e30])
def test_tolerance_vote_takes_values_whose_squares_overflow(value: float) -> None:
    replies = torch.ones(3, 50)
    replies[1] = value
    decoded = extreme().decode(replies)
    assert torch.equal(decoded.gradients, torch.ones(1, 50))
    assert decoded.suspects == (1,)


def test_tolerance_vote_refuses_equal_rows_of_nan() -> None:
    with pytest.raises(DecodeError):
        extreme().decode(torch.full((3, 4), float("nan")))


def test_tolerance_vote_agrees_on_zeros() -> None:
    assert extreme().decode(torch.zeros(3, 4)).suspects == ()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"workers": 4, "adversaries": 2}, "2 adversaries need at least 5 workers, got 4"),
        ({"workers": 4, "adversaries": 1, "redundancy": 5}, "redundancy must be from 2s\\+1 = 3 to 4 workers, got 5"),
        ({"workers": 9, "adversaries": 2, "redundancy": 4}, "redundancy must be from 2s\\+1 = 5 to 9 workers, got 4"),
        ({"workers": 9, "adversaries": 1, "vote": "loud"}, "vote is 'loud', must be"),
        ({"workers": 9, "adversaries": 1, "tolerance": 0.0}, "tolerance is 0.0, must be between 0 and 1"),
    ],
)
def test_refusals_say_why(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build("repetition", **settings)  # type: ignore[arg-type]
