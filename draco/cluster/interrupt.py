"""`make interrupt`: the eviction of a worker node, and how its run came back afterwards."""

import contextlib
import subprocess
import threading
import time
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from draco.cluster import remote, state
from draco.cluster import timeline as timelines
from draco.cluster.backend import BACKENDS, HEAD, Cluster
from draco.cluster.eviction import Eviction
from draco.cluster.timeline import Event, Row
from draco.errors import MissingError, RefusedError
from draco.runs import door

_LOOK_EVERY_S = 0.5
_PATIENCE_S = 20.0  # with a head that is asked something


class Outcome(NamedTuple):
    """What became of the run."""

    rows: list[Row]
    outlived: bool


def refuse(cluster: Cluster, node: str) -> None:
    """Raise unless `node` is a worker of the cluster that runs.

    Raises:
        MissingError: there is none of that name.
        RefusedError: it is the head, or gone already.
    """
    workers = [each.name for each in cluster.workers]
    if node == HEAD:
        raise RefusedError(
            f"{cluster.name}: the head holds the server and the runs, and at AWS it is on demand: interrupt a worker, "
            f"{', '.join(workers)}"
        )
    if node not in workers:
        raise MissingError(f"NODE={node}: {cluster.name} has the workers {', '.join(workers)}")
    found = BACKENDS[cluster.backend].states(cluster, state.folder(cluster.name))[node]
    if found != "running":
        raise RefusedError(f"{cluster.name}: {node} is {found}; make cluster-up NAME={cluster.name} repairs it")


def interrupt(cluster: Cluster, node: str, eviction: Eviction, wait_s: float, console: Console) -> Outcome | None:
    """Evict a node and return what became of the newest run; None: none was going on.

    Args:
        cluster: which is up.
        node: a worker.
        eviction: how the node is evicted.
        wait_s: how long to wait for the run after the node's end, at most.
        console: where it says what it does.

    Raises:
        KeyboardInterrupt: Ctrl-C before the node's end; what then holds was said.
    """
    run, notice_s = _running(cluster), eviction.notice_s
    if run is None:
        console.print(f"{cluster.name}: no run is going on that could recover", highlight=False)
    with _Watched(cluster, run) as watched:
        since = watched.now()
        about = eviction.announce(notice_s) if notice_s else "none"
        watched.add(timelines.given(since, node, about))
        console.print(f"{node}: {about}" if notice_s else f"{node}: goes without a notice", highlight=False)
        try:
            with console.status(f"{node} goes") as spinner:
                eviction.end(notice_s, spinner.update)
        except KeyboardInterrupt:
            if notice_s:
                console.print(f"{node}: the notice stands, and {eviction.stands}", highlight=False)
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
        """Record what was done to the node."""
        with self._lock:
            self.events.append(event)

    def wait(self, since: float, limit_s: float) -> None:
        """Wait until nothing more can be seen, or the limit is over."""
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
            event = door.heard(line)
            if event is None or event["event"] == "alive":
                continue
            with self._lock:
                # Of steps in a row the first and the last are enough, and there may be a million.
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
        return ahead if abs(ahead) > (ended - began) / 2 else 0.0  # a smaller difference may be the answer's own delay
    return 0.0
