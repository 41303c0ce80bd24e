"""Runs a plan: starts the process, shows progress from the run's own record, stops it on Ctrl-C, judges the outcome.

Whether a run succeeded is read from its state, never from the launcher's exit code, which is known to be 0 after the
loss of a node.
"""

import contextlib
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from draco import run_directory
from draco.errors import TrainingError
from draco.launch import nodes
from draco.launch.judge import Observed, judge
from draco.launch.plan import Plan
from draco.launch.progress import Progress
from draco.launch.sweep import sweep

_POLL_S = 0.1
_LAST_WORDS_LINES = 25
_GRACE_S = 5.0  # between asking mpirun to end its ranks and killing it
_AFTER_END_S = 10.0  # in which the processes must be gone once the run's state is final


class Outcome(NamedTuple):
    """How a run ended."""

    status: run_directory.Status
    output: str  # the last lines that its processes printed, where it did not end well


Watch = Callable[[], str]  # says why the run must be ended, or nothing


def run(
    plan: Plan, directory: Path, progress: Progress, watch: Watch = lambda: "", gone: Mapping[str, str] = {}
) -> Outcome:
    """Start the plan and wait for its end. Ctrl-C stops it resumably; a second one kills it.

    `gone` are the nodes that `watch` has found to be lost, each with the reason, filled by the time it says so.

    Raises:
        TrainingError: how it ended could not be recorded, for its disk cannot be written.
    """
    for path, text in plan.files:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    before = run_directory.read_status(directory)
    if before.state != "pending":
        run_directory.write_status(directory, "pending", before.step)  # what follows is told of this launch
    run_directory.reserve(directory)
    log = directory / "logs" / "output.log"
    position, launched = log.stat().st_size if log.exists() else 0, time.time()
    with open(log, "ab") as output:
        process = subprocess.Popen(
            plan.argv, env={**os.environ, **dict(plan.environment)}, stdin=subprocess.DEVNULL, stdout=output,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    ended_because, final_polls = "", 0
    with progress, _interruptible(process, directory, progress) as asked:
        while process.returncode is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_POLL_S)
            progress.update()
            ended_because = ended_because or watch()
            final_polls += _is_final(directory)
            if ended_because or final_polls * _POLL_S > _AFTER_END_S:
                _kill(process)
    _end_leftovers(plan, directory, gone)
    printed = _printed(directory / "logs", position, launched)
    try:
        _record(plan, directory, process.returncode, ended_because, printed, len(asked), gone)
    except OSError as error:
        raise TrainingError(run_directory.unrecorded(directory, error)) from error
    status = run_directory.read_status(directory)
    words = "" if status.state in ("succeeded", "interrupted") else "\n".join(printed[-_LAST_WORDS_LINES:])
    return Outcome(status, words)


@contextlib.contextmanager
def _interruptible(process: subprocess.Popen[bytes], directory: Path, progress: Progress) -> Iterator[list[int]]:
    """Turn the first Ctrl-C (or SIGTERM) into a request to stop and the second into a kill; leave no process behind.

    Yields the signals that came, a list that grows.
    """
    asked: list[int] = []

    def handle(signum: int, frame: object) -> None:
        del frame
        asked.append(signum)
        if len(asked) > 1:
            _kill(process)
            return
        name = signal.Signals(signum).name
        try:
            (directory / "stop").touch()
        except OSError as error:  # whatever is asked of the server there, it will not learn
            progress.say(f"{name}: {directory} cannot be written ({error.strerror}): killing the run")
            _kill(process)
            return
        progress.say(f"{name}: stopping after this step; once more kills the run")

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        _kill(process)
        for number, handler in previous.items():
            signal.signal(number, handler)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the process and its ranks: politely, so that mpirun takes its ranks along, then not."""
    if process.poll() is not None:
        return
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _is_final(directory: Path) -> bool:
    return run_directory.read_status(directory).state not in ("pending", "running")


def _end_leftovers(plan: Plan, directory: Path, gone: Mapping[str, str]) -> None:
    """Kill ranks that outlived mpirun, here and on the nodes that can be reached: they would join no other run."""
    sweep(lambda run: run == str(directory))
    if plan.roster and (there := [node.name for node in plan.roster.nodes[1:] if node.name not in gone]):
        command = nodes.module(plan.roster, "draco.launch.sweep", shlex.quote(str(directory)))
        nodes.ask(plan.roster, command, limit_s=10.0, only=there)


def _printed(logs: Path, position: int, launched: float) -> list[str]:
    """Return the lines that this launch's processes printed: each rank's own where it has a file, then mpirun's."""
    lines: list[str] = []
    for path in sorted(logs.glob("rank.*.out")):
        if path.stat().st_mtime >= launched:
            lines += path.read_text(errors="replace").splitlines()
    return lines + (logs / "output.log").read_bytes()[position:].decode(errors="replace").splitlines()


def _record(
    plan: Plan,
    directory: Path,
    exit_code: int,
    ended_because: str,
    printed: list[str],
    asked: int,
    gone: Mapping[str, str],
) -> None:
    """Write the verdict where it is not what the run itself has recorded."""
    status = run_directory.read_status(directory)
    # mpirun that has lost a node stops the server politely: nobody asked for such an interruption.
    settled = status.state == "succeeded" or (status.state == "interrupted" and asked)
    lost = gone or (nodes.unreachable(plan.roster) if plan.roster and not settled else {})
    ranks = ranks_by_node(directory)
    seen = Observed(status, exit_code, ended_because, lost, ranks, printed, asked > 0, asked > 1)
    state, message = judge(seen)
    if (state, message) != (status.state, status.message):
        if state == "failed" and status.state in ("pending", "running"):
            message = f"{message}; see {directory / 'logs'}"
        run_directory.write_status(directory, state, status.step, message)


def ranks_by_node(directory: Path) -> dict[str, list[int]]:
    """Return the ranks of each node, as the run was last launched."""
    held: dict[str, list[int]] = {}
    for rank, node in enumerate(run_directory.nodes(directory) or [], start=1):
        held.setdefault(node, []).append(rank)
    return held
