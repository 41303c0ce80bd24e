"""The election scheme: all patterns of signs and all placements of Byzantine workers, against majorities of a loop."""

import itertools

import numpy as np
import pytest
import torch
from attacked import gradients_for, honest
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from draco.runs import events
from draco.schemes import DecodeError, Scheme, build
from draco.schemes.assignments import deterministic
from draco.training import build as assembly


def made(n: int, s: int = 0, **options: object) -> Scheme:
    return build("election", workers=n, adversaries=s, **options)


def counted(scheme: Scheme, gradients: Tensor, flipping: tuple[int, ...] = ()) -> list[int]:
    """Return what the workers' votes and the server's come to, one coordinate and one partition after the other."""
    result = []
    for c in range(gradients.shape[1]):
        total = 0
        for row, mine in enumerate(scheme.assignment):
            votes = 0
            for j in mine.nonzero()[0]:
                value = float(gradients[j, c])
                votes += (value > 0) - (value < 0)
            bit = 1 if votes > 0 or (votes == 0 and (row + c) % 2 == 0) else -1
            total += -bit if row in flipping else bit
        result.append((total > 0) - (total < 0))
    return result


def every_pattern(n: int) -> Tensor:
    """Return (n, 2^n): every way in which n partitions can vote."""
    return torch.tensor(list(itertools.product([-1.0, 1.0], repeat=n))).T.contiguous()


@pytest.mark.parametrize(("n", "s"), [(3, 1), (4, 1), (5, 1), (5, 2), (6, 1), (7, 1), (8, 2), (9, 2)])
def test_no_s_byzantine_workers_turn_a_majority_of_the_deterministic_code(n: int, s: int) -> None:
    scheme = made(n, s, tail=0)
    gradients = every_pattern(n)
    truth = gradients.sum(0).sign()
    sent = honest(scheme, gradients)
    decided = truth != 0
    for byzantine in itertools.combinations(range(n), s):
        replies = sent.clone()
        replies[list(byzantine)] ^= 255
        replies[list(byzantine), -1] = sent[0, -1]  # 2^n signs fill whole bytes: the last one holds only the end
        got = scheme.decode(replies).gradients[0]
        assert torch.equal(got[decided], truth[decided])


@pytest.mark.parametrize(("n", "s"), [(5, 1), (9, 2)])
def test_one_byzantine_worker_more_can_turn_a_majority(n: int, s: int) -> None:
    """So the test above is not about a code that no number of Byzantine workers can change."""
    scheme = made(n, s, tail=0)
    gradients = every_pattern(n)
    truth = gradients.sum(0).sign()
    sent = honest(scheme, gradients)
    turned = 0
    for byzantine in itertools.combinations(range(n), s + 1):
        replies = sent.clone()
        replies[list(byzantine)] ^= 255
        replies[list(byzantine), -1] = sent[0, -1]
        turned += int((scheme.decode(replies).gradients[0] != truth).sum())
    assert turned


def test_the_deterministic_code_of_five_workers_is_the_published_one() -> None:
    assert sorted(row.sum() for row in deterministic(5, 1)) == [1, 3, 5, 5, 5]
    assert not (deterministic(5, 1)[0] & deterministic(5, 1)[1]).any()


@pytest.mark.parametrize("code", ["deterministic", "bernoulli"])
@given(values=st.lists(st.lists(st.integers(-2, 2), min_size=6, max_size=6), min_size=1, max_size=19), data=st.data())
def test_signs_zeros_and_ties_count_as_in_loops(code: str, values: list[list[int]], data: st.DataObject) -> None:
    scheme = made(6, 1, code=code, tail=0, seed=data.draw(st.integers(0, 5)))
    gradients = torch.tensor(values, dtype=torch.float32).T.contiguous()
    replies = honest(scheme, gradients)
    decoded = scheme.decode(replies)
    assert decoded.suspects == ()
    assert decoded.gradients[0].tolist() == counted(scheme, gradients)


@pytest.mark.parametrize("d", [3, 8, 9, 10, 11, 18, 1000, 200_003])
def test_a_reply_is_a_bit_for_each_sign_and_four_bytes_for_each_number_of_the_tail(d: int) -> None:
    scheme = made(5, 1, tail=3)
    gradients = gradients_for(scheme, d)
    sent = honest(scheme, gradients)
    assert sent.shape == (5, 12 + (d - 3) // 8 + 1)
    got = scheme.decode(sent).gradients
    assert got.shape == (1, d)
    assert torch.equal(got[0, :-3], gradients[:, :-3].sign().sum(0).sign())
    means = torch.stack([gradients[torch.from_numpy(row)].mean(0) for row in scheme.assignment])
    torch.testing.assert_close(got[0, -3:], means[:, -3:].median(0).values)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -1e30, 0.0])
def test_the_tail_of_a_byzantine_worker_counts_no_more_than_another(wrong: float) -> None:
    scheme = made(5, 2, tail=2)
    gradients = gradients_for(scheme, 21)
    sent = honest(scheme, gradients)
    numbers = sent[:, :8].clone().view(torch.float32)
    for byzantine in itertools.combinations(range(5), 2):
        replies = sent.clone()
        replies[list(byzantine), :8] = torch.tensor([1.0, wrong]).view(torch.uint8)
        decoded = scheme.decode(replies)
        assert decoded.suspects == (byzantine if not np.isfinite(wrong) else ())
        rest = numbers[[row for row in range(5) if row not in byzantine], 1]
        assert rest.min() <= decoded.gradients[0, -1] <= rest.max()


def test_whoever_ends_elsewhere_is_a_suspect_and_no_majority_is_an_error() -> None:
    scheme = made(5, 1, tail=0)
    gradients = gradients_for(scheme, 10)
    replies = honest(scheme, gradients)
    replies[3, -1] = 1
    replies[4, -1] = 0
    decoded = scheme.decode(replies)
    assert decoded.suspects == (3, 4)
    assert decoded.gradients.shape == (1, 10)
    replies[2, -1] = 4
    with pytest.raises(DecodeError, match="of 5 replies that arrived only 2 agree"):
        scheme.decode(replies)
    assert scheme.decode(replies, np.array([True, True, False, False, False])).suspects == ()


def test_nobody_can_be_done_without() -> None:
    assert made(5, 1).tolerates([], [3])
    assert not made(5, 1).tolerates([3], [])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"code": "fractional"}, "code must be one of deterministic, bernoulli, got 'fractional'"),
        ({"s": 5}, "5 adversaries need at least 11 workers, got 9"),
        ({"redundancy": 2}, "redundancy applies only with code: bernoulli, got 2"),
        ({"code": "bernoulli", "redundancy": 10}, "redundancy must be from 1 to 9 workers, got 10"),
        ({"tail": -1}, "tail must be 0 or more, got -1"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        made(9, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="gradients have 2 elements, fewer than tail = 3"):
        made(1, tail=3).encode(0, torch.zeros(1, 2))


# --- Training --------------------------------------------------------------------------------------------------------

ELECTION = ("scheme.name=election", "scheme.adversaries=1", "optimizer.lr=0.001")


def test_training_steps_by_the_learning_rate_and_byzantine_workers_change_little_of_it(make_job, train) -> None:
    honest_one = train(make_job(*ELECTION, "optimizer.momentum=0.0"))
    attacked = train(make_job(*ELECTION, "optimizer.momentum=0.0", "attack=reverse_gradient"))
    job = make_job(*ELECTION)
    model = assembly.Built(job).model
    start = torch.cat([value.flatten().double() for value in model.state_dict().values()])
    for done in (honest_one, attacked):
        steps = ((done.model - start) / 0.001).abs()
        assert float((steps - steps.round()).abs().max()) < 1e-2
        assert float(steps.max()) == pytest.approx(3, abs=1e-2)
    assert float((attacked.model - honest_one.model).ne(0).double().mean()) < 0.2
    loss, bent = (
        [e["loss"] for e in events.read(done.run / "events.jsonl") if e["event"] == "step"]
        for done in (honest_one, attacked)
    )
    assert bent == pytest.approx(loss, rel=0.2)


def test_batch_norm_statistics_travel_beside_the_signs(make_job) -> None:
    job = make_job("model=resnet18", *ELECTION)
    tail = 2 * 4800 + 1  # a mean and a variance of resnet18's 4800 channels, and the loss
    assert assembly.Built(job).scheme.elements(tail + 8) == 4 * tail + 2
