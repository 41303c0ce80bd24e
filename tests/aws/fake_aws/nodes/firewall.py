"""Security groups: their ingress rules as a chain of each instance's own firewall."""

import ipaddress
from collections.abc import Iterator
from typing import Any

from fake_aws.nodes import tools
from fake_aws.world import World

_CHAIN = "SECURITY-GROUPS"


def chain(world: World, instance: Any) -> str:
    """Return the instance's rules as iptables-restore reads them."""
    lines = [
        "-i lo -j ACCEPT",
        "-m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT",
        "-p icmp -j ACCEPT",
        *(f"{_match(rule)} -s {source} -j ACCEPT".strip() for rule, source in _allowed(world, instance)),
        "-j DROP",
    ]
    body = "\n".join(f"-A {_CHAIN} {line}" for line in lines)
    return f"*filter\n:{_CHAIN} - [0:0]\n{body}\nCOMMIT\n"


def load(space: str, text: str, first: bool) -> None:
    """Put a chain in force in an instance's namespace."""
    tools.within(space, "iptables-restore", "-w", "--noflush", stdin=text)
    if first:
        tools.within(space, "iptables", "-w", "-I", "INPUT", "-j", _CHAIN)


def lets_in(world: World, groups: list[str], instance: Any, port: int) -> bool:
    """Say whether groups let an instance in to a TCP port, of a mount target say."""
    for group in groups:
        for rule in world.ec2.get_security_group_from_id(group).ingress_rules:
            fits = rule.ip_protocol == "-1" or (rule.ip_protocol == "tcp" and rule.from_port <= port <= rule.to_port)
            address = ipaddress.ip_address(instance.private_ip)
            if fits and any(address in ipaddress.ip_network(source) for source in _sources(world, rule)):
                return True
    return False


def _allowed(world: World, instance: Any) -> Iterator[tuple[Any, str]]:
    for group in groups_of(instance):
        for rule in group.ingress_rules:
            for source in _sources(world, rule):
                yield rule, source


def groups_of(instance: Any) -> list[Any]:
    """Return the security groups of an instance."""
    return list(instance.security_groups)


def _sources(world: World, rule: Any) -> Iterator[str]:
    """Yield the networks that a rule lets in: its own, or the addresses of a group's members."""
    if rule.cidr_ipv4:
        yield str(ipaddress.ip_network(rule.cidr_ipv4, strict=False))
    wanted = rule.source_group.get("GroupId")
    if not wanted:
        return
    for reservation in list(world.ec2.reservations.values()):
        for instance in reservation.instances:
            if instance.state in ("pending", "running") and wanted in [group.id for group in groups_of(instance)]:
                yield f"{instance.private_ip}/32"


def _match(rule: Any) -> str:
    if rule.ip_protocol in ("tcp", "udp"):
        return f"-p {rule.ip_protocol} --dport {rule.from_port}:{rule.to_port}"
    return "" if rule.ip_protocol == "-1" else f"-p {rule.ip_protocol}"
