"""The keeper of a head's runs: one whose supervisor went without a verdict gets another.

On EC2 a systemd unit runs it in the trainer's container (ansible/roles/mpi), so it comes back with the container and
with the machine, and runs come back with it. Where no keeper lives, such a run is `lost` (settle.py) until
the user resumes it.
"""

import contextlib
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from draco.errors import JobError, MissingError, RefusedError
from draco.launch import every_node
from draco.launch.decide import FRUITLESS, WITHIN_S
from draco.launch.roster import Roster
from draco.launch.sweep import going_on, sweep
from draco.runs import directory as run_directory
from draco.runs import events, hold
from draco.runs.alive import is_supervised
from draco.runs.hold import Hold

GONE = "its supervisor went without a verdict: killed, or its machine or container restarted"
_LOCK = ".keeper"
_EVERY_S = 3.0
_POLITE_S = 30.0  # for a server that is left to reach the end of its step
_SWEEP_LIMIT_S = 30.0


def keep(root: Path, again: Callable[[Path, Hold], object]) -> None:
    """Call `again` for every run below `root` that needs another supervisor, for ever; one keeper at a time does.

    It gets the run and its supervisor's lock, which it is to release or to hand on.
    """
    # An older one may still live whose unit was restarted.
    with hold.take(root / _LOCK, f"{root}: has another keeper", wait_s=math.inf):
        while True:
            for run in run_directory.runs(root):
                if not is_due(run):
                    continue
                with contextlib.suppress(RefusedError):  # the user resumes it at this moment
                    held = hold.take(run / hold.SUPERVISOR, f"{run}: is looked after")
                    if not run_directory.read_status(run).goes_on:  # or has just done so
                        held.release()
                        continue
                    events.append(run / "events.jsonl", "interruption", cause=GONE, nodes={}, ranks=[])
                    again(run, held)
            time.sleep(_EVERY_S)


def kept(run: Path) -> bool:
    """Say whether a keeper lives that gives this run another supervisor."""
    return hold.look(run.parent / _LOCK).held and is_due(run)


def is_due(run: Path) -> bool:
    """Say whether a run was left by its supervisor in the midst of it, and another may help."""
    if not (run / "launch" / "supervisor.json").exists() or is_supervised(run):
        return False
    if not run_directory.read_status(run).goes_on or (run / "stop-asked").exists():
        return False
    try:
        on_loss = run_directory.read_job(run).on_loss
    except (JobError, MissingError):  # of another version, or damaged: for its user to see to
        return False
    told = [e for e in events.read(run / "events.jsonl") if e["event"] in ("interruption", "step")]
    recent = [e for e in told if e["event"] == "interruption" and time.time() - e["time"] < WITHIN_S]
    fruitless = len(told) >= FRUITLESS and all(e.get("cause") == GONE for e in told[-FRUITLESS:])
    return on_loss.name != "fail" and len(recent) < on_loss.per_hour and not fruitless


def end_what_is_left(run: Path, roster: Roster | None) -> Mapping[str, str]:
    """End processes of a run that outlived its supervisor, before it is launched again.

    Its server is asked to stop after its step, with a checkpoint, and given some time for it. Returns the nodes that
    do not let the head in, each with the reason: without them it is to go on.
    """
    if str(run) in going_on():
        (run / "stop").touch()
        deadline = time.monotonic() + _POLITE_S
        while str(run) in going_on() and time.monotonic() < deadline:
            time.sleep(0.2)
    sweep(lambda each: each == str(run))
    if roster and run_directory.nodes(run):
        every_node.ask(roster, every_node.sweeping(roster, str(run)), limit_s=_SWEEP_LIMIT_S)
    (run / "stop").unlink(missing_ok=True)
    # Before the nodes are asked, which takes long: `interrupted`, by the stop above, is not how the run ends.
    run_directory.write_status(run, "pending", run_directory.read_status(run).step, GONE)
    return _gone(roster) if roster and run_directory.nodes(run) else {}


def _gone(roster: Roster) -> Mapping[str, str]:
    """Return the nodes that are not to be counted on; none where no node answers, which says more of the head."""
    silent = every_node.unreachable(roster)
    return silent if len(silent) < len(roster.nodes) - 1 else {}
