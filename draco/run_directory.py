"""One run's directory: what is in it, which state the run is in, and which runs there are.

runs/<name>-<id>/
job.yaml            the job as it was validated
state.json          pending, running, interrupted, succeeded, failed or lost; replaced by rename
events.jsonl        one JSON object a line, written by the server only
evaluations.jsonl   one JSON object a line, written by the evaluator only
checkpoints/        see checkpoint.py
logs/               what the processes printed
secret              seed of the server's permutations and projections; readable by the server's user only
stop                while it exists the server ends at the next step, resumably
"""

import json
import os
import secrets
import socket
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

State = Literal["pending", "running", "interrupted", "succeeded", "failed", "lost"]
TERMINAL: tuple[State, ...] = ("succeeded", "failed", "lost")
UNFINISHED: tuple[State, ...] = ("pending", "running", "interrupted", "failed", "lost")


class Status(NamedTuple):
    """What state.json says."""

    state: State
    step: int  # the last step whose result is in a checkpoint or, at the end, in the model
    message: str  # why, in one line; empty while all is well
    pid: int  # of the process that wrote it
    host: str
    updated: float  # seconds since the epoch


def create(root: Path, name: str, job_yaml: str) -> Path:
    """Make a new run directory in state `pending` and return it."""
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
    for folder in ("checkpoints", "logs"):
        (run / folder).mkdir()
    replace(run / "job.yaml", job_yaml.encode())
    write_status(run, "pending")
    return run


def replace(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Write a file so that a reader sees the old content or the new one, never a part, even after a power cut."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(temporary, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)


def write_status(run: Path, state: State, step: int = 0, message: str = "") -> None:
    """Replace state.json."""
    status = Status(state, step, message, os.getpid(), socket.gethostname(), time.time())
    replace(run / "state.json", json.dumps(status._asdict(), indent=1).encode())


def read_status(run: Path) -> Status:
    """Read state.json."""
    fields: dict[str, Any] = json.loads((run / "state.json").read_text())
    return Status(**fields)


def is_alive(status: Status) -> bool:
    """Say whether the process that wrote the status still exists; a run on another host counts as alive."""
    if status.host != socket.gethostname():
        return True
    try:
        os.kill(status.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def secret(run: Path) -> bytes:
    """Return the run's secret seed, made on the first call."""
    path = run / "secret"
    if not path.exists():
        replace(path, secrets.token_hex(32).encode(), mode=0o600)
    return bytes.fromhex(path.read_text())


def runs(root: Path) -> list[Path]:
    """Return every run directory under `root`, oldest first."""
    return sorted((p.parent for p in root.glob("*/state.json")), key=lambda p: (p / "job.yaml").stat().st_mtime_ns)
