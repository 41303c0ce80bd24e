"""Facts that a node tells of itself before a run, and which of them must be the same on all nodes.

A check against mistakes, not against adversaries: a Byzantine node can say anything here.
"""

import hashlib
import json
import math
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from draco.code.discovery import is_installed

_PACKAGES = ("torch", "torchvision", "numpy", "mpi4py", "openmpi")
_SKEW_S = 5.0
Facts = Mapping[str, Any]


def facts(modules: Sequence[str] = ()) -> dict[str, Any]:
    """Return what is true of this process's machine, and which of some modules it lacks. Imports nothing large."""
    return {
        "draco": _sources(),
        "python": platform.python_version(),
        **{name: _version(name) for name in _PACKAGES},
        "time": time.time(),
        "sees_runs": _sees(Path("runs")),
        "reads_data": os.access("data", os.R_OK | os.X_OK),
        **({"lacks": [name for name in modules if not is_installed(name, [Path()])]} if modules else {}),
    }


def _sees(runs: Path) -> bool:
    """Say whether this node could read or write a run; an empty folder on a read-only disk is none."""
    return runs.is_dir() and (os.access(runs, os.W_OK) or any(runs.iterdir()))


def _sources() -> str:
    """Return a hash of Draco's own source files."""
    digest = hashlib.sha256()
    package = Path(__file__).parents[1]
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def faults(name: str, said: object, head: Facts) -> list[str]:
    """Return one sentence for everything in which a worker node is not as the head needs it.

    The node was asked not before head["asked"], where that is given, and has answered by head["time"].
    """
    if not isinstance(said, Mapping):
        return [f"{name}: its facts are not facts: {str(said)[:80]!r}"]
    out = [
        f"{name}: {what} is {str(said.get(what))[:80]}, on the head it is {head[what]}; all nodes must run the same "
        "image: make cluster-down, then make cluster-up"
        for what in ("draco", "python", *_PACKAGES)
        if said.get(what) != head[what]
    ]
    then, earliest, latest = said.get("time"), head.get("asked", head["time"]), head["time"]
    skew = then - min(max(then, earliest), latest) if isinstance(then, int | float) else math.nan
    if math.isnan(skew):
        out.append(f"{name}: it does not say what time it is")
    elif abs(skew) > _SKEW_S:
        out.append(f"{name}: its clock is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} the head's; set it")
    if said.get("sees_runs"):
        out.append(f"{name}: it can see the runs, which only the head may; make cluster-up mounts the storage again")
    if not said.get("reads_data"):
        out.append(f"{name}: it cannot read the data folder; make cluster-up mounts the storage again")
    return out


def lacking(said: object) -> list[str]:
    """Return the modules that a node says it lacks."""
    found = said.get("lacks") if isinstance(said, Mapping) else None
    return [name for name in found if isinstance(name, str)] if isinstance(found, list) else []


if __name__ == "__main__":
    json.dump(facts(sys.argv[1:]), sys.stdout)
