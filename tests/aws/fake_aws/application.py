"""The fake's HTTP application: moto's, with faults before it, a record of what was asked, and what moto lacks."""

import contextlib
import io
import json
import time
from collections.abc import Callable, Iterable
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app

from fake_aws import control, pricing
from fake_aws.asked import Asked, read
from fake_aws.errors import Answer
from fake_aws.gaps import templates
from fake_aws.world import World

Environ = dict[str, Any]
_LONGEST_RECORDED = 2000


class Application:
    """A WSGI application.

    Args:
        world: what it shares with the nodes.
        operator: returns the address that the operator on this machine has for nodes, and None elsewhere.
    """

    def __init__(self, world: World, operator: Callable[[], str | None]) -> None:
        self._world = world
        self._operator = operator
        self._moto = DomainDispatcherApplication(create_backend_app)

    def __call__(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "/")
        if path == "/checkip":
            own = str(environ.get("REMOTE_ADDR", ""))
            address = (self._operator() if own.startswith("127.") else None) or own
            return _send(Answer(200, "text/plain", f"{address}\n".encode()), start_response)
        if path.startswith(control.PREFIX):
            length = int(environ.get("CONTENT_LENGTH") or 0)
            given = json.loads(environ["wsgi.input"].read(length)) if length else {}
            return _send(control.answer(self._world, path.removeprefix(control.PREFIX), given), start_response)
        if path.startswith("/moto-api"):
            return self._moto(environ, start_response)  # type: ignore[no-any-return]
        return self._api(environ, start_response)

    def _api(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        asked = read(environ)
        record = self._record(asked, environ)
        answer = self._world.faults.answer(asked, self._zone)
        if answer is None:
            for check in self._world.checks:
                answer = answer or check(asked)
        if answer is None and asked.service == "pricing":
            answer = pricing.answer(self._world, asked)
        if answer is not None:
            record["status"] = answer.status
            return _send(answer, start_response)

        def started(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            record["status"] = int(status.split()[0])
            return start_response(status, headers, *rest)

        looks = asked.service != "ec2" or asked.action.startswith(("Describe", "Get"))
        with contextlib.nullcontext() if looks else self._world.lock:
            body = self._moto(environ, started)
        for follow in self._world.after:
            follow(asked)
        return body  # type: ignore[no-any-return]

    def _record(self, asked: Asked, environ: Environ) -> dict[str, Any]:
        shown = {name: value for name, value in asked.parameters.items() if len(str(value)) <= _LONGEST_RECORDED}
        record = {
            "time": time.time(), "service": asked.service, "action": asked.action, "region": asked.region,
            "parameters": shown, "from": environ.get("REMOTE_ADDR"), "access_key": asked.access_key, "status": None,
        }  # fmt: skip
        self._world.calls.append(record)
        return record

    def _zone(self, asked: Asked) -> str:
        """Return the zone that RunInstances names, or that its subnet is in."""
        wanted = asked.parameters
        if zone := wanted.get("Placement.AvailabilityZone"):
            return str(zone)
        subnet = wanted.get("SubnetId") or wanted.get("NetworkInterface.1.SubnetId")
        if template := wanted.get("LaunchTemplate.LaunchTemplateId"):
            named = {"LaunchTemplateId": template, "Version": wanted.get("LaunchTemplate.Version", "$Default")}
            subnet = next((one["SubnetId"] for one in templates.interfaces(self._world.ec2, named)), subnet)
        known = self._world.ec2.describe_subnets() if subnet else []
        return next((one.availability_zone for one in known if one.id == subnet), "")


def _send(answer: Answer, start_response: Callable[..., Any]) -> Iterable[bytes]:
    length = str(len(answer.body))
    start_response(answer.status_line, [("Content-Type", answer.content_type), ("Content-Length", length),
                                        *answer.headers])  # fmt: skip
    return io.BytesIO(answer.body)
