"""A request to a run to end: at its next step, with a checkpoint; or at once."""

import contextlib
import os
import signal
import time
from pathlib import Path

from draco.errors import RefusedError
from draco.launch.roster import Roster
from draco.launch.settle import verdict
from draco.runs import directory as run_directory
from draco.runs.alive import Waiting, life, supervisor

_POLL_S = 0.2


def stop(run: Path, *, kill: bool = False) -> None:
    """Ask a run to stop after its step; with `kill` end its processes now.

    Raises:
        RefusedError: it is not running, or `kill` cannot reach it.
    """
    pid = supervisor(run)
    by, status = life(run)[1], run_directory.read_status(run)
    if not by and not status.goes_on:
        raise RefusedError(f"{run}: is not running: {status.state} at step {status.step}")
    try:
        run_directory.ask_to_stop(run)
    except OSError as error:
        if not kill:
            raise RefusedError(
                f"{run}: cannot be asked to stop ({error.strerror}); --kill ends it all the same"
            ) from error
    if kill and pid is None and by:
        raise RefusedError(f"{run}: cannot be killed from here ({by}); it was asked to stop after its step")
    if kill and pid is not None:
        for number in (signal.SIGTERM, signal.SIGINT):  # the second kills; two of one kind might arrive as one
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


def wait(run: Path, roster: Roster | None) -> run_directory.Status:
    """Return the verdict on a run once it has ended."""
    tell = Waiting()
    while not (status := verdict(run, roster)):
        tell(run)
        time.sleep(_POLL_S)
    return status
