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
SPARES = "DRACO_SPARES_OTHERS"  # set: what has started the ranks would end all if a worker ended badly
SERVES = "draco-forks"  # what the system calls a server that has imported all, and what is forked from it
MESSAGE_BYTES = 1 << 20
_BACKLOG = 1024  # ranks that may ask before it has imported torch
_UP_WITHIN_S, _DOWN_WITHIN_S = 5.0, 1.0
_SIGNALS = (
    signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT,
)  # fmt: skip


class ForkServer:
    """A fork server of this machine's, for the launches of one supervisor; it ends with the `with` block."""

    def __init__(self, environment: Mapping[str, str], python: str = sys.executable) -> None:
        """Start it: it imports torch while its user prepares the run. `environment` is that of its ranks."""
        self.name, self.environment = secrets.token_hex(16), dict(environment)
        self._process = start(self.name, environment, python)

    def __enter__(self) -> str:
        return self.name

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):  # ranks are left, which it stays with
            self._process.wait(_DOWN_WITHIN_S)


def start(
    name: str, environment: Mapping[str, str], python: str = sys.executable, errors: int | None = None
) -> subprocess.Popen[bytes]:
    """Start a fork server of that name; from now on it can be asked, though it answers once it has imported torch.

    Raises:
        OSError: there is one of that name, or none can be had here.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as door:
        door.bind(address(name))
        door.listen(_BACKLOG)
        return subprocess.Popen(
            [python, "-m", "draco.launch.fork_server", str(door.fileno()), MODULE, name], env=dict(environment),
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True,
            pass_fds=[door.fileno()],
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
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # what comes from now on is for the rank
    try:
        connection = _connect(name)
        refused = _ask(connection, run, simulate)
    except (OSError, ValueError) as error:
        refused = str(error)
    if not refused:
        _represent(connection)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    sys.stderr.write(f"the fork server is of no use ({refused}): importing torch anew\n")


def _connect(name: str) -> socket.socket:
    """Return a connection to the server of that name, which is started where this node has none.

    Raises:
        OSError: it cannot be reached, or is another user's.
    """
    deadline = time.monotonic() + _UP_WITHIN_S
    while True:
        with contextlib.suppress(OSError):  # there is one, as a rule
            # Its errors are no rank's: it would keep the stream open that tells mpirun whether one still prints.
            start(name, os.environ, errors=subprocess.DEVNULL)
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            connection.connect(address(name))
            if same_user(connection) is None:
                raise PermissionError("it is another user's")
        except OSError as error:
            connection.close()
            if not isinstance(error, ConnectionRefusedError) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)  # another rank has made the socket and does not listen at it yet
        else:
            return connection


def _ask(connection: socket.socket, run: Path, simulate: bool) -> str:
    """Ask for a rank; return why there is none, or nothing."""
    mask = os.umask(0)
    os.umask(mask)
    asked = {
        "run": str(run), "simulate": simulate, "folder": os.getcwd(), "mask": mask, "environment": dict(os.environ),
    }  # fmt: skip
    socket.send_fds(connection, [json.dumps(asked).encode()], [0, 1, 2])
    answer = connection.recv(MESSAGE_BYTES)
    return str(json.loads(answer)["refused"]) if answer else "it has ended"


def _represent(connection: socket.socket) -> NoReturn:
    """Pass signals on to the rank, and end as it ends."""

    def pass_on(number: int, frame: object) -> None:
        del frame
        with contextlib.suppress(OSError):
            connection.send(str(number).encode())

    for number in _SIGNALS:
        signal.signal(number, pass_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    answer = b""
    with contextlib.suppress(OSError):
        answer = connection.recv(MESSAGE_BYTES)
    if not answer:
        sys.stderr.write("the fork server has ended, and with it this rank\n")
        _die(signal.SIGKILL)
    status = int(json.loads(answer)["status"])
    if os.environ.get(SPARES):
        spare(status)
    if os.WIFSIGNALED(status):
        _die(os.WTERMSIG(status))
    os._exit(os.WEXITSTATUS(status))


def spare(status: int) -> None:
    """Of a process that stands for a rank: say that it was killed, as mpirun would; for a worker, end well."""
    rank = os.environ.get("RANK", "")
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) != signal.SIGTERM:  # by which torchrun ends those that are left
        where = f"rank {rank} on {socket.gethostname()}"
        sys.stdout.write(f"draco: {where} was killed by signal {os.WTERMSIG(status)}\n")
        sys.stdout.flush()
    if rank != "0":
        os._exit(0)


def _die(number: int) -> NoReturn:
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    signal.pause()
    os._exit(1)
