"""The checks of `make doctor`: whether this machine and this account can bring a cluster up on AWS, with remedies."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any, NamedTuple

from botocore.exceptions import ConnectionError as NoConnectionError
from rich.table import Table
from rich.text import Text

from draco.cluster import configure, engine
from draco.cluster.aws import account, machine_images
from draco.cluster.aws.cost import blocks, quotas, quote
from draco.cluster.aws.cost.prices import Market
from draco.cluster.aws.cost.quotas import Quota
from draco.cluster.aws.settings import Settings
from draco.errors import DracoError, MissingError
from draco.launch.environment import launch_environment

LEAST_TERRAFORM = (1, 10)  # the first that locks state in S3 without a table beside it
_PATIENCE_S = 30
_MOST_SKEW_S = 300  # AWS refuses signatures that are 15 minutes off
_PERMISSIONS = "docs/aws.md lists the permissions"


class Check(NamedTuple):
    """One check."""

    name: str
    ok: bool | None  # None: cannot tell
    found: str
    fix: str = ""


def checks(settings: Settings, image: str, workers: int = 3) -> Iterator[Check]:
    """Yield one check after the other, this machine's first; a failed check does not end them."""
    yield _tried("terraform", _terraform, "install Terraform 1.10 or newer")
    yield _tried("ansible", _ansible, "make setup EXTRAS=cluster")
    for name in ("ssh", "ssh-keygen"):
        yield _tried(name, partial(_path, name), "install the OpenSSH client")
    answers = _tried("docker", _engine, "install Docker and start its engine; add this user to its group docker")
    yield answers
    yield _tried("image", partial(_image, image), "make image") if answers.ok else _untold("image", "no Docker Engine")
    if settings.has_gpus:
        yield _torch(engine.torch_build(image) if answers.ok else None)
    yield _tried("own address", lambda: settings.ssh_cidr or account.own_cidr(), "SET=ssh_cidr=x.y.z.w/32 names it")
    region = _tried("region", partial(_region, settings), "AWS_REGION=us-east-1, or SET=region=us-east-1")
    yield region
    yield from _at_aws(settings, workers, region.found if region.ok else None)


def table(found: Iterable[Check]) -> Table:
    """Return the checks as a table, with the remedy below each failed one."""
    out = Table(box=None, show_header=False, pad_edge=False)
    for check in found:
        mark, style = {True: ("✔", "green"), False: ("✖", "red"), None: ("?", "yellow")}[check.ok]
        out.add_row(Text(mark, style), Text(check.name), Text(check.found))
        if check.fix and not check.ok:
            out.add_row("", "", Text(check.fix, "bold"))
    return out


def clock(date: str | None, now: datetime) -> Check:
    """Judge this machine's clock by the Date header of an answer from AWS."""
    try:
        skew = (now - parsedate_to_datetime(date or "")).total_seconds()
    except ValueError:
        return _untold("clock", "AWS did not tell the time")
    late = f"{abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} AWS"
    return Check("clock", abs(skew) <= _MOST_SKEW_S, late, "set the clock: AWS refuses what is signed at a wrong time")


def quota_check(found: Iterable[Quota], region: str) -> Check:
    """Judge whether the quotas have room for a cluster."""
    found = tuple(found)
    short = [quota for quota in found if quota.is_short]
    unknown = any(quota.limit is None for quota in found)
    return Check(
        "quotas", False if short else None if unknown else True, "\n".join(quota.line for quota in found),
        "\n".join(quota.remedy(region) for quota in short) or _PERMISSIONS,
    )  # fmt: skip


def _at_aws(settings: Settings, workers: int, region: str | None) -> Iterator[Check]:
    """Check the account; without a region or credentials nothing can be told."""
    names = ("credentials", "clock", *_SERVICES, "quotas", *(["GPUs"] if settings.has_gpus else []))
    if region is None:
        yield from (_untold(name, "no region") for name in names)
        return
    credentials, date = _credentials(region)
    yield credentials
    yield clock(date, datetime.now(UTC))
    if not credentials.ok:
        yield from (_untold(name, "no credentials") for name in names[2:])
        return
    for name, (service, ask) in _SERVICES.items():
        yield _tried(name, partial(_service, service, region, ask), _PERMISSIONS)
    try:
        yield quota_check(_quotas(settings, workers, region), region)
    except DracoError as error:
        yield _amiss("quotas", error, _PERMISSIONS)
    if settings.has_gpus:
        yield _tried("GPUs", partial(_gpus, settings, region), _PERMISSIONS)


# One question each that changes nothing; its answer does not matter.
_SERVICES: Mapping[str, tuple[str, Callable[[Any], Any]]] = {
    "EC2": ("ec2", lambda client: client.describe_instances(MaxResults=5)),
    "EFS": ("efs", lambda client: client.describe_file_systems(MaxItems=1)),
    "ECR": ("ecr", lambda client: client.describe_repositories(maxResults=1)),
}


def _tried(name: str, look: Callable[[], str], fix: str) -> Check:
    """Return the check that `look` makes: what it finds, or the error that it raises."""
    try:
        return Check(name, True, look())
    except DracoError as error:
        return _amiss(name, error, fix)


def _amiss(name: str, error: DracoError, fix: str) -> Check:
    return Check(name, False, str(error).removesuffix(fix).rstrip(" :;"), fix)  # most errors end with what to do


def _untold(name: str, why: str) -> Check:
    return Check(name, None, f"cannot tell: {why}")


def _said(*argv: str) -> str:
    """Return what a command prints."""
    environment = launch_environment(
        os.environ, {"CHECKPOINT_DISABLE": "1"}
    )  # Terraform would ask for a newer version of itself
    try:
        made = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=_PATIENCE_S,
            env=environment,
        )  # fmt: skip
    except FileNotFoundError as error:
        raise MissingError(f"there is no command {argv[0]}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MissingError(str(error)) from error
    if made.returncode:
        raise MissingError(" ".join(made.stderr.split())[:300] or f"{argv[0]} ended with {made.returncode}")
    return made.stdout.strip()


def _path(name: str) -> str:
    if found := shutil.which(name):
        return found
    raise MissingError(f"there is no command {name}")


def _terraform() -> str:
    try:
        told = str(json.loads(_said("terraform", "version", "-json"))["terraform_version"])
    except (ValueError, KeyError, TypeError) as error:
        raise MissingError("its version cannot be told") from error
    version = re.match(r"(\d+)\.(\d+)", told)
    if not version or (int(version[1]), int(version[2])) < LEAST_TERRAFORM:
        raise MissingError(f"is {told}")
    return told


def _ansible() -> str:
    configure.require()
    return "in this virtual environment"


def _engine() -> str:
    return f"engine {_said('docker', 'version', '--format', '{{.Server.Version}}')}"


def _image(image: str) -> str:
    return f"{image} is {engine.image_id(image).removeprefix('sha256:')[:12]}"


def _region(settings: Settings) -> str:
    with account.speaking("reading the AWS configuration"):
        if region := settings.region or account.default_region():
            return region
    raise MissingError("none is named")


def _credentials(region: str) -> tuple[Check, str | None]:
    """Return whether AWS knows the caller, and what it says the time is, even when it refuses."""
    try:
        with account.speaking("asking AWS who is calling"):
            answer = account.client("sts", region).get_caller_identity()
        check = Check("credentials", True, f"{answer['Arn']}, account {answer['Account']}")
    except DracoError as error:
        answer = getattr(error.__cause__, "response", {})
        offline = isinstance(error.__cause__, NoConnectionError)
        check = _amiss("credentials", error, "go online; HTTPS_PROXY names a proxy" if offline else account.LOGIN)
    date: str | None = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
    return check, date


def _service(service: str, region: str, ask: Callable[[Any], Any]) -> str:
    with account.speaking(f"asking AWS for {service}"):
        ask(account.client(service, region))
    return "answers"


def _torch(build: str | None) -> Check:
    """Judge an image for nodes with GPUs by the build of torch in it."""
    if build is None:
        return _untold("torch", "no image that says which torch it holds")
    return Check("torch", build == "cuda", f"the image holds the {build.upper()} build", "make image TORCH=cuda")


def _gpus(settings: Settings, region: str) -> str:
    """Return what the types with GPUs have, and their machine image."""
    if settings.capacity_reservation:
        block = blocks.find(region, settings.capacity_reservation)
        settings = settings.model_copy(update={"worker_types": (block.type,)})
    named = [each for each in dict.fromkeys(settings.types) if machine_images.has_gpus(each)]
    found = quotas.kinds(region, named)
    image = settings.ami or (machine_images.newest(region, named[0]) if named else "none")
    return "\n".join([*(f"{each}: {found[each].words}" for each in named if each in found), f"machine image {image}"])


def _quotas(settings: Settings, workers: int, region: str) -> tuple[Quota, ...]:
    market: Market = "spot"
    if settings.capacity_reservation:
        block = blocks.find(region, settings.capacity_reservation)
        blocks.refuse_unfit(block, settings, workers)
        market, settings = "capacity-block", settings.model_copy(update={"worker_types": (block.type,)})
    survey = quotas.survey(region, "", settings.types)
    types = quote.worker_types(settings, survey.kinds)
    quotas.refuse_unfit(region, (settings.head_type, *types), survey.kinds, efa=settings.efa, ami=settings.ami)
    return survey.quotas(settings.head_type, types[0], market, workers)
