"""The first check of a task: every mistake that shows in one batch, told before anything is trained.

It builds the model, fetches samples, and takes the passes of partition 0 of step 1, each twice. All that is found is
told at once, with task, file and line. What it costs: one more build of the model, one more fetch of the training
samples where `Setting.again`, three forward and two backward passes of one partition, an evaluation of one batch. It
leaves the global random generators, the model's weights and its statistics as they were.

    first_check -> of_samples, of_model, of_loss, of_precision, of_figures -> calls -> draws -> states
    bits: batches in words

The caller trusts the task as far as to run it: the first check finds mistakes, and is no defence against an attacker.
Shapes: B samples in a step's batch, k partitions, p trained parameters, d elements of a step vector.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from draco.errors import OwnCodeError
from draco.models.batch_norm import has_batch_statistics, statistics_size
from draco.models.dropout import replace_dropout
from draco.sampling import batch_indices, partition_bounds
from draco.tasks.first_check import of_figures, of_loss, of_model, of_precision, of_samples, states
from draco.tasks.first_check.bits import shapes
from draco.tasks.first_check.calls import Calls, Setting, stage
from draco.tasks.task import Task

__all__ = ["Found", "Setting", "blame_not_finite", "first_check", "look"]


@dataclass
class Found:
    """What a first check saw. Numbers are 0 where a fault kept it from looking."""

    faults: list[str] = field(default_factory=list)
    cause: BaseException | None = None  # the first error that user's code has raised
    warnings: list[str] = field(default_factory=list)
    trained: int = 0  # p
    frozen: int = 0
    statistics: int = 0  # b
    train: int = 0  # samples
    test: int = 0
    batch: str = ""  # the shapes of a partition
    seconds: float = 0.0  # of one forward and backward pass of a partition, here


def first_check(
    task: Task,
    setting: Setting,
    *,
    samples: Callable[[str], Any] | None = None,
    model: Callable[[], nn.Module] | None = None,
) -> Found:
    """Check a task, and return what was seen of it.

    Args:
        task: what is checked.
        setting: what the job says.
        samples: returns the samples of a split where they are fetched already; None: they are fetched for this.
        model: returns the model where the caller builds it anyway; None: it is built for this. It is called once.

    Raises:
        OwnCodeError: the task breaks its contract; a line for each fault.
    """
    found = look(task, setting, samples=samples, model=model)
    if found.faults:
        raise OwnCodeError("\n".join(found.faults)) from found.cause
    return found


def look(
    task: Task,
    setting: Setting,
    *,
    samples: Callable[[str], Any] | None = None,
    model: Callable[[], nn.Module] | None = None,
) -> Found:
    """Return what `first_check` sees, faults too."""
    calls, found = Calls(task, setting), Found()
    found.faults, found.warnings = calls.faults, calls.warnings
    with states.kept():
        train: Any = None
        batch = tested = built = None
        with stage():
            train = _given(calls, samples, "train") if samples else of_samples.fetch(calls, "train")
            found.train = of_samples.check(calls, "train", train)
            batch = _training_batch(calls, train, found)
        if batch is not None:  # both splits mostly have the same mistake
            with stage():
                test = _given(calls, samples, "test") if samples else of_samples.fetch(calls, "test")
                found.test = of_samples.check(calls, "test", test)
                tested = of_samples.batch(calls, test, torch.arange(min(found.test, _partition(setting))))
        with stage():
            built = _built(calls, model, found)
        if batch is not None:
            with stage():
                of_figures.check_needs(calls, train, batch, found.train)
        if built is not None and batch is not None:
            _check_model_with(calls, built, batch, tested, train, found)
    found.cause = calls.cause
    return found


def blame_not_finite(
    task: Task, setting: Setting, model: nn.Module, batch: Any, *, places: Sequence[int], step: int
) -> str:
    """Return which of a partition's samples has a loss that is not finite, and whether it is the samples' fault.

    For a step whose gradient was of no use: it computes the loss once more. Nothing where the loss is finite.
    """
    with states.kept():
        return of_loss.blame(Calls(task, setting), model, batch, places, step)


def _partition(setting: Setting) -> int:
    start, stop = partition_bounds(setting.batch_size, setting.partitions)[0]
    return stop - start


def _given(calls: Calls, samples: Callable[[str], Any], split: str) -> Any:
    return calls.call("samples", lambda: samples(split), seeded=True)


def _first_places(setting: Setting, found: Found) -> Tensor:
    """Return the samples of partition 0 of step 1."""
    return batch_indices(setting.seed, 1, setting.batch_size, found.train)[: _partition(setting)]


def _training_batch(calls: Calls, train: Any, found: Found) -> Any:
    """Return partition 0 of step 1."""
    setting, before = calls.setting, calls.draws
    indices = _first_places(setting, found)
    batch = of_samples.check_batch(calls, train, indices)
    found.batch = shapes(batch)
    of_samples.check_ends(calls, train, found.train)
    if setting.again and calls.draws == before:
        of_samples.check_again(calls, train, of_samples.fetch(calls, "train"))
    return batch


def _built(calls: Calls, model: Callable[[], nn.Module] | None, found: Found) -> nn.Module:
    """Return the model as it is trained, after one that was built, looked at and thrown away."""
    first = of_model.check(calls)
    if model is None:
        built = of_model.build(calls)
        of_model.check_again(calls, built, first)
        replace_dropout(built)
        built.train()
    else:
        built = calls.call("model", model, seeded=True)
        of_model.check_again(calls, built, first)
    parameters = [*built.parameters()]
    found.trained = sum(each.numel() for each in parameters if each.requires_grad)
    found.frozen = sum(each.numel() for each in parameters if not each.requires_grad)
    found.statistics = statistics_size(built)
    return built


def _check_model_with(calls: Calls, model: nn.Module, batch: Any, tested: Any, train: Any, found: Found) -> None:
    """Take passes of the model over the batches of both splits."""
    setting = calls.setting
    if setting.device != "cpu":  # moving the model itself would part its parameters from the caller's flat vector
        model = copy.deepcopy(model).to(setting.device)
    calls.model = model
    before = len(calls.faults)
    with stage():
        found.seconds = of_loss.check(calls, model, batch, _first_places(calls.setting, found).tolist())
    may_join = setting.joined and calls.task.per_sample and not has_batch_statistics(model)
    if may_join and len(calls.faults) == before and not calls.told:
        with stage():
            of_loss.check_influence(calls, model, _two_at_least(calls, train, batch, found))
    if setting.wide and len(calls.faults) == before:
        with stage():
            of_precision.check(calls, model, batch)
    by_loss = type(calls.task).evaluate is Task.evaluate
    if tested is not None and not (by_loss and len(calls.faults) > before):
        with stage():
            of_figures.check_evaluate(calls, model, tested)


def _two_at_least(calls: Calls, train: Any, batch: Any, found: Found) -> Any:
    """Return the partition's batch, or the first two samples of the step where it has only one."""
    if _partition(calls.setting) > 1:
        return batch
    indices = batch_indices(calls.setting.seed, 1, max(calls.setting.batch_size, 2), found.train)[:2]
    return of_samples.batch(calls, train, indices)
