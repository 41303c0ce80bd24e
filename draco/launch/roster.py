"""The roster: which nodes a head can start ranks on. Ansible writes it; without one, all runs on this machine."""

import json
from pathlib import Path
from typing import NamedTuple

from draco.errors import NotConfiguredError

PATH = Path("/etc/draco/cluster.json")


class Host(NamedTuple):
    """One node."""

    name: str
    address: str
    cores: int
    gpus: int | None = None  # None: nobody counted


class Roster(NamedTuple):
    """A cluster as its head sees it."""

    name: str
    subnet: str  # CIDR of the network that carries MPI
    python: str  # the ranks' Python on every node
    ssh_config: str  # how the head reaches the workers
    nodes: tuple[Host, ...]  # head first


def read(path: Path = PATH) -> Roster | None:
    """Return this machine's roster, or None where it is not the head of a cluster.

    Raises:
        NotConfiguredError: there is one that cannot be understood.
    """
    if not path.exists():
        return None
    return parse(path.read_text(), str(path))


def parse(text: str, where: str) -> Roster:
    """Return the roster in the JSON text that Ansible wrote."""
    try:
        values = json.loads(text)
        nodes = tuple(
            Host(node["name"], node["address"], int(node["cores"]), node.get("gpus")) for node in values.pop("nodes")
        )
        if not nodes:
            raise ValueError("no nodes")
        return Roster(nodes=nodes, **values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise NotConfiguredError(f"{where}: is not a roster ({error!r}); make cluster-up writes it anew") from error
