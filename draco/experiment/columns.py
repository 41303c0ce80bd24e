"""A run's records as columns: a name and an array or a list each, all of one length, as `pandas.DataFrame` takes them.

Shapes: t steps that were taken, e evaluations.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from draco.report.series import PARTS, taken

Columns = dict[str, Any]  # numbers: a numpy array (t,); else a list of t values

# What every table of steps has: how a value is kept, and what it is.
EVENTS: Mapping[str, tuple[str, str]] = {
    "step": ("count", "the step, from 1"),
    "time": ("number", "when it was done, seconds since 1970 (UTC)"),
    "loss": ("number", "training loss over the step's batch, as decoded; of images in nats"),
    "lr": ("number", "learning rate of the step"),
    **{f"seconds.{part}": ("number", f"seconds that {part} took") for part in PARTS},
    "bytes_received": ("number", "bytes of all replies"),
    "suspects": ("list", "ranks whose reply was not what an honest worker would have sent"),
    "byzantine": ("list", "ranks that a simulated attack made lie"),
    "lost": ("list", "ranks that have ended"),
    "straggling": ("list", "ranks that the step did not wait for"),
    "refused": ("mapping", "ranks, as text, whose message was not read, and why"),
}
EVALUATIONS: Mapping[str, tuple[str, str]] = {
    "step": ("count", "the step after which the model was evaluated"),
    "time": ("number", "when, seconds since 1970 (UTC)"),
    "loss": ("number", "mean loss of the test samples"),
    "samples": ("count", "test samples"),
}
_EMPTY = {"list": list, "mapping": dict}


def events(records: Sequence[Mapping[str, Any]]) -> Columns:
    """Return the steps of a run's events as columns; of a step that was taken twice the second time counts.

    Columns of `EVENTS` are always there. Others follow where some step has them: NaN where a number was not told, None
    where anything else was not.
    """
    steps = taken(records)
    return _columns(EVENTS, [_flat({k: v for k, v in step.items() if k != "event"}) for step in steps])


def evaluations(records: Iterable[Mapping[str, Any]]) -> Columns:
    """Return a run's evaluations as columns, by step: those of `EVALUATIONS`, and each of the task's own figures.

    Of two evaluations of a step the later counts.
    """
    latest = {record["step"]: _flat({k: v for k, v in record.items() if k != "by"}) for record in records}
    return _columns(EVALUATIONS, [latest[step] for step in sorted(latest)])


def _flat(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record with `seconds` as a column for each part."""
    seconds = record.get("seconds")
    rest = {key: value for key, value in record.items() if key != "seconds"}
    return {**rest, **({f"seconds.{part}": value for part, value in seconds.items()} if seconds else {})}


def _columns(known: Mapping[str, tuple[str, str]], rows: Sequence[Mapping[str, Any]]) -> Columns:
    names = [*known, *(name for name in dict.fromkeys(key for row in rows for key in row) if name not in known)]
    return {name: _column(known.get(name, ("", ""))[0], [row.get(name) for row in rows]) for name in names}


def _column(kind: str, values: list[Any]) -> Any:
    if kind in _EMPTY:
        return [_EMPTY[kind]() if value is None else value for value in values]
    numbers = all(value is None or (isinstance(value, int | float) and not isinstance(value, bool)) for value in values)
    if kind == "count" and numbers and None not in values:
        return np.array(values, np.int64)
    if kind or (numbers and any(value is not None for value in values)):
        return np.array([np.nan if value is None else value for value in values], np.float64)
    return values
