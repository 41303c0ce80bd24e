"""The content of a request: service, action and parameters, whatever the protocol they came in."""

import io
import json
import re
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from urllib.parse import parse_qsl

_SCOPE = re.compile(r"Credential=([^/,\s]+)/\d+/([^/]+)/([^/]+)/aws4_request")
_REST = {"elasticfilesystem": "efs", "fis": "fis"}  # services that name their actions by paths, as boto3 calls them


@dataclass(frozen=True)
class Asked:
    """One request: `parameters` are flat strings as a form has them, or the fields of a JSON body."""

    service: str
    action: str
    region: str
    access_key: str
    parameters: dict[str, Any] = field(default_factory=dict)

    @property
    def protocol(self) -> str:
        """How errors are written: ec2, query, s3, json or rest-json."""
        known = {"ec2": "ec2", "iam": "query", "sts": "query", "s3": "s3", **dict.fromkeys(_REST, "rest-json")}
        return known.get(self.service, "json")


def read(environ: dict[str, Any]) -> Asked:
    """Return what a request asks for; its body can be read again afterwards."""
    scope = _SCOPE.search(environ.get("HTTP_AUTHORIZATION", ""))
    access_key, region, service = scope.groups() if scope else ("", "", "")
    body = _body(environ)
    target = environ.get("HTTP_X_AMZ_TARGET", "")
    if environ.get("CONTENT_TYPE", "").startswith("application/x-www-form-urlencoded"):
        parameters: dict[str, Any] = dict(parse_qsl(body.decode(errors="replace"), keep_blank_values=True))
        action = str(parameters.get("Action", ""))
    elif target:
        action, parameters = target.rsplit(".", 1)[-1], _json(body)
    else:
        query = dict(parse_qsl(environ.get("QUERY_STRING", ""), keep_blank_values=True))
        action = _rest_action(service, environ["REQUEST_METHOD"], environ.get("PATH_INFO", "/"))
        parameters = {**query, **(_json(body) if service != "s3" else {})}
    return Asked(service, action, region, access_key, parameters)


def _body(environ: dict[str, Any]) -> bytes:
    try:
        length = int(environ.get("CONTENT_LENGTH") or 0)
    except ValueError:
        return b""
    if not length:
        return b""
    body: bytes = environ["wsgi.input"].read(length)
    environ["wsgi.input"] = io.BytesIO(body)
    return body


def _json(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body) if body else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _rest_action(service: str, method: str, path: str) -> str:
    if service in _REST:
        for pattern, name in _rest_actions(_REST[service]).get(method, []):
            if pattern.fullmatch(path.rstrip("/") or "/"):
                return name
    return f"{method} {path}"


@cache
def _rest_actions(service: str) -> dict[str, list[tuple[re.Pattern[str], str]]]:
    from moto.core.utils import get_service_model

    model = get_service_model(service)
    found: dict[str, list[tuple[re.Pattern[str], str]]] = {}
    for name in model.operation_names:
        http = model.operation_model(name).http
        pattern = re.sub(r"\{[^}]+\}", "[^/]+", http["requestUri"].split("?")[0].rstrip("/"))
        found.setdefault(http["method"], []).append((re.compile(pattern), name))
    return found
