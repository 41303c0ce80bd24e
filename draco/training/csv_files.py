"""The CSV files of a run, a logger: steps.csv and evaluations.csv in its directory, a line as soon as it is known.

Where a run goes on they are written anew from its records, up to the step after which it goes on: no step is there
twice, and none is missing.
"""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from draco import files, metrics
from draco.runs.events import read
from draco.training.evaluate import of_training

PARTS = ("compute", "encode", "communication", "decode", "aggregate", "update", "log")  # of a step's seconds
_PLAIN = ("step", "time", "loss", "lr", "bytes_received", "decoding_error")
_RANKS = ("suspects", "byzantine", "refused", "lost", "straggling")  # several in a field, with spaces between
_ROUNDS = ("copies", "redundancy", "standing", "rounds")  # of protocols of several rounds
HEADER = (*_PLAIN, *_RANKS, *(f"seconds_{part}" for part in PARTS), *_ROUNDS, "expelled")


class CsvFiles:
    """Writes the two files; a field is empty where something is not known."""

    def __init__(self, run: Path, step: int) -> None:
        """Begin the files, or go on with them after `step`."""
        self._steps, self._evaluations = run / "steps.csv", run / "evaluations.csv"
        taken = {
            event["step"]: event
            for event in (read(run / "events.jsonl") if step else ())
            if event["event"] == "step" and event["step"] <= step
        }
        files.replace(self._steps, _text([HEADER, *(_row(taken[each]) for each in sorted(taken))]).encode())
        self._file: TextIO = self._steps.open("a", encoding="utf-8", newline="")
        self._evaluated = of_training(run, step) if step else {}
        self._names: list[str] = []
        self._evaluations.unlink(missing_ok=True)
        if self._evaluated:
            self._write_evaluations()

    def step(self, event: Mapping[str, Any]) -> None:
        """Add a line to steps.csv."""
        self._file.write(_text([_row(event)]))
        self._file.flush()

    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add a line to evaluations.csv; a metric that was not there before gets a column."""
        self._evaluated[step] = dict(metrics)
        if not {*metrics} <= {*self._names}:
            self._write_evaluations()
            return
        with self._evaluations.open("a", encoding="utf-8", newline="") as file:
            file.write(_text([self._line(step)]))

    def close(self) -> None:
        """Close the files."""
        self._file.close()

    def _write_evaluations(self) -> None:
        self._names = metrics.ordered(name for found in self._evaluated.values() for name in found)
        rows = [("step", *self._names), *map(self._line, sorted(self._evaluated))]
        files.replace(self._evaluations, _text(rows).encode())

    def _line(self, step: int) -> list[Any]:
        return [step, *(self._evaluated[step].get(name) for name in self._names)]


def _row(event: Mapping[str, Any]) -> list[Any]:
    seconds = event.get("seconds") or {}
    ranks = [" ".join(map(str, event.get(name) or ())) for name in _RANKS]
    several = [*map(event.get, _ROUNDS), " ".join(event.get("expelled") or ())]  # at this step
    return [*map(event.get, _PLAIN), *ranks, *map(seconds.get, PARTS), *several]


def _text(rows: Iterable[Sequence[Any]]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()
