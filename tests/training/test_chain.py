"""The chain of digests: what it records, how it goes on, and that two programs find the same fault in it."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from twin_chain import check, model_digest

from draco.job import Job
from draco.runs import chain, events
from draco.training import checkpoint
from draco.training.chain import Chain, model_digests

Train = Callable[..., Any]
MakeJob = Callable[..., Job]
HEX = [f"{number:064x}" for number in range(100)]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in path.read_bytes().splitlines()]


def launch(step: int = 0, model: str = HEX[0], statistics: int = 0) -> dict[str, Any]:
    return {
        "line": "launch", "chain": 1, "step": step, "model": model, "parameters": 5, "statistics": statistics,
        "partitions": 3, "platforms": ["here"],
    }  # fmt: skip


def written(path: Path, steps: int = 6) -> Path:
    """Write a chain of a launch, some steps, and a checkpoint after the fourth."""
    writer = chain.Writer(path)
    writer.append(launch())
    for step in range(1, steps + 1):
        writer.append({"line": "step", "step": step, "before": HEX[step - 1], "after": HEX[step]})
        if step == 4:
            writer.append({"line": "checkpoint", "step": 4, "sha256": HEX[50]})
    writer.close()
    return path


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return written(tmp_path_factory.mktemp("chain") / chain.NAME).read_bytes()


def edited(text: bytes) -> bytes:
    return text.replace(HEX[3].encode(), HEX[33].encode(), 1)


def swapped(text: bytes) -> bytes:
    parts = text.split(b"\n")
    parts[2], parts[3] = parts[3], parts[2]
    return b"\n".join(parts)


def without(text: bytes) -> bytes:
    parts = text.split(b"\n")
    return b"\n".join(parts[:3] + parts[4:])


def doubled(text: bytes) -> bytes:
    parts = text.split(b"\n")
    return b"\n".join([*parts[:3], parts[2], *parts[3:]])


def spaced(text: bytes) -> bytes:
    return text.replace(b'"step": 2,', b'"step":  2,', 1)


def garbled(text: bytes) -> bytes:
    return text[:400] + b"\xff" + text[401:]


def chained_again(text: bytes) -> bytes:
    """Change a step and make every later digest anew: the lines follow, and only the head tells."""
    head, out = chain.NOTHING, b""
    for part in edited(text).splitlines():
        values = {**json.loads(part), "prev": head}
        line = json.dumps(values).encode()
        head, out = chain.digest(line), out + line + b"\n"
    return out


def skipped(text: bytes) -> bytes:
    """Leave a step out and make every digest anew: the numbers tell."""
    head, out = chain.NOTHING, b""
    for part in without(text).splitlines():
        line = json.dumps({**json.loads(part), "prev": head}).encode()
        head, out = chain.digest(line), out + line + b"\n"
    return out


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        (lambda text: text, 0), (lambda text: text[:-40], 0), (edited, 5), (swapped, 3), (without, 4), (doubled, 4),
        (spaced, 4), (garbled, 2), (chained_again, 5), (skipped, 4), (lambda text: b"\n" + text, 1),
        (lambda text: text.replace(b'"chain": 1', b'"chain": 2'), 1),
        (lambda text: text.replace(b'"launch"', b'"lunch"'), 1),
        (lambda text: text.split(b"\n", 1)[1], 1),
    ],
)  # fmt: skip
def test_two_programs_find_the_same_fault(
    good: bytes, tmp_path: Path, change: Callable[[bytes], bytes], wrong: int
) -> None:
    path = tmp_path / chain.NAME
    path.write_bytes(change(good))
    found = chain.read(path)
    assert check(path) == (found.head, wrong)
    assert found.fault.startswith(f"line {wrong} of chain.jsonl: ") if wrong else found.fault == ""
    assert found.torn == (change(good)[-1:] != b"\n")


def test_a_chain_whose_lines_all_follow_is_known_by_its_head_only(good: bytes, tmp_path: Path) -> None:
    ours, theirs = tmp_path / "a", tmp_path / "b"
    ours.write_bytes(good)
    changed = good.replace(HEX[6].encode(), HEX[66].encode(), 1)
    theirs.write_bytes(changed)
    assert chain.read(theirs).fault == "" == chain.read(ours).fault
    assert check(theirs)[0] == chain.read(theirs).head != chain.read(ours).head


@pytest.mark.parametrize(("torn", "step"), [(0, 4), (40, 4), (0, 6), (0, 0)])
def test_it_goes_on_after_the_step_that_was_gone_back_to(tmp_path: Path, torn: int, step: int) -> None:
    path = written(tmp_path / chain.NAME)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - torn])
    writer, why = chain.resumed(path, step)
    writer.append(launch(step, HEX[step]))
    writer.append({"line": "step", "step": step + 1, "before": HEX[step], "after": HEX[40]})
    writer.close()
    found = chain.read(path)
    assert (why, found.fault, found.torn, found.gaps) == ("", "", False, [])
    assert sorted(found.steps) == [*range(1, step + 2)]
    assert found.checkpoints == ({4: HEX[50]} if step >= 4 else {})
    assert whole.startswith(path.read_bytes().rsplit(b"\n", 3)[0])
    assert check(path) == (found.head, 0)


def test_steps_that_were_lost_are_a_gap_and_not_a_fault(tmp_path: Path) -> None:
    path = written(tmp_path / chain.NAME)
    writer, why = chain.resumed(path, 9)
    writer.append(launch(9, HEX[9]))
    writer.append({"line": "step", "step": 10, "before": HEX[9], "after": HEX[10]})
    writer.close()
    found = chain.read(path)
    assert (why, found.fault, found.gaps) == ("", "", [(7, 9)])
    assert found.model(9) == HEX[9]
    assert found.model(8) is None
    assert check(path) == (found.head, 0)


def test_a_chain_with_a_fault_before_the_step_is_set_aside_whole(tmp_path: Path) -> None:
    path = written(tmp_path / chain.NAME)
    bad = edited(path.read_bytes())
    path.write_bytes(bad)
    writer, why = chain.resumed(path, 5)
    writer.append(launch(5, HEX[5]))
    writer.close()
    assert why.startswith("line 5 of chain.jsonl: does not follow")
    assert (tmp_path / "chain.jsonl.refused-1").read_bytes() == bad
    assert chain.read(path).gaps == [(1, 5)]


def test_a_fault_after_the_step_is_cut_off(tmp_path: Path) -> None:
    path = written(tmp_path / chain.NAME)
    path.write_bytes(edited(path.read_bytes()))
    writer, why = chain.resumed(path, 2)
    writer.close()
    assert why == ""
    assert sorted(chain.read(path).steps) == [1, 2]


def test_a_disk_that_is_full_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = chain.Writer(tmp_path / chain.NAME)

    def full(descriptor: int, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(chain, "write_all", full)
    with pytest.raises(OSError, match=r"chain\.jsonl"):
        writer.append(launch())
    writer.close()


def test_each_line_is_of_the_step_it_names_though_it_is_digested_by_a_thread() -> None:
    said: list[dict[str, Any]] = []
    mine = Chain(lambda line: said.append(dict(line)), vectors=True)
    model, statistics = torch.arange(200_000.0), torch.tensor([1.0, 2.0])
    mine.begin(0, model, statistics, 2)
    expected = []
    for step in range(1, 6):
        vector, gradients = torch.full((7,), float(step)), torch.full((2, 9), float(step))
        mine.about(vector=vector, gradients=gradients, absent={1} if step == 3 else ())
        gradients.zero_()
        mine.settle()
        before = model_digests(model, statistics).parameters
        model.add_(1.0)
        statistics.mul_(2.0)
        after = model_digest(model.numpy(), statistics.numpy())
        seven = model_digest(vector.numpy(), np.zeros(0))
        expected.append(
            {"line": "step", "step": step, "before": before, "after": after}
            | ({"absent": [1]} if step == 3 else {})
            | {"vector": seven, "partitions": [seven, seven]}
        )
        mine.took(step, model, statistics)
    mine.settle()
    mine.close()
    assert said[1:] == expected


def test_digests_that_are_known_are_taken_as_they_are() -> None:
    said: list[Any] = []
    mine = Chain(said.append)
    mine.begin(0, torch.zeros(3), torch.zeros(0), 2)
    mine.about(vector=torch.ones(4), gradients=torch.ones(2, 4), partitions=[HEX[1], None])
    mine.took(1, torch.ones(3), torch.zeros(0))
    mine.saved(1, HEX[9])
    mine.saved(1, HEX[9])
    mine.close()
    assert [line["line"] for line in said] == ["launch", "step", "checkpoint"]
    assert said[1]["partitions"] == [HEX[1], None]
    assert "vector" not in said[1]


def test_a_step_that_is_undone_leaves_no_line() -> None:
    said: list[Any] = []
    mine, model, none = Chain(said.append), torch.zeros(3), torch.zeros(0)
    mine.begin(0, model, none, 1)
    for step, value in ((1, 1.0), (2, 9.0)):
        mine.settle()
        model.fill_(value)
        mine.took(step, model, none)
    mine.back(1)
    with pytest.raises(ValueError, match="step 2 is not the one"):
        mine.back(1)
    model.fill_(2.0)
    mine.took(2, model, none)
    mine.settle()
    mine.close()
    assert [line.get("after") for line in said[1:]] == [
        model_digest(np.full(3, value), np.zeros(0)) for value in (1.0, 2.0)
    ]


def numbers(run: Path, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the parameters of LeNet in a checkpoint, and its statistics, of which there are none."""
    state = checkpoint.load(run / f"checkpoints/step-{step:08d}.pt")["model"]
    return np.concatenate([value.numpy().ravel() for value in state.values()]), np.zeros(0)


def test_a_run_records_its_steps_and_a_resumed_one_has_the_same_lines(train: Train, make_job: MakeJob) -> None:
    job = make_job("checkpoint_every=2", "steps=5", "chain=partitions")
    whole = train(job)
    path = whole.run / chain.NAME
    record = chain.read(path)
    assert check(path) == (record.head, 0)
    end = [event for event in events.read(whole.run / "events.jsonl") if event["event"] == "end"][-1]
    assert end["chain"] == record.head
    assert sorted(record.steps) == [1, 2, 3, 4, 5]
    assert sorted(record.checkpoints) == [2, 4, 5]
    for step in record.checkpoints:
        assert record.model(step) == model_digest(*numbers(whole.run, step))
        file = (whole.run / f"checkpoints/step-{step:08d}.pt").read_bytes()
        assert record.checkpoints[step] == chain.digest(file)
    assert all(len(line["partitions"]) == 5 for line in record.steps.values())

    for name in ("step-00000005.pt", "step-00000005.json"):
        os.unlink(whole.run / "checkpoints" / name)
    path.write_bytes(path.read_bytes()[:-500])  # a killed server's, in the midst of a line
    train(job, whole.run)
    again = chain.read(path)
    assert (again.fault, again.gaps, [each["step"] for each in again.launches]) == ("", [], [0, 4])
    assert check(path) == (again.head, 0)
    without = {step: {key: line[key] for key in line if key != "prev"} for step, line in again.steps.items()}
    assert without == {step: {key: line[key] for key in line if key != "prev"} for step, line in record.steps.items()}


def test_the_same_bits_and_no_chain_where_the_job_wants_none(train: Train, make_job: MakeJob) -> None:
    kept, none = train(make_job()), train(make_job("chain=none"))
    assert torch.equal(kept.model, none.model)
    assert (kept.run / chain.NAME).exists()
    assert not (none.run / chain.NAME).exists()
    assert "chain" not in list(events.read(none.run / "events.jsonl"))[-1]
    assert "partitions" not in lines(kept.run / chain.NAME)[1]


def test_a_run_whose_chain_is_at_fault_goes_on_and_says_so(train: Train, make_job: MakeJob) -> None:
    job = make_job("checkpoint_every=2", "steps=4")
    run = train(job).run
    for name in ("step-00000004.pt", "step-00000004.json"):
        os.unlink(run / "checkpoints" / name)
    path = run / chain.NAME
    shutil.copy(path, run / "before")
    path.write_bytes(path.read_bytes().replace(b'"step": 1,', b'"step": 7,'))
    train(job, run)
    said = [event for event in events.read(run / "events.jsonl") if event["event"] == "refused_chain"]
    assert len(said) == 1
    assert "step 7 after step 0" in said[0]["why"]
    assert chain.read(path).gaps == [(1, 2)]
