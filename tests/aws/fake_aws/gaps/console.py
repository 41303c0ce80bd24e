"""GetConsoleOutput: what the node wrote, or without nodes what cloud-init would have."""

from datetime import UTC, datetime
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from moto.core.responses import ActionResult
from moto.core.types import Base64EncodedString
from moto.ec2.responses import EC2Response

from fake_aws.world import World

_KEPT_BYTES = 64 * 1024


def fill(world: World) -> None:
    """See gaps; the part `console` of the control endpoint knows what nodes wrote."""

    def get_console_output(self: Any) -> ActionResult:
        instance = self.ec2_backend.get_instance(self._get_param("InstanceId"))
        now = datetime.now(UTC)
        written = world.parts["console"]({"instance": instance.id}) if "console" in world.parts else _invented(instance)
        age = (now - instance.launch_time.replace(tzinfo=UTC)).total_seconds()
        if not self._get_param("Latest") and age < world.console_delay_s:
            written = ""  # EC2 keeps what it saw some minutes ago, and an instance's first minutes are not in it
        result = {"InstanceId": instance.id, "Timestamp": now}
        if written:
            shown = written.replace("\n", "\r\n")[-_KEPT_BYTES:]
            result["Output"] = Base64EncodedString.from_raw_string(shown)
        return ActionResult(result)

    EC2Response.get_console_output = get_console_output


def _invented(instance: Any) -> str:
    """Return the console of an instance that is no node: with a host key that nobody has."""
    if not hasattr(instance, "invented_console"):
        public = Ed25519PrivateKey.generate().public_key()
        key = public.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()
        name = f"root@ip-{(instance.private_ip or '').replace('.', '-')}.ec2.internal"
        instance.invented_console = (
            "[    0.000000] Linux version 6.1.0-fake\n-----BEGIN SSH HOST KEY KEYS-----\n"
            f"{key} {name}\n-----END SSH HOST KEY KEYS-----\n"
        )
    shown: str = instance.invented_console
    return shown
