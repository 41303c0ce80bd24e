"""The fork server of a node: it has imported torch once, and the ranks of the node are forked from it.

python -m draco.launch.fork_server SOCKET MODULE NAME

SOCKET is the descriptor of the socket that it listens at, MODULE what the ranks are made of: its `load` is called once,
before the first fork, and its `main` in every rank. NAME is for whoever looks for it among the processes.

Importing torch costs about a second of a core, and ten ranks on two cores waited five seconds for it. What mpirun
starts as a rank (`draco rank`, see fork_client.py) asks the server for a child instead, and hands it its own
environment, folder and standard streams. The child then is the rank. What mpirun started stays beside it as its
representative:

- a signal that reaches the representative is passed on to the rank; one that is stopped stops the rank (_STOPS_S);
- a rank that ends lets its representative end in the same way, by the same exit code or signal;
- a representative that ends lets its rank be killed, and so does the end of this server.

So mpirun, `draco stop` and the judge see what they would have seen without it. The socket's name is abstract: it is of
one network namespace, which is one node, and leaves no file behind. Both sides look at the other's user.

A server ends upon SIGTERM once it has no rank, and by itself when it has none, whoever started it has gone, and nobody
has asked for a while: on a node it outlives a launch that was lost for as long as the next one takes to come.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from draco.launch.fork_client import MESSAGE_BYTES, SERVES, same_user

_LINGER_S = 30.0
_STOPS_S = 0.25  # between looks at whether a representative was stopped
_PR_SET_PDEATHSIG = 1
# What libraries read when they are loaded: a rank that wants another value of one of these is not forked.
_READ_AT_IMPORT = (
    "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "GOTO_", "BLIS_", "VECLIB_", "THP_", "MALLOC_", "GLIBC_",
    "LD_PRELOAD", "PYTHON", "TORCH", "PYTORCH_", "ATEN_", "DNNL_", "ONEDNN_", "NUMPY_", "NPY_", "MPI4PY_",
)  # fmt: skip
# What torchrun tells its ranks, and where torch.compile keeps its files, which torch itself may set at any time.
_READ_LATER = ("TORCHELASTIC_", "TORCH_ELASTIC_", "TORCH_NCCL_", "TORCHINDUCTOR_CACHE_DIR")


@dataclass
class _Rank:
    """A rank and its representative."""

    connection: socket.socket
    representative: int  # process id
    asked: bool = False
    pid: int = 0  # of the rank while there is one
    stopped: bool = False


@dataclass
class Request:
    """What a representative hands over."""

    run: str  # its directory
    simulate: bool
    folder: str
    mask: int
    environment: dict[str, str]
    streams: list[int]


def main(door: socket.socket, module: str) -> None:
    """Serve until nobody needs it; in a rank, be that rank."""
    signal.pthread_sigmask(signal.SIG_SETMASK, [])  # a representative that starts it has signals blocked
    started_by = os.getppid()
    os.chdir("/")
    imported = importlib.import_module(module)
    imported.load()
    gc.collect()
    gc.freeze()  # the ranks share these pages as long as nothing writes to them
    Path("/proc/self/comm").write_text(SERVES)  # who waits for it looks there (pulse.py)
    request = _serve(door, started_by)
    if request is None:
        os._exit(0)  # without the time that torch takes to clear up: whoever told it to end waits
    _be(imported.main, request)


def _serve(door: socket.socket, started_by: int) -> Request | None:
    """Answer representatives; return None at the end, and in a child what it is to be."""
    ranks: dict[int, _Rank] = {}  # by the descriptor of the connection
    ended, wakes = socket.socketpair()
    for end in (ended, wakes):
        end.setblocking(False)
    told = []
    signal.signal(signal.SIGTERM, lambda *_: told.append(True))
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wakes.fileno(), warn_on_full_buffer=False)
    events = selectors.DefaultSelector()
    events.register(door, selectors.EVENT_READ)
    events.register(ended, selectors.EVENT_READ)
    asked = time.monotonic()
    while True:
        ready = events.select(_STOPS_S)
        for key, _ in ready:
            if key.fileobj is door:
                connection, _address = door.accept()
                user = same_user(connection)
                if user is None:
                    connection.close()
                    continue
                ranks[connection.fileno()] = _Rank(connection, user)
                events.register(connection, selectors.EVENT_READ)
                asked = time.monotonic()
            elif key.fileobj is ended:
                with contextlib.suppress(BlockingIOError):
                    ended.recv(4096)
            elif (rank := ranks.get(key.fd)) is not None:
                request = _hear(rank)
                if request is None:
                    events.unregister(rank.connection)
                    rank.connection.close()
                    del ranks[key.fd]
                    _kill(rank.pid, signal.SIGKILL)
                elif isinstance(request, Request) and _forked(rank, request):
                    events.close()
                    for each in (door, ended, wakes, *(other.connection for other in ranks.values())):
                        each.close()
                    return request
        _reap(ranks)
        _pass_stops_on(ranks)
        forgotten = os.getppid() != started_by and time.monotonic() - asked > _LINGER_S
        if not ranks and (told or forgotten):
            return None


def _hear(rank: _Rank) -> Request | bool | None:
    """Return what a representative asks for; True once a signal of it is passed on, None where it has gone."""
    streams: list[int] = []
    try:
        message, streams, _, _ = socket.recv_fds(rank.connection, MESSAGE_BYTES, 3)
    except OSError:
        message = b""
    if not message:
        return None
    if rank.asked:
        _kill(rank.pid, int(message))
        return True
    rank.asked = True
    said: dict[str, Any] = json.loads(message)
    return Request(said["run"], said["simulate"], said["folder"], said["mask"], said["environment"], streams)


def _forked(rank: _Rank, request: Request) -> bool:
    """Fork the rank and tell its representative; return True in the child."""
    differ = _differing(os.environ, request.environment)
    if differ:
        _tell(rank, refused=f"it has other values of {', '.join(differ)}")
    else:
        sys.stdout.flush()
        sys.stderr.flush()
        server, every = os.getpid(), signal.valid_signals()
        signal.pthread_sigmask(signal.SIG_BLOCK, every)  # none is to meet a child that still has the server's handlers
        try:
            rank.pid = os.fork()
        except OSError as error:
            _tell(rank, refused=f"it cannot fork ({error.strerror})")
        if not rank.pid and os.getpid() != server:
            _end_with(server)
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # as in `draco rank`
            signal.pthread_sigmask(signal.SIG_UNBLOCK, every)
            return True
        signal.pthread_sigmask(signal.SIG_UNBLOCK, every)
        if rank.pid:
            _tell(rank, refused="")
    for stream in request.streams:
        os.close(stream)
    return False


def _differing(mine: Mapping[str, str], wanted: Mapping[str, str]) -> list[str]:
    """Return the names of what libraries read as they are loaded and which is not the same in both environments."""
    names = {name for name in (*mine, *wanted) if name.startswith(_READ_AT_IMPORT)}
    names = {name for name in names if not name.startswith(_READ_LATER)}
    return sorted(name for name in names if mine.get(name) != wanted.get(name))


def _end_with(server: int) -> None:
    """Let the kernel kill this process when the server's ends."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != server:
        os._exit(1)


def _reap(ranks: Mapping[int, _Rank]) -> None:
    """Tell the representatives of ranks that have ended how they did."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        for rank in ranks.values():
            if rank.pid == pid:
                rank.pid = 0
                _tell(rank, status=status)


def _pass_stops_on(ranks: Mapping[int, _Rank]) -> None:
    """Stop the ranks whose representative was stopped, which no process can catch, and let them go on with it."""
    for rank in ranks.values():
        stopped = rank.pid > 0 and _is_stopped(rank.representative)
        if stopped != rank.stopped:
            _kill(rank.pid, signal.SIGSTOP if stopped else signal.SIGCONT)
            rank.stopped = stopped


def _is_stopped(pid: int) -> bool:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat") as stat:
        return stat.read().rsplit(")", 1)[1].split()[0] == "T"
    return False


def _tell(rank: _Rank, **said: int | str) -> None:
    with contextlib.suppress(OSError):  # it has gone, which is seen next
        rank.connection.send(json.dumps(said).encode())


def _kill(pid: int, number: int) -> None:
    """Send a signal to a rank that this process has not reaped."""
    if pid:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _be(main: Callable[[Path, bool], None], request: Request) -> NoReturn:
    """Be the process that the representative was to be."""
    for number, stream in enumerate(request.streams):
        os.dup2(stream, number)
    for stream in request.streams:
        if stream > 2:
            os.close(stream)
    os.environ.clear()
    os.environ.update(request.environment)
    os.umask(request.mask)
    code = 0
    try:
        os.chdir(request.folder)
        main(Path(request.run), request.simulate)
    except SystemExit as end:  # which has said why
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])), sys.argv[2])
