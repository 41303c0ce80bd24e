"""Faults that tests inject into nodes that are containers or namespaces: killed, frozen, cut off the network."""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

from draco.cluster import docker, engine, netns
from draco.cluster.backend import Cluster


def kill(cluster: Cluster, folder: Path, node: str) -> None:
    """End a node as a spot interruption does: at once."""
    (docker if cluster.backend == "docker" else netns).kill(cluster, folder, node)


def pause(cluster: Cluster, folder: Path, node: str) -> None:
    """Freeze a node: it holds its connections and says nothing."""
    if cluster.backend == "docker":
        _engine("pause", cluster, node)
    else:
        _signal_all(folder, node, signal.SIGSTOP)


def resume(cluster: Cluster, folder: Path, node: str) -> None:
    """Undo `pause`; nothing where a `cluster up` did it already."""
    if cluster.backend != "docker":
        _signal_all(folder, node, signal.SIGCONT)
    elif docker.states(cluster, folder)[node] == "paused":
        _engine("unpause", cluster, node)


def cut(cluster: Cluster, folder: Path, node: str) -> None:
    """Take a node off the network; its processes go on. A container's interface has another name after `heal`."""
    if cluster.backend == "docker":
        _engine("network", cluster, node, "disconnect", docker._network(cluster.name))
    else:
        _link(cluster, folder, node, "down")


def heal(cluster: Cluster, folder: Path, node: str) -> None:
    """Undo `cut`; nothing where a `cluster up` did it already."""
    if cluster.backend != "docker":
        _link(cluster, folder, node, "up")
    elif not docker._is_connected(cluster.name, docker._containers(cluster.name)[node]):
        docker._connect(cluster.name, next(each for each in cluster.nodes if each.name == node))


def init_process(folder: Path, node: str) -> int:
    """Return the process id, on this machine, of the first process of a namespace node."""
    init = netns._init(folder, node)
    assert init is not None, f"{node}: is not running"
    return init


def _engine(verb: str, cluster: Cluster, node: str, *more: str) -> None:
    engine.call(verb, *more, docker._container(cluster.name, node), about=f"{node}: docker {verb}")


def _link(cluster: Cluster, folder: Path, node: str, state: str) -> None:
    index = [each.name for each in cluster.nodes].index(node)
    netns._run("ip", "link", "set", netns._veth(netns._prefix(folder), index), state)


def _signal_all(folder: Path, node: str, number: signal.Signals) -> None:
    """Signal every process of a node, until no process is left that was not signalled."""
    done: set[int] = set()
    while new := set(_inside(folder, node)) - done:
        for pid in new:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        done |= new


def _inside(folder: Path, node: str) -> Iterator[int]:
    """Yield every process of a node."""
    space = os.readlink(f"/proc/{init_process(folder, node)}/ns/pid")
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.readlink(entry / "ns/pid") == space:
                yield int(entry.name)
