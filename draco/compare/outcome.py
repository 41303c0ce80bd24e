"""The outcome of a cell, from its run directory: a result, an error of Draco's own, or work that can go on.

A training that diverges is a result, and so is one whose gradient cannot be decoded: either would end the same again.
An error that Draco does not raise on purpose is no result.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from draco.code.changes import difference as difference_of_code
from draco.code.gather import gather
from draco.code.recorded import pack_of
from draco.errors import DecodeError, OwnCodeError, TrainingError
from draco.job import Job
from draco.job.messages import show
from draco.launch.settle import settle
from draco.runs.alive import life
from draco.runs.directory import read_job

State = Literal["missing", "pending", "running", "interrupted", "lost", "error", "failed", "succeeded"]
RESULTS: tuple[State, ...] = ("succeeded", "failed")  # final: they are not run again

_RAISED = re.compile(r"^([A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit))(?:: |$)")  # the last line of a traceback
_RESULTS = tuple(f"{kind.__module__}.{kind.__qualname__}" for kind in (TrainingError, DecodeError))


class Outcome(NamedTuple):
    """How far a cell has come."""

    state: State
    step: int = 0  # the last step that was taken and saved
    reason: str = ""  # why, in one line, where it did not succeed

    @property
    def is_result(self) -> bool:
        """Whether it is final."""
        return self.state in RESULTS


def outcome(run: Path) -> Outcome:
    """Return what has become of the run in that directory; record the end of one that nothing looks after any more."""
    if not (run / "state.json").exists():
        return Outcome("missing")
    status = settle(run)
    if life(run).by:
        return Outcome("running", status.step)
    if status.state == "failed" and not _is_result(run):
        return Outcome("error", status.step, status.message)
    return Outcome(status.state, status.step, status.message)


def _is_result(run: Path) -> bool:
    """Say whether a failed run's own error is one that a training ends with, by the last traceback it printed."""
    path = run / "logs" / "output.log"
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    raised = [match[1] for line in lines if (match := _RAISED.match(line))]
    return bool(raised) and raised[-1] in _RESULTS


def difference(run: Path, job: Job) -> str:
    """Return in which values and files of its own the run's job is another than `job`; empty where it is the same."""
    try:
        old = read_job(run).model_dump()
    except (OSError, ValueError) as error:
        return f"its job.yaml is of no use now ({str(error).splitlines()[0]})"
    new = job.model_dump()
    return "; ".join([*_differences("", old, new), *_changed(run, job)])


def _changed(run: Path, job: Job) -> Iterator[str]:
    """Yield what is other in a job's own code than the run has recorded."""
    try:
        if found := difference_of_code(pack_of(run), gather(job).pack):
            yield f"code: {found.splitlines()[0]}"
    except OwnCodeError as error:
        yield f"code: {str(error).splitlines()[0]}"


def _differences(prefix: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for key, value in new.items():
        if isinstance(value, dict):
            yield from _differences(f"{prefix}{key}.", old[key], value)
        elif old[key] != value:
            yield f"{prefix}{key} was {show(old[key])}, is {show(value)}"
