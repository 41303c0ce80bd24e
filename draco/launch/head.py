"""Services of the head to its operator: it checks its nodes, tells of its runs, records a lost one."""

import json
import statistics
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

from draco.errors import NotConfiguredError
from draco.launch import preflight, roster
from draco.launch.settle import settle
from draco.runs import directory as run_directory
from draco.runs.alive import is_supervised
from draco.runs.events import read as read_events
from draco.runs.expulsions import expulsions

_RECENT = 20  # steps over which rate and suspects are taken


def check() -> None:
    """Check every node, as before a run."""
    nodes = roster.read()
    if nodes is None:
        raise NotConfiguredError(f"{roster.PATH}: is not there: this is not the head of a cluster; make cluster-up")
    preflight.check(nodes)


def runs(root: Path) -> dict[str, Any]:
    """Return what the newest run is doing, as plain values; an empty dict where there is none."""
    found = run_directory.runs(root)
    if not found:
        return {}
    newest = found[-1]
    status = settle(newest, roster.read())
    supervised = is_supervised(newest)
    events = list(read_events(newest / "events.jsonl"))
    steps = [e for e in events if e["event"] == "step"][-_RECENT:]
    launches = [e for e in events if e["event"] == "relaunch"]
    gaps = [b["time"] - a["time"] for a, b in pairwise(steps) if b["step"] > a["step"]]
    suspects = Counter(rank for e in steps for rank in e.get("suspects", ()))
    return {
        "run": str(newest),
        # The state is that of one launch; while its supervisor lives the run may be launched again.
        "state": "running" if supervised and status.state in ("interrupted", "failed", "lost") else status.state,
        "message": status.message,
        "step": steps[-1]["step"] if steps else status.step,
        "steps": next((e.get("steps") for e in reversed(events) if e["event"] == "start"), None),
        "steps_per_s": round(1 / statistics.median(gaps), 3) if gaps and statistics.median(gaps) > 0 else None,
        "suspects": sorted(suspects),
        "lost": steps[-1].get("lost", []) if steps else [],
        "straggling": steps[-1].get("straggling", []) if steps else [],
        "copies": steps[-1].get("copies") if steps else None,
        "expelled": list(expulsions(events)),
        "supervised": supervised,
        "interruptions": sum(e["event"] == "interruption" for e in events),
        "without": dict(launches[-1].get("without", {})) if launches and supervised else {},
        "others": len(found) - 1,
    }


def lost(run: Path, why: str) -> str:
    """Record that a run went with its head, and return its status as JSON."""
    return json.dumps(settle(run, lost={"head": why})._asdict())
