"""Steps in several rounds in whole runs of one process: the bits of the attack-free run, whoever lies, and how."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from draco.errors import TrainingError, WorkerError
from draco.job import Job
from draco.protocols.rounds import Ask
from draco.runs import events
from draco.training import checkpoint, pair_server, pairs, wire
from draco.training.pair_worker import PairWorker
from draco.training.transport import Task

SCHEMES = {
    "reactive": "{name: reactive, adversaries: 2}",
    "verified": "{name: verified, adversaries: 2, verifiers: 2}",
    "checked": "{name: checked, adversaries: 2}",
}
every = pytest.mark.parametrize("scheme", SCHEMES)


@pytest.fixture(autouse=True)
def _same_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who gets which pair is drawn anew at every launch; here all launches draw alike, so that all who lie have one."""
    monkeypatch.setattr(pair_server, "token_bytes", lambda count: b"\2" * count)


@pytest.fixture
def rounds(make_job: Callable[..., Job]) -> Callable[..., Job]:
    """Return `rounds(scheme, *overrides)`: a job of 7 workers."""

    def made(scheme: str, *overrides: str) -> Job:
        usual = ["workers=7", f"scheme={SCHEMES[scheme]}", "steps=6", "eval_every=0", "aggregator=mean", "attack=none"]
        return make_job(*usual, *overrides)

    return made


@pytest.fixture(scope="module")
def _free() -> dict[tuple[str, ...], Any]:
    return {}


@pytest.fixture
def free(rounds, train, _free: dict[tuple[str, ...], Any]) -> Callable[..., Any]:
    """Return `free(scheme, *overrides)`: the run in which nobody lies, trained once for all tests of this file."""

    def trained(*job: str) -> Any:
        if job not in _free:
            _free[job] = train(rounds(*job))
        return _free[job]

    return trained


def told(trained: Any, kind: str) -> list[dict[str, Any]]:
    return [event for event in events.read(trained.run / "events.jsonl") if event["event"] == kind]


@every
@pytest.mark.parametrize(
    "attack",
    [
        "{name: reverse_gradient, ranks: [3, 6]}",
        "{name: constant, ranks: [1, 7], from_step: 4}",
        "{name: alie, ranks: [2, 5], z: 1.5}",
        "{name: nan, ranks: [2, 4], from_step: 2}",
        "{name: random, ranks: [4], from_step: 6}",  # in the last step
    ],
)
def test_the_model_has_the_bits_of_the_attack_free_run_and_all_who_lied_are_out(
    scheme: str, attack: str, rounds, train, free
) -> None:
    attacked = train(rounds(scheme, f"attack={attack}"))
    assert torch.equal(free(scheme).model, attacked.model)
    job = rounds(scheme, f"attack={attack}")
    steps = told(attacked, "step")
    lied = {rank for step in steps for rank in step["byzantine"]}  # whoever is not asked at a step does not lie
    assert {event["rank"] for event in told(attacked, "expelled")} == lied
    assert lied <= {*job.attack.ranks} if scheme == "checked" else lied == {*job.attack.ranks}
    assert [step["step"] for step in steps] == [1, 2, 3, 4, 5, 6]
    assert [step["loss"] for step in steps] == [step["loss"] for step in told(free(scheme), "step")]
    assert (attacked.status.state, told(attacked, "end")[0]["falsely_accused"]) == ("succeeded", 0)
    assert told(attacked, "end")[0]["missed"] == 0


@every
def test_what_is_told_of_copies_expulsions_and_redundancy(scheme: str, rounds, train) -> None:
    run = train(rounds(scheme, "attack={name: reverse_gradient, ranks: [3, 6], from_step: 3}"))
    steps = told(run, "step")
    copies = 1 if scheme == "checked" else 3
    if scheme == "checked":  # who has no pair at step 3 lies later
        assert sum(len(step["suspects"]) for step in steps) == 2
        assert [step["copies"] for step in steps if not step["suspects"]].count(1.0) >= 4
        return
    assert [step["copies"] for step in steps[:2]] == [copies, copies]
    assert steps[2]["copies"] > copies
    assert steps[5]["copies"] == 1.0
    assert [(step["standing"], step["redundancy"]) for step in steps] == [(7, copies)] * 2 + [(5, 1)] * 4
    assert steps[2]["suspects"] == steps[2]["byzantine"] == [3, 6]
    assert all(step["suspects"] == step["byzantine"] == [] for step in steps[3:])
    for rank, proof in steps[2]["expelled"].items():
        (event,) = [event for event in told(run, "expelled") if event["rank"] == int(rank)]
        assert proof == {key: event[key] for key in ("step", "partition", "claimed", "true")}
        assert proof["step"] == 3
        assert len(proof["true"]) == 64
        assert proof["claimed"] != proof["true"]
    elements = told(run, "start")[0]["elements"]
    assert steps[5]["bytes_received"] <= 5 * (4 * elements + 64)
    assert steps[0]["bytes_received"] <= 5 * 4 * elements + 7 * 64 + 15 * 32
    assert bool(told(run, "undone")) == (scheme == "verified")


def asking() -> tuple[set[int], Callable[[PairWorker], Any]]:
    """Return a set that is filled with the workers that get a task, and what to put around each of them for that."""
    asked: set[int] = set()

    def watched(worker: PairWorker) -> Any:
        def reply(task: Task, model: torch.Tensor, frame: torch.Tensor) -> int | None:
            asked.add(worker.rank)
            return worker.reply(task, model, frame)

        return reply

    return asked, watched


@every
def test_a_resumed_run_knows_who_is_out_and_ends_with_the_same_bits(scheme: str, rounds, train) -> None:
    job = rounds(scheme, "attack={name: reverse_gradient, ranks: [3, 6], from_step: 2}", "checkpoint_every=1")
    whole = train(job)

    class StopsAt(PairWorker):
        def reply(self, task: Task, model: torch.Tensor, frame: torch.Tensor) -> int | None:
            if task.step == 4:
                (partial / "stop").touch()
            return super().reply(task, model, frame)

    partial = whole.run.parent / "partial"
    (partial / "checkpoints").mkdir(parents=True)
    for name in ("job.yaml", "secret"):
        (partial / name).write_bytes((whole.run / name).read_bytes())
    first = train(job, partial, replace={1: lambda worker: StopsAt(1, worker.source).reply})
    assert (first.status.state, first.status.step) == ("interrupted", 4)
    court = checkpoint.load(checkpoint.newest(partial / "checkpoints"))["court"]
    assert {*court} == {3, 6}
    asked, watched = asking()
    again = train(job, partial, replace=dict.fromkeys(range(1, 8), watched))
    assert again.status.state == "succeeded"
    assert torch.equal(again.model, whole.model)
    assert asked == {1, 2, 4, 5, 7}


@every
def test_who_was_expelled_after_the_last_checkpoint_of_a_killed_run_stays_out(scheme: str, rounds, train) -> None:
    lying = "attack={name: reverse_gradient, ranks: [3, 6], from_step: 3}"
    job = rounds(scheme, lying, "checkpoint_every=1", "checkpoint_keep={last: 10}")
    whole = train(job)
    model = whole.model
    for step in range(2, 7):  # what a server that was killed at once would have left
        for suffix in ("pt", "json"):
            (whole.run / f"checkpoints/step-{step:08d}.{suffix}").unlink()
    asked, watched = asking()
    again = train(job, whole.run, replace=dict.fromkeys(range(1, 8), watched))
    assert torch.equal(again.model, model)
    assert asked == {1, 2, 4, 5, 7}
    assert told(again, "end")[-1]["falsely_accused"] == 0


def test_no_checkpoint_and_no_evaluation_of_a_pipelined_run_has_an_unverified_step(rounds, train) -> None:
    more = ["checkpoint_every=1", "checkpoint_keep={last: 10}", "eval_every=2", "steps=4"]
    honest = train(rounds("verified", *more))
    lied = train(rounds("verified", "attack={name: constant, ranks: [3, 6], from_step: 2}", *more))
    for step in range(1, 5):
        name = f"checkpoints/step-{step:08d}.pt"
        states = [checkpoint.load(run.run / name)["model"] for run in (honest, lied)]
        assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    metrics = [[{**line, "time": 0} for line in events.read(run.run / "evaluations.jsonl")] for run in (honest, lied)]
    assert metrics[0] == metrics[1]
    assert [event["step"] for event in told(lied, "undone")] == [2]


class Odd(PairWorker):
    """A worker that does one thing otherwise."""

    def __init__(self, honest: PairWorker, how: str, from_step: int = 3) -> None:
        super().__init__(honest.rank, honest.source)
        self.how, self.from_step = how, from_step

    def reply(self, task: Task, model: torch.Tensor, frame: torch.Tensor) -> int | None:
        length = super().reply(task, model, frame)
        if task.step < self.from_step or length is None:
            return length
        if self.how == "silent":
            return None
        if self.how == "cut":
            return length - 1
        if self.how == "fault":
            return wire.pack_fault("out of memory", frame)
        if self.how == "noise":
            frame[: wire.HEADER.size] = 7
        if self.how == "long":
            return min(length + 64, len(frame))
        return length

    def digest(self, ask: Ask, task: Task) -> bytes:
        other = self.how == "frame" and task.step >= self.from_step  # says that an honest upload is false
        return b"\0" * 32 if other else super().digest(ask, task)

    def vector(self, ask: Ask, task: Task) -> torch.Tensor:
        true = super().vector(ask, task)
        sends = self.how == "equivocate" and task.step >= self.from_step  # its digests are the truth's
        return true + 1 if sends else true


@pytest.mark.parametrize("scheme", ["reactive", "verified"])
@pytest.mark.parametrize(
    ("how", "out"),
    [("silent", False), ("fault", False), ("cut", True), ("noise", True), ("frame", True), ("equivocate", True)],
)
def test_a_worker_that_does_not_answer_is_done_without_and_one_that_answers_falsely_is_expelled(
    scheme: str, how: str, out: bool, rounds, train, free
) -> None:
    run = train(rounds(scheme), replace={2: lambda worker: Odd(worker, how).reply})
    assert torch.equal(free(scheme).model, run.model)
    assert {event["rank"] for event in told(run, "expelled")} == ({2} if out else set())
    steps = told(run, "step")
    assert steps[0]["standing"] == 7
    assert steps[5]["standing"] == (6 if out else 7)
    assert (2 in steps[5]["straggling"]) == (how == "silent")
    assert steps[5]["refused"] == ({"2": "its code failed: out of memory"} if how == "fault" else {})


@every
def test_workers_that_fail_or_are_silent_end_the_run_only_where_too_few_are_left(scheme: str, rounds, train) -> None:
    silent = {rank: lambda worker: Odd(worker, "silent").reply for rank in range(1, 8)}
    with pytest.raises(WorkerError, match=r"step [23]: nobody is left to ask about partition \d"):
        train(rounds(scheme), replace=silent)
    failing = {rank: lambda worker: Odd(worker, "fault").reply for rank in (2, 3, 5)}
    with pytest.raises(TrainingError, match=r"step 3: the code of ranks 2, 3, 5 failed: out of memory"):
        train(rounds(scheme), replace=failing)


@every
def test_more_liars_than_the_job_tolerates_end_the_run_where_they_are_proven(scheme: str, rounds, train) -> None:
    lying = {rank: lambda worker: Odd(worker, "cut").reply for rank in (2, 3, 5)}
    with pytest.raises(TrainingError, match=r"workers 2, 3, 5 have been proven to lie, and scheme\.adversaries is 2"):
        train(rounds(scheme), replace=lying)


@pytest.mark.parametrize("scheme", ["reactive", "verified"])
def test_vectors_travel_rounded_where_the_job_says_so_and_are_claimed_as_they_travel(
    scheme: str, rounds, train, free
) -> None:
    rounded = free(scheme, "wire={dtype: float16}").model
    run = train(rounds(scheme, "wire={dtype: float16}", "attack={name: reverse_gradient, ranks: [3, 6]}"))
    assert torch.equal(rounded, run.model)
    assert not torch.equal(rounded, free(scheme).model)


def test_a_run_in_rounds_gives_the_bits_of_any_other_code_of_the_same_partitions(train, make_job, free) -> None:
    plain = make_job("workers=5", "scheme=uncoded", "steps=6", "eval_every=0", "aggregator=mean", "attack=none")
    expected = train(plain).model
    assert [scheme for scheme in SCHEMES if not torch.equal(free(scheme).model, expected)] == []


def test_every_cut_of_a_frame_is_refused() -> None:
    format_ = wire.Wire(3, "float32", "none")
    asks = [Ask(1, 1, 0, "vector"), Ask(1, 1, 1, "digest"), Ask(1, 1, 0, "sketch"), Ask(1, 1, 2, "transcript")]
    items = [
        pairs.as_bytes(torch.ones(3)),
        torch.zeros(32, dtype=torch.uint8),
        pairs.as_bytes(torch.ones(pairs.SKETCH, dtype=torch.float64)),
        pairs.sized(torch.arange(5.0)),
    ]
    frame = torch.zeros(pairs.room(asks, format_, 5), dtype=torch.uint8)
    length = pairs.pack(items, format_, 1, wire.Timing(0.0, 0.0), frame)
    assert length == len(frame)
    found = pairs.unpack(frame, length, asks, format_, 1)
    assert not isinstance(found, str)
    _, (vector, digest, sketch, transcript) = found
    came = torch.zeros(3)
    assert pairs.take_vector(vector, frame, format_, came) == pairs.digest(torch.ones(3))
    assert came.tolist() == [1, 1, 1]
    assert pairs.bytes_of(frame, digest) == b"\0" * 32
    assert pairs.sketch_of(sketch, frame) == (1.0,) * pairs.SKETCH
    assert pairs.transcript_of(transcript, frame).tolist() == [0, 1, 2, 3, 4]
    for shorter in range(length):
        assert isinstance(pairs.unpack(frame, shorter, asks, format_, 1), str)
    assert isinstance(pairs.unpack(frame, length, asks, format_, 2), str)
    assert isinstance(pairs.unpack(frame, length, asks[:3], format_, 1), str)
    for numbers in (4, 6, -1, 2**62):
        other = frame.clone()
        other[transcript.start - 8 : transcript.start] = pairs.as_bytes(torch.tensor([numbers]))
        assert isinstance(pairs.unpack(other, length, asks, format_, 1), str)
    assert pairs.asks_of(1, pairs.numbers_of(asks)) == asks


def test_transcripts_are_handed_on_as_they_came() -> None:
    format_ = wire.Wire(3, "float32", "none")
    asks = [Ask(1, 1, 1, "commitment"), Ask(1, 1, 0, "deposit"), Ask(1, 1, 1, "deposit"), Ask(1, 1, 2, "deposit")]
    transcripts = [torch.arange(5.0), torch.zeros(0), torch.ones(2)]
    items = [torch.ones(32, dtype=torch.uint8), *map(pairs.sized, transcripts)]
    frame = torch.zeros(pairs.room(asks, format_, 5), dtype=torch.uint8)
    length = pairs.pack(items, format_, 1, wire.Timing(0.0, 0.0), frame)
    found = pairs.unpack(frame, length, pairs.in_order(asks), format_, 1)
    assert not isinstance(found, str)
    commitment, *deposits = found[1]
    assert pairs.bytes_of(frame, commitment) == b"\1" * 32
    kept = [pairs.deposit_of(item, frame) for item in deposits]
    task = Task(3, 2, (5,), (1, 0, 3, 0), loads=False, enclosed=pairs.enclosed(kept))
    again, size = Task.of(task.numbers())
    assert again == task._replace(enclosed=None)
    assert task.enclosed is not None
    assert size == len(task.enclosed) == 3 * 8 + 4 * 7
    assert [each.tolist() for each in pairs.disclosed(task.enclosed)] == [each.tolist() for each in transcripts]
    assert pairs.enclosed(kept[:1]) is kept[0]
    assert isinstance(pairs.unpack(frame, length - 1, pairs.in_order(asks), format_, 1), str)
