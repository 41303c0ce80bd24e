"""Takes a worker node away as a cloud takes a spot instance: notice, wait, end; then tells how its run came back.

What gives the notice and ends the node differs (`Way`): here containers and namespaces are told by a file and killed;
aws/fault_injection.py has AWS do both.
"""

import contextlib
import subprocess
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from draco.cluster import remote, state
from draco.cluster import timeline as timelines
from draco.cluster.backend import HEAD, Cluster, Say
from draco.cluster.backends import BACKENDS
from draco.cluster.timeline import Event, Row
from draco.errors import MissingError, RefusedError
from draco.launch.notices import PATH, Notice

_LOOK_EVERY_S = 0.5
_PATIENCE_S = 20.0  # with a head that is asked something


class Way(NamedTuple):
    """How a node is taken away."""

    announce: Callable[[float], str]  # seconds until its end -> what it was told, in words
    end: Callable[[float, Say], None]  # seconds until its end, which it waits for or brings about; then returns
    stands: str  # what becomes of a node whose notice was given, if nobody waits for its end


class Outcome(NamedTuple):
    """What became of the run."""

    rows: list[Row]
    outlived: bool


def refuse(cluster: Cluster, node: str) -> None:
    """Raise unless `node` is a worker of the cluster that runs.

    Raises:
        MissingError: there is none of that name.
        RefusedError: it is the head, somebody's own machine, or gone already.
    """
    workers = [each.name for each in cluster.workers]
    if node == HEAD:
        raise RefusedError(
            f"{cluster.name}: the head holds the server and the runs, and at AWS it is on demand: interrupt a worker, "
            f"{', '.join(workers)}"
        )
    if node not in workers:
        raise MissingError(f"NODE={node}: {cluster.name} has the workers {', '.join(workers)}")
    if cluster.backend == "ssh":
        raise RefusedError(
            f"{cluster.name}: {node} is somebody's machine, and nothing here ends it; what its owner writes to {PATH} "
            f"on it is a notice to the head, such as {Notice('interruption', '2026-01-02T03:04:05Z').text()}"
        )
    found = BACKENDS[cluster.backend].states(cluster, state.folder(cluster.name))[node]
    if found != "running":
        raise RefusedError(f"{cluster.name}: {node} is {found}; make cluster-up NAME={cluster.name} repairs it")


def by_hand(cluster: Cluster, node: str) -> Way:
    """Return the way for nodes of this machine."""
    backend, folder = BACKENDS[cluster.backend], state.folder(cluster.name)

    def announce(seconds: float) -> str:
        at = datetime.fromtimestamp(time.time() + seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        notice = Notice("interruption", at)
        backend.announce(cluster, folder, node, notice.text())
        return notice.sentence()

    def end(seconds: float, say: Say) -> None:
        _count_down(node, seconds, say)
        backend.kill(cluster, folder, node)

    return Way(announce, end, "it is not killed")


def interrupt(
    cluster: Cluster, node: str, notice_s: float, wait_s: float, console: Console, way: Way
) -> Outcome | None:
    """Take a node away and return what became of the newest run; None: none was going on.

    Args:
        cluster: which is up.
        node: a worker.
        notice_s: seconds between notice and end; 0: no notice.
        wait_s: the most that is waited for the run after the node's end.
        console: where it says what it does.
        way: how.

    Raises:
        KeyboardInterrupt: Ctrl-C before the node's end; what then holds was said.
    """
    run = _running(cluster)
    if run is None:
        console.print(f"{cluster.name}: no run is going on that could recover", highlight=False)
    with _Watched(cluster, run) as watched:
        since = watched.now()
        about = way.announce(notice_s) if notice_s else "none"
        watched.add(timelines.given(since, node, about))
        console.print(f"{node}: {about}" if notice_s else f"{node}: goes without a notice", highlight=False)
        try:
            with console.status(f"{node} goes") as spinner:
                way.end(notice_s, spinner.update)
        except KeyboardInterrupt:
            if notice_s:
                console.print(f"{node}: the notice stands, and {way.stands}", highlight=False)
            raise
        watched.add(timelines.gone(watched.now(), node))
        console.print(f"{node}: gone", highlight=False)
        if run is None:
            return None
        with console.status(f"{run}: how does it go on?"):
            watched.wait(since, wait_s)
        events = [*watched.events, timelines.looked(watched.now())]
    return Outcome(timelines.timeline(events, since), timelines.recovered(events, since))


def table(rows: list[Row]) -> Table:
    """Return the rows of a timeline as they are printed."""
    out = Table("seconds", "what", "", box=None)
    out.columns[0].justify = "right"
    for row in rows:
        out.add_row("-" if row.seconds is None else f"{row.seconds:.1f}", row.what, row.about)
    return out


def _running(cluster: Cluster) -> str | None:
    """Return the newest run, if it goes on."""
    newest = remote.snapshot(cluster) or {}
    return str(newest["run"]) if newest.get("state") in ("pending", "running") else None


def _count_down(node: str, seconds: float, say: Say) -> None:
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        say(f"{node} goes in {left:.0f} s")
        time.sleep(min(left, 1.0))


class _Watched:
    """A run's events from the head, collected while something else is done; without a run, none.

    Times are the head's, whose clock the operator's machine need not share.
    """

    def __init__(self, cluster: Cluster, run: str | None) -> None:
        self.events: list[Event] = []
        self._lock = threading.Lock()
        self._cluster, self._run = cluster, run
        self._ahead = _head_ahead(cluster) if run else 0.0
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "_Watched":
        if self._run:
            self._process = subprocess.Popen(
                remote.draco(self._cluster, "follow", self._run), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                start_new_session=True,
            )  # fmt: skip
            self._thread = threading.Thread(target=self._collect, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process and self._thread:
            self._process.kill()
            self._process.wait()
            self._thread.join(_PATIENCE_S)
            assert self._process.stdout
            self._process.stdout.close()

    def now(self) -> float:
        """Return the time at the head."""
        return time.time() + self._ahead

    def add(self, event: Event) -> None:
        """Note what was done to the node."""
        with self._lock:
            self.events.append(event)

    def wait(self, since: float, limit_s: float) -> None:
        """Return when there is nothing more to see."""
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline and not timelines.settled(list(self.events), since):
            assert self._thread
            if not self._thread.is_alive():  # the run has ended, or the head cannot be followed
                return
            time.sleep(_LOOK_EVERY_S)

    def _collect(self) -> None:
        assert self._process
        assert self._process.stdout
        for line in self._process.stdout:
            event = remote.event(line)
            if event is None or event["event"] == "alive":
                continue
            with self._lock:
                # Of steps in a row the first and the last will do, and there may be a million.
                if [each["event"] for each in (*self.events[-2:], event)] == ["step"] * 3:
                    self.events.pop()
                self.events.append(event)


def _head_ahead(cluster: Cluster) -> float:
    """Return by how many seconds the head's clock is ahead of this machine's."""
    began = time.time()
    with contextlib.suppress(subprocess.TimeoutExpired, ValueError):
        made = subprocess.run(
            remote.on_node(cluster, HEAD, ["date", "+%s.%N"]), stdin=subprocess.DEVNULL, capture_output=True,
            text=True, check=False, timeout=_PATIENCE_S,
        )  # fmt: skip
        ended = time.time()
        ahead = float(made.stdout) - (began + ended) / 2
        return ahead if abs(ahead) > (ended - began) / 2 else 0.0  # less cannot be told from the answer's own time
    return 0.0
