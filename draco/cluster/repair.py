"""The repair of a cluster during a run: `cluster up` for lost nodes, beside the operator's `make train`.

Only the operator can do it, who has the keys, the credentials and the settings of the cluster. Without a watching
operator, a run goes on with the remaining nodes until somebody runs `make cluster-up`.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from draco.cluster import state
from draco.launch.environment import launch_environment

_LIMIT_S = 60.0  # for an unwanted `cluster up` to end by itself, so that Terraform saves its state
# A cloud lists a node that was taken away as running for a while; until then `cluster up` would start nothing.
GONE_S = 60.0  # after the time at which a node said that it would go
AGAIN_S = 60.0  # after a `cluster up` that did not end well
TRIES = 3  # for one loss


class Repair:
    """At most one `cluster up` at a time, for each loss of nodes; ended with the watch over the run."""

    def __init__(
        self,
        name: str,
        say: Callable[[str], None],
        command: Sequence[str] = (sys.executable, "-m", "draco"),
        clock: Callable[[], float] = time.time,
        *,
        on_demand: bool = False,
    ) -> None:
        """`on_demand`: what the spot market cannot replace may be bought on demand."""
        self._name, self._say, self._clock = name, say, clock
        self._command = [*command, "cluster", "up", "--name", name, "--yes", *(["--on-demand"] if on_demand else [])]
        self._process: subprocess.Popen[bytes] | None = None
        self._noted: set[float] = set()
        self._going: dict[str, float] = {}  # nodes that said when they would go
        self._due: float | None = None  # when it is to be started; None: nothing is missing
        self._tries = 0
        self._log = state.folder(name) / "repair.log"

    def __enter__(self) -> "Repair":
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is None or self._ended():
            return
        self._say(
            f"{self._name}: the run has ended: cluster-up is asked to stop; make cluster-status shows what there is"
        )
        self._process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_LIMIT_S)
        self._process.kill()
        self._process.wait()

    def note(self, event: dict[str, Any]) -> None:
        """Handle one event of the run; the regular ones also start what is due."""
        if event["event"] == "notice" and event["kind"] == "interruption":
            self._going[event["node"]] = _seconds(event["at"]) + GONE_S
        if event["event"] == "interruption" and event["nodes"] and event["time"] not in self._noted:
            self._noted.add(event["time"])  # after a broken connection all is told once more
            self._due = max([self._clock(), *(self._going.pop(node, 0.0) for node in event["nodes"])])
            self._tries = 0
        if self._process is not None and not self._ended():
            return
        if self._due is not None and self._clock() >= self._due:
            self._start()

    def _start(self) -> None:
        self._due, self._tries = None, self._tries + 1
        self._say(f"make cluster-up NAME={self._name}: started, so that the run gets its nodes back; see {self._log}")
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                self._command, env=launch_environment(os.environ, {}), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    def _ended(self) -> bool:
        """Return whether `cluster up` has ended, and say how."""
        if self._process is None or self._process.poll() is None:
            return self._process is None
        lines = self._log.read_text(errors="replace").strip().splitlines() or [""]
        how = "done" if not self._process.returncode else f"ended with exit code {self._process.returncode}"
        last = next((line for line in reversed(lines) if not line.startswith("next: ")), "")
        self._say(f"make cluster-up NAME={self._name}: {how}: {last}")
        if self._process.returncode and self._tries < TRIES and self._due is None:
            self._due = self._clock() + AGAIN_S
        self._process = None
        return True


def _seconds(at: str) -> float:
    """Return a notice's time in seconds since the epoch; 0 where it is none."""
    with contextlib.suppress(ValueError):
        return datetime.fromisoformat(at).timestamp()
    return 0.0
