"""The supervisor: stays with a run after the terminal has closed, ends it when it hangs, and records how it ended.

Started with `--detach`, and for every run on a cluster, as a process of its own on the machine that holds the server.
It writes launch/supervisor.json; signals and `draco stop` reach the run through it.

When nothing has been heard from the server for a while the nodes are asked; one that does not answer twice in a row is
lost and the run is ended. So a dead, frozen or cut off node is known after QUIET_S + 2 * (LOOK_EVERY_S + 8 s) at most.
"""

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from draco import run_directory
from draco.events import read as read_events
from draco.job import Job
from draco.launch import nodes
from draco.launch.judge import Observed, judge
from draco.launch.plan import plan
from draco.launch.progress import Progress
from draco.launch.roster import Roster
from draco.launch.run import Outcome, ranks_by_node, run

QUIET_S = 10.0  # without a sign of life from the server before the nodes are asked
LOOK_EVERY_S = 4.0
GONE = "its launcher and its server are gone: killed, the machine restarted, or their disk could not be written"
SLACK_S = 240.0  # beyond the server's own time limits, after which it is taken to hang


class Watch:
    """Looks after a run's heartbeat; called often, costs nothing while steps are being taken."""

    def __init__(
        self,
        directory: Path,
        job: Job,
        lost: Callable[[], Mapping[str, str]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._events, self._job, self._lost, self._clock = directory / "events.jsonl", job, lost, clock
        self._beat, self._heard = self._last_beat(), clock()  # whatever the clock of whoever stores the file
        self._starts_before = self._starts()
        self._asked = -math.inf
        self._silent: Mapping[str, str] = {}
        self.gone: dict[str, str] = {}  # nodes that did not answer twice in a row, each with the reason

    def __call__(self) -> str:
        """Return why the run must be ended, or nothing."""
        beat = self._last_beat()
        if beat != self._beat:
            self._beat, self._heard = beat, self._clock()
        quiet = self._clock() - self._heard
        if quiet < QUIET_S or self._job.launcher == "simulate":  # which waits for nobody
            self._silent = {}
            return ""
        if self._clock() - self._asked >= LOOK_EVERY_S:
            before, self._silent = self._silent, self._lost()
            self._asked = self._clock()
            self.gone |= {node: why for node, why in self._silent.items() if node in before}
            if self.gone:
                return "; ".join(f"{node} is lost: {why}" for node, why in self.gone.items())
        started = self._starts() > self._starts_before
        limit = SLACK_S + (self._job.reply_timeout_s if started else self._job.start_timeout_s)
        return f"nothing was heard from the server for {quiet:.0f} s" if quiet > limit else ""

    def _last_beat(self) -> tuple[int, int]:
        if not self._events.exists():
            return 0, 0
        found = self._events.stat()
        return found.st_mtime_ns, found.st_size

    def _starts(self) -> int:
        """Return how often the run has started, in this launch and those before."""
        return sum(e["event"] == "start" for e in read_events(self._events))


def supervise(job: Job, directory: Path, roster: Roster | None, progress: Progress | None = None) -> Outcome:
    """Run the job in `directory` to its end, record how it ended and return it; without `progress` say nothing."""
    _write(directory)
    made = plan(job, directory, roster)
    watch = Watch(directory, job, lambda: nodes.unreachable(made.roster) if made.roster else {})
    return run(made, directory, progress or Progress(None, Console(quiet=True), ""), watch, watch.gone)


def detach(directory: Path, here: bool) -> None:
    """Start the supervisor of a run in a session of its own, so that it outlives this terminal."""
    step = run_directory.read_status(directory).step
    run_directory.write_status(directory, "pending", step)  # what follows is told of this launch
    argv = [sys.executable, "-m", "draco", "supervise", str(directory), *(["--here"] if here else [])]
    with open(directory / "logs" / "supervisor.log", "ab") as log:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    _write(directory, process.pid)  # so that nobody finds a run without one in between


def _write(directory: Path, pid: int | None = None) -> None:
    pid = pid or os.getpid()
    (directory / "launch").mkdir(exist_ok=True)
    events = directory / "events.jsonl"
    position = events.stat().st_size if events.exists() else 0
    content = {"pid": pid, "started": run_directory.process_start(pid), "events": position}
    run_directory.replace(directory / "launch" / "supervisor.json", json.dumps(content).encode())


def launched_at(directory: Path) -> int:
    """Return where in events.jsonl, in bytes, the newest launch begins."""
    path = directory / "launch" / "supervisor.json"
    return int(json.loads(path.read_text())["events"]) if path.exists() else 0


def supervisor(directory: Path) -> int | None:
    """Return the process id of a run's supervisor, if it lives on this machine."""
    path = directory / "launch" / "supervisor.json"
    if not path.exists():
        return None
    values: dict[str, Any] = json.loads(path.read_text())
    return int(values["pid"]) if run_directory.exists(values["pid"], values["started"]) else None


def settle(
    directory: Path, roster: Roster | None = None, lost: Mapping[str, str] | None = None
) -> run_directory.Status:
    """Record the end of a run that nothing looks after any more: its supervisor and its server are both gone.

    Returns the run's status; where its disk cannot be written, what it would be, with a message that says so.
    `lost` names nodes that are known to be gone; without it a cluster's nodes are asked.
    """
    status = run_directory.read_status(directory)
    if status.state not in ("pending", "running"):
        return status
    if lost is None and (supervisor(directory) is not None or run_directory.is_alive(status)):
        return status
    if lost is None:
        lost = nodes.unreachable(roster) if roster and run_directory.nodes(directory) else {}
    status = run_directory.read_status(directory)  # again: it may have ended while all this was found out
    if status.state not in ("pending", "running"):
        return status
    seen = Observed(status, None, GONE, lost, ranks_by_node(directory))
    state, message = judge(seen)
    try:
        run_directory.write_status(directory, state, status.step, message)
    except OSError as error:
        if error.errno not in run_directory.NOT_WRITABLE:
            raise
        return status._replace(state=state, message=f"{message}; {run_directory.unrecorded(directory, error)}")
    return run_directory.read_status(directory)
