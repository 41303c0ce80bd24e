"""Holds: the locks by which one process alone looks after a run, serves it or evaluates it.

    launch/supervisor.lock   `train`, and then the supervisor that it hands the lock to
    launch/server.lock       the server of a launch
    launch/evaluator.lock    `eval`
    runs/.keeper             the keeper of a head's runs
    runs/NAME/.lock          `compare`

A hold is the kernel's, on an open file. It ends with its process, however that ends, and a copy of the file is none.
What the file says is for people, and for machines that do not see the lock: who has it, and by its time, which is
renewed every few seconds, that its process lives. A hold that was given up leaves an empty file.

It is an *open file description* lock (fcntl(2), F_OFD_SETLK). A POSIX lock ends when any descriptor of its file is
closed in the process, and no child can have it; this one goes on with a child that inherits the descriptor, without a
gap. A flock cannot be asked about without being taken, so that a look at a run might make a resume fail. On NFS, EFS
included, each of the three is a byte-range lock of the file server's, which ends some minutes after its machine.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
import struct
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from draco.errors import MissingError, RefusedError
from draco.files import write_all
from draco.runs.directory import process_start

SUPERVISOR, SERVER, EVALUATOR = (f"launch/{role}.lock" for role in ("supervisor", "server", "evaluator"))
BEAT_S = 5.0
_POLL_S, _NAMING_POLLS = 0.02, 10
_FLOCK = "hhqqi4x"  # struct flock: l_type, l_whence, l_start, l_len, l_pid
_WHOLE = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)


class Holder(NamedTuple):
    """Who has a hold, as its file says."""

    host: str
    boot: str  # of the kernel: containers of one machine have it in common, and see each other's locks
    pid: int
    started: str  # when that process began, in clock ticks since boot
    since: float  # seconds since the epoch

    def __str__(self) -> str:
        """Return it in words."""
        return f"process {self.pid} on {self.host} since {datetime.fromtimestamp(self.since, UTC):%Y-%m-%d %H:%M:%SZ}"


class Look(NamedTuple):
    """What is seen of a hold."""

    held: bool
    holder: Holder | None  # the last; None where the file is not there, or was left empty

    def __str__(self) -> str:
        """Return who has it, in words."""
        return str(self.holder or "another process")


class Hold:
    """A lock that this process has; entered, it is given up at the end."""

    def __init__(self, path: Path, descriptor: int) -> None:
        """Say who has the lock of that open file, and go on showing that it lives."""
        self.descriptor = descriptor
        os.set_inheritable(descriptor, False)
        me = Holder(socket.gethostname(), boot(), os.getpid(), process_start(os.getpid()), round(time.time(), 3))
        self._write(json.dumps(me._asdict()))
        self._ended = threading.Event()
        self._beating = threading.Thread(target=self._beat, name=f"beat of {path}", daemon=True)
        self._beating.start()

    def __enter__(self) -> "Hold":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Give it up; once is enough."""
        if not self._ended.is_set():
            self._write("")
            self.leave()

    def leave(self) -> None:
        """Leave it to a child that has inherited the descriptor."""
        self._ended.set()
        self._beating.join()
        os.close(self.descriptor)  # never unlocked: the lock is the child's too

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_S):
            with contextlib.suppress(OSError):
                os.utime(self.descriptor)

    def _write(self, text: str) -> None:
        """Replace what the file says, in place: another file under its name would not have the lock."""
        with contextlib.suppress(OSError):  # on a full disk nobody is named
            os.ftruncate(self.descriptor, 0)
            os.lseek(self.descriptor, 0, os.SEEK_SET)
            write_all(self.descriptor, text.encode())


def take(path: Path, refusal: str, wait_s: float = 0.0) -> Hold:
    """Take the lock of a file, which is made where it is missing.

    Args:
        path: the file.
        refusal: what is said where another process has it; its name follows.
        wait_s: how long to wait for that one.

    Raises:
        RefusedError: another process has it.
        MissingError: the file system has no locks.
    """
    path.parent.mkdir(exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        deadline = time.monotonic() + wait_s
        while not _locked(path, descriptor):
            if time.monotonic() >= deadline:
                raise RefusedError(f"{refusal} ({look(path)})")
            time.sleep(_POLL_S)
    except BaseException:
        os.close(descriptor)
        raise
    return Hold(path, descriptor)


def adopt(path: Path, descriptor: int) -> Hold:
    """Go on with the lock whose descriptor this process has inherited.

    Raises:
        RefusedError: the descriptor is of another file, or another process has the lock.
    """
    if not os.path.samestat(os.stat(path), os.fstat(descriptor)) or not _locked(path, descriptor):
        raise RefusedError(f"{path}: its lock was not handed over ({look(path)})")
    return Hold(path, descriptor)


def look(path: Path) -> Look:
    """Return what is seen of a hold, without touching it."""
    for _ in range(_NAMING_POLLS):
        found = _look(path)
        if found.holder or not found.held:
            break
        time.sleep(_POLL_S)  # it was taken this very moment, and its file does not yet say by whom
    return found


def _look(path: Path) -> Look:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # it was never taken, or nothing is to be seen from here
        return Look(False, None)
    try:
        with contextlib.suppress(OSError):
            found = struct.unpack(_FLOCK, fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, _WHOLE))
            return Look(found[0] != fcntl.F_UNLCK, _holder(descriptor))
        return Look(False, _holder(descriptor))
    finally:
        os.close(descriptor)


def forget(path: Path) -> None:
    """Empty the file of a hold that ended with its process."""
    if look(path).holder:
        with contextlib.suppress(OSError, RefusedError, MissingError):
            take(path, str(path)).release()


def boot() -> str:
    """Return what tells this machine's kernel, as it is booted now, from every other; empty where it does not."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def _locked(path: Path, descriptor: int) -> bool:
    """Try to lock an open file; say whether it is locked now."""
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _WHOLE)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise MissingError(
            f"{path}: its file system has no locks ({error.strerror}), without which two processes might go on with "
            "one run: keep runs on another, with --runs DIR"
        ) from error
    return True


def _holder(descriptor: int) -> Holder | None:
    """Return who an open file says has its lock."""
    try:
        said: dict[str, Any] = json.loads(os.pread(descriptor, 4096, 0))
        return Holder(str(said["host"]), str(said["boot"]), int(said["pid"]), str(said["started"]), said["since"] + 0.0)
    except (OSError, ValueError, TypeError, KeyError):
        return None
