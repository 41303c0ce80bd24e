"""The first check of evaluate(), labels() and flipped().

Shapes: N samples of a split, B samples in a batch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from draco.tasks.batch import mapped
from draco.tasks.first_check.bits import kind, shapes, some, tensors
from draco.tasks.first_check.calls import Calls, batch_words, is_finite

_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_TAKEN = ("step", "time", "samples")  # by a line of evaluations.jsonl


def check_evaluate(calls: Calls, model: nn.Module, batch: Any) -> None:
    """Look at what evaluate() says of a batch of the test split; the model is left as it was."""
    modes = {module: module.training for module in model.modules()}
    size = len(next(iter(tensors(batch).values())))
    model.eval()
    try:
        with torch.inference_mode():
            moved = mapped(batch, lambda rows: rows.to(calls.setting.device, copy=True))
            figures: Any = calls.call(
                "evaluate", lambda: calls.task.evaluate(model, moved), about=batch_words(batch), grave=False
            )
    finally:
        for module, mode in modes.items():
            module.training = mode
    if not isinstance(figures, Mapping):
        raise calls.fail("evaluate", f"returns {_a(figures)}, and must return a dict of figures with a loss among them")
    if "loss" not in figures:
        calls.fault("evaluate", f'returns {some(figures) or "nothing"}, and no "loss"')
    if odd := [name for name in figures if not isinstance(name, str) or not _PLAIN.fullmatch(name) or name in _TAKEN]:
        calls.fault(
            "evaluate",
            f"{some(map(repr, odd))} cannot be names of figures: letters, digits and _, and not {', '.join(_TAKEN)}",
        )
    whole = () if calls.task.per_sample else ((),)
    for name, values in figures.items():
        if not isinstance(values, Tensor) or tuple(values.shape) not in ((size,), *whole):
            told = kind(values)
            calls.fault(
                "evaluate", f"{name!r} is {told}, and must be a tensor of one figure for each sample, ({size},)"
            )
        elif values.dtype == torch.bool or not values.is_floating_point():
            continue
        elif not is_finite(values):
            calls.warn("evaluate", f"{name!r} is not finite for the initial weights")


def check_needs(calls: Calls, samples: Any, batch: Any, size: int) -> None:
    """Look at the labels that the job's data or attack needs; a task need not have them otherwise."""
    setting = calls.setting
    if setting.labels_for:
        _check_labels(calls, calls.call("labels", lambda: calls.task.labels(samples)), size)
    if setting.flipped_for:
        flipped = calls.call("flipped", lambda: calls.task.flipped(batch), about=batch_words(batch))
        if flipped is None:
            raise calls.fail(
                "flipped",
                f"{setting.flipped_for} needs false labels, and the task has none; give it flipped(batch), which "
                "returns the batch with C - 1 - y for every y, or take another attack",
            )
        if shapes(flipped) != shapes(batch):
            calls.fault("flipped", f"returns {shapes(flipped)} of {shapes(batch)}; shapes and types must stay")


def _check_labels(calls: Calls, labels: object, size: int) -> None:
    setting = calls.setting
    if labels is None:
        raise calls.fail(
            "labels",
            f"{setting.labels_for} deals samples out by their class, and the task has none; give it labels(samples), "
            "which returns the class of each, (N,) int64, or leave that key out",
        )
    if not isinstance(labels, Tensor) or tuple(labels.shape) != (size,) or labels.dtype != torch.int64:
        raise calls.fail("labels", f"returns {kind(labels)}, and must return the class of each sample, ({size},) int64")
    if int(labels.min()) < 0:
        calls.fault("labels", f"has the class {int(labels.min())}; classes are whole numbers from 0")


def _a(thing: object) -> str:
    return "None" if thing is None else f"a {type(thing).__name__}"
