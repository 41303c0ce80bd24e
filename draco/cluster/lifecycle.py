"""Up, down and purge of a cluster: nodes by their backend, configuration by Ansible, a check by the head."""

import subprocess
import time
from pathlib import Path
from typing import Any

from draco.cluster import configure, state
from draco.cluster.backend import BACKENDS, HEAD, KINDS, Cluster, Request, Say, named
from draco.cluster.inventory import inventory
from draco.errors import DracoError, MissingError, NotConfiguredError, RefusedError


def up(kind: str, request: Request, say: Say, root: Path = state.ROOT) -> tuple[Cluster, int]:
    """Bring a cluster up, or repair it; return it and how many things Ansible changed.

    Raises:
        MissingError: this machine lacks a tool or the image.
        RefusedError: a cluster of that name is there and is another one.
        NotConfiguredError: the nodes are there, but not as they must be; a second call goes on from there.
    """
    nodes = named(kind)
    configure.require()
    before = state.load(request.name, root)
    if before and before.backend != kind:
        raise RefusedError(
            f"{request.name}: is up already as CLUSTER={before.backend}; make cluster-down first, or another NAME="
        )
    folder = state.folder(request.name, root)
    noted = state.kinds(request.name, root)
    if not KINDS[kind].is_borrowed:  # whose storage is not ours
        state.note_kinds(request.name, sorted({*noted, kind}), root)
    say("starting nodes")
    try:
        cluster = nodes.up(request, folder, say)
    except Exception:
        if not before and not any(folder.iterdir()):  # nothing was created: leave nothing behind
            folder.rmdir()
            if not state.is_beside(request.name, root):
                state.note_kinds(request.name, noted, root)
        raise
    if before:
        cluster = cluster._replace(created=before.created)
    state.save(cluster, root)
    connections = {node.name: nodes.connection(cluster, folder, node.name) for node in cluster.nodes}
    configure.write_inventory(inventory(cluster, connections), folder / "inventory.yml")
    changed = configure.play("site.yml", folder / "inventory.yml", folder / "ansible.log", say, _variables(cluster))
    say("passing messages between all nodes")
    check(cluster, folder)
    return cluster, changed


def _variables(cluster: Cluster) -> dict[str, Any]:
    keys = ("image_name", "image_id", "image_archive", "image_pull", "image_login", "image_logout")
    return {key: cluster.details[key] for key in keys if key in cluster.details}


def check(cluster: Cluster, folder: Path) -> None:
    """Let the head check every node, as before a run."""
    compare_images(cluster, folder)
    command = BACKENDS[cluster.backend].command(cluster, folder, HEAD, [cluster.python, "-m", "draco", "head", "check"])
    made = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if made.returncode:
        raise NotConfiguredError(made.stderr.strip() or f"head: its check ended with exit code {made.returncode}")


def compare_images(cluster: Cluster, folder: Path) -> None:
    """Refuse nodes that run another image than the head."""
    images = BACKENDS[cluster.backend].images(cluster, folder)
    if images and HEAD not in images:
        raise NotConfiguredError(f"{cluster.name}: its head is gone; make cluster-up NAME={cluster.name} makes it anew")
    faults = [
        f"{name}: runs image {image[:19] or 'none'}, the head runs {images[HEAD][:19]}; make cluster-down, then "
        "make cluster-up"
        for name, image in images.items()
        if image != images[HEAD]
    ]
    if faults:
        raise NotConfiguredError("\n".join(faults))


def down(name: str, say: Say, kind: str | None = None, root: Path = state.ROOT) -> float:
    """Remove a cluster's nodes, networks and keys; keep its runs. Return how long it took, in seconds.

    A cluster that came up only in part is removed too, and nothing to remove is no error. `kind` is for a cluster whose
    state file was lost.
    """
    began = time.monotonic()
    cluster = state.load(name, root)
    folder = root / name
    if cluster and KINDS[cluster.backend].is_borrowed:
        say("removing what the play made")
        configure.play("down.yml", folder / "inventory.yml", folder / "ansible.log", say)
    say("removing nodes")
    for each in [cluster.backend] if cluster else [kind] if kind else state.kinds(name, root):
        named(each).down(cluster or _nothing(name, each), folder, say)
    state.forget(name, root)
    return time.monotonic() - began


def _nothing(name: str, kind: str) -> Cluster:
    """Return a cluster of which only the name is known: its backend finds the rest by labels."""
    return Cluster(name, kind, (), "", "node", "", "", "", {})


def purge(name: str, say: Say, kind: str | None = None, root: Path = state.ROOT) -> None:
    """Remove the runs and data of a cluster that is down, of whichever kinds it was.

    Raises:
        MissingError: nothing is known of such a cluster here.
        RefusedError: it is up, or its storage belongs to somebody else.
    """
    may_purge(name, kind, root)
    faults: list[DracoError] = []
    for each in [kind] if kind else state.kinds(name, root):
        try:
            named(each).purge(name, root / name, say)
            state.note_kinds(name, [other for other in state.kinds(name, root) if other != each], root)
        except DracoError as error:  # the others are purged all the same
            faults.append(error)
    if faults:
        raise faults[0]


def may_purge(name: str, kind: str | None = None, root: Path = state.ROOT) -> None:
    """Raise the reasons against a purge that are known before anything is removed."""
    if kind:
        named(kind)
    if state.load(name, root):
        raise RefusedError(f"{name}: is up; make cluster-down first")
    if not kind and not state.kinds(name, root):
        *others, last = [each for each in KINDS if not KINDS[each].is_borrowed]
        raise MissingError(
            f"{name}: nothing is known here of its storage; CLUSTER={', '.join(others)} or {last} says where it is"
        )
