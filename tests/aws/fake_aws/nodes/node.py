"""One instance as a node: its namespaces, its metadata service, and the processes in it."""

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from moto.ec2.models.instance_types import INSTANCE_TYPES

from fake_aws import listener
from fake_aws.nodes import firewall, tools
from fake_aws.nodes.metadata import Metadata
from fake_aws.nodes.network import METADATA, Network
from fake_aws.world import World

_SCRIPTS = Path(__file__).parents[1] / "stand_ins"
_END_LIMIT_S = 20


class Node:
    """What an instance of moto's is on this machine; starts and ends once.

    Args:
        world: where the instance is.
        network: what it is attached to.
        instance: moto's.
        number: a number that no other node of this fake has.
        reports: see Metadata.
    """

    def __init__(
        self, world: World, network: Network, instance: Any, number: int, reports: dict[str, Callable[[str], str]]
    ) -> None:
        self.instance = instance
        self.folder = world.folder / "instances" / instance.id
        self.space = f"{world.prefix}n{number}"
        self.metadata = Metadata(world, instance, reports)
        self.cgroup = f"{world.prefix}-{number}"
        self._world, self._network, self._number = world, network, number
        self._private = str(instance.private_ip)  # moto forgets it with the instance's end
        self._process: subprocess.Popen[bytes] | None = None
        self._stack = contextlib.ExitStack()
        self._lock = threading.Lock()
        self._ended = False
        self._rules = ""

    @property
    def pid(self) -> int | None:
        """Its first process, as this machine counts."""
        if self._process is None or self._process.poll() is not None:
            return None
        with contextlib.suppress(OSError):
            children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
            return int(children[0]) if children else None
        return None

    def start(self) -> None:
        """Make it, unless it ended before it began."""
        with self._lock:
            if self._ended:
                return
            self._write_settings()
            instance = self.instance
            subnet = self._world.ec2.get_subnet(instance.subnet_id).cidr_block
            self._stack.callback(self._network.detach, self.space, self._private)
            self._network.attach(self.space, f"v{self._number}", self._private, subnet, instance.public_ip)
            self._filter(first=True)
            waiting = self._stack.enter_context(tools.listen_within(self.space, METADATA, 80))
            self._stack.enter_context(listener.listening(self.metadata, METADATA, 80, waiting.fileno()))
            self._process = self._spawn()

    def filter(self) -> None:
        """Bring its firewall in line with its security groups."""
        with self._lock:
            if self._process is not None and not self._ended:
                self._filter(first=False)

    def end(self) -> None:
        """End everything in it at once, and remove it."""
        with self._lock:
            if self._ended:
                return
            self._ended = True
            first = self.pid
            if self._process is not None:
                self._process.kill()
                self._process.communicate()
            _await_end(first)
            self._stack.close()
            remove_cgroups(self.cgroup)

    def clear(self) -> None:
        """Remove what an ended one had on its disk; its logs stay."""
        for name in ("docker", "tmp", "machine"):
            tools.remove_tree(self.folder / name)

    def cut(self, down: bool) -> None:
        """Take its network away, or give it back."""
        tools.ip(f"link set v{self._number} {'down' if down else 'up'}", space=self._network.router)

    def _filter(self, first: bool) -> None:
        rules = firewall.chain(self._world, self.instance)
        if rules != self._rules:
            firewall.load(self.space, rules, first)
            self._rules = rules

    def _write_settings(self) -> None:
        for name in ("docker", "tmp", "machine"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        key = self._world.ec2.key_pairs.get(self.instance.key_name)
        (self.folder / "authorized_keys").write_text(f"{key.public_key.strip()}\n" if key else "")
        data = self.instance.user_data
        (self.folder / "user-data").write_text(data.decode() if data else "")

    def _spawn(self) -> subprocess.Popen[bytes]:
        name = self.instance.private_dns_name.split(".")[0]
        settings = {
            "PATH": tools.PATH,
            "LANG": "C.UTF-8",
            "FAKE_NAME": name,
            "FAKE_ADDRESS": self._private,
            "FAKE_FOLDER": str(self.folder),
            "FAKE_STORAGE": str(self._world.folder / "efs"),
            "FAKE_SCRIPTS": str(_SCRIPTS),
            "FAKE_ENDPOINT": f"http://{self._network.host}:{self._world.port}",
            "FAKE_TOOLS": str(Path(sys.executable).parent),
            "FAKE_PYTHON": sys.base_prefix,
            "FAKE_CGROUP": self.cgroup,
            "FAKE_MINUTE_S": f"{self._world.minute_s:g}",
            "FAKE_REGISTRY": self._world.registry_host,
            "FAKE_REGISTRY_ADDRESS": self._network.host,
            "FAKE_CA": str(self._world.folder / "ca.crt"),
            "FAKE_GPU_LIST": " ".join(_gpus(self.instance.instance_type)),
        }
        spaces = ["--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child"]
        argv = ["nsenter", f"--net=/run/netns/{self.space}", "unshare", *spaces, str(_SCRIPTS / "machine.sh")]
        with open(self.folder / "machine.log", "ab") as log:
            # Its first process ends when this pipe does: with this process, whatever becomes of it.
            return subprocess.Popen(
                argv, env=settings, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
            )


def _gpus(instance_type: str) -> list[str]:
    """Return a word for each GPU of a type: its name and its memory in MiB, `A10G:22888`."""
    told = INSTANCE_TYPES[instance_type].get("GpuInfo", {}).get("Gpus", [])
    return [f"{each['Name']}:{each['MemoryInfo']['SizeInMiB']}" for each in told for _ in range(each["Count"])]


def _await_end(pid: int | None) -> None:
    """Wait until a process is gone; the first of a process namespace goes last."""
    deadline = time.monotonic() + _END_LIMIT_S
    while pid is not None and Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.01)


def remove_cgroups(pattern: str) -> None:
    """Remove the control groups of nodes' containers, which ended with the nodes."""
    root = Path("/sys/fs/cgroup")
    for top in [*root.glob(pattern), *root.glob(f"*/{pattern}")]:
        inner = sorted((path for path in top.rglob("*") if path.is_dir()), key=lambda path: -len(path.parts))
        for path in [*inner, top]:
            with contextlib.suppress(OSError):
                path.rmdir()
