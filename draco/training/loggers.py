"""The loggers of a run: what the job names to be told of every step and evaluation, in the server alone.

A user's own is a class made with (run: Path, job: dict, **options) that has `step(event: dict)`,
`evaluation(step: int, metrics: dict[str, float])` and `close()`. `event` is what events.jsonl has of the step, `job`
what job.yaml has. After a resume, steps after the checkpoint come again.

One that raises is left out from then on, and an event says so: it never ends a training.
"""

import copy
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from draco import own
from draco.errors import OwnCodeError
from draco.job import Job, to_dict
from draco.job.sections import LoggerSection
from draco.plain import plain
from draco.runs.events import EventLog
from draco.training.csv_files import CsvFiles
from draco.training.tensorboard import Board

METHODS = ("step", "evaluation", "close")


class Logger(Protocol):
    """What a logger has."""

    def step(self, event: dict[str, Any]) -> None:
        """Note a step."""

    def evaluation(self, step: int, metrics: dict[str, float]) -> None:
        """Note the quality of the model after a step."""

    def close(self) -> None:
        """End, whatever has become of the run."""


# Built-in ones by name: (run, the step after which the run goes on) -> logger.
BUILT_IN: Mapping[str, Callable[[Path, int], Logger]] = {"tensorboard": Board, "csv": CsvFiles}


class Loggers:
    """The loggers of one run, each told until it raises."""

    def __init__(self, job: Job, run: Path, step: int, log: EventLog) -> None:
        """Make them for a run that goes on after `step`.

        Raises:
            OwnCodeError: one of the job's own cannot be made, or lacks a method.
        """
        self._log, self._step, self._spent = log, step, 0.0
        self._told: dict[str, Logger] = {}
        for number, each in enumerate(job.loggers, start=1):
            label = each.name if each.name not in self._told else f"{each.name} ({number})"
            self._told[label] = BUILT_IN[each.name](run, step) if each.name in BUILT_IN else _own(each, run, job)

    def step(self, event: Mapping[str, Any]) -> None:
        """Tell them of a step."""
        self._step = event["step"]
        self._tell(lambda logger: logger.step(copy.deepcopy(dict(event))))

    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Tell them of an evaluation."""
        self._tell(lambda logger: logger.evaluation(step, dict(metrics)))

    def close(self) -> None:
        """Tell them that there is no more."""
        self._tell(lambda logger: logger.close())

    def spent(self) -> dict[str, float]:
        """Return the seconds that they took since the last call as the part `log` of a step; nothing without any."""
        taken, self._spent = self._spent, 0.0
        return {"log": round(taken, 6)} if self._told or taken else {}

    def _tell(self, call: Callable[[Logger], None]) -> None:
        if not self._told:
            return
        began = time.perf_counter()
        for name, logger in list(self._told.items()):
            try:
                call(logger)
            except (Exception, SystemExit) as error:
                del self._told[name]
                why = plain(f"{type(error).__name__}: {error}{own.place(error)}", 500)
                self._log.write("logger", name=name, step=self._step, why=why)
        self._spent += time.perf_counter() - began


def _own(of: LoggerSection, run: Path, job: Job) -> Logger:
    kind = own.load(of.name)
    with own.blamed(f"{of.name}: this logger cannot be made"):
        made: Logger = kind(run, to_dict(job), **of.options.plain())
    if lacking := [name for name in METHODS if not callable(getattr(made, name, None))]:
        raise OwnCodeError(f"{of.name}: this logger lacks {', '.join(lacking)}; it must have {', '.join(METHODS)}")
    return made
