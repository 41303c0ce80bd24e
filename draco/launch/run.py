"""Runs a plan: starts the process, shows progress from the run's own record, stops it on Ctrl-C, judges the outcome.

Whether a run succeeded is read from its state, never from the launcher's exit code, which is known to be 0 after the
loss of a node.
"""

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from draco import run_directory
from draco.launch.plan import Plan
from draco.launch.progress import Progress

_POLL_S = 0.1
_LAST_WORDS_LINES = 25
_ERROR = re.compile(r"[\w.]+(Error|Exception|Interrupt)\b.*:")  # the last line of a traceback


class Outcome(NamedTuple):
    """How a run ended."""

    status: run_directory.Status
    output: str  # the last lines that its processes printed, where it did not end well


def run(plan: Plan, directory: Path, progress: Progress) -> Outcome:
    """Start the plan and wait for its end. Ctrl-C stops it resumably; a second one kills it."""
    log = directory / "logs" / "output.log"
    with open(log, "ab") as output:
        process = subprocess.Popen(
            plan.argv, env={**os.environ, **dict(plan.environment)}, stdin=subprocess.DEVNULL, stdout=output,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    with progress, _interruptible(process, directory, progress):
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_POLL_S)
            progress.update()
            if process.returncode is not None:
                break
    return _judged(directory, process.returncode, log)


@contextlib.contextmanager
def _interruptible(process: subprocess.Popen[bytes], directory: Path, progress: Progress) -> Iterator[None]:
    """Turn the first Ctrl-C (or SIGTERM) into a request to stop and the second into a kill; leave no process behind."""
    asked = False

    def handle(signum: int, frame: object) -> None:
        nonlocal asked
        del frame
        if asked:
            _kill(process)
            return
        asked = True
        (directory / "stop").touch()
        progress.say(f"{signal.Signals(signum).name}: stopping after this step; once more kills the run")

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
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
        process.wait(5)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _judged(directory: Path, returncode: int, log: Path) -> Outcome:
    """Read the state; a run whose processes are gone but whose state says otherwise has failed."""
    status = run_directory.read_status(directory)
    lines = log.read_text(errors="replace").splitlines()
    words = "\n".join(lines[-_LAST_WORDS_LINES:])
    if status.state in ("pending", "running"):
        errors = [line.strip() for line in lines if _ERROR.match(line)]
        cause = errors[-1] if errors else "they printed no error"
        message = f"its processes ended (exit code {returncode}): {cause}; see {log}"
        run_directory.write_status(directory, "failed", status.step, message)
        status = run_directory.read_status(directory)
    return Outcome(status, "" if status.state in ("succeeded", "interrupted") else words)
