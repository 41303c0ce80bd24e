"""A run, going on or ended, as its user sees it from Python: its state, its records, its model, its page.

Everything is read from the run's directory when it is asked for, so a `Run` is as new as the run.
"""

from __future__ import annotations

import contextlib
import html
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from draco import extras, own, report
from draco.code import recorded
from draco.errors import JobError, MissingError, RefusedError
from draco.experiment import columns, naming
from draco.experiment.columns import Columns
from draco.report.tables import facts
from draco.runs import directory as run_directory
from draco.runs.alive import life

if TYPE_CHECKING:
    from torch import nn

    from draco.job import Job
    from draco.runs.directory import Status
    from draco.training.build import Built

Values = Mapping[str, Any]


class Run:
    """One run directory. In a notebook it shows itself as a table of what happened."""

    def __init__(self, path: str | os.PathLike[str], **objects: Any) -> None:
        """Open a run.

        Args:
            path: its directory, such as `runs/digits-20260102-030405`.
            objects: what it was trained with and is in no file, by its key in the job: `task=Digits`,
                `aggregator=my_rule`; a class, a function or a task.

        Raises:
            MissingError: it is no run directory.
            RefusedError: its job names nothing of that key.
        """
        self.path = Path(path).absolute()
        if not (self.path / "state.json").is_file():
            raise MissingError(f"{path}: not a run directory (it has no state.json); name one such as runs/digits-...")
        self._given: Values = {self._named(key): thing for key, thing in objects.items()}

    @classmethod
    def with_objects(cls, path: Path, given: Values) -> Run:
        """Open a run whose job names these objects by their paths."""
        opened = cls(path)
        opened._given = given
        return opened

    def _named(self, key: str) -> str:
        """Return the path that the job has under a key."""
        name = getattr(getattr(self.job, key, None), "name", None)
        if not own.is_path(name):
            raise RefusedError(f"{self.path}: its job has no {key} of your own, and takes none: leave {key} out")
        return str(name)

    @property
    def status(self) -> Status:
        """How far the run is: `.state`, `.step`, and `.message`, which says why it ended where it did not succeed.

        The state is pending, running, interrupted, succeeded, failed or lost. A run whose processes are gone and whose
        end nobody has recorded is lost.
        """
        found = life(self.path)
        if found.status.goes_on and not found.by:
            return found.status._replace(state="lost", message=found.why or "its process is gone")
        return found.status

    @property
    def job(self) -> Job:
        """The job that it runs.

        Raises:
            MissingError: it is of another version of Draco, or damaged.
        """
        try:
            return run_directory.read_job(self.path)
        except JobError as error:
            why = f"{len(error.faults)} faults, first: {error.faults[0]}"
            raise MissingError(f"{self.path}: is of another version of Draco, or damaged: {why}") from error

    @property
    def events(self) -> Columns:
        """Its steps as columns, `pandas.DataFrame(run.events)`; docs/python.md names them."""
        return columns.events(report.read(self.path).events)

    @property
    def evaluations(self) -> Columns:
        """Its evaluations as columns, `pandas.DataFrame(run.evaluations)`: step, time, the task's figures, samples."""
        return columns.evaluations(report.read(self.path).evaluations)

    def model(self, step: int | None = None) -> nn.Module:
        """Return the model with the weights after `step`, the newest checkpoint's by default, in eval mode.

        Raises:
            MissingError: there is no checkpoint, or none of that step.
            CheckpointError: it cannot be used.
            OwnCodeError: the run's own code cannot be loaded.
        """
        from draco.training import checkpoint
        from draco.training.evaluate import load_weights

        there = dict(checkpoint.steps(self.path / "checkpoints"))
        if not there:
            raise MissingError(f"{self.path}: has no checkpoint yet")
        at = max(there) if step is None else step
        if at not in there:
            raise MissingError(
                f"{self.path}: has no checkpoint of step {at}; there are {', '.join(map(str, sorted(there)))}"
            )
        with self._built() as built:
            model = built.model
            load_weights(model, built.job, at, there[at])
        return model.eval()

    def evaluate(self) -> Columns:
        """Evaluate every checkpoint that is not evaluated yet, and return all evaluations as columns.

        Raises:
            RefusedError: another evaluator is at work on the run.
            CheckpointError: some checkpoints cannot be used; the others are evaluated.
            OwnCodeError: the run's own code cannot be loaded, or fails.
        """
        from draco.experiment.here import as_a_process_begins
        from draco.training.checkpoint import CheckpointError
        from draco.training.evaluate import evaluate_run

        refused = dict[int, str]()
        with self._built() as built, as_a_process_begins(built.job.threads):
            for step, _ in evaluate_run(self.path, built, follow=False, refuse=refused.__setitem__):
                refused.pop(step, None)
        if refused:
            raise CheckpointError("; ".join(refused.values()))
        return self.evaluations

    def report(self, folder: str | os.PathLike[str] | None = None) -> Path:
        """Write the page of the run, with its figures, and return its path; by default into the run's directory.

        Raises:
            MissingError: the folder cannot be written, or what draws is not installed.
        """
        try:
            from draco.report import page
        except ModuleNotFoundError as error:
            if (needs := extras.missing(error)) is None:
                raise
            raise MissingError(f"draco.Run.report: {needs}") from error

        return page.write([report.read(self.path)], None if folder is None else Path(folder))

    @contextlib.contextmanager
    def _built(self) -> Iterator[Built]:
        """Yield the job's parts, whose own code is loaded from the run while this is entered."""
        from draco.training.build import Built

        job = self.job
        with recorded.loading_from(self.path), naming.given(self._given):
            yield Built(job)

    def __repr__(self) -> str:
        status = self.status
        return f"<Run {self.path}: {status.state} at step {status.step}>"

    def _repr_html_(self) -> str:
        """Return the run as a table, which is what a notebook shows."""
        summary = report.read_summary(self.path)
        rows = "".join(
            f"<tr><th style='text-align: left'>{html.escape(what)}</th>"
            f"<td style='text-align: left'>{html.escape(told)}</td></tr>"
            for what, told in facts(summary)
        )
        title = html.escape(f"{summary.name}: {self.status.state}")
        return f"<table><caption>{title}</caption><tbody>{rows}</tbody></table>"
