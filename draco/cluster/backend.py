"""A cluster as named nodes, the interface of every kind of node, and the table of kinds.

A backend is a module with the functions of `Backend`. It makes bare nodes and says how to reach them. Ansible turns
them into an MPI cluster, and the launcher on the head starts jobs. Nothing above a backend knows what a node is.
"""

import importlib
from collections import UserDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, cast

from draco.cluster.eviction import Eviction
from draco.errors import MissingError

if TYPE_CHECKING:
    from rich.console import Console

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
    backend: str  # key of KINDS
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


class Offer(NamedTuple):
    """An offer of nodes for money, to which the user agrees or not."""

    agreed: Any  # becomes Request.agreed once the user has agreed
    question: str  # empty: nothing would be started, so there is nothing to ask


class Request(NamedTuple):
    """The user's request; a backend ignores the values that do not apply to it."""

    name: str
    workers: int = 3  # worker nodes; the head comes on top
    image: str = "draco:latest"
    cpus: float | None = None  # limit for each node; None: the machine's cores divided by the nodes, at least 1
    memory_mb: int | None = None  # limit for each node; None: no limit
    inventory: Path | None = None  # of somebody's own machines
    settings: tuple[str, ...] = ()  # key=value, of a cloud's
    on_demand: bool = False  # nodes that a cloud's spot market cannot replace may be bought on demand, this once
    agreed: Any = None  # Offer.agreed, read by the backend alone; None: the kind makes no offers


def quietly(what: str) -> None:
    """Tell nobody."""


class Backend(Protocol):
    """The functions of a kind's module."""

    def up(self, request: Request, folder: Path, say: Say = quietly) -> Cluster:
        """Make or start every node that is missing and return the cluster once all of them can be reached.

        A second call changes nothing. `folder` is the cluster's own folder, for keys and the like.

        Raises:
            MissingError: this machine lacks something that the nodes need.
            RefusedError: the request contradicts the cluster that is there already.
            NoCapacityError: a cloud has no such machines now.
        """

    def down(self, cluster: Cluster, folder: Path, say: Say = quietly) -> None:
        """Remove nodes, networks and keys, as far as they exist; keep the storage.

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

    def eviction(self, cluster: Cluster, folder: Path, node: str, notice_s: float) -> Eviction:
        """Return how a worker node is taken away, `notice_s` seconds after a notice; nothing is done yet.

        Raises:
            RefusedError: this node cannot be evicted, or not with such a notice.
        """


class Paid(Backend, Protocol):
    """The functions of the module of a kind that costs money."""

    def offer(self, request: Request, folder: Path, console: "Console") -> Offer:
        """Print what `up` would start and what it costs. `up` starts what was agreed to, at that price, or refuses.

        Raises:
            RefusedError: the request is wrong, or costs more than it allows.
            NoCapacityError, MissingError: there is nowhere to start it, or a quota falls short.
        """

    def replacing(self, cluster: Cluster) -> str:
        """Return the price of replacing a lost node, in words; empty where it is unknown."""


class Kind(NamedTuple):
    """One kind of cluster."""

    module: str  # imported when it is asked for
    is_borrowed: bool = False  # somebody's own machines, which go on after `down` and whose storage is not ours
    is_paid: bool = False  # costs money, takes settings, and has the functions of Paid


KINDS: Mapping[str, Kind] = {  # by the word that CLUSTER= takes
    "docker": Kind("draco.cluster.docker"),
    "netns": Kind("draco.cluster.netns"),
    "ssh": Kind("draco.cluster.ssh", is_borrowed=True),
    "aws": Kind("draco.cluster.aws.backend", is_paid=True),
}


class _Imported(UserDict[str, Any]):
    """Modules by their kinds."""

    def __getitem__(self, kind: str) -> Any:
        found = super().__getitem__(kind)
        if not isinstance(found, str):
            return found
        try:
            return importlib.import_module(found)
        except ModuleNotFoundError as error:
            raise MissingError(
                f"CLUSTER={kind} needs {error.name}, which is not here; make setup EXTRAS=cluster"
            ) from error


BACKENDS: Mapping[str, Backend] = _Imported({kind: each.module for kind, each in KINDS.items()})


def named(kind: str) -> Backend:
    """Return the backend of a kind.

    Raises:
        MissingError: there is no such kind.
    """
    if kind not in BACKENDS:
        raise MissingError(f"CLUSTER={kind}: there are {', '.join(BACKENDS)}")
    return BACKENDS[kind]


def paid(kind: str) -> Paid | None:
    """Return the backend of a kind that costs money; None: it costs nothing.

    Raises:
        MissingError: there is no such kind.
    """
    found = named(kind)
    return cast(Paid, found) if KINDS[kind].is_paid else None


def names(workers: int) -> tuple[str, ...]:
    """Return the names of a cluster's nodes, head first.

    >>> names(2)
    ('head', 'worker-01', 'worker-02')
    """
    return (HEAD, *(f"worker-{i:02d}" for i in range(1, workers + 1)))
