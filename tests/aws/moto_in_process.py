"""AWS in the tests' own process: moto, and before it the answers that a test has for single operations."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import moto
import pytest

from draco.cluster.aws import account
from draco.cluster.aws.account import client

REGION = "us-east-1"
SERVICES = ("ec2", "efs", "ecr", "fis", "iam", "logs")
_EVENTS = {"logs": "cloudwatch-logs"}
Give = Callable[[Any], dict[str, Any] | None]


class _Http(NamedTuple):
    status_code: int


class Aws:
    """What stands before moto.

    Attributes:
        calls: the operations that moto was asked for, oldest first.
    """

    def __init__(self) -> None:
        self.calls: list[str] = []
        self._registered: list[tuple[str, str, Any]] = []
        for service in SERVICES:
            self._register(service, "before-call", lambda model, **_: self.calls.append(model.name))

    def _register(self, service: str, event: str, handler: Any) -> None:
        client(service, REGION).meta.events.register_first(event, handler)
        self._registered.append((service, event, handler))

    def end(self) -> None:
        """Take the answers away: clients outlive a test."""
        for service, event, handler in self._registered:
            client(service, REGION).meta.events.unregister(event, handler)

    def answer(self, service: str, operation: str, give: Give) -> None:
        """Answer an operation ("": all) with what `give` returns for what was sent; None lets moto answer."""

        def handler(params: dict[str, Any], **_: Any) -> tuple[_Http, dict[str, Any]] | None:
            given = give(params["body"])
            return None if given is None else (_Http(400 if "Error" in given else 200), given)

        self._register(service, f"before-call.{_EVENTS.get(service, service)}.{operation}".rstrip("."), handler)

    def refuse(self, service: str, operation: str, code: str, times: int = 10**9) -> list[Any]:
        """Let an operation fail, for good or some times; return a list that grows with each attempt."""
        attempts: list[Any] = []

        def give(sent: Any) -> dict[str, Any] | None:
            attempts.append(sent)
            return error(code, f"{operation} is refused") if len(attempts) <= times else None

        self.answer(service, operation, give)
        return attempts


def error(code: str, message: str = "no") -> dict[str, Any]:
    """Return an answer that is an error."""
    return {"Error": {"Code": code, "Message": message}}


@contextmanager
def clients() -> Iterator[pytest.MonkeyPatch]:
    """Have clients of moto within the block, made once: each takes a while."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("AWS_ENDPOINT_URL", raising=False)
        patch.setenv("AWS_CONFIG_FILE", "/dev/null")
        account.client.cache_clear()
        yield patch
    account.client.cache_clear()


@contextmanager
def aws() -> Iterator[Aws]:
    """Have an account that is empty within the block."""
    mock = moto.mock_aws()
    mock.start()
    made = Aws()
    try:
        yield made
    finally:
        made.end()
        mock.stop(remove_data=False)  # which takes as long as a test does; the next start does it anyway
