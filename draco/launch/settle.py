"""The end of a run that nothing looks after any more: its supervisor and its server are both gone, or given up."""

import contextlib
from collections.abc import Mapping
from pathlib import Path

from draco import files
from draco.errors import RefusedError
from draco.launch import every_node, keep
from draco.launch.judge import Observed, judge
from draco.launch.roster import Roster
from draco.launch.run import ranks_by_node
from draco.runs import directory as run_directory
from draco.runs import hold
from draco.runs.alive import life

GONE = "its launcher and its server are gone: killed, the machine restarted, or their disk could not be written"


def settle(
    directory: Path, roster: Roster | None = None, lost: Mapping[str, str] | None = None
) -> run_directory.Status:
    """Record the end of such a run, with the judge's verdict.

    Returns the run's status. It stands where the run goes on or has ended already. Where its disk cannot be written,
    this is what the status would be, with a message that says so.
    `lost` names nodes that are known to be gone; without it a cluster's nodes are asked.
    """
    found = life(directory)
    if not found.status.goes_on or (lost is None and (found.by or keep.kept(directory))):
        return found.status
    forced = lost is not None
    if lost is None:
        lost = every_node.unreachable(roster) if roster and run_directory.nodes(directory) else {}
    try:
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(hold.take(directory / hold.SUPERVISOR, str(directory)))
            except RefusedError:
                if not forced:  # somebody has just begun to look after it
                    return run_directory.read_status(directory)
            return _record(directory, found.why or GONE, lost)
    except OSError as error:
        if error.errno not in files.NOT_WRITABLE:
            raise
        state, message = _judged(directory, found.status, found.why or GONE, lost)
        why = f"{message}; {run_directory.unrecorded(directory, error)}"
        return found.status._replace(state=state, message=why)


def _record(directory: Path, why: str, lost: Mapping[str, str]) -> run_directory.Status:
    status = run_directory.read_status(directory)  # again: it may have ended while all this was found out
    if not status.goes_on:
        return status
    state, message = _judged(directory, status, why, lost)
    hold.forget(directory / hold.SERVER)  # else it would be waited for on another machine
    run_directory.write_status(directory, state, status.step, message)
    return run_directory.read_status(directory)


def _judged(
    directory: Path, status: run_directory.Status, why: str, lost: Mapping[str, str]
) -> tuple[run_directory.State, str]:
    return judge(Observed(status, None, why, lost, ranks_by_node(directory)))


def verdict(directory: Path, roster: Roster | None = None) -> run_directory.Status | None:
    """Return how a run has ended, or None while more may come of it; what nobody has recorded is recorded."""
    if life(directory).by:  # asked first: while somebody looks after it the state may change
        return None
    status = settle(directory, roster)
    return None if status.goes_on else status


def give_up(directory: Path) -> run_directory.Status:
    """Record on the user's word that a run went with its machine, which is not seen from here.

    Raises:
        RefusedError: it has ended, or is seen to go on.
    """
    found = life(directory)
    if found.by and found.sure:
        raise RefusedError(f"{directory}: cannot be given up: it goes on ({found.by}); draco stop ends it")
    if not found.status.goes_on:
        for name in (hold.SUPERVISOR, hold.SERVER):  # in case it ended while its supervisor was about to go on
            hold.forget(directory / name)
        return found.status
    return settle(directory, lost={found.status.host: f"given up by the user; {found.by or found.why or GONE}"})
