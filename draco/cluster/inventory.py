"""Ansible's inventory of a cluster: one pure function for every kind of node. Ranks are in this order, head first."""

from collections.abc import Mapping
from typing import Any

from draco.cluster.backend import HEAD, KINDS, Cluster

SSH_PORT = 2222  # of the ranks' own sshd


def inventory(cluster: Cluster, connections: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the inventory as Ansible's YAML has it; `connections` holds each node's connection variables."""
    gpus = cluster.details.get("gpus", {})  # that nodes should have; others are counted
    hosts = {
        node.name: {
            **({"draco_gpus": gpus[node.name]} if node.name in gpus else {}),
            **connections[node.name],
            "draco_address": node.address,
        }
        for node in cluster.nodes
    }
    shared = {
        "draco_cluster": cluster.name,
        "draco_subnet": cluster.subnet,
        "draco_runtime": cluster.runtime,
        "draco_python": cluster.python,
        "draco_user": cluster.user,
        "draco_ssh_port": SSH_PORT,
        "storage_kind": "local" if KINDS[cluster.backend].is_borrowed else "given",
        **cluster.details.get("inventory_variables", {}),
    }
    workers = {name: values for name, values in hosts.items() if name != HEAD}
    return {
        "all": {"vars": shared, "children": {"head": {"hosts": {HEAD: hosts[HEAD]}}, "workers": {"hosts": workers}}}
    }
