"""What a real run of a protocol leaves for its readers: proofs in events, a resumption that knows who is out."""

from collections.abc import Callable

from draco import report
from draco.job import Job
from draco.runs import events
from draco.runs.expulsions import expulsions

REACTIVE = (
    "model=fc", "workers=5", "batch_size=12", "steps=3", "checkpoint_every=1", "checkpoint_keep=all",
    "scheme={name: reactive, adversaries: 2}", "attack={name: reverse_gradient, ranks: [2, 5], from_step: 2}",
)  # fmt: skip


def test_a_run_tells_who_was_expelled_and_a_resumed_one_who_is_out(make_job: Callable[..., Job], train) -> None:
    job = make_job(*REACTIVE)
    whole = train(job)
    summary = report.read_summary(whole.run)
    assert summary.notes == ()
    assert [*summary.expelled] == [2, 5]
    assert {proof.step for proof in summary.expelled.values()} == {2}
    assert all(len(proof.claimed) == len(proof.true) == 64 for proof in summary.expelled.values())
    steps = [event for event in events.read(whole.run / "events.jsonl") if event["event"] == "step"]
    assert [event["redundancy"] for event in steps] == [3, 1, 1]
    assert [event["standing"] for event in steps] == [5, 3, 3]
    assert [event["copies"] for event in steps if event["step"] != 2] == [3, 1]
    for path in (whole.run / "checkpoints").glob("step-00000003*"):
        path.unlink()
    train(job, whole.run)
    (resumed,) = [event for event in events.read(whole.run / "events.jsonl") if event["event"] == "resume"]
    assert [*resumed["expelled"]] == ["2", "5"]
    assert expulsions([resumed]) == summary.expelled


def test_a_resumption_behind_a_proof_says_who_stays_out(make_job: Callable[..., Job], train) -> None:
    job = make_job(*REACTIVE)
    whole = train(job)
    for step in (2, 3):
        for path in (whole.run / "checkpoints").glob(f"step-0000000{step}*"):
            path.unlink()
    again = train(job, whole.run)
    log = list(events.read(again.run / "events.jsonl"))
    (at,) = [place for place, event in enumerate(log) if event["event"] == "resume"]
    assert [*expulsions(log[: at + 1])] == [2, 5]
    assert [*expulsions(log)] == [2, 5]


def test_a_step_that_begins_anew_counts_no_lie_of_who_was_expelled_before_it(
    make_job: Callable[..., Job], train
) -> None:
    job = make_job(*REACTIVE[:4], "scheme={name: verified, adversaries: 2, verifiers: 2}", REACTIVE[7])
    whole = train(job)
    log = list(events.read(whole.run / "events.jsonl"))
    summary = report.read_summary(whole.run)
    assert summary.failure_probability == 0
    assert [*summary.expelled] == [2, 5]
    # None where no liar was drawn to upload before both were found out as verifiers.
    assert summary.undone == sum(event["event"] == "undone" for event in log)
    assert summary.missed == 0
    assert [event["byzantine"] for event in log if event["event"] == "step"] == [[], [2, 5], []]
