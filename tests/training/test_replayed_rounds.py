"""Transcripts that a sample of is opened, or that drawn workers replay, in whole runs of one process."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from draco import report
from draco.job import Job
from draco.protocols.rounds import DENIED, Ask
from draco.runs import events
from draco.training import pairs
from draco.training.pair_worker import PairWorker
from draco.training.transport import Task

DRAWN, SAMPLED = "{name: checked, adversaries: 2, verifiers: 2}", "{name: checked, adversaries: 2, sample: 1.0}"


@pytest.fixture
def job(make_job: Callable[..., Job]) -> Callable[..., Job]:
    """Return `job(scheme, *overrides)`: of 5 partitions."""

    def made(scheme: str, *overrides: str) -> Job:
        workers = 5 if scheme == "uncoded" else 7
        usual = [f"workers={workers}", f"scheme={scheme}", "steps=4", "aggregator=mean", "attack=none"]
        return make_job(*usual, *overrides)

    return made


@pytest.fixture
def free(job, train) -> torch.Tensor:
    """The model of the run without attackers."""
    return train(job("uncoded")).model


def told(trained: Any, kind: str) -> list[dict[str, Any]]:
    return [event for event in events.read(trained.run / "events.jsonl") if event["event"] == kind]


@pytest.mark.parametrize("scheme", [DRAWN, SAMPLED])
def test_the_model_has_the_bits_of_the_attack_free_run_and_who_lied_is_out(scheme: str, job, train, free) -> None:
    run = train(job(scheme, "attack={name: reverse_gradient, ranks: [3, 6]}"))
    assert torch.equal(run.model, free)
    steps = told(run, "step")
    assert {event["rank"] for event in told(run, "expelled")} == {r for step in steps for r in step["byzantine"]}
    assert told(run, "end")[0]["falsely_accused"] == told(run, "end")[0]["missed"] == 0
    quiet = [step for step in steps if not step["suspects"]]
    assert {step["copies"] for step in quiet} <= {1.0}
    assert {step["rounds"] for step in quiet} <= ({1, 2} if scheme == DRAWN else {2})
    (start,) = told(run, "start")
    summary = report.read_summary(run.run)
    if scheme == DRAWN:
        assert start["failure_probability"] == summary.failure_probability == 0
    else:
        assert start["expected_false"] == summary.expected_false == 0
    assert "verifiers: 2 as" in start["summary"]


@pytest.mark.parametrize("scheme", [DRAWN, SAMPLED])
def test_vectors_that_travel_rounded_are_compared_as_they_travel(scheme: str, job, train) -> None:
    rounded = "wire={dtype: float16}"
    plain = train(job("uncoded", rounded)).model
    assert torch.equal(train(job(scheme, rounded, "attack={name: nan, ranks: [2, 4]}")).model, plain)


class Odd(PairWorker):
    """A worker that does one thing otherwise."""

    def __init__(self, honest: PairWorker, how: str) -> None:
        super().__init__(honest.rank, honest.source)
        self.how = how

    def reply(self, task: Task, model: torch.Tensor, frame: torch.Tensor) -> int | None:
        length = super().reply(task, model, frame)
        opening = any(ask.send == "opening" for ask in pairs.asks_of(self.rank, task.asks))
        return None if self.how == "never opens" and opening else length

    def transcript(self, ask: Ask, task: Task) -> torch.Tensor:
        true = super().transcript(ask, task)
        if self.how == "another step's" and task.step > 1:
            return true * 1.01
        return true[:-1] if self.how == "too short" else true

    def commitment(self, ask: Ask, task: Task) -> bytes:
        return b"\1" * 32 if self.how == "commits to another" else super().commitment(ask, task)

    def verdict(self, ask: Ask, task: Task, transcript: torch.Tensor) -> bytes:
        return DENIED if self.how == "denies" else super().verdict(ask, task, transcript)


@pytest.mark.parametrize(
    ("scheme", "how", "proof"),
    [
        (DRAWN, "denies", "its check failed"),
        (DRAWN, "another step's", "is false by"),
        (DRAWN, "too short", "and the transcript has"),
        (SAMPLED, "commits to another", ""),
    ],
)
def test_what_is_false_costs_its_author_in_the_same_step(scheme: str, how: str, proof: str, job, train, free) -> None:
    run = train(job(scheme), replace={rank: lambda worker: Odd(worker, how).reply for rank in (2, 5)})
    assert torch.equal(run.model, free)
    out = told(run, "expelled")
    assert {event["rank"] for event in out} == {2, 5}
    for event in out:
        assert proof in event["claimed"]
        assert proof or len(event["claimed"]) == len(event["true"]) == 64


def test_who_does_not_open_is_watched_also_after_a_resumption_and_never_expelled(job, train, free) -> None:
    sampled = job(SAMPLED.replace("1.0", "0.9"), "checkpoint_every=2")
    replace = dict.fromkeys((1, 2, 3), lambda worker: Odd(worker, "never opens").reply)
    run = train(sampled, replace=replace)
    assert torch.equal(run.model, free)
    watched = {event["rank"] for event in told(run, "watched")}
    assert watched
    assert watched <= {1, 2, 3}
    assert not told(run, "expelled")
    for suffix in ("pt", "json"):
        (run.run / f"checkpoints/step-00000004.{suffix}").unlink()
    again = train(sampled, run.run, replace=replace)
    assert torch.equal(again.model, free)
    assert len(told(again, "watched")) == len({event["rank"] for event in told(again, "watched")})


def test_a_small_sample_lets_lies_pass_and_says_how_many_are_expected(job, train, free) -> None:
    lying = "attack={name: reverse_gradient, ranks: [3, 6]}"
    run = train(job(SAMPLED.replace("1.0", "0.0001"), lying))
    assert not torch.equal(run.model, free)
    assert report.read_summary(run.run).expected_false == pytest.approx(2 * 0.9999 / 0.0001)
    (end,) = told(run, "end")
    assert (end["caught"], end["falsely_accused"]) == (0, 0)
    assert end["missed"] > 0
    assert told(run, "start")[0]["summary"].startswith("not exact: 2e+04 false vectors at most")
