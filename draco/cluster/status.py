"""What `make cluster-status` prints: nodes, health, image, and what the newest run is doing."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from draco.cluster.nodes import Cluster


def gather(
    cluster: Cluster, states: Mapping[str, str], images: Mapping[str, str], run: Mapping[str, Any] | None, room: str
) -> dict[str, Any]:
    """Return the whole status as plain values. `run` is None where the head does not answer, empty without runs."""
    return {
        "name": cluster.name,
        "cluster": cluster.backend,
        "created": cluster.created,
        "subnet": cluster.subnet,
        "room": room,
        "nodes": [
            {
                "name": node.name, "address": node.address, "state": states[node.name],
                "image": images.get(node.name, "").removeprefix("sha256:")[:12] or None,
            }
            for node in cluster.nodes
        ],
        "healthy": all(state == "running" for state in states.values()) and len(set(images.values())) < 2,
        "run": run,
    }  # fmt: skip


def table(status: Mapping[str, Any]) -> Table:
    """Return the nodes as a table."""
    out = Table("node", "state", "address", *(["image"] if any(n["image"] for n in status["nodes"]) else []), box=None)
    for node in status["nodes"]:
        style = "" if node["state"] == "running" else "red"
        out.add_row(
            node["name"], node["state"], node["address"], *([node["image"]] if node["image"] else []), style=style
        )
    return out


def run_line(run: Mapping[str, Any] | None) -> str:
    """Return what the newest run is doing, in one line."""
    if run is None:
        return "run: the head does not answer"
    if not run:
        return "run: none yet; make train JOB=jobs/quickstart.yaml"
    of = f"/{run['steps']}" if run["steps"] else ""
    rate = f"  {run['steps_per_s']:.1f} steps/s" if run["steps_per_s"] and run["state"] == "running" else ""
    suspects = ", ".join(map(str, run["suspects"])) or "none"
    why = f": {run['message']}" if run["message"] else ""
    return f"run: {run['run']}: {run['state']} at step {run['step']}{of}{why}{rate}  suspects: {suspects}"
