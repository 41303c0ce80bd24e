"""Where ranks meet without MPI: who each is, as its launcher says, and a TCP connection from each worker to the server.

The environment is torch.distributed's: RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT. mpirun and srun number their ranks
under names of their own. The server listens at MASTER_PORT. Where torchrun's agent listens there already, the server
takes any port, and says which in the agent's store (TORCHELASTIC_USE_AGENT_STORE).

A worker begins with a hello: a magic, a digest of the run's name and its rank. A connection that begins otherwise, or
names a rank that is there already, is closed. Whoever reaches the port first, and knows the run's name, can so pose as
a rank: launcher and network are trusted until all have met, as they are by Open MPI and torchrun. Then nobody listens.
"""

import hashlib
import os
import select
import socket
import struct
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING

from draco.errors import MissingError, WorkerError
from draco.runs import spoken
from draco.training.transport.contract import ranks

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]

_HELLO = struct.Struct("<8s16sq")
_MAGIC = b"draco-1\n"
_ALL_THERE_S = 1800.0  # a cold disk may take minutes to give torch; the supervisor ends what has stalled long before
_RETRY_S, _CONNECT_S = 0.02, 5.0
_STRANGERS = 1024  # connections at a time that have not said hello
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3))  # seconds; a cut is seen


def rank_and_size(environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """Return this process's rank and the number of ranks.

    Raises:
        MissingError: no launcher has said so.
    """
    for rank, size in spoken.NUMBERED:
        if rank in environment and size in environment:
            return int(environment[rank]), int(environment[size])
    raise MissingError("RANK and WORLD_SIZE are not set: no launcher says which rank this process is")


def gather(name: str, workers: int, environment: Mapping[str, str] = os.environ) -> list[socket.socket]:
    """Wait for the workers of the run of that name; return the connections of ranks 1, 2, ... in this order.

    Raises:
        MissingError: the server cannot listen at its address.
        WorkerError: some have not come.
    """
    agent = _agent(environment)
    host, port = _address(environment)
    with _door(host, 0 if agent else port) as door:
        if agent:
            agent.set("port", str(door.getsockname()[1]))
        found = _admitted(door, workers, _digest(name), time.monotonic() + _ALL_THERE_S)
    return [_tuned(found[rank]) for rank in range(1, workers + 1)]


def reach(name: str, rank: int, environment: Mapping[str, str] = os.environ) -> socket.socket:
    """Return a connection to the server of the run of that name, which may not be up yet.

    Raises:
        WorkerError: there is none.
    """
    agent = _agent(environment)
    host, port = _address(environment)
    if agent:
        port = int(agent.get("port"))
    deadline = time.monotonic() + _ALL_THERE_S
    while True:
        try:
            connection = socket.create_connection((host, port), _CONNECT_S)
            if connection.getsockname() != connection.getpeername():  # TCP lets a port be connected to itself
                connection.settimeout(None)
                connection.sendall(_HELLO.pack(_MAGIC, _digest(name), rank))
                return _tuned(connection)
            connection.close()
        except OSError as error:
            if time.monotonic() > deadline:
                raise WorkerError(f"rank {rank} has not reached the server at {host}:{port} ({error})") from error
        time.sleep(_RETRY_S)


def _address(environment: Mapping[str, str]) -> tuple[str, int]:
    try:
        return environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
    except (KeyError, ValueError) as error:
        raise MissingError(f"MASTER_ADDR and MASTER_PORT do not say where the server is ({error!r})") from error


def _agent(environment: Mapping[str, str]) -> "Store | None":
    """Return what torchrun's agent keeps for this start of its ranks; None where no agent does."""
    if environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

    host, port = _address(environment)
    store = TCPStore(host, port, is_master=False, timeout=timedelta(seconds=_ALL_THERE_S))
    start = "/".join(environment.get(f"TORCHELASTIC_{name}", "") for name in ("RUN_ID", "RESTART_COUNT"))
    return PrefixStore(f"draco/{start}", store)


def _digest(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()[:16]


def _door(host: str, port: int) -> socket.socket:
    """Listen; to this machine alone where the server's address is no other machine's either."""
    alone = host in ("localhost", "127.0.0.1")
    both = not alone and socket.has_dualstack_ipv6()
    try:
        return socket.create_server(
            ("127.0.0.1" if alone else "", port), family=socket.AF_INET6 if both else socket.AF_INET,
            dualstack_ipv6=both, backlog=4096,
        )  # fmt: skip
    except OSError as error:
        raise MissingError(f"{host}:{port}: the server cannot listen there ({error.strerror})") from error


def _admitted(door: socket.socket, workers: int, digest: bytes, deadline: float) -> dict[int, socket.socket]:
    """Return the connection of each rank once all have said hello; nobody is waited for alone."""
    found: dict[int, socket.socket] = {}
    strangers: dict[int, socket.socket] = {}
    while len(found) < workers:
        left = deadline - time.monotonic()
        if left <= 0:
            missing = {*range(1, workers + 1)} - found.keys()
            raise WorkerError(f"{ranks(missing)} have not come within {_ALL_THERE_S:.0f} s")
        heard = select.poll()
        for each in (door, *strangers.values()):
            heard.register(each, select.POLLIN)
        for number, _ in heard.poll(1000 * min(left, 1.0)):
            if number == door.fileno():
                connection, _ = door.accept()
                strangers[connection.fileno()] = connection
                if len(strangers) > _STRANGERS:
                    strangers.pop(next(iter(strangers))).close()
            elif number in strangers:
                connection = strangers.pop(number)
                rank = _rank_of(connection, digest)
                if rank in found or not 1 <= rank <= workers:
                    connection.close()
                else:
                    found[rank] = connection
    for stranger in strangers.values():
        stranger.close()
    return found


def _rank_of(connection: socket.socket, digest: bytes) -> int:
    """Return the rank in the hello that has come; 0 where it is none."""
    try:
        said = connection.recv(_HELLO.size, socket.MSG_DONTWAIT)
    except OSError:
        return 0
    if len(said) != _HELLO.size:
        return 0
    magic, run, rank = _HELLO.unpack(said)
    return int(rank) if (magic, run) == (_MAGIC, digest) else 0


def _tuned(connection: socket.socket) -> socket.socket:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE:
        connection.setsockopt(socket.IPPROTO_TCP, option, value)
    return connection
