"""The approximate scheme: its designs, its decoding against numpy's least squares, and steps without stragglers."""

import itertools
import math

import numpy as np
import pytest
import torch
from attacked import error_of, gradients_for, honest
from hypothesis import given
from hypothesis import strategies as st
from scripted import Scripted

from draco.job import parse
from draco.runs import events
from draco.schemes import DecodeError, Scheme, build
from draco.schemes.assignments import bernoulli, fractional, stochastic_block
from draco.training import collect, wire
from draco.training.collect import Collector
from draco.training.transport import Task

RANDOM = ("bernoulli", "stochastic_block")


def made(n: int, code: str = "fractional", s: int = 0, **options: object) -> Scheme:
    return build("approximate", workers=n, adversaries=s, code=code, **options)


def least_squares(scheme: Scheme, gradients: torch.Tensor, rows: list[int]) -> tuple[np.ndarray, float]:
    """Return the mean and the error that the paper's optimal decoding has of the rows that arrived, in float64."""
    part = scheme.assignment[rows].astype(float)
    a = np.linalg.lstsq(part.T, np.ones(part.shape[1]), rcond=None)[0]
    k = part.shape[1]
    error = np.linalg.norm(part.T @ a - 1) / math.sqrt(k)
    return a @ (part @ gradients.double().numpy()) / k, float(error)


# --- Designs ---------------------------------------------------------------------------------------------------------


@given(st.integers(1, 40), st.data())
def test_groups_of_fractional_repetition_share_out_workers_and_partitions(n: int, data: st.DataObject) -> None:
    r = data.draw(st.integers(1, n))
    design = fractional(n, r)
    loads = {frozenset(row.nonzero()[0].tolist()) for row in design}
    assert sorted(j for load in loads for j in load) == list(range(n))
    assert len(loads) == n // r
    assert design.sum(0).min() >= r
    assert design.sum(0).max() - design.sum(0).min() <= 1


@pytest.mark.parametrize("code", RANDOM)
def test_a_random_design_idles_nobody_loses_nothing_and_computes_r_on_average(code: str) -> None:
    designs = [made(15, code, redundancy=3, seed=seed).assignment for seed in range(200)]
    assert all(design.any(0).all() and design.any(1).all() for design in designs)
    assert np.mean([design.sum() / 15 for design in designs]) == pytest.approx(3, rel=0.06)  # empty rows are filled
    again = made(15, code, redundancy=3, seed=7).assignment
    assert np.array_equal(again, designs[7])
    assert len({design.tobytes() for design in designs}) == 200


def test_a_stochastic_block_design_is_between_the_two_others() -> None:
    own = fractional(20, 4)
    inside = [
        np.mean([stochastic_block(20, 4, p, seed)[own].mean() for seed in range(100)]) for p in (0.2, 0.5, 0.8, 1.0)
    ]
    assert inside == pytest.approx([0.2, 0.5, 0.8, 1.0], abs=0.03)
    assert np.array_equal(stochastic_block(20, 4, 1.0, 3), own)
    assert np.mean([bernoulli(20, 4, seed)[own].mean() for seed in range(100)]) == pytest.approx(0.2, abs=0.02)


# --- Decoding --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "r"), [(4, 2), (6, 2), (7, 3), (8, 3)])
@pytest.mark.parametrize("code", ["fractional", *RANDOM])
def test_whatever_arrives_is_decoded_to_the_least_squares_and_its_error(n: int, r: int, code: str) -> None:
    scheme = made(n, code, redundancy=r, seed=5)
    gradients = gradients_for(scheme, 6)
    sent = honest(scheme, gradients)
    errors = []
    for count in range(1, n + 1):
        for rows in itertools.combinations(range(n), count):
            arrived = np.isin(np.arange(n), rows)
            replies = sent.clone()
            replies[torch.from_numpy(~arrived)] = float("nan")
            decoded = scheme.decode(replies, arrived)
            mean, error = least_squares(scheme, gradients, list(rows))
            np.testing.assert_allclose(decoded.gradients[0].numpy(), mean, atol=2e-6)
            assert decoded.error == pytest.approx(error, abs=1e-8)
            assert decoded.suspects == ()
            errors.append(decoded.error)
    assert scheme.exact == (errors[-1] == 0)
    assert min(errors) >= 0
    assert max(errors) > 0.5  # the little that one row says


@pytest.mark.parametrize("code", ["fractional", *RANDOM])
def test_the_error_is_that_of_unrelated_gradients_and_bounds_that_of_equal_ones(code: str) -> None:
    scheme = made(12, code, redundancy=3, seed=1)
    arrived = np.arange(12) > 8
    unrelated = gradients_for(scheme, 20_000)
    decoded = scheme.decode(honest(scheme, unrelated), arrived)
    assert decoded.error is not None
    assert decoded.error > 0
    assert error_of(decoded.gradients, unrelated) == pytest.approx(decoded.error, rel=0.05)
    equal = unrelated[:1].expand(12, -1)
    decoded = scheme.decode(honest(scheme, equal), arrived)
    assert decoded.error is not None
    assert error_of(decoded.gradients, equal) <= decoded.error + 1e-6


def test_the_mean_does_not_depend_on_who_of_a_group_straggles() -> None:
    scheme = made(9, redundancy=3, stragglers=2)
    sent = honest(scheme, gradients_for(scheme, 500))
    whole = scheme.decode(sent)
    for absent in itertools.combinations(range(9), 2):
        decoded = scheme.decode(sent, ~np.isin(np.arange(9), absent))
        assert torch.equal(decoded.gradients, whole.gradients)
        assert decoded.error == 0
        assert scheme.tolerates(absent, ())
    assert not scheme.tolerates((0, 1, 2), ())


@pytest.mark.parametrize(("n", "s", "r", "vote"), [(6, 1, 3, "exact"), (7, 1, 3, "tolerance"), (8, 1, 4, "exact")])
def test_groups_outvote_byzantine_workers_whoever_is_missing(n: int, s: int, r: int, vote: str) -> None:
    scheme = made(n, s=s, redundancy=r, stragglers=2, vote=vote)
    gradients = gradients_for(scheme, 7)
    sent = honest(scheme, gradients)
    groups = scheme.groups()
    assert groups is not None
    for absent in itertools.chain.from_iterable(itertools.combinations(range(n), count) for count in range(3)):
        for byzantine in range(n):
            replies = sent.clone()
            replies[byzantine] = 7
            honest_left = [sum(g == group for row, g in enumerate(groups) if row not in {*absent, byzantine})
                           for group in sorted({*groups})]  # fmt: skip
            voted = [count > s for count in honest_left]
            arrived = ~np.isin(np.arange(n), absent)
            decoded = scheme.decode(replies, arrived)
            kept = [group for group, won in zip(sorted({*groups}), voted, strict=True) if won]
            mine = np.isin(np.asarray([groups[scheme.assignment[:, j].argmax()] for j in range(n)]), kept)
            truth = gradients.double().numpy()[mine].sum(0) / n
            np.testing.assert_allclose(decoded.gradients[0].numpy(), truth, atol=1e-6)
            assert decoded.error == pytest.approx(math.sqrt((~mine).sum() / n))
            assert {*decoded.suspects} <= {byzantine}
            assert bool(decoded.suspects) == (byzantine not in absent and groups[byzantine] in kept)


def test_more_byzantine_workers_than_promised_are_no_absence() -> None:
    scheme = made(6, s=1, redundancy=3, stragglers=1)
    replies = honest(scheme, gradients_for(scheme, 5))
    replies[0] = 1
    replies[2] = 2
    with pytest.raises(DecodeError, match=r"rows \[0, 2, 4\] send the same"):
        scheme.decode(replies)
    with pytest.raises(DecodeError, match="nothing arrived of which a vote could be taken"):
        scheme.decode(replies, np.isin(np.arange(6), [0, 1]))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"code": "cyclic"}, "code must be one of fractional, bernoulli, stochastic_block, got 'cyclic'"),
        ({"code": "bernoulli", "s": 1}, "bernoulli tolerates no adversaries"),
        ({"s": 5}, "5 adversaries need at least 11 workers, got 9"),
        ({"s": 1, "redundancy": 2}, "redundancy must be from 2s\\+1 = 3 to 9 workers, got 2"),
        ({"stragglers": 9}, "stragglers must be from 0 to 8, got 9"),
        ({"inside": 1.5}, "inside must be above 0 and at most 1, got 1.5"),
        ({"vote": "auto"}, "vote is 'auto'"),
        ({"tolerance": 0.0}, "tolerance is 0.0, must be between 0 and 1"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        made(9, **options)  # type: ignore[arg-type]


# --- Training --------------------------------------------------------------------------------------------------------

D = 24
APPROXIMATE = ("workers=6", "scheme.name=approximate", "scheme.redundancy=2")


def collected(monkeypatch: pytest.MonkeyPatch, late: list[int], seconds: float) -> tuple[collect.Replies, Scripted]:
    """Return what came of a step of six workers for which `late` need so long, one of whom need not be waited for."""
    scheme = made(6, redundancy=2, stragglers=1)
    replies = honest(scheme, gradients_for(scheme, D))
    played = Scripted(replies, [(seconds if rank in late else 1.0, rank) for rank in range(1, 7)])
    monkeypatch.setattr(collect.time, "monotonic", lambda: played.now)
    text = "{name: a, workers: 6, model: lenet, data: synthetic, batch_size: 6, steps: 1, scheme: {name: approximate}}"
    collector = Collector(parse(text, "test"), scheme, played, wire.Wire(D, "float32", "none"))
    return collector.collect([Task(1, row) for row in (4, 2, 0, 1, 3, 5)], torch.zeros(1), 3, lambda part: None), played


def test_a_step_is_taken_once_all_but_the_stragglers_have_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    got, played = collected(monkeypatch, [3], seconds=20)
    assert (got.absent, got.decoded.error) == ({3}, 0)
    assert played.now < 2
    assert played.left
    got, played = collected(monkeypatch, [3, 5], seconds=20)
    assert got.absent == set()
    assert 20 <= played.now < 21


def test_a_simulation_without_an_attack_waits_for_everybody(make_job, train) -> None:
    done = train(make_job(*APPROXIMATE, "scheme.stragglers=2"))
    steps = [e for e in events.read(done.run / "events.jsonl") if e["event"] == "step"]
    assert [(e["straggling"], e["decoding_error"]) for e in steps] == [([], 0.0)] * 3
    plain = train(make_job("workers=6"))
    assert float((done.model - plain.model).norm() / plain.model.norm()) < 1e-5


@pytest.mark.parametrize("code", ["fractional", *RANDOM])
def test_training_goes_on_without_what_is_missing_and_says_what_it_costs(make_job, train, code: str) -> None:
    """The replies of four of six workers are useless at every step, as good as missing."""

    def rubbish(worker):
        return lambda task, model, frame: 0

    job = make_job(*APPROXIMATE, f"scheme.code={code}", "scheme.stragglers=2")
    done = train(job, None, dict.fromkeys((2, 3, 4, 5), rubbish))
    steps = [e for e in events.read(done.run / "events.jsonl") if e["event"] == "step"]
    assert all(e["refused"].keys() == {"2", "3", "4", "5"} for e in steps)
    errors = [e["decoding_error"] for e in steps]
    assert all(0 < error <= 1 for error in errors)
    assert steps[-1]["loss"] < 3
    assert done.status.state == "succeeded"


def test_a_job_draws_its_design_from_its_seed(make_job) -> None:
    from draco.training import build as assembly

    options = (*APPROXIMATE, "scheme.code=bernoulli")
    one, same, other = (
        assembly.build_scheme(make_job(*options, f"seed={seed}")).assignment for seed in (1, 1, 2)
    )  # fmt: skip
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
