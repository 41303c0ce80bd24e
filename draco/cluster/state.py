"""The records of clusters: .clusters/<name>/ holds cluster.json, keys, the inventory and Ansible's log.

Beside it .clusters/<name>.kinds lists the kinds of which it was brought up here. The list is written before a start
and outlives `cluster-down`. So the remains of a broken start are found, and the storage of a cluster that is down.
aws/home.py describes <name>.aws/.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from draco import files
from draco.cluster.backend import Cluster, Node
from draco.errors import MissingError, RefusedError

ROOT = Path(".clusters")
_NAME = re.compile("[a-z][a-z0-9-]{0,29}(?<!-storage)")  # netns keeps the storage of a cluster in <name>-storage


def folder(name: str, root: Path = ROOT) -> Path:
    """Return a cluster's own folder, created if need be; only its owner may read it, because keys lie in it."""
    path = path_of(name, root)
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    return path


def path_of(name: str, root: Path = ROOT) -> Path:
    """Return the path of a cluster's folder, whose files are removed with it: a name must not lead out of `root`."""
    if not _NAME.fullmatch(name):
        raise RefusedError(f"NAME={name}: must be lower-case letters, digits and dashes, 30 at most, a letter first")
    return root / name


def save(cluster: Cluster, root: Path = ROOT) -> None:
    """Write cluster.json."""
    values = {**cluster._asdict(), "nodes": [node._asdict() for node in cluster.nodes]}
    files.replace(folder(cluster.name, root) / "cluster.json", json.dumps(values, indent=1).encode())


def load(name: str, root: Path = ROOT) -> Cluster | None:
    """Return a cluster that is up, or None."""
    path = path_of(name, root) / "cluster.json"
    if not path.exists():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        nodes = tuple(Node(**node) for node in values.pop("nodes"))
        return Cluster(nodes=nodes, **values)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise MissingError(f"{path}: is damaged; move it away, then make cluster-up NAME={name} again") from error


def kinds(name: str, root: Path = ROOT) -> list[str]:
    """Return the kinds of which a cluster was brought up here and whose storage is still there."""
    path = path_of(name, root).with_name(f"{name}.kinds")
    return path.read_text().split() if path.exists() else []


def note_kinds(name: str, found: Sequence[str], root: Path = ROOT) -> None:
    """Record the kinds of which storage or nodes may be there; none of them: forget."""
    path = path_of(name, root).with_name(f"{name}.kinds")
    if found:
        path.parent.mkdir(exist_ok=True)
        path.write_text(" ".join(found))
    else:
        path.unlink(missing_ok=True)


def is_beside(name: str, root: Path = ROOT) -> bool:
    """Say whether a kind keeps a folder beside the cluster's; aws keeps what outlives `cluster-down` there."""
    return any(path.is_dir() for path in root.glob(f"{name}.*"))


def forget(name: str, root: Path = ROOT) -> None:
    """Remove the records of a cluster that is down."""
    path = path_of(name, root)
    for file in path.iterdir() if path.exists() else ():
        file.unlink()
    if path.exists():
        path.rmdir()


def names(root: Path = ROOT) -> list[str]:
    """Return the names of the clusters that are up."""
    return sorted(path.parent.name for path in root.glob("*/cluster.json"))


def chosen(name: str | None, root: Path = ROOT) -> Cluster:
    """Return the cluster of that name, or the only one.

    Raises:
        MissingError: there is none.
        RefusedError: there are several and none was named.
    """
    up = names(root)
    if name is None and len(up) > 1:
        raise RefusedError(f"clusters {', '.join(up)} are up: say which by NAME={up[0]}")
    cluster = load(name or up[0], root) if name or up else None
    if cluster is None:
        known = f"; up are: {', '.join(up)}" if up else ""
        raise MissingError(f"no cluster {name or ''} is up{known}; make cluster-up starts one".replace("  ", " "))
    return cluster
