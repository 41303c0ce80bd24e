"""The connection to AWS: clients of one region, the caller and its address, and AWS's refusals as sentences."""

import ipaddress
import os
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from http.client import HTTPException
from typing import Any, NamedTuple, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    NoCredentialsError,
    NoRegionError,
    ProfileNotFound,
    TokenRetrievalError,
    UnauthorizedSSOTokenError,
)
from botocore.exceptions import ConnectionError as NoConnection

from draco.errors import DracoError, MissingError, NotConfiguredError

PATIENCE = Config(connect_timeout=10, read_timeout=30, retries={"mode": "standard", "total_max_attempts": 6})
EXPIRED = {"ExpiredToken", "ExpiredTokenException", "RequestExpired"}
UNKNOWN = {"AuthFailure", "InvalidClientTokenId", "SignatureDoesNotMatch", "UnrecognizedClientException"}
FORBIDDEN = {"UnauthorizedOperation", "AccessDenied", "AccessDeniedException"}
THROTTLED = {"RequestLimitExceeded", "Throttling", "ThrottlingException", "TooManyRequestsException"}
_NO_ANSWER_AT_ALL = EXPIRED | UNKNOWN | THROTTLED
LOGIN = "aws configure, aws sso login, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"

_CHECKIP = "https://checkip.amazonaws.com"  # answers with the address alone; DRACO_CHECKIP_URL names another
_CHECKIP_PATIENCE_S = 10
_LONGEST_ADDRESS = 64
Answer = TypeVar("Answer")


class Caller(NamedTuple):
    """Who is calling."""

    account: str
    arn: str

    @property
    def name(self) -> str:
        """The last part of the ARN: a user's name, or a role's session."""
        return self.arn.rsplit("/", 1)[-1].rsplit(":", 1)[-1]


@cache
def client(service: str, region: str) -> Any:
    """Return a client; the environment may name its endpoint."""
    return boto3.client(service, region_name=region, config=PATIENCE)


def default_region() -> str | None:
    """Return the region that the shell or the AWS configuration names."""
    with speaking("reading the AWS configuration"):
        region: str | None = boto3.session.Session().region_name
    return region


def caller(region: str) -> Caller:
    """Return who is calling.

    Raises:
        MissingError: no credentials, or AWS does not accept them.
    """
    with speaking("asking AWS who is calling"):
        found = client("sts", region).get_caller_identity()
    return Caller(found["Account"], found["Arn"])


def own_cidr() -> str:
    """Return the caller's public IPv4 address as a network of one, x.y.z.w/32: from there ssh reaches the head.

    Raises:
        MissingError: the address service does not answer.
    """
    url = os.environ.get("DRACO_CHECKIP_URL") or _CHECKIP
    try:
        if not url.startswith(("https://", "http://")):
            raise ValueError("DRACO_CHECKIP_URL must begin with https://")
        with urllib.request.urlopen(url, timeout=_CHECKIP_PATIENCE_S) as response:
            told = response.read(_LONGEST_ADDRESS).decode("ascii").strip()
        return f"{ipaddress.IPv4Address(told)}/32"
    except (OSError, HTTPException, ValueError) as error:
        raise MissingError(
            f"{url} does not tell this machine's public IPv4 address ({error}): SET=ssh_cidr=x.y.z.w/32 names it"
        ) from error


def pages(service: str, region: str, operation: str, **arguments: Any) -> Iterator[dict[str, Any]]:
    """Yield every page of the answer to an operation, or its only one."""
    asked = client(service, region)
    if asked.can_paginate(operation):
        yield from asked.get_paginator(operation).paginate(**arguments)
    else:
        yield getattr(asked, operation)(**arguments)


def has_object(region: str, bucket: str, key: str) -> bool:
    """Say whether a bucket holds an object of that key.

    Raises:
        DracoError: there is no such bucket, or it may not be looked into.
    """
    with speaking(f"looking into the bucket {bucket}"):
        return bool(client("s3", region).list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1).get("Contents"))


def tags_of_role(region: str, role: str) -> dict[str, str]:
    """Return the tags of a role; ClientError NoSuchEntity without one."""
    told = client("iam", region).get_role(RoleName=role)["Role"]
    return {tag["Key"]: tag["Value"] for tag in told.get("Tags", [])}


@contextmanager
def speaking(what: str) -> Iterator[None]:
    """Turn AWS's refusals within the block into errors that begin with `what`, the attempt.

    Raises:
        MissingError: credentials, a region, a permission or a connection are missing.
        NotConfiguredError: AWS answered with something else; the same command may be given again.
    """
    try:
        yield
    except ClientError as error:
        raise refusal(what, error.response["Error"]["Code"], error.response["Error"].get("Message", "")) from error
    except (NoCredentialsError, TokenRetrievalError, UnauthorizedSSOTokenError, ProfileNotFound) as error:
        raise MissingError(f"{what}: no AWS credentials ({error}): {LOGIN}") from error
    except NoRegionError as error:
        raise MissingError(f"{what}: no region: AWS_REGION=us-east-1, or SET=region=us-east-1") from error
    except NoConnection as error:
        raise MissingError(f"{what}: AWS does not answer: {error}") from error
    except BotoCoreError as error:
        raise NotConfiguredError(f"{what}: {error}") from error


def ask(what: str, question: Callable[[], Answer]) -> Answer | None:
    """Return AWS's answer to a question that helps but is not needed, such as prices on demand.

    None where AWS refuses this one question: not permitted, or not in this region.

    Raises:
        DracoError: AWS answers nothing at all: the credentials or the connection are at fault, or it is too busy.
    """
    try:
        with speaking(what):
            return question()
    except DracoError as error:
        cause = error.__cause__
        if isinstance(cause, ClientError) and cause.response["Error"]["Code"] not in _NO_ANSWER_AT_ALL:
            return None
        raise


def refusal(what: str, code: str, message: str) -> DracoError:
    """Return the error for one of AWS's error codes."""
    if code in EXPIRED:
        return MissingError(f"{what}: the AWS credentials have expired: {LOGIN}")
    if code in UNKNOWN:
        return MissingError(f"{what}: AWS does not accept these credentials ({code}): {LOGIN}")
    if code in FORBIDDEN:
        return MissingError(f"{what}: these credentials may not: {message}; docs/aws.md lists what they need")
    if code in THROTTLED:
        return NotConfiguredError(f"{what}: AWS takes no more calls for now ({code}); try again in a minute")
    return NotConfiguredError(f"{what}: {code}: {message}")
