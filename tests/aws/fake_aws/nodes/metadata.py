"""The metadata service of one instance, version 2, at 169.254.169.254 within it; and what its stand-ins report to."""

import io
import json
import secrets
import time
from collections.abc import Callable, Iterable
from typing import Any

from fake_aws import roles
from fake_aws.world import World

_LONGEST_TTL_S = 21600
_VERSION = "latest"


class Metadata:
    """A WSGI application.

    Args:
        world: where the instance is.
        instance: moto's.
        reports: what a stand-in may report, by name: called with the request's body, returns the answer's; a
            ValueError's words are answered with status 400.
    """

    def __init__(self, world: World, instance: Any, reports: dict[str, Callable[[str], str]]) -> None:
        self._world, self._instance, self._reports = world, instance, reports
        self._tokens: dict[str, float] = {}
        self.notices: dict[str, Any] = {}  # path -> what is read there; tests set spot/instance-action and the like

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        status, body = self._answer(environ)
        start_response(status, [("Content-Type", "text/plain"), ("Content-Length", str(len(body.encode())))])
        return io.BytesIO(body.encode())

    def _answer(self, environ: dict[str, Any]) -> tuple[str, str]:
        path, method = environ.get("PATH_INFO", "/").strip("/"), environ["REQUEST_METHOD"]
        if method == "POST" and path.startswith("_fake/"):
            return self._report(path.removeprefix("_fake/"), environ)
        if path == f"{_VERSION}/api/token":
            return self._token(environ) if method == "PUT" else ("405 Method Not Allowed", "")
        if method != "GET":
            return "405 Method Not Allowed", ""
        if self._tokens.get(environ.get("HTTP_X_AWS_EC2_METADATA_TOKEN", ""), 0) < time.monotonic():
            return "401 Unauthorized", ""
        found = self._find(path.removeprefix(_VERSION).strip("/"))
        return ("404 Not Found", "") if found is None else ("200 OK", found)

    def _report(self, name: str, environ: dict[str, Any]) -> tuple[str, str]:
        given = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)).decode()
        try:
            return "200 OK", self._reports[name](given)
        except ValueError as error:
            return "400 Bad Request", str(error)

    def _token(self, environ: dict[str, Any]) -> tuple[str, str]:
        try:
            ttl = int(environ.get("HTTP_X_AWS_EC2_METADATA_TOKEN_TTL_SECONDS", ""))
        except ValueError:
            return "400 Bad Request", ""
        if not 1 <= ttl <= _LONGEST_TTL_S or "HTTP_X_FORWARDED_FOR" in environ:
            return "400 Bad Request" if "HTTP_X_FORWARDED_FOR" not in environ else "403 Forbidden", ""
        token = secrets.token_urlsafe(40)
        self._tokens[token] = time.monotonic() + ttl
        return "200 OK", token

    def _find(self, path: str) -> str | None:
        """Return what is at a path: a leaf's text, a folder's list, or None."""
        here: Any = self._tree()
        for part in path.split("/") if path else []:
            here = here.get(part) if isinstance(here, dict) else None
        if isinstance(here, dict):
            return "\n".join(f"{name}/" if isinstance(inner, dict) else name for name, inner in here.items())
        return here if here is None else str(here)

    def _tree(self) -> dict[str, Any]:
        instance, world = self._instance, self._world
        tree: dict[str, Any] = {
            "ami-id": instance.image_id, "instance-id": instance.id, "instance-type": instance.instance_type,
            "instance-life-cycle": instance.lifecycle or "on-demand", "hostname": instance.private_dns_name,
            "local-hostname": instance.private_dns_name, "local-ipv4": instance.private_ip,
            "mac": instance.nics[0].mac_address if instance.nics else "",
            "placement": {"availability-zone": instance.placement.zone, "region": world.region},
            "security-groups": "\n".join(group.name for group in instance.security_groups),
            "services": {"domain": "amazonaws.com", "partition": "aws"},
        }  # fmt: skip
        if instance.public_ip:
            tree["public-ipv4"] = instance.public_ip
        if instance.key_name:
            key = world.ec2.key_pairs.get(instance.key_name)
            tree["public-keys"] = {"0": {"openssh-key": key.public_key}} if key else {}
        if instance.metadata_options.instance_metadata_tags == "enabled":
            tree["tags"] = {"instance": {tag["key"]: tag["value"] for tag in instance.get_tags()}}
        who = roles.role(world, instance)
        if who is not None:
            tree["iam"] = {
                "info": json.dumps({"Code": "Success", "InstanceProfileArn": who.arn}),
                "security-credentials": {who.name: json.dumps(roles.credentials(world, instance))},
            }
        for path, what in self.notices.items():
            here = tree
            *folders, name = path.split("/")
            for folder in folders:
                here = here.setdefault(folder, {})
            here[name] = what if isinstance(what, str) else json.dumps(what)
        document = {
            "accountId": world.account, "architecture": "x86_64", "availabilityZone": instance.placement.zone,
            "imageId": instance.image_id, "instanceId": instance.id, "instanceType": instance.instance_type,
            "privateIp": instance.private_ip, "region": world.region, "version": "2017-09-30",
        }  # fmt: skip
        data = instance.user_data
        return {
            "meta-data": tree,
            "dynamic": {"instance-identity": {"document": json.dumps(document, indent=1)}},
            **({"user-data": data.decode() if hasattr(data, "decode") else str(data)} if data else {}),
        }
