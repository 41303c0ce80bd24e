"""Recorded runs as they are in their directories, written by hand."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from draco.job import Job, parse, to_dict, to_words
from draco.runs import directory as run_directory

SECONDS = {"compute": 0.1, "encode": 0.01, "communication": 0.02, "decode": 0.03, "aggregate": 0.004, "update": 0.006}
EVALUATIONS = [
    {"step": 3, "top1": 0.9, "top5": 0.99, "loss": 0.25, "samples": 1000},
    {"step": 1, "top1": 0.2, "top5": 0.5, "loss": 2.2, "samples": 1000},
]
MACHINE = {"draco": "0.1.0", "python": "3.11.7", "torch": "2.13.0", "cpu": "A Processor", "cores": 2}


def job(name: str = "small", workers: int = 3) -> Job:
    return parse(
        f"{{name: {name}, workers: {workers}, model: lenet, data: mnist_5k, batch_size: {3 * workers}, steps: 3,"
        " scheme: {name: repetition, adversaries: 1}, attack: constant}",
        "test",
    )


def step(number: int, loss: float = 1.0, **changes: Any) -> dict[str, Any]:
    event = {"event": "step", "step": number, "loss": loss, "lr": 0.1, "suspects": [2], "refused": {}}
    return {**event, "seconds": SECONDS, "bytes_received": 3_000_000, **changes}


def start(of: Job, **changes: Any) -> dict[str, Any]:
    return {
        "event": "start",
        "job": to_dict(of),
        "setting": to_words(of),
        "steps": of.steps,
        "summary": "repetition",
        "vote": "exact",
        **changes,
    }


def whole_run() -> list[dict[str, Any]]:
    end = {"event": "end", "state": "succeeded", "step": 3, "caught": 3, "missed": 1, "falsely_accused": 2}
    return [
        start(job()),
        step(1, 2.3),
        step(2, 1.5),
        {"event": "checkpoint", "step": 2, "file": "x"},
        step(3, 0.5),
        end,
    ]


def timed(events: Sequence[dict[str, Any]], first: float = 1_700_000_000.0) -> list[dict[str, Any]]:
    """Give the events times, a second apart."""
    return [{"time": first + index, **event} for index, event in enumerate(events)]


def lines(events: Sequence[dict[str, Any]]) -> str:
    """Return the lines of a file; every event has a time, if only 0."""
    timed = [{"time": 0, **event} if "event" in event else event for event in events]
    return "".join(json.dumps(event) + "\n" for event in timed)


def write_run(
    tmp_path: Path,
    events: str,
    state: run_directory.State = "succeeded",
    message: str = "",
    *,
    evaluations: Sequence[dict[str, Any]] = EVALUATIONS,
    name: str = "small",
) -> Path:
    run = run_directory.create(tmp_path, name, "name: small\n")
    run_directory.write_status(run, state, 3, message)
    (run / "events.jsonl").write_text(events)
    (run / "evaluations.jsonl").write_text(lines(evaluations))
    return run
