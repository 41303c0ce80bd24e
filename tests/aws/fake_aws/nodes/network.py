"""The network of the fake: a router of its own, which is the VPC's bridge and its internet gateway, and this machine.

    this machine: <prefix>h, 198.19.x.y/30 --- uplink: router: br0, gateway of each subnet --- eth0: instance

As in EC2 an instance has its private address only; the router translates public addresses, both ways. Nothing of a VPC
is in this machine's routing table but the public addresses, so that two fakes may have the same VPC.
"""

import ipaddress
import zlib
from pathlib import Path

from fake_aws.nodes import tools

METADATA = "169.254.169.254"
_POOL = ipaddress.ip_network("198.19.0.0/16")  # of the networks for benchmarks, RFC 2544


class Network:
    """The router and this machine's link to it.

    Attributes:
        host: this machine's address on the link: where instances find the API and the registry, and where the operator
            comes from.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self.router = f"{prefix}r"
        self._link = f"{prefix}h"
        self.host = ""
        self._far = ""
        self._public: dict[str, str] = {}

    def up(self) -> None:
        """Make the router."""
        net = _free_network(self._prefix)
        self.host, self._far = str(net[1]), str(net[2])
        tools.run("ip", "netns", "add", self.router)
        tools.ip(
            f"link add {self._link} type veth peer name uplink netns {self.router}",
            f"address add {self.host}/30 dev {self._link}",
            f"link set {self._link} up",
        )
        tools.ip(
            "link set lo up",
            f"address add {self._far}/30 dev uplink",
            "link set uplink up",
            f"route add default via {self.host}",
            "link add br0 type bridge",
            "link set br0 up",
            space=self.router,
        )
        forward = "echo 1 > /proc/sys/net/ipv4/ip_forward"
        tools.within(self.router, "sh", "-c", forward)

    def down(self) -> None:
        """Remove the router and all that was made for it, of an earlier process too."""
        for space in spaces(self._prefix):
            for pid in tools.run("ip", "netns", "pids", space, required=False).split():
                tools.run("kill", "-9", pid, required=False)
            tools.run("ip", "netns", "del", space, required=False)
        if Path("/sys/class/net", self._link).exists():
            tools.run("ip", "link", "del", self._link, required=False)  # its routes go with it

    def attach(self, space: str, port: str, private: str, subnet: str, public: str | None) -> None:
        """Give a new namespace its addresses."""
        net = ipaddress.ip_network(subnet)
        tools.run("ip", "netns", "add", space)
        hardware = "02:00:" + ":".join(f"{int(part):02x}" for part in private.split("."))
        tools.ip(
            f"address replace {net[1]}/{net.prefixlen} dev br0",
            f"link add {port} type veth peer name eth0 address {hardware} netns {space}",
            f"link set {port} master br0 up",
            space=self.router,
        )
        tools.ip(
            "link set lo up",
            f"address add {METADATA}/32 dev lo",
            f"address add {private}/{net.prefixlen} dev eth0",
            "link set eth0 up",
            f"route add default via {net[1]}",
            space=space,
        )
        if public:
            self._translate("-A", private, public)
            tools.run("ip", "route", "replace", f"{public}/32", "via", self._far, "dev", self._link)
            self._public[private] = public

    def detach(self, space: str, private: str) -> None:
        """Take a namespace's addresses back, and the namespace with them."""
        public = self._public.pop(private, None)
        if public:
            tools.run("ip", "route", "del", f"{public}/32", "dev", self._link, required=False)
            self._translate("-D", private, public)
        tools.run("ip", "netns", "del", space, required=False)

    def _translate(self, action: str, private: str, public: str) -> None:
        """Let packets in to a public address, and out from it; also those between instances that use them."""
        for rule in (
            f"PREROUTING -d {public} -j DNAT --to-destination {private}",
            f"POSTROUTING -s {private} -o uplink -j SNAT --to-source {public}",
            f"POSTROUTING -s {private} -m conntrack --ctstate DNAT -j SNAT --to-source {public}",
        ):
            tools.within(self.router, "iptables", "-w", "-t", "nat", action, *rule.split(), required=action == "-A")


def spaces(prefix: str) -> list[str]:
    """Return the network namespaces that begin with a prefix."""
    listed = tools.run("ip", "netns", "list").splitlines()
    return [line.split()[0] for line in listed if line.startswith(prefix)]


def _free_network(prefix: str) -> ipaddress.IPv4Network:
    """Return four addresses of the pool that no route leads to."""
    used = [
        ipaddress.ip_network(line.split()[0], strict=False)
        for line in tools.run("ip", "-4", "route", "list").splitlines()
        if line[:1].isdigit()
    ]
    nets = list(_POOL.subnets(new_prefix=30))
    start = zlib.crc32(prefix.encode()) % len(nets)
    for net in nets[start:] + nets[:start]:
        if not any(net.overlaps(other) for other in used):
            return net
    raise RuntimeError(f"every network of {_POOL} is in use")
