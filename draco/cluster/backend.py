"""What a cluster is: named nodes, head first, and the one interface through which every kind of node is reached.

A backend is a module with the functions of `Backend`. It makes bare nodes and says how to reach them; Ansible turns
them into an MPI cluster, and the launcher on the head starts jobs. Nothing above a backend knows what a node is.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from draco.launch.notices import PATH

HEAD = "head"
State = Literal["running", "paused", "stopped", "missing", "unreachable"]
Runtime = Literal["node", "host", "container"]
Say = Callable[[str], None]  # tells the user what is being done


class Node(NamedTuple):
    """One machine of a cluster."""

    name: str  # head, worker-01, worker-02 ...
    address: str  # by which the other nodes reach it


class Cluster(NamedTuple):
    """A cluster that is up, as kept in cluster.json."""

    name: str
    backend: str  # key of BACKENDS
    nodes: tuple[Node, ...]  # head first; MPI ranks are dealt out in this order
    subnet: str  # CIDR of the network that carries MPI
    runtime: Runtime  # where ranks run: in the node itself, on the host, or in a container on the host
    python: str  # path of the ranks' Python
    user: str  # who runs the ranks
    created: str  # ISO 8601
    details: Mapping[str, Any]  # what only the backend reads

    @property
    def head(self) -> Node:
        """The node that holds the server and the runs."""
        return self.nodes[0]

    @property
    def workers(self) -> tuple[Node, ...]:
        """The nodes that hold worker ranks."""
        return self.nodes[1:]


class Request(NamedTuple):
    """What the user asked for; a backend ignores what does not apply to it."""

    name: str
    workers: int = 3  # worker nodes; the head comes on top
    image: str = "draco:latest"
    cpus: float | None = None  # limit for each node; None: the machine's cores divided by the nodes, at least 1
    memory_mb: int | None = None  # limit for each node; None: no limit
    inventory: Path | None = None  # of somebody's own machines
    settings: tuple[str, ...] = ()  # key=value, of a cloud's
    on_demand: bool = False  # nodes that a cloud's spot market cannot replace may be bought on demand, this once


def writing(notice: str) -> list[str]:
    """Return the command that puts a notice in its place, on the node and by root; the head never sees half of it."""
    script = f'mkdir -p {os.path.dirname(PATH)} && printf "%s\\n" "$1" > {PATH}.new && mv {PATH}.new {PATH}'
    return ["sh", "-c", f"umask 022 && {script}", "sh", notice]


def quietly(what: str) -> None:
    """Tell nobody."""


class Backend(Protocol):
    """The functions that a module in BACKENDS has."""

    def up(self, request: Request, folder: Path, say: Say = quietly) -> Cluster:
        """Make or start every node that is missing and return the cluster once all of them can be reached.

        A second call changes nothing. `folder` is the cluster's own folder, for keys and the like.

        Raises:
            MissingError: this machine lacks something that the nodes need.
            RefusedError: the request contradicts the cluster that is there already.
            NoCapacityError: a cloud has no such machines now.
        """

    def down(self, cluster: Cluster, folder: Path, say: Say = quietly) -> None:
        """Remove nodes, networks and keys, whatever of them is left; keep the storage.

        Raises:
            LeftoversError: something is left that costs money.
        """

    def purge(self, name: str, folder: Path, say: Say = quietly) -> None:
        """Remove the storage of a cluster that is down: its runs and data."""

    def notes(self, cluster: Cluster, folder: Path) -> dict[str, Any]:
        """Return what else a status says, such as costs; empty where there is nothing."""

    def states(self, cluster: Cluster, folder: Path) -> dict[str, State]:
        """Return the state of every node, without waiting for any for long."""

    def command(
        self, cluster: Cluster, folder: Path, node: str, argv: Sequence[str], *, terminal: bool = False
    ) -> list[str]:
        """Return the local command that runs `argv` on a node as the ranks' user, in the storage's folder."""

    def storage_command(self, cluster: Cluster, folder: Path, argv: Sequence[str]) -> list[str] | None:
        """Return the local command that runs `argv` beside the runs though the head is gone, or None if none can."""

    def connection(self, cluster: Cluster, folder: Path, node: str) -> dict[str, Any]:
        """Return Ansible's connection variables for a node."""

    def images(self, cluster: Cluster, folder: Path) -> dict[str, str]:
        """Return the digest of the image that each node runs; empty where nodes have none."""

    def announce(self, cluster: Cluster, folder: Path, node: str, notice: str) -> None:
        """Put a notice on a node, where its head reads it: launch/notices.py has its path and form."""

    def kill(self, cluster: Cluster, folder: Path, node: str) -> None:
        """End a node as a spot interruption does: at once."""

    def pause(self, cluster: Cluster, folder: Path, node: str) -> None:
        """Freeze a node: it holds its connections and says nothing."""

    def resume(self, cluster: Cluster, folder: Path, node: str) -> None:
        """Undo `pause`, if it is not undone."""

    def cut(self, cluster: Cluster, folder: Path, node: str) -> None:
        """Take a node off the network; its processes go on."""

    def heal(self, cluster: Cluster, folder: Path, node: str) -> None:
        """Undo `cut`, if it is not undone."""


def names(workers: int) -> tuple[str, ...]:
    """Return the names of a cluster's nodes, head first.

    >>> names(2)
    ('head', 'worker-01', 'worker-02')
    """
    return (HEAD, *(f"worker-{i:02d}" for i in range(1, workers + 1)))
