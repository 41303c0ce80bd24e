"""Nodes made of Linux namespaces on this machine: CLUSTER=netns. Up in a second, without an image or an engine.

Each node has a network, mount, host name and process namespace of its own and an sshd; all share this machine's disk
(read: its Python), processors and memory. Needs Linux, root, iproute2 and openssh-server. Most tests use it.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from draco.cluster import ssh
from draco.cluster.backend import HEAD, Cluster, Node, Request, Say, State, names, quietly
from draco.cluster.eviction import Eviction, by_hand, writing
from draco.cluster.ssh_key import operator_key
from draco.errors import MissingError, RefusedError
from draco.runs import directory as run_directory

_TOOLS = {"ip": "iproute2", "unshare": "util-linux", "setpriv": "util-linux", "ssh": "openssh-client",
          "ssh-keygen": "openssh-client", "sshd": "openssh-server"}  # fmt: skip
_START_LIMIT_S = 20.0
_MOST_WORKERS = 200


def up(request: Request, folder: Path, say: Say = quietly) -> Cluster:
    """See Backend."""
    _require_tools()
    there = len(list(folder.glob("worker-*.pid")))
    if request.workers < there:
        raise RefusedError(
            f"{request.name}: has {there} worker nodes, and WORKERS={request.workers} is fewer; make cluster-down "
            "first; runs and data stay"
        )
    if request.workers > _MOST_WORKERS:
        raise RefusedError(f"WORKERS={request.workers}: namespaces take at most {_MOST_WORKERS} worker nodes")
    folder = folder.resolve()
    storage = _storage(folder)
    for part in ("data", "runs"):
        (storage / part).mkdir(parents=True, exist_ok=True)
    key = operator_key(request.name, folder)
    prefix = _prefix(folder)
    bridge = f"{prefix}br"
    if not _link_exists(bridge):
        _make_bridge(bridge, _free_subnet(folder))
    subnet = _bridge_subnet(bridge)
    nodes = tuple(Node(name, f"{subnet}.{10 + i}") for i, name in enumerate(names(request.workers)))
    missing = [i for i, node in enumerate(nodes) if _init(folder, node.name) is None]
    for i in missing:
        _start(folder, storage, prefix, bridge, subnet, i, nodes[i])
    for i in missing:
        _await_sshd(folder, nodes[i])
    known = folder / "known_hosts"
    known.write_text("".join(
        f"{node.name},{node.address} {' '.join(_host_key(folder, node.name).split()[:2])}\n" for node in nodes
    ))  # fmt: skip
    ssh.write_config(folder, {
        node.name: {"HostName": node.address, "User": "root", "IdentityFile": str(key), "IdentitiesOnly": "yes",
                    "UserKnownHostsFile": str(known), "GlobalKnownHostsFile": "none"}
        for node in nodes
    })  # fmt: skip
    return Cluster(
        request.name, "netns", nodes, f"{subnet}.0/24", "host", sys.executable, "root",
        datetime.now(UTC).isoformat(timespec="seconds"), {"prefix": prefix, "bridge": bridge},
    )  # fmt: skip


def down(cluster: Cluster, folder: Path, say: Say = quietly) -> None:
    """See Backend."""
    if not shutil.which("ip", path=_PATH):
        return
    prefix = _prefix(folder)
    for path in folder.glob("*.pid"):
        _end(folder, path.stem)
        path.unlink()
    for space in _spaces(prefix):
        for pid in _run("ip", "netns", "pids", space, required=False).split():  # of a node whose pid file was lost
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        _run("ip", "netns", "del", space, required=False)
    if _link_exists(f"{prefix}br"):
        _forward("-D", f"{prefix}br")
        _run("ip", "link", "del", f"{prefix}br")
    for pattern in ("operator_key*", "known_hosts", "ssh_config", "*.hostkey.pub"):
        for path in folder.glob(pattern):
            path.unlink()


def purge(name: str, folder: Path, say: Say = quietly) -> None:
    """See Backend."""
    shutil.rmtree(_storage(folder), ignore_errors=True)


def states(cluster: Cluster, folder: Path) -> dict[str, State]:
    """See Backend."""
    found: dict[str, State] = {}
    for i, node in enumerate(cluster.nodes):
        init = _init(folder, node.name)
        if init is None:
            found[node.name] = "stopped"
        elif _process_state(init) == "T":
            found[node.name] = "paused"
        elif not _link_is_up(_veth(_prefix(folder), i)):
            found[node.name] = "unreachable"
        else:
            found[node.name] = "running"
    return found


def notes(cluster: Cluster, folder: Path) -> dict[str, Any]:
    """See Backend."""
    return {}


def command(cluster: Cluster, folder: Path, node: str, argv: Sequence[str], *, terminal: bool = False) -> list[str]:
    """See Backend."""
    return ssh.over_ssh(folder, node, ["env", f"--chdir={ssh.WORK}", *argv], terminal=terminal)


def storage_command(cluster: Cluster, folder: Path, argv: Sequence[str]) -> list[str] | None:
    """See Backend: the storage is a folder of this machine."""
    return ["env", f"--chdir={_storage(folder)}", *argv]


def connection(cluster: Cluster, folder: Path, node: str) -> dict[str, Any]:
    """See Backend."""
    return {**ssh.ansible_variables(folder, node), "ansible_python_interpreter": cluster.python}


def images(cluster: Cluster, folder: Path) -> dict[str, str]:
    """See Backend: nodes have no image, they run this machine's Python."""
    return {}


def eviction(cluster: Cluster, folder: Path, node: str, notice_s: float) -> Eviction:
    """See Backend."""
    return by_hand(
        node, notice_s, lambda notice: announce(cluster, folder, node, notice), lambda: kill(cluster, folder, node)
    )


def announce(cluster: Cluster, folder: Path, node: str, notice: str) -> None:
    """Put a notice on a node, where the head reads it: launch/notices.py has its path and form."""
    _run(*command(cluster, folder, node, writing(notice)))


def kill(cluster: Cluster, folder: Path, node: str) -> None:
    """End a node at once."""
    _end(folder, node)


def _require_tools() -> None:
    faults = [] if sys.platform == "linux" else ["CLUSTER=netns needs Linux; CLUSTER=docker works elsewhere"]
    if os.geteuid() != 0:
        faults.append("CLUSTER=netns needs root, to make namespaces; CLUSTER=docker does not")
    lacking = sorted({package for tool, package in _TOOLS.items() if not shutil.which(tool, path=_PATH)})
    if lacking:
        faults.append(f"CLUSTER=netns needs the packages {', '.join(lacking)} (Debian and Ubuntu: apt-get install)")
    if faults:
        raise MissingError("\n".join(faults))


_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def _run(*argv: str, required: bool = True) -> str:
    """Run one tool and return its output."""
    made = subprocess.run(argv, capture_output=True, text=True, check=False, env={**os.environ, "PATH": _PATH})
    if made.returncode and required:
        raise MissingError(f"{' '.join(argv)}: exit code {made.returncode}: {made.stderr.strip()}")
    return made.stdout if not made.returncode else ""


def _prefix(folder: Path) -> str:
    """Return the prefix of this cluster's interfaces and namespaces; Linux allows a name 15 characters."""
    return f"dr{zlib.crc32(str(folder.resolve()).encode()):08x}"


def _veth(prefix: str, index: int) -> str:
    return f"{prefix}v{index}"


def _storage(folder: Path) -> Path:
    return folder.parent / f"{folder.name}-storage"


def _spaces(prefix: str) -> list[str]:
    return [line.split()[0] for line in _run("ip", "netns", "list").splitlines() if line.startswith(prefix)]


def _link_exists(name: str) -> bool:
    return Path("/sys/class/net", name).exists()


def _link_is_up(name: str) -> bool:
    """Say whether an interface is administratively up (IFF_UP)."""
    flags = Path("/sys/class/net", name, "flags")
    return flags.exists() and bool(int(flags.read_text(), 16) & 1)


def _free_subnet(folder: Path) -> str:
    """Return the first three numbers of a network in 198.18.0.0/15 (benchmarks, RFC 2544) that is not in use."""
    used = _run("ip", "-4", "route", "list")
    start = zlib.crc32(str(folder.resolve()).encode()) % 256
    for i in range(256):
        subnet = f"198.18.{(start + i) % 256}"
        if f"{subnet}." not in used:
            return subnet
    raise MissingError("every network in 198.18.0.0/16 is in use; make cluster-down for clusters that are not needed")


def _bridge_subnet(bridge: str) -> str:
    shown = _run("ip", "-4", "-oneline", "address", "show", "dev", bridge)
    return shown.split(" inet ")[1].split()[0].rsplit(".", 1)[0]


def _make_bridge(bridge: str, subnet: str) -> None:
    _run("ip", "link", "add", bridge, "type", "bridge")
    _run("ip", "address", "add", f"{subnet}.1/24", "dev", bridge)
    _run("ip", "link", "set", bridge, "up")
    _forward("-I", bridge)


def _forward(action: str, bridge: str) -> None:
    """Let bridged packets pass the firewall: beside a Docker Engine it drops them."""
    if shutil.which("iptables", path=_PATH):
        _run("iptables", "-w", action, "FORWARD", "-i", bridge, "-o", bridge, "-j", "ACCEPT", required=False)


def _start(folder: Path, storage: Path, prefix: str, bridge: str, subnet: str, index: int, node: Node) -> None:
    space, veth = f"{prefix}n{index}", _veth(prefix, index)
    if space in _spaces(prefix):  # of a node that was killed
        _run("ip", "netns", "del", space)
    _run("ip", "link", "del", veth, required=False)
    _run("ip", "netns", "add", space)
    # A node that comes back keeps its hardware address, because its neighbours cache it for half a minute.
    hardware = "02:00:" + ":".join(f"{int(part):02x}" for part in node.address.split("."))
    _run("ip", "link", "add", veth, "type", "veth", "peer", "name", "eth0", "address", hardware, "netns", space)
    _run("ip", "link", "set", veth, "master", bridge, "up")
    _run("ip", "-n", space, "address", "add", f"{node.address}/24", "dev", "eth0")
    for link in ("eth0", "lo"):
        _run("ip", "-n", space, "link", "set", link, "up")
    _run("ip", "-n", space, "route", "add", "default", "via", f"{subnet}.1")
    (folder / f"{node.name}.hostkey.pub").unlink(missing_ok=True)
    script = str(Path(__file__).with_name("netns_node.sh"))
    role = "head" if node.name == HEAD else "worker"
    spaces = ["unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc"]
    argv = [
        "ip",
        "netns",
        "exec",
        space,
        *spaces,
        script,
        node.name,
        str(folder.resolve()),
        str(storage.resolve()),
        role,
    ]
    clean = {name: os.environ[name] for name in ("LANG", "HOME") if name in os.environ}
    with open(folder / f"{node.name}.log", "ab") as log, open(os.devnull, "rb") as nothing:
        pid = os.posix_spawn(
            shutil.which("ip", path=_PATH) or "ip",
            argv,
            {**clean, "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
            file_actions=[(os.POSIX_SPAWN_DUP2, file.fileno(), to) for to, file in enumerate((nothing, log, log))],
            setsid=True,
        )
    (folder / f"{node.name}.pid").write_text(f"{pid} {run_directory.process_start(pid)}")


def _await_sshd(folder: Path, node: Node) -> None:
    deadline = time.monotonic() + _START_LIMIT_S
    while time.monotonic() < deadline:
        if (folder / f"{node.name}.hostkey.pub").exists():
            with contextlib.suppress(OSError), socket.create_connection((node.address, 22), timeout=1) as connection:
                if connection.recv(4) == b"SSH-":
                    return
        if _outer(folder, node.name) is None:
            break
        time.sleep(0.02)
    log = folder / f"{node.name}.log"
    raise MissingError(
        f"{node.name}: did not come up: {(log.read_text().strip().splitlines() or ['see ' + str(log)])[-1]}"
    )


def _host_key(folder: Path, node: str) -> str:
    return (folder / f"{node}.hostkey.pub").read_text()


def _process_state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


def _outer(folder: Path, node: str) -> int | None:
    """Return the process that holds a node's namespaces, if it lives."""
    with contextlib.suppress(OSError, ValueError):
        pid, started = (folder / f"{node}.pid").read_text().split()
        if run_directory.exists(int(pid), started):
            return int(pid)
    return None


def _init(folder: Path, node: str) -> int | None:
    """Return the first process inside a node, if it lives."""
    outer = _outer(folder, node)
    if outer is None:
        return None
    with contextlib.suppress(OSError):
        children = Path(f"/proc/{outer}/task/{outer}/children").read_text().split()
        return int(children[0]) if children else None
    return None


def _end(folder: Path, node: str) -> None:
    """End a node: everything inside ends with the process that holds its namespaces."""
    outer = _outer(folder, node)
    if outer is None:
        return
    os.kill(outer, signal.SIGKILL)
    deadline = time.monotonic() + _START_LIMIT_S
    while _outer(folder, node) is not None and time.monotonic() < deadline:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(outer, os.WNOHANG)
        time.sleep(0.01)
