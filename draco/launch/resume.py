"""The run that a command means: the unfinished one of a job, or the newest."""

from pathlib import Path
from typing import NamedTuple

from draco.code import recorded
from draco.code.changes import difference
from draco.code.discovery import discover
from draco.code.gather import Gathered, gather, sources
from draco.code.pack import Pack
from draco.errors import JobError, MissingError, RefusedError
from draco.job import Job, to_yaml
from draco.launch.keep import kept
from draco.launch.settle import settle
from draco.runs import directory as run_directory
from draco.runs import hold
from draco.runs.alive import life
from draco.runs.hold import Hold

_MOMENT_S = 0.5  # for somebody who only records the end of a run


class Taken(NamedTuple):
    """A run that nobody else goes on with."""

    run: Path
    hold: Hold


def new_run(runs: Path, job: Job, pack: Pack | None = None) -> Taken:
    """Make a run directory for the job, with its own code in it: `pack`, or left out its files as they are now.

    Raises:
        OwnCodeError: files of its own are missing, or cannot travel.
    """
    pack = gather(job).pack if pack is None else pack
    run = run_directory.create(runs, job.name, to_yaml(job), pack)
    return Taken(run, hold.take(run / hold.SUPERVISOR, f"{run}: was taken over"))


def code_of(run: Path, job: Job, now: Gathered, *, as_recorded: bool) -> Gathered:
    """Return the own code that an unfinished run goes on with, which is what it has recorded.

    Raises:
        RefusedError: the job's files are others `now`, and `as_recorded` was not asked for; shows how they differ.
        OwnCodeError: the recorded copy itself was changed.
    """
    kept = recorded.pack_of(run)
    if as_recorded:
        return Gathered(kept, discover(sources(job), run / recorded.FOLDER))
    if changed := difference(kept, now.pack):
        raise RefusedError(
            f"{run}: the job's own code has changed since this run was made: restore it, or go on with the recorded "
            "code by --recorded-code (make: RECORDED=1), or start anew with the changed code by --new (make: NEW=1):\n"
            f"{changed}"
        )
    return now


def unfinished(runs: Path, job: Job, *, resume: bool, new: bool) -> Taken | None:
    """Return the unfinished run of this very job to go on with, or None to start anew.

    Raises:
        RefusedError: there is one and neither `resume` nor `new` was asked for, or it is running, or there is none.
        MissingError: its file system has no locks.
    """
    if resume and new:
        raise RefusedError("--resume and --new exclude each other: give one")
    ended_early = ""
    for run in reversed(run_directory.runs(runs)):
        status = settle(run)
        if status.state == "succeeded":
            if status.message and not ended_early and _is_of(run, job):
                ended_early = f"{run}: {status.message}; there is nothing to resume"
            continue
        if not _is_of(run, job):
            continue
        found = life(run)
        if found.by:
            if new:
                continue
            remedy = "" if found.sure else f", draco stop {run} --lost gives this one up"
            raise RefusedError(f"{run}: this job is running ({found.by}); --new starts another beside it{remedy}")
        if kept(run) and not new:
            raise RefusedError(f"{run}: this job is about to go on by itself: its head starts it again")
        if resume:
            return _take(run)
        if status.step and not new:
            raise RefusedError(
                f"{run}: this job {status.state} at step {status.step}; --resume (make: RESUME=1; Python: "
                "resume=True) goes on with it, --new (make: NEW=1; Python: new=True) starts anew"
            )
    if resume and ended_early:
        raise RefusedError(f"{ended_early}: leave --resume out to start another")
    if resume:
        raise RefusedError(f"{runs}: no unfinished run of this very job; leave --resume out to start one")
    return None


def _take(run: Path) -> Taken:
    """Take a run before anything of it is read that counts: of two that resume it at once one goes on."""
    held = hold.take(run / hold.SUPERVISOR, f"{run}: this job is just being resumed by another process", _MOMENT_S)
    status = run_directory.read_status(run)
    if status.goes_on or status.state == "succeeded":
        held.release()
        raise RefusedError(f"{run}: another process has just gone on with it: it is {status.state}; look again")
    return Taken(run, held)


def _is_of(run: Path, job: Job) -> bool:
    """Say whether a run is of this very job, as it was written by this version of Draco or by an earlier one."""
    if not run.name.startswith(f"{job.name}-"):
        return False
    try:
        return run_directory.read_job(run) == job
    except (JobError, MissingError):  # of a version with other options, or damaged
        return False


def named_or_newest(run: Path | None, runs: Path) -> Path:
    """Return `run`, or the newest run where it is None.

    Raises:
        MissingError: there is no such run.
    """
    if run is None:
        found = run_directory.runs(runs)
        if not found:
            raise MissingError(f"{runs}: there is no run; start one with make train JOB=...")
        return found[-1]
    if not (run / "state.json").exists():
        raise MissingError(f"{run}: is not a run directory (it has no state.json)")
    return run
