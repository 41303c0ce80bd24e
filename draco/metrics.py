"""Metrics: the named figures of a model's quality, in which order they are shown, and which of two is better.

The built-in task has `loss`, `top1` and `top5`. Another task has `loss` and whatever else it names.
"""

import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, Literal

Mode = Literal["min", "max"]

NAME = r"^[A-Za-z_][A-Za-z0-9_]{0,39}$"
MOST = 32  # of one evaluation
LARGEST = 1e39  # as a float32, and on an axis of a figure; what is not finite is beyond it
RESERVED = ("step", "time", "samples", "by")  # what else a record of an evaluation has
MODES: Mapping[str, Mode] = {"loss": "min", "top1": "max", "top5": "max"}  # whether least or most is best
_FRACTIONS = ("top1", "top5")  # shown in percent
_LABELS = {"top1": "top-1", "top5": "top-5"}


def fault(metrics: Mapping[Any, Any]) -> str:
    """Return why an evaluation cannot be recorded by these names, or nothing."""
    for name in metrics:
        if not isinstance(name, str) or not re.fullmatch(NAME, name):
            return f"{name!r} is no name of a metric: must be letters, digits and _, at most 40, and no digit first"
        if name in RESERVED:
            return f"{name} is no name of a metric: the record of an evaluation has it already"
    if "loss" not in metrics:
        return f"loss is missing among its metrics, {', '.join(metrics) or 'of which there are none'}"
    return f"{len(metrics)} metrics are more than the {MOST} that are recorded" if len(metrics) > MOST else ""


def among(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield the metrics in the record of an evaluation: its other numbers. What a later version may add is none."""
    for name, value in record.items():
        if name not in RESERVED and isinstance(value, int | float) and not isinstance(value, bool):
            yield name, value


def recorded(record: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics in the record of an evaluation, by name."""
    return {name: float(value) for name, value in among(record)}


def usual(names: Collection[str]) -> str:
    """Return the metric that counts where none is named: top1 where there is one, else the loss."""
    return "top1" if "top1" in names else "loss"


def mode_of(metric: str, given: Mode | None = None) -> Mode:
    """Return whether the least or the most of a metric is best; what is not given is known of built-in ones."""
    return given or MODES[metric]


def merit(value: float, mode: Mode) -> float:
    """Return a number that is the higher the better the value is; what is no number has the lowest of all."""
    if math.isnan(value):
        return -math.inf
    return value if mode == "max" else -value


def rank(metrics: Mapping[str, float], metric: str, mode: Mode) -> tuple[float, float]:
    """Return what orders evaluations, the better the higher: by a metric, of equals by the loss."""
    return merit(metrics[metric], mode), merit(metrics["loss"], "min")


def ordered(names: Iterable[str]) -> list[str]:
    """Return names of metrics as they are shown: top1 and top5, the task's own in the order they came, the loss."""
    found = [*dict.fromkeys(names)]
    own = [name for name in found if name not in MODES]
    return [*(name for name in _FRACTIONS if name in found), *own, *(["loss"] if "loss" in found else [])]


def label(name: str) -> str:
    """Return the name of a metric as it is shown."""
    return _LABELS.get(name, name)


def shown(name: str, value: float) -> str:
    """Return the value of a metric as it is shown; a dash for what was not evaluated."""
    if math.isnan(value) and name in _FRACTIONS:
        return "-"
    return f"{value:.2%}" if name in _FRACTIONS else f"{value:.4g}"
