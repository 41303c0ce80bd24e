"""The end of a run that nothing looks after any more: its supervisor and its server are both gone."""

from collections.abc import Mapping
from pathlib import Path

from draco import files
from draco.launch import every_node, keep
from draco.launch.judge import Observed, judge
from draco.launch.roster import Roster
from draco.launch.run import ranks_by_node
from draco.runs import directory as run_directory
from draco.runs.directory import supervisor

GONE = "its launcher and its server are gone: killed, the machine restarted, or their disk could not be written"


def settle(
    directory: Path, roster: Roster | None = None, lost: Mapping[str, str] | None = None
) -> run_directory.Status:
    """Record the end of such a run, with the judge's verdict.

    Returns the run's status. It stands where the run goes on or has ended already. Where its disk cannot be written,
    this is what the status would be, with a message that says so.
    `lost` names nodes that are known to be gone; without it a cluster's nodes are asked.
    """
    status = run_directory.read_status(directory)
    if not status.goes_on:
        return status
    if lost is None and (supervisor(directory) is not None or run_directory.is_alive(status) or keep.kept(directory)):
        return status
    if lost is None:
        lost = every_node.unreachable(roster) if roster and run_directory.nodes(directory) else {}
    status = run_directory.read_status(directory)  # again: it may have ended while all this was found out
    if not status.goes_on:
        return status
    seen = Observed(status, None, GONE, lost, ranks_by_node(directory))
    state, message = judge(seen)
    try:
        run_directory.write_status(directory, state, status.step, message)
    except OSError as error:
        if error.errno not in files.NOT_WRITABLE:
            raise
        return status._replace(state=state, message=f"{message}; {run_directory.unrecorded(directory, error)}")
    return run_directory.read_status(directory)
