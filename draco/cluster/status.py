"""The status of a cluster: nodes, health, image, and the newest run; printed by `make cluster-status`."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from draco.cluster.backend import Cluster
from draco.cluster.gpus import Gpu, words
from draco.launch.progress import absent, price


def gather(
    cluster: Cluster,
    states: Mapping[str, str],
    images: Mapping[str, str],
    run: Mapping[str, Any] | None,
    room: str,
    notes: Mapping[str, Any] = {},
    gpus: Mapping[str, Sequence[Gpu]] = {},
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
                **({"gpus": [each._asdict() for each in gpus[node.name]]} if node.name in gpus else {}),
            }
            for node in cluster.nodes
        ],
        "healthy": all(state == "running" for state in states.values()) and len(set(images.values())) < 2,
        "run": run,
        **({"notes": dict(notes)} if notes else {}),
    }  # fmt: skip


def table(status: Mapping[str, Any]) -> Table:
    """Return the nodes as a table."""
    optional = {
        "image": [node["image"] for node in status["nodes"]],
        "GPUs": [words([Gpu(**each) for each in node["gpus"]]) if "gpus" in node else "" for node in status["nodes"]],
    }
    shown = {column: cells for column, cells in optional.items() if any(cells)}
    out = Table("node", "state", "address", *shown, box=None)
    for i, node in enumerate(status["nodes"]):
        style = "" if node["state"] == "running" else "red"
        out.add_row(node["name"], node["state"], node["address"], *(cells[i] for cells in shown.values()), style=style)
    return out


def note_lines(notes: Mapping[str, Any]) -> list[str]:
    """Return the lines about a cloud's cluster: place, cost, end, and notices."""
    if not notes:
        return []
    money = [f"about ${notes[key]:.2f}{words}" for key, words in (("spent", " so far"), ("per_hour", " per hour"))
             if notes[key] is not None]  # fmt: skip
    left = notes["hours_left"]
    ends = f"ends itself in {left:.1f} h ({notes['expires_at']})" if left > 0 else f"expired at {notes['expires_at']}"
    markets = {market: sum(each == market for each in notes["market"].values()) for market in notes["market"].values()}
    lines = [
        f"{notes['zone']}: {', '.join(f'{count} {market}' for market, count in sorted(markets.items()))} nodes, "
        f"workers {notes['type']}; {', '.join([*money, ends])}; make extend HOURS=2 puts it off"
    ]
    if notes["ended"]:
        lines.append(f"the head ended it: {notes['ended']}")
    taken = {node: code for node, code in notes["notices"].items() if code != "fulfilled"}
    return lines + [f"notice: {node}: {code}" for node, code in sorted(taken.items())]


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
    survived = f"  interruptions: {run['interruptions']}" if run.get("interruptions") else ""
    out = f"  without {', '.join(run['without'])}" if run.get("without") else ""
    who = f"suspects: {suspects}{absent(run) if run['state'] == 'running' else ''}"
    who += price(run, run.get("expelled") or ())
    return f"run: {run['run']}: {run['state']} at step {run['step']}{of}{why}{rate}  {who}{survived}{out}"
