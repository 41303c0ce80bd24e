"""Who looks after a run: the one place that says whether something more may come of it by itself.

The locks say it (hold.py) wherever they are seen: on this machine, also from another container, and on a file system
that shares them. A holder on another machine whose lock is not seen is judged by the run's heartbeat. That is the
newest time of its events, its state and its locks, one of which is renewed every few seconds in every phase of a run.
"""

import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from draco.runs import hold
from draco.runs.directory import Status, exists, read_status

LOST_AFTER_S = 300.0  # of silence: a run on another machine
REBOOTED_AFTER_S = 20.0  # a run of this machine before it was booted, or of another one of the same name


class Life(NamedTuple):
    """Whether a run goes on."""

    status: Status
    by: str = ""  # who looks after it, in words; empty: nobody, and nothing more comes of it by itself
    sure: bool = True  # False: it is on a machine that is not seen from here, and was heard not long ago
    why: str = ""  # nobody looks after it, where silence said so


def life(run: Path, roles: Sequence[str] = (hold.SUPERVISOR, hold.SERVER)) -> Life:
    """Say who looks after a run, at any time of its life; or who of these `roles` does.

    Its end is recorded by the server, for one launch, while the supervisor may begin another. Where nobody looks after
    a run whose status goes on, its end was never recorded: `settle` does that.
    """
    looks = [hold.look(run / name) for name in roles]  # first: while one is held the status may change
    pid = supervisor(run)
    status = read_status(run)
    held = [str(look) for look in looks if look.held] or ([f"process {pid}"] if pid else [])
    if held:
        return Life(status, held[0])
    left = [look.holder for look in looks if look.holder]
    if status.state == "succeeded" or (left and all(holder.boot == hold.boot() for holder in left)):
        return Life(status)  # on one machine all locks are seen
    here = socket.gethostname()
    afar = [(holder.pid, holder.host) for holder in left if holder.boot != hold.boot()]
    if not afar and status.goes_on and hold.SERVER in roles:  # of an earlier version, or just made
        if status.host == here:
            return Life(status, f"process {status.pid}" if exists(status.pid, status.started) else "")
        afar = [(status.pid, status.host)]
    if not afar:
        return Life(status)
    (pid, host), silence = afar[0], silence_s(run)
    limit = REBOOTED_AFTER_S if host == here else LOST_AFTER_S
    if silence >= limit:
        return Life(status, why=f"{host} is not seen from here, and was last heard {silence:.0f} s ago")
    return Life(
        status, f"process {pid} on {host}, last heard {silence:.0f} s ago, given up after {limit:.0f} s", sure=False
    )


def is_supervised(run: Path) -> bool:
    """Say whether a supervisor looks after a run; its server may also be left alone."""
    return bool(life(run, [hold.SUPERVISOR]).by)


def supervisor(run: Path) -> int | None:
    """Return the process id of a run's supervisor, if it is seen on this machine: signals reach it."""
    try:
        values: dict[str, Any] = json.loads((run / "launch" / "supervisor.json").read_text())
        pid, started, boot = int(values["pid"]), str(values["started"]), values.get("boot", hold.boot())
    except (
        OSError,
        ValueError,
        TypeError,
        KeyError,
        OverflowError,
    ):  # there was none, or its folder was copied in part
        return None
    return pid if boot == hold.boot() and exists(pid, started) else None


class Waiting:
    """Tells once, while a run is waited for, that it is on a machine that is not seen, and how long that can last."""

    def __init__(self) -> None:
        self._looked, self._said = 0.0, False

    def __call__(self, run: Path) -> None:
        """Look once a second."""
        if self._said or time.monotonic() - self._looked < 1.0:
            return
        self._looked = time.monotonic()
        found = life(run)
        if not found.sure:
            self._said = True
            sys.stderr.write(f"{run}: waiting for {found.by}; draco stop --lost gives it up now\n")


def silence_s(run: Path) -> float:
    """Return how long ago, in seconds, a run last gave a sign of life, by the clock of its file system alone."""
    return max(_now(run) - max(_times(run), default=0.0), 0.0)


def _times(run: Path) -> Iterator[float]:
    for name in ("events.jsonl", "state.json", hold.SUPERVISOR, hold.SERVER):
        with contextlib.suppress(OSError), open(run / name, "rb") as file:  # opened: NFS then asks its server
            yield os.fstat(file.fileno()).st_mtime


def _now(run: Path) -> float:
    """Return the time that a file touched now would have; this machine's where nothing can be written."""
    path = run / f".now.{os.getpid()}"
    try:
        with open(path, "wb") as file:
            os.utime(file.fileno())
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return time.time()
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
