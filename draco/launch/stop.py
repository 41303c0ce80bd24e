"""A request to a run to end: at its next step, with a checkpoint; or at once."""

import contextlib
import os
import signal
import time
from pathlib import Path

from draco.errors import RefusedError
from draco.launch.roster import Roster
from draco.launch.settle import settle
from draco.runs import directory as run_directory
from draco.runs.directory import supervisor

_POLL_S = 0.2


def stop(run: Path, *, kill: bool = False) -> None:
    """Ask a run to stop after its step; with `kill` end its processes now.

    Raises:
        RefusedError: it is not running.
    """
    status = run_directory.read_status(run)
    pid = supervisor(run)
    if pid is None and not status.goes_on:
        raise RefusedError(f"{run}: is not running: {status.state} at step {status.step}")
    try:
        run_directory.ask_to_stop(run)
    except OSError as error:
        if not kill:
            raise RefusedError(
                f"{run}: cannot be asked to stop ({error.strerror}); --kill ends it all the same"
            ) from error
    if kill and pid is not None:
        for number in (signal.SIGTERM, signal.SIGINT):  # the second kills; two of one kind might arrive as one
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


def wait(run: Path, roster: Roster | None) -> run_directory.Status:
    """Return the verdict on a run once it has ended."""
    while True:
        alone = supervisor(run) is None  # asked first: while it lives the state may change
        status = settle(run, roster)
        if alone and not status.goes_on:
            return status
        time.sleep(_POLL_S)
