"""The evaluator: top-1, top-5 and loss of a model on the test set, for one model or for a run's checkpoints.

It reads only checkpoints that their manifest confirms, does none twice, and can run beside the training.
"""

import copy
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from draco import metrics, own
from draco.errors import OwnCodeError
from draco.job import Job
from draco.runs import events, hold
from draco.runs.alive import Waiting, life
from draco.runs.events import Lines, read
from draco.tasks import Task, count
from draco.training import checkpoint, copies, device, saved
from draco.training.build import Built

POLL_S = 1.0
TRAINING = "training"  # who made an evaluation: the server, between two steps


class Evaluation(NamedTuple):
    """Quality of one model on the test samples."""

    metrics: dict[str, float]  # means over the samples; "loss" among them. Images: also "top1" and "top5", fractions
    samples: int


@torch.inference_mode()
def evaluate_model(
    task: Task,
    model: nn.Module,
    samples: Any,
    batch_size: int,
    on: torch.device | str = "cpu",
    beat: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Evaluate `model` on all samples of a split; the model is left as it was. `beat` is called after every batch.

    Where it is elsewhere a copy is evaluated: moving the model itself would part its parameters from the server's flat
    vector.

    Raises:
        OwnCodeError: the task's `evaluate` fails, or returns no figure "loss".
    """
    was_training, there = model.training, torch.device(on)
    if any(each.device.type != there.type for each in model.parameters()):
        model = copy.deepcopy(model).to(there)
    model.eval()
    size, sums, name = count(samples), dict[str, float](), type(task).__name__
    for start in range(0, size, batch_size):
        with own.blamed(f"{name}.evaluate()"):
            indices = torch.arange(start, min(start + batch_size, size))
            figures = task.evaluate(model, copies.moved(task.batch(samples, indices), there))
            for figure, values in figures.items():
                each = torch.as_tensor(values).double()  # of each sample, or one number for the batch
                whole = each.sum() if each.numel() == len(indices) else each.mean() * len(indices)
                sums[figure] = sums.get(figure, 0.0) + whole.item()
        beat()
    model.train(was_training)
    if why := metrics.fault(sums):
        raise OwnCodeError(f"{name}.evaluate() returns what cannot be recorded, of {size} test samples: {why}")
    return Evaluation({figure: total / size for figure, total in sums.items()}, size)


def where(job: Job, asked: str | None = None) -> tuple[torch.device, str]:
    """Return where the checkpoints of a job are evaluated, and what is to be said of that, or nothing.

    On a GPU where the job's workers have one and this machine has, too.

    Raises:
        MissingError: a GPU is asked for, and torch sees none.
    """
    wanted = asked or job.device
    if wanted == "cpu":
        return torch.device("cpu"), ""
    if asked is None and not device.gpus():
        return torch.device("cpu"), "evaluated on the CPU: torch sees no GPU here, and the job says device: cuda"
    return device.of_worker(job.model_copy(update={"device": wanted})), ""


def append(run: Path, step: int, result: Evaluation, by: str = "") -> None:
    """Add one line to the run's evaluations; `by`: who made it, where that is not an evaluator beside the training."""
    file = Lines(run / "evaluations.jsonl")
    whose = {"by": by} if by else {}
    try:
        file.append({"step": step, "time": round(time.time(), 3), **whose, **result.metrics, "samples": result.samples})
    finally:
        file.close()


def evaluations(run: Path) -> dict[int, Evaluation]:
    """Return the evaluations that are recorded, by step; of one that was made twice the later."""
    recorded = events.evaluations(run / "evaluations.jsonl")
    return {each["step"]: Evaluation(metrics.recorded(each), each["samples"]) for each in recorded}


def of_training(run: Path, last: int) -> dict[int, dict[str, float]]:
    """Return the metrics that the training itself has recorded up to the step `last`, by step, rising.

    Others, of `draco eval` beside it, may be of another device or batch size, and so of other bits.
    """
    recorded = events.evaluations(run / "evaluations.jsonl")
    own = {each["step"]: metrics.recorded(each) for each in recorded if each.get("by") == TRAINING}
    return {step: own[step] for step in sorted(own) if step <= last}


def done_steps(run: Path) -> set[int]:
    """Return the steps whose evaluation is recorded."""
    return {*evaluations(run)}


def passed_over(run: Path) -> list[int]:
    """Return the steps of the checkpoints that were removed before they were evaluated."""
    folder = run / "checkpoints"
    saved = {event["step"] for event in read(run / "events.jsonl") if event.get("event") == "checkpoint"}
    refused = {checkpoint.step_of(Path(path.name.split(".")[0])) for path in folder.glob("step-*.refused*")}
    return sorted(saved - {step for step, _ in checkpoint.steps(folder)} - done_steps(run) - refused)


def pending(run: Path) -> list[tuple[int, Path]]:
    """Return (step, path) of the checkpoints that have not been evaluated, oldest first."""
    done = done_steps(run)
    return [(step, path) for step, path in checkpoint.steps(run / "checkpoints") if step not in done]


def evaluate_run(
    run: Path,
    built: Built,
    *,
    follow: bool,
    batch_size: int | None = None,
    on: torch.device | None = None,
    refuse: Callable[[int, str], None] = lambda step, why: None,
) -> Iterator[tuple[int, Evaluation]]:
    """Yield the evaluation of each checkpoint that has none yet; with `follow`, until the run is terminal.

    `refuse` is told, once, of each checkpoint that cannot be used and why; one that takes its place is looked at anew.

    Raises:
        RefusedError: another evaluator is at work on the run.
    """
    with hold.take(run / hold.EVALUATOR, f"{run}: another draco eval is at work on it"):
        yield from _evaluate(run, built, follow, batch_size, on, refuse)


def _evaluate(
    run: Path,
    built: Built,
    follow: bool,
    batch_size: int | None,
    on: torch.device | None,
    refuse: Callable[[int, str], None],
) -> Iterator[tuple[int, Evaluation]]:
    job, model = built.job, built.model
    refused: set[tuple[Path, int]] = set()
    tell = Waiting()
    while True:
        # The state is read before the folder: a checkpoint written in between is found in this very pass.
        over = not life(run).by
        for step, path in pending(run):
            mark = (path, _changed(path))
            if mark in refused:
                continue
            try:
                saved.load_into(model, job, step, path)
            except checkpoint.CheckpointError as error:
                if not _changed(path):  # the server has removed it: see `passed_over`
                    continue
                refused.add(mark)
                refuse(step, str(error))
                continue
            result = evaluate_model(
                built.task, model, built.test, batch_size or job.eval_batch_size, on or where(job)[0]
            )
            append(run, step, result)
            yield step, result
        if over or not follow:
            return
        tell(run)
        time.sleep(POLL_S)


def _changed(path: Path) -> int:
    """Return when the manifest of a checkpoint was written; 0 where it is gone."""
    try:
        return os.lstat(path.with_suffix(".json")).st_mtime_ns
    except OSError:
        return 0
