"""Host keys of nodes, from their consoles: so even the first connection to a node is authenticated.

Cloud-init prints the key. AWS says which console belongs to which machine, so a console vouches for its own machine
only. A wrong key shuts the operator out of that machine and affects no other. Nothing else on a console is used.
"""

import base64
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from botocore.exceptions import ClientError

from draco.cluster.aws.account import client, pages, speaking
from draco.errors import NotConfiguredError

_BEGIN, _END = "-----BEGIN SSH HOST KEY KEYS-----", "-----END SSH HOST KEY KEYS-----"
_KEY = re.compile(r"(?<!\S)ssh-ed25519 ([A-Za-z0-9+/]{68})(?!\S)")
_HEADER = b"\0\0\0\x0bssh-ed25519\0\0\0\x20"  # what the key's 32 bytes come after
_POLL_S = 3.0
_NO_LATEST = {"UnsupportedOperation", "InvalidParameter", "InvalidParameterValue", "InvalidParameterCombination"}
_NOT_YET = {"InvalidInstanceID.NotFound", "IncorrectInstanceState"}  # AWS is not consistent yet


def host_key(console: str) -> str | None:
    """Return the ed25519 key in the last complete block of a console's text, as `ssh-ed25519 AAAA...`.

    None without a block, or where that block does not name exactly one such key.
    """
    blocks = [part.rpartition(_BEGIN) for part in console.split(_END)[:-1]]
    complete = [text for _, begin, text in blocks if begin]
    keys = set(_KEY.findall(complete[-1])) if complete else set()
    valid = [key for key in keys if base64.b64decode(key).startswith(_HEADER)]
    return f"ssh-ed25519 {valid[0]}" if len(valid) == len(keys) == 1 else None


def collect(
    region: str, instances: Mapping[str, str], say: Callable[[str], None], limit_s: float = 300.0
) -> dict[str, str]:
    """Return every node's host key; wait until each has printed it. `instances`: node -> instance id.

    Raises:
        NotConfiguredError: a node ended, or its key did not come within the limit.
    """
    deadline = time.monotonic() + limit_s
    waiting = dict(instances)
    keys: dict[str, str] = {}
    while True:
        for node, identity in waiting.items():
            with speaking(f"{node}: reading the console of {identity}"):
                if key := host_key(_console(region, identity)):
                    keys[node] = key
        waiting = {node: identity for node, identity in waiting.items() if node not in keys}
        if not waiting:
            return {node: keys[node] for node in instances}
        _refuse_ended(region, waiting)
        if time.monotonic() > deadline:
            raise NotConfiguredError("\n".join(_late(region, *pair, limit_s) for pair in waiting.items()))
        more = f" and {len(waiting) - 1} more" if len(waiting) > 1 else ""
        say(f"waiting for {next(iter(waiting))}'s host key{more}")
        time.sleep(_POLL_S)


def known_hosts(nodes: Mapping[str, Sequence[str | None]], keys: Mapping[str, str]) -> str:
    """Return the text of a known_hosts file. `nodes`: name -> addresses, by all of which the node is known."""
    return "".join(f"{','.join([name, *filter(None, addresses)])} {keys[name]}\n" for name, addresses in nodes.items())


def _console(region: str, instance: str) -> str:
    """Return the console's text so far. Only for machines on Nitro is it up to date; others lag by minutes."""
    try:
        return _output(region, instance, Latest=True)
    except ClientError as error:
        if error.response["Error"]["Code"] not in _NO_LATEST:
            raise
    return _output(region, instance)


def _output(region: str, instance: str, **how: bool) -> str:
    try:
        told = client("ec2", region).get_console_output(InstanceId=instance, **how)
    except ClientError as error:
        if error.response["Error"]["Code"] in _NOT_YET:
            return ""
        raise
    return told.get("Output") or ""


def _refuse_ended(region: str, instances: Mapping[str, str]) -> None:
    nodes = {identity: node for node, identity in instances.items()}
    with speaking("asking AWS which nodes have ended"):
        named = [{"Name": "instance-id", "Values": list(nodes)}]
        ended = [
            _why(nodes[raw["InstanceId"]], raw)
            for page in pages("ec2", region, "describe_instances", Filters=named)
            for reservation in page["Reservations"]
            for raw in reservation["Instances"]
            if raw["State"]["Name"] not in ("pending", "running")
        ]
    if ended:
        raise NotConfiguredError("\n".join(ended))


def _why(node: str, raw: Mapping[str, Any]) -> str:
    reason = raw.get("StateReason", {}).get("Message") or "AWS does not say why"
    return f"{node}: {raw['InstanceId']} was {raw['State']['Name']} before it told its host key: {reason}"


def _late(region: str, node: str, instance: str, limit_s: float) -> str:
    look = f"aws ec2 get-console-output --region {region} --instance-id {instance} --output text"
    return f"{node}: no host key on its console after {limit_s:g} s; see what there is: {look}"
