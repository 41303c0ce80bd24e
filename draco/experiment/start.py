"""`run`: trains a job from a script or a notebook, and returns the run.

A simulated run takes place in the caller's process, so it may train a class that a notebook's cell defines. Over MPI it
is launched and looked after as `draco train` does it (draco/launch), and every process imports what it trains from a
file.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from draco import own
from draco.code import gather, recorded
from draco.errors import JobError, OwnCodeError, RefusedError, TrainingError
from draco.experiment import naming
from draco.experiment import progress as shown
from draco.experiment.opened import Run
from draco.job import Job, LauncherName, parse, warnings
from draco.launch import plan as launching
from draco.launch import ready, roster, supervise
from draco.launch.progress import Progress
from draco.launch.resume import Taken
from draco.launch.roster import Roster

if TYPE_CHECKING:
    from draco.runs.directory import Status

Values = Mapping[str, Any]


class Interrupted(KeyboardInterrupt):
    """The run was stopped, by Ctrl-C or by `draco stop`. Nothing is lost: it can be resumed.

    It is a KeyboardInterrupt, so that what would have followed the run in a script or a notebook is not done with half
    of it. `run` is the run.
    """

    def __init__(self, stopped: Run) -> None:
        state, step, *_ = stopped.status
        more = "" if state == "succeeded" else "; the same call with resume=True goes on with it"
        super().__init__(f"{stopped.path}: {state} at step {step}{more}")
        self.run = stopped


def run(
    job: str | os.PathLike[str] | Values | None = None,
    *,
    task: Any = None,
    runs: str | os.PathLike[str] = "runs",
    launcher: LauncherName | None = None,
    progress: bool = True,
    resume: bool = False,
    new: bool = False,
    secret: str | os.PathLike[str] | None = None,
    **overrides: Any,
) -> Run:
    """Train a job to its end and return its run.

    Args:
        job: a job file, or a job's keys and values; None: they are all in `overrides`.
        task: what is trained, in the place of the job's `task`: a subclass of `draco.Task`, one that was made already,
            a `functools.partial` of one with its options, or a path such as "my_task.py:Digits".
        runs: the folder in which runs are kept.
        launcher: "simulate": server and workers in this very process, the caller's thread; "mpi": a process for each;
            "torchrun", "slurm": the same, started by these (docs/launchers.md); None: as the job says, and "mpi" where
            it says nothing. The bits are the same.
        progress: show what happens meanwhile, on stderr or in the notebook's cell.
        resume: go on with the newest unfinished run of this very job.
        new: start anew beside an unfinished run of this job.
        secret: a file with the secret of another run, `runs/*/secret`, from which rows and projections follow: with it
            a run is repeated to the bit whatever its scheme.
        overrides: keys of the job that take the place of the given ones: `steps=10`, `optimizer={"name": "adam"}`. A
            key of a section is `**{"optimizer.lr": 0.1}`. A class or a function in the place of a name is taken as
            `task` is: `aggregator=my_rule`.

    Returns:
        The run, which has succeeded.

    Raises:
        JobError: everything that is wrong with the job; nothing was started.
        RefusedError: there is an unfinished run of this job and neither `resume` nor `new` was said; or a class that is
            in no file is to train over MPI.
        OwnCodeError: code of the caller's cannot be imported or fails; says its file and line.
        MissingError: a package, data or space on the disk is missing.
        TrainingError: the run failed, or lost a process that it needed; its directory has what was done.
        Interrupted: a KeyboardInterrupt; the run was stopped after a step and can be resumed. A second Ctrl-C ends it
            at once.
    """
    if importing := own.importing() or _spawned():
        raise OwnCodeError(
            f"{importing}: calls draco.run while it is imported, as every process of a run imports it: put the call "
            'below `if __name__ == "__main__":`'
        )
    said = shown.console(not progress)
    values, what = _values(job)
    chosen = {name: value for name, value in (("task", task), ("launcher", launcher)) if value is not None}
    found = naming.named({"job": values, "over": {**overrides, **chosen}})
    with naming.given(found.objects):
        checked = ready.here(_parsed(found.values["job"], found.values["over"], what))
        for warning in warnings(checked):
            said.print(f"warning: {what}: {warning}", style="yellow")
    nodes = roster.read() if launching.of(checked).clusters else None
    ready.require(what, checked, nodes)
    nowhere = {path: thing for path, thing in found.objects.items() if naming.is_nowhere(path)}
    simulate = checked.launcher == "simulate"
    if not simulate:
        _require_files(found.objects)
    with naming.given(nowhere):  # of which there are no files
        code = gather.gather(checked)
    for warning in gather.said(code):
        said.print(f"warning: {warning}", style="yellow")
    if nodes:
        ready.warn_of_nodes(checked, nodes, said)
    else:
        gather.check_installed(code.found)
    ready.require_allocation(checked, Path(runs), said)
    place = None if secret is None else Path(secret)
    take = partial(ready.take, Path(runs), checked, code, nodes, said, resume=resume, new=new, secret=place)
    if simulate:
        with naming.given(found.objects):
            return _simulated(checked, said, take, nowhere)
    return _launched(checked, nodes, said, take)


def _spawned() -> str:
    """Return the script that a process of multiprocessing's is importing, empty where none is; Python asks likewise."""
    if not getattr(multiprocessing.current_process(), "_inheriting", False):
        return ""
    return str(getattr(sys.modules["__main__"], "__file__", "the script"))


def _values(job: str | os.PathLike[str] | Values | None) -> tuple[Values, str]:
    """Return the values of a job, and what it is called in messages."""
    if job is None or isinstance(job, Mapping):
        return {} if job is None else job, "job"
    path = Path(job)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise JobError([f"{path}: cannot be read ({error}); name a job file such as jobs/quickstart.yaml"]) from error
    return {_FILE: text}, str(path)


_FILE = "\0file"  # the key of a job file's text


def _parsed(values: Values, overrides: Values, what: str) -> Job:
    """Return the job; one that has no file and no name gets a name. A task alone leaves the job's options of it."""
    task = {"task.name": overrides["task"]} if isinstance(overrides.get("task"), str) else {}
    set_to = {**{key: value for key, value in overrides.items() if not task or key != "task"}, **task}
    assignments = [f"{key}={_yaml(key, value)}" for key, value in set_to.items()]
    if _FILE in values:
        return parse(values[_FILE], what, assignments)
    name = {} if "name" in overrides else {"name": _name({**values, **overrides})}
    return parse(_yaml("", {**name, **values}), what, assignments)


def _yaml(key: str, value: Any) -> str:
    """Return a value as JSON, which is YAML."""

    def refuse(thing: Any) -> Any:
        raise JobError([f"{key or 'job'}: a {type(thing).__name__} is no value of a job: {thing!r}"])

    return json.dumps(value, default=refuse, ensure_ascii=False)


def _name(values: Values) -> str:
    """Return the name of a job that has none: that of its task or its model, as names of jobs are written."""
    task = values.get("task")
    task = task.get("name") if isinstance(task, Mapping) else task
    found = str(task).rpartition(":")[2] if task else str(values.get("model") or "run")
    words = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in found.lower()).split("-")
    return "-".join(filter(None, words))[:80].strip("-") or "run"


def _simulated(job: Job, said: Console, take: Callable[[], Taken], nowhere: Values) -> Run:
    from draco.experiment import here

    directory, held = take()
    with held:
        said.print(f"{job.name}: {directory}")
        with shown.progress(directory / "events.jsonl", said, "starting one process") as bar:
            try:
                with recorded.loading_from(directory) if gather.sources(job) else contextlib.nullcontext():
                    status = here.simulate(job, directory, bar.update, bar.say)
            except Exception as error:
                error.add_note(f"The run is {directory}: draco.Run({str(directory)!r}) reads it.")
                raise
            finally:
                bar.update()
    return _ended(Run.with_objects(directory, nowhere), status)


def _launched(job: Job, nodes: Roster | None, said: Console, take: Callable[[], Taken]) -> Run:
    with supervise.fork_server(job) as forks:  # it imports torch while the run is prepared
        directory, held = take()
        said.print(f"{job.name}: {directory}")
        starting = f"starting {job.workers} workers and a server"
        bar: Progress = shown.progress(directory / "events.jsonl", said, starting)
        outcome = supervise.supervise(job, directory, nodes, bar, held=held, forks=forks)
    return _ended(Run(directory), outcome.status, outcome.output)


def _ended(ended: Run, status: Status, output: str = "") -> Run:
    """Return a run that has succeeded.

    Raises:
        Interrupted: it was asked to stop, be it after its last step.
        TrainingError: it ended otherwise.
    """
    if status.state == "interrupted" or (status.state == "succeeded" and (ended.path / "stop-asked").exists()):
        raise Interrupted(ended)
    if status.state == "succeeded":
        return ended
    again = "; the same call with resume=True goes on with it" if status.state == "lost" else ""
    error = TrainingError(f"{ended.path}: {status.state} at step {status.step}: {status.message}{again}")
    if output:
        error.add_note(f"The last lines of its processes:\n{output}")
    raise error


def _require_files(objects: Values) -> None:
    """Make sure that other processes can import what the caller gave; it is imported here as they will.

    Raises:
        RefusedError: it is in no file.
        OwnCodeError: it cannot be imported, or its file calls `run` when it is.
    """
    for path in objects:
        if naming.is_nowhere(path):
            name = path.rpartition(":")[2]
            raise RefusedError(
                f"{name} is defined in this session, inside a function or outside the working folder, and processes of "
                "launcher='mpi' cannot import it: put it at the top level of a file below the working folder and "
                "import it from there, or take launcher='simulate'"
            )
        own.load(path)
