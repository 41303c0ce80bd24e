"""One run's directory: what is in it, which state the run is in, and which runs there are.

runs/<name>-<id>/
job.yaml            the job as it was validated
code/               the job's own code as it was when the run was made, read-only; see draco/code/
state.json          pending, running, interrupted, succeeded, failed or lost; replaced by rename
events.jsonl        one JSON object a line, written by the server; by the supervisor what it does between launches
evaluations.jsonl   one JSON object a line, written by the evaluator only
chain.jsonl         digests of each step, one JSON object a line, written by the server; see chain.py
checkpoints/        see checkpoint.py
logs/               what the processes printed
secret              seed of the server's permutations and projections; readable by the server's user only
stop                while it exists the server ends at the next step, resumably; the supervisor also writes it, to
                    start again on other nodes, and removes it before it does
stop-asked          the user wants the run to end; no launch follows while it exists
checkpoint          while it exists the server saves at the next step, and then removes it
launch/             who looks after the run, serves it, evaluates it: *.lock (hold.py) and supervisor.json; on a cluster
                    also which node hosts which ranks, as mpirun reads it (hostfile) and as the server does (nodes.json)
.reserve            space that is given up to write the state on a full disk
"""

import contextlib
import errno
import functools
import json
import logging
import os
import secrets
import socket
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, NamedTuple

from draco import files
from draco.code import recorded
from draco.code.pack import NOTHING, Pack
from draco.errors import MissingError
from draco.job import Job, parse
from draco.plain import plain
from draco.runs import door

State = Literal["pending", "running", "interrupted", "succeeded", "failed", "lost"]
_RESERVE_BYTES = 1 << 16
logger = logging.getLogger(__name__)


class Status(NamedTuple):
    """What state.json says."""

    state: State
    step: int  # the last step whose result is in a checkpoint or, at the end, in the model
    message: str  # why, in one line; empty while all is well
    pid: int  # of the process that wrote it
    host: str
    updated: float  # seconds since the epoch
    started: str = ""  # when that process began, as the kernel counts it: a process id alone is used again

    @property
    def goes_on(self) -> bool:
        """Whether the server has not recorded its end."""
        return self.state in ("pending", "running")


def create(root: Path, name: str, job_yaml: str, pack: Pack = NOTHING) -> Path:
    """Make a new run directory in state `pending` and return it; `pack` is the job's own code."""
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    run = root / f"{name}-{stamp}"
    attempt = 1
    while True:
        try:
            run.mkdir(parents=True)
            break
        except FileExistsError:
            attempt += 1
            run = root / f"{name}-{stamp}-{attempt}"
    return furnish(run, job_yaml, pack)


def furnish(run: Path, job_yaml: str, pack: Pack = NOTHING) -> Path:
    """Make an empty folder a run directory in state `pending`, which is written last, and return it."""
    for folder in ("checkpoints", "logs"):
        (run / folder).mkdir()
    reserve(run)
    recorded.record(run, pack)
    files.replace(run / "job.yaml", job_yaml.encode())
    write_status(run, "pending")
    return run


def reserve(run: Path) -> None:
    """Set space aside for the state that is to be written when there is none left."""
    if not (run / ".reserve").exists():
        files.replace(run / ".reserve", b"\1" * _RESERVE_BYTES)


def unrecorded(run: Path, error: OSError) -> str:
    """Return in one line that a run has ended and that its own record could not be told."""
    why = "is read-only" if error.errno == errno.EROFS else f"cannot be written ({error.strerror})"
    try:
        said = f"says `{read_status(run).state}` though the run has ended"
    except (OSError, MissingError):
        said = "cannot be read either"
    remedy = "remount it for writing" if error.errno == errno.EROFS else "mend that"
    return f"{run}: {why}: nothing more can be recorded; what is on disk {said}: {remedy}, then resume"


def write_status(run: Path, state: State, step: int = 0, message: str = "") -> None:
    """Replace state.json; on a full disk with the space that was kept for it."""
    pid = os.getpid()
    status = Status(state, step, message, pid, socket.gethostname(), time.time(), process_start(pid))
    content = json.dumps(status._asdict(), indent=1).encode()
    try:
        files.replace(run / "state.json", content)
    except OSError as error:
        if error.errno not in files.NO_SPACE:
            raise
        files.remove_temporaries(run, exists)  # of what did not fit
        (run / ".reserve").unlink(missing_ok=True)
        files.replace(run / "state.json", content)


def read_status(run: Path) -> Status:
    """Read state.json.

    Raises:
        MissingError: it is empty or damaged.
    """
    try:
        return Status(**door.state((run / "state.json").read_bytes()))
    except ValueError as error:
        raise MissingError(
            f"{run}: its state.json is empty or damaged ({error}); copy the run again, or move it away"
        ) from error


def ask_to_stop(run: Path) -> None:
    """Ask a run to stop, by one file for the server and one for the supervisor.

    The order matters. A supervisor that starts again removes `stop` first and then looks for `stop-asked`. So one of
    the files is seen, whichever way the two meet.
    """
    (run / "stop-asked").touch()
    (run / "stop").touch()


def forget_stop(run: Path) -> None:
    """Let a run that was stopped go on."""
    for name in ("stop-asked", "stop"):
        (run / name).unlink(missing_ok=True)


def exists(pid: int, started: str = "") -> bool:
    """Say whether a process of this machine still exists that began at `started` (where that is known)."""
    if not 0 < pid < 2**31:  # to the system 0 and less are groups of processes, or all there are
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it is there, and another user's
    fields = _stat(pid)
    if fields and fields[0] == "Z":  # it has ended, and its parent has not asked how
        return False
    return not started or not fields or fields[19] == started


def process_start(pid: int) -> str:
    """Return when a process began, in clock ticks since boot; empty where the system does not tell."""
    fields = _stat(pid)
    return fields[19] if fields else ""


def _stat(pid: int) -> list[str]:
    """Return what the kernel tells of a process, from its state on; nothing where it does not."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return []


def secret(run: Path) -> bytes:
    """Return the run's secret seed, made on the first call."""
    path = run / "secret"
    if not path.exists():
        files.replace(path, secrets.token_hex(32).encode(), mode=0o600)
    return bytes.fromhex(path.read_text())


def read_job(run: Path) -> Job:
    """Return the job of a run directory.

    Raises:
        MissingError: it has none, or one that is no text.
        JobError: it is of another version of Draco, or damaged.
    """
    path = run / "job.yaml"
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, UnicodeDecodeError) as error:
        why = "no text" if isinstance(error, ValueError) else "missing"
        raise MissingError(f"{run}: its job.yaml is {why}; copy the run again, or name another") from error
    return parse(text, str(path), checked=True)


def job_says(run: Path, key: str) -> bool:
    """Say whether a run's job.yaml has a key, written out; an earlier version's has none that came later."""
    return any(line.startswith(f"{key}:") for line in (run / "job.yaml").read_text().splitlines())


def nodes(run: Path) -> list[str] | None:
    """Return the node of every worker 1..n, or None where all ranks share one machine."""
    path = run / "launch" / "nodes.json"
    return list(json.loads(path.read_text())) if path.exists() else None


def runs(root: Path) -> list[Path]:
    """Return every whole run directory under `root`, oldest first; those that are damaged are named in a warning."""
    found = []
    try:
        folders = sorted(root.iterdir())
    except FileNotFoundError:  # none has been made yet
        return []
    for run in folders:
        try:
            if not (run / "state.json").exists():
                continue
            read_status(run)
            # File times tick every few milliseconds: of two runs made within a tick the later has the higher number.
            found.append(((run / "job.yaml").stat().st_mtime_ns, len(run.name), run.name, run))
        except MissingError as error:
            _pass_over(str(error))
        except OSError as error:
            _pass_over(files.fault(error) or str(error))
    return [run for *_, run in sorted(found)]


@functools.cache
def _pass_over(why: str) -> None:
    """Warn of a run, once in a process: some look every few seconds."""
    logger.warning("passed over: %s", plain(why))
