"""The supervisor: launches a run, stays with it after the terminal has closed, launches it again, says how it ended.

Started with `--detach`, and for every run on a cluster, as a process of its own on the machine that holds the server;
in the foreground it is `train` itself. It writes launch/supervisor.json; signals and `draco stop` reach the run through
it. A turn of its loop is a launch, the judge's verdict on it and what is decided to follow. As long as it lives
the run is not over, whatever state.json says between launches: it has the run's lock (runs/hold.py).
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from draco import files
from draco.errors import DracoError, MissingError, NotConfiguredError, OwnCodeError, TrainingError
from draco.job import Job
from draco.job.sections import OnLossSection
from draco.launch import every_node, fork_client, keep, meeting, preflight, rank_placement, worker_code
from draco.launch.changes import Changes, Notifications
from draco.launch.decide import End, Relaunch, Seen, decide
from draco.launch.environment import launch_environment, process_environment
from draco.launch.fork_client import ForkServer
from draco.launch.notices import Notice, Notices
from draco.launch.plan import LAUNCHERS, plan
from draco.launch.progress import Progress
from draco.launch.roster import Roster
from draco.launch.run import Ended, Stops, ranks_by_node, run
from draco.launch.starting import Starting, pulses
from draco.launch.watch import Watch
from draco.runs import directory as run_directory
from draco.runs import events, hold
from draco.runs.hold import Hold

ReadNotices = Callable[[], Mapping[str, Notice]]


class Outcome(NamedTuple):
    """How a run ended."""

    status: run_directory.Status
    output: str  # the last lines that its processes printed, where it did not end well


def supervise(
    job: Job,
    directory: Path,
    roster: Roster | None,
    progress: Progress | None = None,
    notices: ReadNotices | None = None,
    after: Mapping[str, str] | None = None,
    held: Hold | None = None,
    forks: str | None = None,
    joined: Mapping[str, str] | None = None,
) -> Outcome:
    """Run the job in `directory` to its end, record how it ended and return it; without `progress` say nothing.

    `notices` is for tests; left out, the roster's nodes are listened to. With `after` there was a supervisor before,
    and it goes on without the nodes in it, each with the reason. `held` is the supervisor's lock, which is given up at
    the end; left out, it is taken. `forks` is the name of a fork server; left out, one is started for the run. With
    `joined` somebody else has started all ranks: rank 0 is run, in that environment, once (joining.py).

    Raises:
        TrainingError: what happens cannot be recorded, for the disk cannot be written.
        RefusedError: another process looks after the run.
    """
    try:
        with held or _hold(directory), contextlib.nullcontext(forks) if forks else fork_server(job) as name:
            return _supervise(job, directory, roster, progress, notices, after, name, joined)
    except OSError as error:
        if error.errno not in files.NOT_WRITABLE:
            raise
        raise TrainingError(run_directory.unrecorded(directory, error)) from error


def _supervise(
    job: Job,
    directory: Path,
    roster: Roster | None,
    progress: Progress | None,
    notices: ReadNotices | None,
    after: Mapping[str, str] | None,
    forks: str | None,
    joined: Mapping[str, str] | None,
) -> Outcome:
    _write(directory)
    launcher, on_loss = LAUNCHERS[job.launcher], OnLossSection(name="fail") if joined else job.on_loss
    progress = progress or Progress(None, Console(quiet=True), "")
    out: Mapping[str, str] = after or {}
    interruptions: list[float] = []
    fruitless, number = 0, 1
    if after is not None:
        number = 2 + sum(event["event"] == "relaunch" for event in events.read(directory / "events.jsonl"))
        _record_relaunch(job, directory, without(roster, out), number, Relaunch(out, keep.GONE, counts=False))
    with progress, Stops(directory, progress) as stops, _hearing(roster, notices) as read:
        notifications = Notifications(directory, read)
        while True:
            here = without(roster, out)
            watch = Watch(
                directory, job, partial(every_node.unreachable, here) if here else dict,
                starting=_starting(job, directory, here) if launcher.here and not joined else lambda now: "",
            )  # fmt: skip
            changes = Changes(notifications, out, _returning(job, directory, roster))
            look = _looking(watch, changes, stops, alone=joined is not None)
            try:
                code = worker_code.of_run(directory, here)
                allocation = launcher.meet(job, directory) if launcher.meet and not joined else None
            except OwnCodeError as error:
                return _not_begun(directory, "failed", error)
            except (MissingError, NotConfiguredError) as error:  # the allocation, or nodes of it
                return _not_begun(directory, "lost", error)
            planned = plan(
                job, directory, here, forks=forks, code=code, port=meeting.free_port(), allocation=allocation,
                joined=joined,
            )  # fmt: skip
            ended = run(planned, directory, progress, stops, look, watch.gone)
            fruitless = 0 if watch.stepped else fruitless + 1
            (directory / "stop").unlink(missing_ok=True)  # before the user's request is looked for: see ask_to_stop
            seen = Seen(
                ended.state, ended.message, on_loss, ended.lost, changes.noticed, out, changes.back,
                [node.name for node in roster.nodes[1:]] if roster else None,
                stops.asked, fruitless, [time.monotonic() - then for then in interruptions],
            )  # fmt: skip
            action = decide(seen)
            if isinstance(action, End):
                return _end(directory, ended, action)
            number += 1
            if action.counts:
                interruptions.append(time.monotonic())
                _record_interruption(directory, action, ended, changes.noticed)
            out = action.without
            _record_relaunch(job, directory, without(roster, out), number, action)


def _not_begun(directory: Path, state: run_directory.State, error: DracoError) -> Outcome:
    """Record that another launch cannot be made."""
    run_directory.write_status(directory, state, run_directory.read_status(directory).step, str(error))
    return Outcome(run_directory.read_status(directory), "")


@contextlib.contextmanager
def fork_server(job: Job, early: ForkServer | None = None) -> Iterator[str | None]:
    """Yield the name of a fork server for the job's launches: the one that this process was told of, or a new one.

    `early` is one that was started before the job was known; it serves if the job's processes are what it was started
    for. None is yielded where there can be none: then each rank starts by itself, which is said.
    """
    if name := os.environ.get(fork_client.NAME):
        yield name
        return
    if not LAUNCHERS[job.launcher].forks:
        yield None
        return
    environment = launch_environment(os.environ, process_environment(job.threads))
    if early and early.environment == environment:
        yield early.name
        return
    try:
        server = ForkServer(environment)
    except OSError as error:
        sys.stderr.write(f"no fork server can be had here ({error.strerror}): every rank imports torch anew\n")
        yield None
        return
    with server as name:
        yield name


def without(roster: Roster | None, out: Mapping[str, str]) -> Roster | None:
    """Return the roster without the nodes that are left out."""
    return roster and roster._replace(nodes=tuple(node for node in roster.nodes if node.name not in out))


@contextlib.contextmanager
def _hearing(roster: Roster | None, notices: ReadNotices | None) -> Iterator[ReadNotices]:
    """Yield what tells of the nodes' notices; with a roster it listens to all of them, those left out too."""
    if notices or not roster:
        yield notices or dict
        return
    heard = Notices(roster)
    try:
        yield heard.read
    finally:
        heard.close()


def _returning(job: Job, directory: Path, roster: Roster | None) -> Callable[[Sequence[str]], list[str]] | None:
    """Return what says which of the nodes that are left out are fit again, where the job wants them back."""
    if not roster or job.on_loss.name != "replace":
        return None
    return lambda names: preflight.fit(roster, job, directory, names)


def _looking(watch: Watch, changes: Changes, stops: Stops, *, alone: bool) -> Callable[[], str]:
    """Return what is called throughout a launch: it asks for an end at the next step, or says why it must end now.

    Where the server is `alone` its supervisor's, a signal that it shares with the workers may have ended them before it
    had met them, and it would wait for them.
    """

    def look() -> str:
        # A launch that has taken no step yet is not stopped for a node that is back: something is gained by each.
        if changes.look(may_return=watch.stepped) and not stops.ours:
            stops.stop()
        if alone and stops.asked and not watch.begun:
            return "its processes had not met"
        return watch()

    return look


def _starting(job: Job, directory: Path, here: Roster | None) -> Starting:
    """Return what watches over the launch that is about to be made."""
    nodes = rank_placement.nodes_of_workers(rank_placement.place(here, job.workers, job.device)) if here else None
    return Starting(directory / "logs", job.workers + 1, pulses(directory, here, nodes), nodes)


def _end(directory: Path, ended: Ended, action: End) -> Outcome:
    """Record the run's verdict where the server has not."""
    status = run_directory.read_status(directory)
    if action != (status.state, status.message):
        speechless = status.goes_on and not ended.lost
        where = f"; see {directory / 'logs'}" if action.state in ("failed", "lost") and speechless else ""
        run_directory.write_status(directory, action.state, status.step, action.message + where)
    words = "" if action.state in ("succeeded", "interrupted") else ended.output
    return Outcome(run_directory.read_status(directory), words)


def _record_interruption(directory: Path, action: Relaunch, ended: Ended, noticed: Mapping[str, str]) -> None:
    gone = {**noticed, **ended.lost}
    held = ranks_by_node(directory)
    ranks = {*ended.killed, *(rank for node in gone for rank in held.get(node, ()))}
    events.append(
        directory / "events.jsonl", "interruption", cause=action.why, nodes=dict(gone), ranks=sorted(ranks)
    )  # fmt: skip


def _record_relaunch(job: Job, directory: Path, here: Roster | None, number: int, action: Relaunch) -> None:
    """Say what the next launch is: on which nodes, and which rules no longer hold there."""
    hosts, warnings = None, list[str]()
    if here:
        placed = rank_placement.place(here, job.workers, job.device)
        hosts, warnings = rank_placement.nodes_of_workers(placed), rank_placement.warnings(job, here, placed)
    events.append(
        directory / "events.jsonl", "relaunch", launch=number, nodes=hosts, without=dict(action.without),
        warnings=warnings,
    )  # fmt: skip
    step = run_directory.read_status(directory).step
    run_directory.write_status(directory, "pending", step, f"{action.why}; launch {number}")


def detach(
    directory: Path,
    here: bool,
    *,
    again: bool = False,
    held: Hold | None = None,
    forks: str | None = None,
    given: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start the supervisor of a run in a session of its own, so that it outlives this terminal, and return it.

    With `again` there was one before, whose processes may be left. It gets the supervisor's lock, `held` or taken now.
    `forks` is a fork server that other runs use too, `given` by what a scheduler's allocation is found.

    Raises:
        RefusedError: another process looks after the run.
    """
    held = held or _hold(directory)
    step = run_directory.read_status(directory).step
    run_directory.write_status(directory, "pending", step)  # what follows is told of this launch
    options = [option for option, given in (("--here", here), ("--again", again)) if given]
    argv = [sys.executable, "-m", "draco", "supervise", str(directory), "--lock", str(held.descriptor), *options]
    with open(directory / "logs" / "supervisor.log", "ab") as log:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, pass_fds=[held.descriptor],
            env=launch_environment(os.environ, {**({fork_client.NAME: forks} if forks else {}), **(given or {})}),
        )  # fmt: skip
    _write(directory, process.pid)  # at once, so that a run is never found without one
    held.leave()  # the child has it too
    return process


def _hold(directory: Path) -> Hold:
    return hold.take(directory / hold.SUPERVISOR, f"{directory}: another process looks after it")


def _write(directory: Path, pid: int | None = None) -> None:
    pid = pid or os.getpid()
    (directory / "launch").mkdir(exist_ok=True)
    log = directory / "events.jsonl"
    position = log.stat().st_size if log.exists() else 0
    content = {"pid": pid, "started": run_directory.process_start(pid), "boot": hold.boot(), "events": position}
    files.replace(directory / "launch" / "supervisor.json", json.dumps(content).encode())


def launched_at(directory: Path) -> int:
    """Return where in events.jsonl, in bytes, what the newest supervisor has seen begins."""
    path = directory / "launch" / "supervisor.json"
    return int(json.loads(path.read_text())["events"]) if path.exists() else 0
