"""The way to a fork server: who starts it and ends it, and how a process that mpirun started becomes its child.

Nothing large is imported here: this is all that a rank's representative is made of. fork_server.py says how the two
work together.
"""

import contextlib
import json
import os
import secrets
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

MODULE = "draco.training.process"  # what ranks are made of
NAME = "DRACO_FORK_SERVER"  # the environment variable that tells ranks of their server; without it they start plainly
MESSAGE_BYTES = 1 << 20
_UP_WITHIN_S = 60.0  # from the first attempt to reach it; it listens at once, before it imports anything large
_DOWN_WITHIN_S = 1.0
_SIGNALS = (
    signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT,
)  # fmt: skip


class ForkServer:
    """A fork server of this machine's, for the launches of one supervisor; it ends with the `with` block."""

    def __init__(self, environment: Mapping[str, str], python: str = sys.executable) -> None:
        """Start it: it imports torch while its user prepares the run. `environment` is that of its ranks."""
        self.name = secrets.token_hex(16)
        self._process = start(self.name, environment, python)

    def __enter__(self) -> str:
        return self.name

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):  # ranks are left, which it stays with
            self._process.wait(_DOWN_WITHIN_S)


def start(name: str, environment: Mapping[str, str], python: str = sys.executable) -> subprocess.Popen[bytes]:
    """Start a fork server of that name, which ends at once where there is one."""
    return subprocess.Popen(
        [python, "-m", "draco.launch.fork_server", name, MODULE], env=dict(environment), stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip


def address(name: str) -> str:
    """Return the address of a server's socket, in Linux's abstract namespace."""
    return f"\0draco-{name}"


def same_user(connection: socket.socket) -> int | None:
    """Return the process id of the other side; None where it is another user's."""
    pid, user, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(pid) if user == os.geteuid() else None


def run_forked(run: Path, simulate: bool) -> None:
    """Let a child of the fork server be this rank, and end as it ends; return where there is no server.

    Where a server was announced and cannot do it that is said on stderr.
    """
    name = os.environ.get(NAME)
    if not name:
        return
    connection = None
    try:
        connection = _connect(name)
        said = _ask(connection, run, simulate)
    except (OSError, ValueError) as error:
        said = {"refused": str(error)}
    if connection is None or "pid" not in said:
        sys.stderr.write(f"the fork server is of no use ({said['refused']}): importing torch anew\n")
        return
    _represent(connection)


def _connect(name: str) -> socket.socket:
    """Return a connection to the server of that name, which is started where there is none.

    Raises:
        OSError: it cannot be reached, or is another user's.
    """
    started: subprocess.Popen[bytes] | None = None
    deadline = time.monotonic() + _UP_WITHIN_S
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            connection.connect(address(name))
        except ConnectionRefusedError:
            connection.close()
            if time.monotonic() > deadline or (started and started.poll()):
                raise
            started = started or start(name, os.environ)
            time.sleep(0.01)
            continue
        if same_user(connection) is None:
            raise PermissionError("it is another user's")
        return connection


def _ask(connection: socket.socket, run: Path, simulate: bool) -> dict[str, int | str]:
    mask = os.umask(0)
    os.umask(mask)
    asked = {
        "run": str(run), "simulate": simulate, "folder": os.getcwd(), "mask": mask, "environment": dict(os.environ),
    }  # fmt: skip
    for number in _SIGNALS:  # what comes until there is a rank is for the rank
        signal.signal(number, lambda *_: None)
    socket.send_fds(connection, [json.dumps(asked).encode()], [0, 1, 2])
    answer = connection.recv(MESSAGE_BYTES)
    return dict(json.loads(answer)) if answer else {"refused": "it has ended"}


def _represent(connection: socket.socket) -> NoReturn:
    """Pass signals on to the rank, and end as it ends."""

    def pass_on(number: int, frame: object) -> None:
        del frame
        with contextlib.suppress(OSError):
            connection.send(str(number).encode())

    for number in _SIGNALS:
        signal.signal(number, pass_on)
    answer = b""
    with contextlib.suppress(OSError):
        answer = connection.recv(MESSAGE_BYTES)
    if not answer:
        sys.stderr.write("the fork server has ended, and with it this rank\n")
        _die(signal.SIGKILL)
    status = int(json.loads(answer)["status"])
    if os.WIFSIGNALED(status):
        _die(os.WTERMSIG(status))
    os._exit(os.WEXITSTATUS(status))


def _die(number: int) -> NoReturn:
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    signal.pause()
    os._exit(1)
