"""Existing machines reached by ssh: CLUSTER=ssh INVENTORY=hosts.yml.

The inventory is Ansible's, with a group `head` of one host and a group `workers`; host keys must be known to the
caller's own known_hosts. Also how the operator reaches any node with an sshd (namespaces, EC2): `write_config`,
`over_ssh`, `ansible_variables`.
"""

import ipaddress
import json
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from draco.cluster import engine, gpus
from draco.cluster.backend import HEAD, Cluster, Node, Request, Runtime, Say, State, quietly
from draco.cluster.configure import PLAYS
from draco.cluster.eviction import Eviction
from draco.errors import MissingError, RefusedError
from draco.files import expanded
from draco.launch.environment import launch_environment
from draco.launch.notices import PATH, Notice

WORK = "/srv/draco"
CONTAINER = "draco"  # name of the trainer's container on a host with an engine
_PROBE_S = 5
_PATHS = ("ansible_ssh_private_key_file", "draco_known_hosts")  # which ssh would not expand in full

_CLIENT = """\
Host *
  BatchMode yes
  PasswordAuthentication no
  StrictHostKeyChecking yes
  ForwardAgent no
  ConnectTimeout 5
  ServerAliveInterval 5
  ServerAliveCountMax 3
  LogLevel ERROR
"""


def write_config(folder: Path, hosts: Mapping[str, Mapping[str, str]]) -> Path:
    """Write ssh_config: one entry per host, `{name: {keyword: value}}`, then the options of all hosts."""
    entries = [
        f"Host {name}\n" + "".join(f"  {keyword} {value}\n" for keyword, value in options.items())
        for name, options in hosts.items()
    ]
    path = folder / "ssh_config"
    path.write_text("\n".join([*entries, _CLIENT]))
    return path


def over_ssh(folder: Path, node: str, argv: Sequence[str], *, terminal: bool) -> list[str]:
    """Return the local command that runs `argv` on `node`."""
    line = shlex.join(argv)
    return ["ssh", "-F", str(folder / "ssh_config"), *(["-t"] if terminal else ["-T"]), node, "--", line]


def ansible_variables(folder: Path, node: str) -> dict[str, Any]:
    """Return Ansible's connection variables for a host of ssh_config."""
    return {"ansible_connection": "ansible.builtin.ssh", "ansible_host": node,
            "ansible_ssh_common_args": f"-F {shlex.quote(str(folder / 'ssh_config'))}"}  # fmt: skip


def probed(folder: Path, nodes: Sequence[Node]) -> dict[str, State]:
    """Return which nodes answer a command, asked all at once."""
    asked = {
        node.name: subprocess.Popen(
            over_ssh(folder, node.name, ["true"], terminal=False),
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        for node in nodes
    }  # fmt: skip
    states: dict[str, State] = {}
    for name, process in asked.items():
        try:
            states[name] = "running" if process.wait(_PROBE_S + 1) == 0 else "unreachable"
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            states[name] = "unreachable"
    return states


def counted(folder: Path, nodes: Sequence[Node], told: Mapping[str, int]) -> dict[str, int]:
    """Return how many GPUs each node has: what its owner told, or what its driver sees.

    Raises:
        MissingError: a driver does not answer.
    """
    asked = {
        node.name: over_ssh(folder, node.name, gpus.LIST, terminal=False) for node in nodes if node.name not in told
    }
    return {**gpus.counted(asked), **told}


def up(request: Request, folder: Path, say: Say = quietly) -> Cluster:
    """See Backend."""
    if request.inventory is None:
        raise MissingError("CLUSTER=ssh needs INVENTORY=hosts.yml: an Ansible inventory with groups head and workers")
    listed = _listed(request.inventory)
    groups = {group: listed.get(group, {}).get("hosts", []) for group in ("head", "workers")}
    faults = []
    if len(groups["head"]) != 1:
        faults.append(f"{request.inventory}: group head has {len(groups['head'])} hosts; it must have exactly one")
    if not groups["workers"]:
        faults.append(f"{request.inventory}: group workers has no host; it needs one or more")
    both = set(groups["head"]) & set(groups["workers"])
    faults += [f"{request.inventory}: {host} is in both groups; a machine is one node" for host in sorted(both)]
    if HEAD in groups["workers"] and not both:
        faults.append(f"{request.inventory}: a worker is called {HEAD}; that is the head's name: call it otherwise")
    if faults:
        raise RefusedError("\n".join(faults))
    variables = listed["_meta"]["hostvars"]
    entries: dict[str, dict[str, str]] = {}
    nodes = []
    for host in [*groups["head"], *groups["workers"]]:
        name = HEAD if host in groups["head"] else host
        given = variables.get(host, {})
        reached = str(given.get("ansible_host", host))
        entries[name] = {
            keyword: str(expanded(str(given[key]))) if key in _PATHS else str(given[key])
            for keyword, key in (
                ("User", "ansible_user"), ("Port", "ansible_port"), ("IdentityFile", "ansible_ssh_private_key_file"),
                ("UserKnownHostsFile", "draco_known_hosts"),
            )
            if key in given
        } | {"HostName": reached}  # fmt: skip
        nodes.append(Node(name, str(given.get("draco_address", _address(reached)))))
    write_config(folder, entries)
    silent = [name for name, state in probed(folder, nodes).items() if state != "running"]
    if silent:
        raise MissingError(
            "\n".join(f"{name}: no login by ssh -F {folder / 'ssh_config'} {name}; see what it says" for name in silent)
        )
    shared = {key: _shared(variables, key) for key in ("draco_runtime", "draco_python", "draco_user", "draco_subnet")}
    if shared["draco_runtime"] not in ("", "host", "container"):
        raise RefusedError(f"draco_runtime: is {shared['draco_runtime']}; it must be host or container")
    runtime: Runtime = "host" if shared["draco_runtime"] == "host" else "container"
    python = shared["draco_python"] or ("/opt/draco/bin/python" if runtime == "container" else sys.executable)
    user = shared["draco_user"] or "draco"
    subnet = shared["draco_subnet"] or _subnet([node.address for node in nodes])
    extra = {h: {k: v for k, v in variables.get(h, {}).items() if not k.startswith("ansible_ssh")} for h in variables}
    extra = {(HEAD if host in groups["head"] else host): values for host, values in extra.items()}
    details: dict[str, Any] = {"variables": extra, "inventory": str(request.inventory.resolve())}
    if runtime == "container":
        details |= {"image": request.image, **_archive(request.image, folder)}
    uses_gpus = runtime == "host" or engine.torch_build(request.image) == "cuda"
    told = {name: int(values["draco_gpus"]) for name, values in extra.items() if "draco_gpus" in values}
    details["gpus"] = counted(folder, nodes, told) if uses_gpus else {node.name: 0 for node in nodes}
    return Cluster(
        request.name, "ssh", tuple(nodes), subnet, runtime, python, user,
        datetime.now(UTC).isoformat(timespec="seconds"), details,
    )  # fmt: skip


def _archive(image: str, folder: Path) -> dict[str, str]:
    """Save the image for the nodes that lack it; return the variables of Ansible's role `image`."""
    identity = engine.image_id(image)
    archive = folder.resolve() / f"image-{identity.removeprefix('sha256:')[:12]}.tar"
    if not archive.exists():
        for other in folder.glob("image-*.tar*"):
            other.unlink()
        part = archive.with_suffix(".tar.part")
        engine.save(image, part)
        part.rename(archive)
    return {"image_name": image, "image_id": identity, "image_archive": str(archive)}


def _listed(inventory: Path) -> dict[str, Any]:
    """Return an inventory file as Ansible reads it."""
    if not inventory.exists():
        raise MissingError(f"INVENTORY={inventory}: no such file")
    tool = Path(sys.executable).parent / "ansible-inventory"
    made = subprocess.run(
        [str(tool), "--inventory", str(inventory), "--list"], capture_output=True, text=True, check=False,
        env=launch_environment(os.environ, {"ANSIBLE_CONFIG": str(PLAYS / "ansible.cfg")}),
    )  # fmt: skip
    if made.returncode:
        reason = made.stderr.strip().splitlines()[-1:] or [f"exit code {made.returncode}"]
        raise RefusedError(f"{inventory}: is not an Ansible inventory: {reason[0]}")
    listed: dict[str, Any] = json.loads(made.stdout)
    return listed


def _address(host: str) -> str:
    try:
        return socket.gethostbyname(host)
    except OSError as error:
        raise MissingError(f"{host}: has no address ({error}); set ansible_host or draco_address") from error


def _shared(variables: Mapping[str, Mapping[str, Any]], key: str) -> str:
    """Return the one value that all hosts give to `key`, or nothing."""
    values = {str(given[key]) for given in variables.values() if key in given}
    if len(values) > 1:
        raise RefusedError(f"{key}: hosts differ: {', '.join(sorted(values))}; it must be the same for all")
    return values.pop() if values else ""


def _subnet(addresses: Sequence[str]) -> str:
    """Return the smallest network that holds all addresses; draco_subnet in the inventory overrides it."""
    try:
        numbers = [int(ipaddress.IPv4Address(address)) for address in addresses]
    except ValueError as error:
        raise RefusedError(f"draco_address: {error}; it must be an IPv4 address") from error
    bits = (min(numbers) ^ max(numbers)).bit_length()
    return str(ipaddress.ip_network((min(numbers), 32 - max(bits, 1)), strict=False))


def down(cluster: Cluster, folder: Path, say: Say = quietly) -> None:
    """See Backend: ansible/down.yml removes what the play installed, and the machines go on."""


def purge(name: str, folder: Path, say: Say = quietly) -> None:
    """See Backend: the machines and their storage are somebody's own."""
    raise RefusedError(f"{name}: these machines are yours: remove {WORK} on them yourself")


def states(cluster: Cluster, folder: Path) -> dict[str, State]:
    """See Backend."""
    return probed(folder, cluster.nodes)


def notes(cluster: Cluster, folder: Path) -> dict[str, Any]:
    """See Backend."""
    return {}


def command(cluster: Cluster, folder: Path, node: str, argv: Sequence[str], *, terminal: bool = False) -> list[str]:
    """See Backend."""
    inside = ["env", f"--chdir={WORK}", *argv]
    if cluster.runtime == "container":
        engine = ["docker", "exec", "--workdir", WORK, "-i", *(["-t"] if terminal else []), CONTAINER]
        inside = ["sudo", "-n", *engine, *argv]
    return over_ssh(folder, node, inside, terminal=terminal)


def storage_command(cluster: Cluster, folder: Path, argv: Sequence[str]) -> list[str] | None:
    """See Backend: the runs lie on the head's own disk."""


def connection(cluster: Cluster, folder: Path, node: str) -> dict[str, Any]:
    """See Backend."""
    return {**cluster.details["variables"].get(node, {}), **ansible_variables(folder, node)}


def images(cluster: Cluster, folder: Path) -> dict[str, str]:
    """See Backend."""
    if cluster.runtime != "container":
        return {}
    inspect = ["sudo", "-n", "docker", "inspect", "--format", "{{.Image}}", CONTAINER]
    return {
        node.name: subprocess.run(
            over_ssh(folder, node.name, inspect, terminal=False), capture_output=True, text=True, check=False
        ).stdout.strip()
        for node in cluster.nodes
    }


def eviction(cluster: Cluster, folder: Path, node: str, notice_s: float) -> Eviction:
    """See Backend: nothing here ends somebody's machine."""
    raise RefusedError(
        f"{cluster.name}: {node} is somebody's machine, and nothing here ends it; what its owner writes to {PATH} "
        f"on it is a notice to the head, such as {Notice('interruption', '2026-01-02T03:04:05Z').text()}"
    )
