"""Nodes that are containers of the trainer's image on this machine: CLUSTER=docker. Up in seconds, on any system.

One container is one node, on a network of the cluster's own, and two volumes stand in for the two access points of
shared storage: data (every node reads it, the head writes it) and runs (the head alone sees it). What belongs to a
cluster is found by its label, so `down` needs no state file. Needs Docker Engine 20.10 or newer; Podman's `docker` does
the same, but Podman 4.3 does not heal a cut node.
"""

import ipaddress
import json
import os
import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from draco.cluster import engine
from draco.cluster.backend import HEAD, Cluster, Node, Request, Say, State, names, quietly
from draco.cluster.eviction import Eviction, by_hand, writing
from draco.errors import MissingError, RefusedError
from draco.launch.notices import PATH as NOTICE

PYTHON = "/opt/draco/bin/python"
USER = "draco"
WORK = "/srv/draco"
_CLUSTER, _NODE, _ADDRESS = "draco.cluster", "draco.node", "draco.address"  # labels
_MOST_WORKERS = 200
_START_LIMIT_S = 20

# Stricter than an engine's defaults: nobody in a node needs root, or writes outside /tmp, its key folder and storage.
# Shared memory carries the messages between ranks of one node. Ansible puts its modules in /tmp.
_CONFINED = (
    "--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges",
    "--pids-limit", "4096", "--ulimit", "nofile=8192:8192",
)  # fmt: skip
_SHARED_MEMORY = "1g"
# Triton compiles there what it then loads, which /tmp does not allow.
_WITH_GPUS = ("--tmpfs", "/tmp/triton:exec,mode=1777")

# Asked from inside, because a container's address cannot be reached from a Mac.
_AWAIT_SSHD = f"""\
import socket, sys, time
deadline = time.monotonic() + {_START_LIMIT_S}
while time.monotonic() < deadline:
    try:
        with socket.create_connection(("127.0.0.1", 2222), timeout=1) as connection:
            if connection.recv(4) == b"SSH-":
                sys.exit()
    except OSError:
        pass
    time.sleep(0.02)
sys.exit("no SSH server on port 2222 after {_START_LIMIT_S} s")
"""


def up(request: Request, folder: Path, say: Say = quietly) -> Cluster:
    """See Backend: missing nodes are created; stopped, paused and disconnected ones are repaired."""
    if request.workers > _MOST_WORKERS:
        raise RefusedError(f"WORKERS={request.workers}: containers take at most {_MOST_WORKERS} worker nodes")
    told = engine.told()
    cores = engine.cores(told)
    image = engine.image_id(request.image)
    gpu_count = engine.gpu_count(told) if engine.torch_build(request.image) == "cuda" else 0
    found = _containers(request.name)
    _refuse_contradictions(request, image, found)
    subnet = _subnet(request.name, found)
    first = int(subnet.network_address) + 10
    nodes = tuple(Node(name, str(ipaddress.IPv4Address(first + i))) for i, name in enumerate(names(request.workers)))
    gpus = deal(len(nodes), gpu_count)
    cpus = request.cpus or max((_cpus(container) for container in found.values()), default=0.0)
    cpus = cpus or max(1.0, cores / len(nodes))
    _make_volumes(request.name)
    with ThreadPoolExecutor(len(nodes)) as pool:
        given = zip(nodes, gpus, strict=True)
        list(pool.map(lambda each: _bring_up(request, each[0], found.get(each[0].name), image, cpus, each[1]), given))
    return Cluster(
        request.name, "docker", nodes, str(subnet), "node", PYTHON, USER, _created(request.name),
        {"image": request.image, "image_id": image, "cpus": cpus, "cores": cores, "memory_mb": request.memory_mb,
         "gpus": {node.name: len(its) for node, its in zip(nodes, gpus, strict=True)}},
    )  # fmt: skip


def down(cluster: Cluster, folder: Path, say: Say = quietly) -> None:
    """See Backend; of `cluster` only the name is read."""
    if containers := _labelled("container", cluster.name):
        engine.call("rm", "--force", "--volumes", *containers, about=f"{cluster.name}: docker rm")
    if networks := _labelled("network", cluster.name):
        engine.call("network", "rm", *networks)


def purge(name: str, folder: Path, say: Say = quietly) -> None:
    """See Backend."""
    if _labelled("container", name):
        raise RefusedError(f"{name}: its nodes are there and use its storage; make cluster-down first")
    if volumes := _labelled("volume", name):
        engine.call("volume", "rm", *volumes)


def states(cluster: Cluster, folder: Path) -> dict[str, State]:
    """See Backend."""
    found = _containers(cluster.name)
    return {node.name: _state(cluster.name, found.get(node.name)) for node in cluster.nodes}


def notes(cluster: Cluster, folder: Path) -> dict[str, Any]:
    """See Backend."""
    return {}


def command(cluster: Cluster, folder: Path, node: str, argv: Sequence[str], *, terminal: bool = False) -> list[str]:
    """See Backend."""
    return ["docker", "exec", "-it" if terminal else "-i", "-w", WORK, _container(cluster.name, node), *argv]


def storage_command(cluster: Cluster, folder: Path, argv: Sequence[str]) -> list[str] | None:
    """See Backend: a container of its own, gone with the command. None if there is no storage."""
    if _volume(cluster.name, "runs") not in _labelled("volume", cluster.name):
        return None  # `docker run` would make one without a label
    return [
        "docker", "run", "--rm", "-i", "--pull", "never", "--label", f"{_CLUSTER}={cluster.name}", *_CONFINED,
        "--network", "none", "--user", "10001:10001", "-v", f"{_volume(cluster.name, 'runs')}:{WORK}/runs", "-w", WORK,
        cluster.details["image_id"], *argv,
    ]  # fmt: skip


def connection(cluster: Cluster, folder: Path, node: str) -> dict[str, Any]:
    """See Backend: modules go through the engine, as the image's user."""
    return {"ansible_connection": "community.docker.docker", "ansible_host": _container(cluster.name, node),
            "ansible_remote_tmp": "/tmp/.ansible", "ansible_python_interpreter": cluster.python}  # fmt: skip


def images(cluster: Cluster, folder: Path) -> dict[str, str]:
    """See Backend."""
    return {name: str(container["Image"]) for name, container in _containers(cluster.name).items()}


def eviction(cluster: Cluster, folder: Path, node: str, notice_s: float) -> Eviction:
    """See Backend."""
    return by_hand(
        node, notice_s, lambda notice: announce(cluster, folder, node, notice), lambda: kill(cluster, folder, node)
    )


def announce(cluster: Cluster, folder: Path, node: str, notice: str) -> None:
    """Put a notice on a node, where the head reads it: launch/notices.py has its path and form."""
    engine.call("exec", "--user", "0", _container(cluster.name, node), *writing(notice), about=f"{node}: giving notice")


def kill(cluster: Cluster, folder: Path, node: str) -> None:
    """End a node at once."""
    engine.call("kill", _container(cluster.name, node), about=f"{node}: docker kill")


def occupancy(nodes: int, cpus: float, cores: int) -> str:
    """Say how much of a machine its nodes may use together.

    >>> occupancy(4, 1.0, 2)
    '4 nodes x 1 cpu on 2 cores'
    """
    return f"{nodes} nodes x {cpus:g} cpu{'' if cpus == 1 else 's'} on {cores} core{'' if cores == 1 else 's'}"


def _container(name: str, node: str) -> str:
    return f"draco-{name}-{node}"


def _network(name: str) -> str:
    return f"draco-{name}"


def _volume(name: str, part: str) -> str:
    return f"draco-{name}-{part}"


def _labelled(kind: str, name: str) -> list[str]:
    """Return the engine's identifiers of what belongs to a cluster: `container`, `network` or `volume`."""
    all_of_them = ["--all"] if kind == "container" else []
    return engine.call(kind, "ls", "--quiet", *all_of_them, "--filter", f"label={_CLUSTER}={name}").split()


def _containers(name: str) -> dict[str, dict[str, Any]]:
    """Return the engine's description of each existing node, running or not."""
    told = _labelled("container", name)
    inspected = json.loads(engine.call("container", "inspect", *told)) if told else []
    return {c["Config"]["Labels"][_NODE]: c for c in inspected if _NODE in c["Config"]["Labels"]}


def _runs(container: dict[str, Any]) -> bool:
    return container["State"]["Status"] in ("running", "paused")


def _is_connected(name: str, container: dict[str, Any]) -> bool:
    return _network(name) in container["NetworkSettings"].get("Networks", {})


def _cpus(container: dict[str, Any]) -> float:
    return round(float(container["HostConfig"]["NanoCpus"]) / 1e9, 2)


def _state(name: str, container: dict[str, Any] | None) -> State:
    if container is None:
        return "missing"
    if not _runs(container):
        return "stopped"
    if container["State"]["Status"] == "paused":
        return "paused"
    return "running" if _is_connected(name, container) else "unreachable"


def _differences(request: Request, image: str, container: dict[str, Any]) -> list[str]:
    """Return the properties in which a node differs from the request."""
    compared = (
        ("image", container["Image"].removeprefix("sha256:")[:12], image.removeprefix("sha256:")[:12]),
        ("cpus", _cpus(container), None if request.cpus is None else round(request.cpus, 2)),
        ("memory", container["HostConfig"]["Memory"], None if request.memory_mb is None else request.memory_mb * 2**20),
    )
    return [what for what, has, wanted in compared if wanted is not None and has != wanted]


def _refuse_contradictions(request: Request, image: str, found: dict[str, dict[str, Any]]) -> None:
    first = "make cluster-down first; runs and data stay"
    faults = [
        f"{node}: runs with another {' and '.join(differences)} than is asked for; {first}"
        for node, container in sorted(found.items())
        if _runs(container) and (differences := _differences(request, image, container))
    ]
    if set(found) - set(names(request.workers)):
        workers = len(set(found) - {HEAD})
        faults.append(f"{request.name}: has {workers} worker nodes, and WORKERS={request.workers} is fewer; {first}")
    if faults:
        raise RefusedError("\n".join(faults))


def _subnet(name: str, found: dict[str, dict[str, Any]]) -> ipaddress.IPv4Network:
    """Return the network of a cluster's nodes; create one if there are no nodes."""
    networks = _labelled("network", name)
    if found:
        if not networks:
            raise RefusedError(f"{name}: its network is gone; make cluster-down, then cluster-up; runs and data stay")
        address = next(iter(found.values()))["Config"]["Labels"][_ADDRESS]
        return ipaddress.IPv4Network(f"{address}/24", strict=False)
    if networks:
        engine.call("network", "rm", *networks)
    return _make_network(name)


def _make_network(name: str) -> ipaddress.IPv4Network:
    """Make a network in the upper half of 198.18.0.0/15 (benchmarks, RFC 2544); netns nodes use the lower one.

    Only in a network with a given subnet does an engine keep a container's address over restarts.
    """
    start = zlib.crc32(name.encode())
    for i in range(128):
        subnet = f"198.19.{(start + i) % 128}.0/24"
        try:
            engine.call("network", "create", "--label", f"{_CLUSTER}={name}", "--subnet", subnet, _network(name))
        except MissingError as error:
            if "overlap" not in str(error) and "already used" not in str(error):
                raise
        else:
            return ipaddress.IPv4Network(subnet)
    raise MissingError("every network in 198.19.0.0/17 is in use; make cluster-down for clusters that are not needed")


def _make_volumes(name: str) -> None:
    for volume in sorted({_volume(name, "data"), _volume(name, "runs")} - set(_labelled("volume", name))):
        engine.call("volume", "create", "--label", f"{_CLUSTER}={name}", volume)


def deal(nodes: int, gpus: int) -> list[tuple[int, ...]]:
    """Deal this machine's GPUs out to its nodes: all to the head, which is first, and each to a worker in turn.

    With fewer GPUs than workers these share. Every rank of a node counts from its first GPU on. So nodes that all had
    all of them would meet on the first.

    >>> deal(4, 2)
    [(0, 1), (0,), (1,), (0,)]
    """
    workers = nodes - 1
    if gpus < workers:
        return [tuple(range(gpus)), *(((i % gpus,) if gpus else ()) for i in range(workers))]
    return [tuple(range(gpus)), *(tuple(range(i, gpus, workers)) for i in range(workers))]


def _node_arguments(request: Request, node: Node, image: str, cpus: float, gpus: Sequence[int] = ()) -> list[str]:
    """Return the arguments of `docker` that create a node."""
    labels = {_CLUSTER: request.name, _NODE: node.name, _ADDRESS: node.address}
    writable = "" if node.name == HEAD else ":ro"
    volumes = [f"{_volume(request.name, 'data')}:{WORK}/data{writable}"]
    if node.name == HEAD:
        volumes.append(f"{_volume(request.name, 'runs')}:{WORK}/runs")
    return [
        "run", "--detach", "--pull", "never", "--restart", "no",
        "--name", _container(request.name, node.name), "--hostname", node.name,
        "--network", _network(request.name), "--ip", node.address, "--network-alias", node.name,
        *_each("--label", (f"{key}={value}" for key, value in labels.items())),
        "--volume", "/etc/draco",  # keys: over restarts, and gone with the container
        "--tmpfs", f"{os.path.dirname(NOTICE)}:size=64k,mode=0755",  # root's; a container that starts again has none
        *_each("--volume", volumes),
        *_CONFINED, "--shm-size", _SHARED_MEMORY, "--cpus", f"{cpus:.2f}",
        *(["--memory", f"{request.memory_mb}m"] if request.memory_mb else []),
        *_each("--device", (f"{engine.CDI}={gpu}" for gpu in gpus)), *(_WITH_GPUS if gpus else ()),
        image,
    ]  # fmt: skip


def _each(option: str, values: Iterable[str]) -> list[str]:
    return [part for value in values for part in (option, value)]


def _bring_up(
    request: Request, node: Node, container: dict[str, Any] | None, image: str, cpus: float, gpus: Sequence[int]
) -> None:
    """Create or repair one node, and wait for its SSH server."""
    name = _container(request.name, node.name)
    if container is not None and _differences(
        request, image, container
    ):  # and it does not run, or up() would have refused
        engine.call("rm", "--force", "--volumes", name)
        container = None
    if container is None:
        engine.call(*_node_arguments(request, node, image, cpus, gpus), about=f"{node.name}: docker run")
    else:
        if not _is_connected(request.name, container):
            _connect(request.name, node)
        if container["State"]["Status"] == "paused":
            engine.call("unpause", name)
        elif not _runs(container):
            engine.call("start", name, about=f"{node.name}: docker start")
    try:
        engine.call("exec", name, PYTHON, "-I", "-S", "-c", _AWAIT_SSHD, about=f"{node.name}: did not come up")
    except MissingError as error:
        raise MissingError(f"{error}; see docker logs {name}") from error


def _connect(name: str, node: Node) -> None:
    engine.call(
        "network", "connect", "--ip", node.address, "--alias", node.name, _network(name), _container(name, node.name),
        about=f"{node.name}: docker network connect",
    )  # fmt: skip


def _created(name: str) -> str:
    """Return when the oldest node of a cluster was created."""
    oldest = min(datetime.fromisoformat(container["Created"]) for container in _containers(name).values())
    return oldest.astimezone(UTC).isoformat(timespec="seconds")
