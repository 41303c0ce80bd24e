"""Where ranks that talk without MPI are to meet: the address of their server, as torch.distributed's variables."""

import contextlib
import random
import socket
import zlib
from pathlib import Path

from draco.job import Job, transport
from draco.runs import spoken

HERE = "127.0.0.1"
# Of ranks, with MPI or without: firewalls between a head and its workers let them pass. They are below those that
# systems take for outgoing connections.
PORTS = range(20_000, 20_800)
_TRIES = 100


def environment(job: Job, run: Path, address: str, port: int | None = None) -> dict[str, str]:
    """Return what tells the ranks of a run, whose server has that address, where to meet; with MPI nothing does."""
    if transport(job) == "mpi" or job.launcher == "simulate":
        return {}
    return {spoken.NAME: "torch", "MASTER_ADDR": address, "MASTER_PORT": str(port or port_of(run.name))}


def port_of(name: str) -> int:
    """Return the port of a run of that name, which all its ranks find alike."""
    return PORTS[zlib.crc32(name.encode()) % len(PORTS)]


def free_port() -> int | None:
    """Return a port of this machine's at which nobody listens now; None where none was found."""
    for port in random.sample(PORTS, _TRIES):
        with contextlib.suppress(OSError), socket.create_server(("", port)):
            return port
    return None
