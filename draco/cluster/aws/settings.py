"""The settings of a cluster on AWS: the words after SET=, all checked before anything starts."""

import difflib
import json
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Network
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from draco import files
from draco.cluster.aws import machine_images
from draco.errors import JobError

_AS_TUPLE = BeforeValidator(lambda value: tuple(value.split(",")) if isinstance(value, str) else value)
_TYPE = r"^[a-z][a-z0-9-]*\.[a-z0-9-]+$"
InstanceType = Annotated[str, Field(pattern=_TYPE)]


class Bucket(NamedTuple):
    """Where Terraform's state is kept, if not beside its root."""

    name: str
    key: str
    region: str


class Settings(BaseModel):
    """One cluster's settings; a second `cluster-up` starts from those of the first."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    region: str | None = Field(
        None, pattern=r"^[a-z]{2}(-[a-z]+)+-\d$", description="null: the AWS_REGION of the shell"
    )
    zone: str | None = Field(None, pattern=r"^[a-z]{2}(-[a-z]+)+-\d[a-z]$", description="null: the best candidate's")
    head_type: InstanceType = Field("m6i.large", description="instance type of the head, always on demand")
    worker_types: Annotated[tuple[InstanceType, ...], _AS_TUPLE] = Field(
        ("m6i.xlarge", "m5.xlarge", "m6a.xlarge", "m5a.xlarge"), min_length=1,
        description="instance types for workers, all of them of one: the best candidate's",
    )  # fmt: skip
    hours: float = Field(4.0, gt=0, le=168, description="after which every node ends itself; make extend adds to it")
    max_price: float | None = Field(None, gt=0, description="dollars per hour for the whole cluster, above it: refused")
    max_spot_price: float | None = Field(
        None, gt=0, description="dollars per hour and worker, above which AWS takes it away; null: the on-demand price"
    )
    on_demand: bool = Field(False, description="take workers on demand where no spot capacity is left")
    ssh_cidr: str | None = Field(None, description="who may reach the head by ssh; null: the caller's own address")
    owner: str | None = Field(None, pattern=r"^[A-Za-z0-9_+=,.@-]{1,64}$", description="null: the caller's name at AWS")
    idle_minutes: int = Field(60, ge=0, le=10_000, description="without a run after which the head ends all; 0: never")
    volume_gb: int | None = Field(
        None,
        ge=20,
        le=16_000,
        description=f"size of each node's disk; null: {machine_images.PLAIN_DISK_GB}, or {machine_images.GPU_DISK_GB} "
        "where a type has GPUs",
    )
    placement_group: bool = Field(False, description="nodes close together; makes shortages likelier")
    efa: bool = Field(False, description="Elastic Fabric Adapter, for types that have one; lets workers reach workers")
    ssm: bool = Field(False, description="let Session Manager in beside ssh")
    ami: str | None = Field(
        None,
        pattern=r"^ami-[0-9a-f]{8,17}$",
        description="null: Amazon Linux 2023 of today; for types with GPUs AWS's Deep Learning Base AMI",
    )
    capacity_reservation: str | None = Field(
        None, pattern=r"^cr-[0-9a-f]{8,17}$", description="id of a capacity block for the workers; null: none"
    )
    state_bucket: str | None = Field(
        None, pattern=r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$", description="S3 bucket for Terraform's state; null: here"
    )

    @property
    def types(self) -> tuple[str, ...]:
        """The types of all nodes, the head's first."""
        return (self.head_type, *self.worker_types)

    @property
    def disk_gb(self) -> int:
        """The size of each node's disk."""
        return self.volume_gb or self.least_disk_gb

    @property
    def has_gpus(self) -> bool:
        """Whether nodes may have GPUs; capacity blocks are of such types."""
        return self.capacity_reservation is not None or any(map(machine_images.has_gpus, self.types))

    @property
    def least_disk_gb(self) -> int:
        """The smallest disk that holds what a node needs."""
        return machine_images.GPU_DISK_GB if self.has_gpus else machine_images.PLAIN_DISK_GB

    def is_default(self, key: str) -> bool:
        """Say whether nobody chose a setting."""
        return bool(getattr(self, key) == Settings.model_fields[key].default)

    def bucket(self, name: str, root: str) -> Bucket | None:
        """Return where the state of a cluster's root is kept, if not beside it."""
        if self.state_bucket is None:
            return None
        assert self.region
        return Bucket(self.state_bucket, f"draco/{name}/{root}.tfstate", self.region)

    @field_validator("ssh_cidr")
    @classmethod
    def _closed(cls, value: str | None) -> str | None:
        if value is not None:
            network = IPv4Network(value, strict=False)  # its ValueError is the fault
            if network.prefixlen < 8:
                raise ValueError("opens ssh to the whole world; it must be your own network, /8 or smaller")
            return str(network)
        return value


def updated(before: Settings, words: Sequence[str]) -> Settings:
    """Return the settings with every `key=value` applied.

    Raises:
        JobError: lists every fault, each with what was given and what it must be.
    """
    faults, given = [], {}
    for word in words:
        key, is_pair, value = word.partition("=")
        if not is_pair:
            faults.append(f"{word}: is no key=value")
        elif key not in Settings.model_fields:
            near = difflib.get_close_matches(key, Settings.model_fields, 1)
            faults.append(f"{key}: " + (f"did you mean {near[0]}?" if near else f"there are {', '.join(_keys())}"))
        else:
            given[key] = None if value in ("", "null") else value
    try:
        made = Settings.model_validate(before.model_dump() | given)
    except ValidationError as error:
        faults += [_fault(found, given) for found in error.errors()]
    else:
        faults += contradictions(made)
    if faults:
        raise JobError(faults)
    return made


def contradictions(settings: Settings) -> list[str]:
    """Return a sentence for each pair of settings that cannot both hold."""
    faults = []
    if settings.capacity_reservation and settings.on_demand:
        faults.append("capacity_reservation: its workers are paid for, and on_demand=true buys others: on_demand=false")
    if settings.capacity_reservation and settings.max_spot_price is not None:
        faults.append("capacity_reservation: its workers are not spot, as max_spot_price is for: max_spot_price=")
    if settings.capacity_reservation and settings.placement_group:
        faults.append("capacity_reservation: AWS places its workers close together itself: placement_group=false")
    if settings.has_gpus and settings.ami is None and settings.disk_gb < settings.least_disk_gb:
        faults.append(
            f"volume_gb: is {settings.volume_gb}; the machine image with a GPU driver and the trainer's take "
            f"{settings.least_disk_gb}: volume_gb="
        )
    return faults


def _keys() -> list[str]:
    return sorted(Settings.model_fields)


def _fault(found: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    key = str(found["loc"][0])
    return f"{key}: is {given.get(key, found['input'])}; {found['msg'].removeprefix('Value error, ')}"


def load(path: Path) -> Settings:
    """Return the settings of a cluster's first `cluster-up`, or the defaults."""
    return Settings.model_validate(json.loads(path.read_text())) if path.exists() else Settings.model_validate({})


def save(settings: Settings, path: Path) -> None:
    """Write the settings for the next command."""
    files.replace(path, settings.model_dump_json(indent=1).encode())
