"""Steps without some workers: when one is right, how long is waited first, and whose fault it is."""

import itertools
from collections.abc import Iterable, Sequence

import numpy as np
import pytest
import torch
from scripted import D, Scripted
from torch import Tensor

from draco.errors import DecodeError, WorkerError
from draco.job import Job, parse
from draco.sampling import generator
from draco.schemes import Scheme, build
from draco.training import collect, wire
from draco.training.collect import Collector
from draco.training.transport import Task


def honest(scheme: Scheme) -> tuple[Tensor, Tensor]:
    """Return the replies of honest workers and what they decode to."""
    gradients = torch.randn(scheme.assignment.shape[1], D, generator=generator(1, "absence"))
    replies = torch.stack(
        [scheme.encode(row, gradients[torch.from_numpy(scheme.assignment[row])]) for row in range(scheme.workers)]
    )
    return replies, gradients.mean(0)


def taken(scheme: Scheme, replies: Tensor, absent: Sequence[int], *, asked: bool = True) -> Tensor | None:
    """Return the mean that the server would go on with, or None where it would not."""
    arrived = np.array([row not in absent for row in range(scheme.workers)])
    try:
        decoded = scheme.decode(replies, arrived, seed=3)
    except DecodeError:
        return None
    return decoded.gradients.mean(0) if not asked or scheme.tolerates(absent, decoded.suspects) else None


def forged(scheme: Scheme, byzantine: Sequence[int], support: Sequence[int]) -> Tensor:
    """Return what Byzantine rows add (n, D) to pass for another codeword, which differs only in the rows `support`."""
    assert scheme.weights is not None
    others = [row for row in range(scheme.workers) if row not in support]
    code = np.linalg.svd(scheme.weights)[0][:, : np.linalg.matrix_rank(scheme.weights)]
    *_, null = np.linalg.svd(code[others])
    word = code @ null[-1]
    errors = torch.zeros(scheme.workers, D)
    errors[list(byzantine)] = 30 * torch.from_numpy(word[list(byzantine)] / abs(word).max()).float()[:, None]
    return errors


def cases(n: int, s: int) -> Iterable[tuple[tuple[int, ...], tuple[int, ...], list[int]]]:
    """Yield (absent, Byzantine, rows of the least codeword that covers both) for every placement."""
    for missing in range(1, 2 * s + 1):
        for absent in itertools.combinations(range(n), missing):
            rest = [row for row in range(n) if row not in absent]
            for byzantine in itertools.combinations(rest, s):
                more = [row for row in rest if row not in byzantine][: max(2 * s + 1 - missing - s, 0)]
                yield absent, byzantine, [*absent, *byzantine, *more]


@pytest.mark.parametrize(("n", "s"), [(5, 1), (6, 1), (7, 2)])
def test_what_is_tolerated_is_right_against_adversaries_who_know_the_code(n: int, s: int) -> None:
    scheme = build("cyclic", workers=n, adversaries=s)
    replies, mean = honest(scheme)
    fooled, tolerated = 0, 0
    for absent, byzantine, support in cases(n, s):
        attacked = replies + forged(scheme, byzantine, support)
        got, unasked = taken(scheme, attacked, absent), taken(scheme, attacked, absent, asked=False)
        assert got is None or torch.allclose(got, mean, atol=1e-4), (absent, byzantine)
        fooled += unasked is not None and not torch.allclose(unasked, mean, atol=1e-2)
        tolerated += got is not None
    assert fooled or s == 1  # the rule is needed: without it the code alone would be fooled
    for missing in range(1, s + 1):
        for absent in itertools.combinations(range(n), missing):
            got = taken(scheme, replies, absent)
            assert got is not None
            assert torch.allclose(got, mean, atol=1e-5)


@pytest.mark.parametrize(("n", "s"), [(6, 1), (7, 1), (5, 2)])
def test_votes_without_some_workers_are_right_or_refused_and_of_the_same_bits(n: int, s: int) -> None:
    scheme = build("repetition", workers=n, adversaries=s)
    replies, _ = honest(scheme)
    mean = scheme.decode(replies).gradients.mean(0)
    for missing in range(1, s + 2):
        for absent in itertools.combinations(range(n), missing):
            rest = [row for row in range(n) if row not in absent]
            for byzantine in itertools.chain([()], itertools.combinations(rest, s)):
                attacked = replies.clone()
                attacked[list(byzantine)] = 7.0
                got = taken(scheme, attacked, absent)
                assert got is None or torch.equal(got, mean)
                if not byzantine and missing <= s:
                    assert got is not None


def test_without_redundancy_nobody_can_be_done_without() -> None:
    assert not build("uncoded", workers=5, adversaries=1).tolerates([2], [])
    assert not build("repetition", workers=5, adversaries=0, redundancy=5).tolerates([2], [])
    assert build("uncoded", workers=5, adversaries=1).tolerates([], [1, 2, 3])


# --- Waiting ---------------------------------------------------------------------------------------------------------


def job(*overrides: str) -> Job:
    text = "{name: a, workers: 5, model: lenet, data: synthetic, batch_size: 5, steps: 2, scheme: {name: cyclic}}"
    return parse(text, "test", ["scheme.adversaries=1", "reply_timeout_s=60", *overrides])


def collected(
    monkeypatch: pytest.MonkeyPatch, events: Iterable[tuple[float, int] | tuple[float, int, str]], *overrides: str,
    name: str = "cyclic", ended: Iterable[int] = (), byzantine: Sequence[int] = (),
) -> tuple[collect.Replies, Scripted, Tensor]:  # fmt: skip
    scheme = build(name, workers=5, adversaries=1)
    replies, mean = honest(scheme)
    replies[list(byzantine)] *= -3
    played = Scripted(replies, events)
    played.ended = dict.fromkeys(ended, "gone")
    monkeypatch.setattr(collect.time, "monotonic", lambda: played.now)
    collector = Collector(job(*overrides), scheme, played, wire.Wire(D, "float32", "none"))
    tasks = [Task(1, row) for row in (4, 2, 0, 1, 3)]
    return collector.collect(tasks, torch.zeros(1), 3, lambda part: None), played, mean


def test_a_straggler_is_waited_for_as_long_as_the_job_says_and_then_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    got, played, mean = collected(monkeypatch, [(1, w) for w in (1, 2, 4, 5)], "patience_s=7")
    assert got.absent == {3}
    assert 7 < played.now < 8
    assert played.left
    assert torch.allclose(got.decoded.gradients[0], mean, atol=1e-5)


def test_one_that_is_gone_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    got, played, _ = collected(monkeypatch, [(1, w) for w in (1, 2, 4, 5)], "patience_s=7", ended=[3])
    assert (got.absent, got.refused) == ({3}, {})
    assert played.now < 2


def test_one_that_is_needed_is_waited_for_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Worker 1 (row 4) is Byzantine, and worker 3 is late: without worker 3 nobody could tell."""
    events = [*((1, w) for w in (1, 2, 4, 5)), (20, 3)]
    got, played, mean = collected(monkeypatch, events, "patience_s=7", byzantine=[4])
    assert got.absent == set()
    assert got.decoded.suspects == (4,)
    assert 20 <= played.now < 21
    assert torch.allclose(got.decoded.gradients[0], mean, atol=1e-5)


def test_those_who_are_needed_and_never_come_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        WorkerError, match=r"ranks 4 ended; ranks 3 did not answer step 1 within the time limit.*cyclic"
    ):
        collected(monkeypatch, [(1, 1), (1, 2), (1, 5)], "patience_s=7", ended=[4])


def test_a_refused_reply_is_no_absence(monkeypatch: pytest.MonkeyPatch) -> None:
    events = [*((1, w) for w in (1, 2, 4, 5)), (1, 3, "rubbish")]
    got, played, mean = collected(monkeypatch, events, "patience_s=7")
    assert (got.absent, got.refused) == (set(), {3: "rubbish"})
    assert played.now < 2
    assert torch.allclose(got.decoded.gradients[0], mean, atol=1e-5)


def test_what_all_have_sent_and_cannot_be_decoded_is_nobodys_absence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DecodeError):
        collected(monkeypatch, [(1, w) for w in range(1, 6)], byzantine=[0, 2])
