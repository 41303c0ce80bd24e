"""Quotas of vCPUs: the limit of this account, the use, and whether a cluster fits into the rest."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from draco.cluster.aws import account, machine_images
from draco.cluster.aws.cost.prices import Market
from draco.errors import RefusedError

_TYPES_A_CALL = 100


class Pool(NamedTuple):
    """One of AWS's quotas: families of types on one market that share a number of vCPUs."""

    name: str
    code: str | None  # of Service Quotas; None: not known here


# "All ... Spot Instance Requests" and "Running On-Demand ... instances" of Service Quotas, service ec2.
_CODES: Mapping[tuple[str, Market], str] = {
    ("standard", "spot"): "L-34B43A08",
    ("standard", "on-demand"): "L-1216C47A",
    ("G and VT", "spot"): "L-3819A6DF",
    ("G and VT", "on-demand"): "L-DB2E81BA",
    ("P", "spot"): "L-7212CCBC",  # up to P4
    ("P5", "spot"): "L-C4BD4855",
    ("P", "on-demand"): "L-417A185B",
}
_FAMILIES = {
    **dict.fromkeys(("a", "c", "d", "h", "i", "im", "is", "m", "r", "t", "z"), "standard"),
    **dict.fromkeys(("g", "gr", "vt"), "G and VT"),
    "p": "P",
}
_NEWEST_SPOT_P = 4  # of those that share a quota; P5 has its own, and that of newer ones is not known here


class Kind(NamedTuple):
    """The properties of an instance type that a node depends on."""

    vcpus: int
    x86: bool
    efa: bool
    gpus: int = 0
    gpu: str = ""  # maker and model
    gpu_gib: float = 0.0  # memory of each

    @property
    def words(self) -> str:
        """What a node of the type has, such as 4 vCPU and 1 x NVIDIA A10G of 22 GiB."""
        return f"{self.vcpus} vCPU" + (f" and {self.gpus} x {self.gpu} of {self.gpu_gib:.0f} GiB" if self.gpus else "")


class Quota(NamedTuple):
    """One quota and what a cluster needs of it, in vCPUs."""

    name: str
    limit: int | None  # None: AWS did not tell
    used: int  # by everything else in the region
    needed: int
    code: str | None = None

    @property
    def left(self) -> int | None:
        """How many vCPUs may still be started; None: unknown."""
        return None if self.limit is None else max(0, self.limit - self.used)

    @property
    def is_short(self) -> bool:
        """Whether the cluster certainly does not fit."""
        return self.left is not None and self.needed > self.left

    @property
    def line(self) -> str:
        """What is needed and what is in use, in one line."""
        of = "in use, limit unknown" if self.limit is None else f"of {self.limit} in use"
        return f"{self.name}: needs {self.needed}, {self.used} {of}"

    def remedy(self, region: str) -> str:
        """How to get more of it."""
        return (
            f"ask AWS for more: aws service-quotas request-service-quota-increase --region {region} --service-code ec2 "
            f"--quota-code {self.code} --desired-value {self.used + self.needed}"
        )


class Survey(NamedTuple):
    """What AWS told of types and quotas."""

    kinds: Mapping[str, Kind]  # by type; unknown ones are absent
    limits: Mapping[str, int | None]  # by quota code
    used: Mapping[Pool, int]

    def quotas(self, head: str, worker: str, market: Market, workers: int) -> tuple[Quota, ...]:
        """Return the quotas that such a cluster counts against: the workers' first, then the head's if it differs.

        What runs in a capacity block counts against none.
        """
        needed: Counter[Pool] = Counter()
        if market != "capacity-block":
            needed[pool(worker, market)] += workers * self.kinds[worker].vcpus
        needed[pool(head, "on-demand")] += self.kinds[head].vcpus
        return tuple(
            Quota(each.name, self.limits.get(each.code) if each.code else None, self.used.get(each, 0), n, each.code)
            for each, n in needed.items()
        )


def survey(region: str, name: str, types: Sequence[str]) -> Survey:
    """Ask AWS for the properties of the types, and for the quotas that they count against.

    Instances of the cluster `name` itself do not count as used: what it needs includes them.

    Raises:
        DracoError: AWS did not answer.
    """
    running = _running(region)
    found = kinds(region, {*types, *(instance["InstanceType"] for instance in running)})
    markets: tuple[Market, ...] = ("spot", "on-demand")
    codes = {pool(each, market).code for each in types for market in markets} - {None}
    return Survey(
        found, {code: _limit(region, code) for code in sorted(filter(None, codes))}, used(running, found, name)
    )


def pool(instance_type: str, market: Market) -> Pool:
    """Return the quota that a type counts against.

    >>> pool("m6i.large", "spot")
    Pool(name='spot vCPU', code='L-34B43A08')
    >>> pool("g5.xlarge", "on-demand").name, pool("x2iedn.xlarge", "spot")
    ('on-demand vCPU (G and VT)', Pool(name='spot vCPU (x2iedn)', code=None))
    """
    letters, generation = re.match(r"([a-z]+)-?(\d*)", instance_type).groups()  # type: ignore[union-attr]
    family = _FAMILIES.get(letters, instance_type.split(".")[0])
    if family == "P" and market == "spot" and int(generation or 0) > _NEWEST_SPOT_P:
        family = "P5" if generation == "5" else instance_type.split(".")[0]
    return Pool(f"{market} vCPU" + ("" if family == "standard" else f" ({family})"), _CODES.get((family, market)))


def used(instances: Iterable[Mapping[str, Any]], kinds: Mapping[str, Kind], name: str) -> dict[Pool, int]:
    """Return how many vCPUs the instances take of each quota, without those of the cluster `name`."""
    taken: Counter[Pool] = Counter()
    for instance in instances:
        tags = {tag["Key"]: tag["Value"] for tag in instance.get("Tags", ())}
        if (tags.get("Project"), tags.get("Cluster")) == ("draco", name) or instance["InstanceType"] not in kinds:
            continue
        lifecycle = instance.get("InstanceLifecycle")
        if lifecycle == "capacity-block":
            continue
        market: Market = "spot" if lifecycle == "spot" else "on-demand"
        taken[pool(instance["InstanceType"], market)] += kinds[instance["InstanceType"]].vcpus
    return dict(taken)


def kinds(region: str, types: Iterable[str]) -> dict[str, Kind]:
    """Ask AWS for the properties of the types; types that the region does not have are absent."""
    wanted = sorted(set(types))
    found: dict[str, Kind] = {}
    with account.speaking(f"asking AWS for the instance types of {region}"):
        for first in range(0, len(wanted), _TYPES_A_CALL):
            named = [{"Name": "instance-type", "Values": wanted[first : first + _TYPES_A_CALL]}]
            pages = account.pages("ec2", region, "describe_instance_types", Filters=named)
            found |= {told["InstanceType"]: _kind(told) for page in pages for told in page["InstanceTypes"]}
    return found


def refuse_unfit(
    region: str, types: Iterable[str], kinds: Mapping[str, Kind], *, efa: bool, ami: str | None = None
) -> None:
    """Refuse types that could not run a node.

    Raises:
        RefusedError: names every type that the region does not have, that is not x86_64, or that lacks EFA, and those
            with GPUs that no known machine image has a driver for, unless `ami` names one.
    """
    faults = []
    for each in dict.fromkeys(types):
        if each not in kinds:
            faults.append(f"{each}: {region} has no such instance type")
        elif not kinds[each].x86:
            faults.append(f"{each}: is not x86_64, and the trainer image is")
        elif kinds[each].gpus and not machine_images.has_gpus(each) and ami is None:
            families = ", ".join(machine_images.GPU_FAMILIES)
            faults.append(
                f"{each}: no machine image with a driver for its {kinds[each].gpu} is known, but for {families}; "
                "SET=ami= names one"
            )
        elif efa and not kinds[each].efa:
            faults.append(f"{each}: has no Elastic Fabric Adapter; SET=efa=false, or another type")
    if faults:
        raise RefusedError("\n".join(faults))


def _kind(told: Mapping[str, Any]) -> Kind:
    gpus = told.get("GpuInfo", {}).get("Gpus", [])
    first = gpus[0] if gpus else {}
    return Kind(
        told["VCpuInfo"]["DefaultVCpus"],
        "x86_64" in told["ProcessorInfo"]["SupportedArchitectures"],
        bool(told.get("NetworkInfo", {}).get("EfaSupported")),
        sum(each.get("Count", 0) for each in gpus),
        f"{first.get('Manufacturer', '')} {first.get('Name', '')}".strip(),
        first.get("MemoryInfo", {}).get("SizeInMiB", 0) / 1024,
    )


def _running(region: str) -> list[Mapping[str, Any]]:
    with account.speaking(f"asking AWS what runs in {region}"):
        there = [{"Name": "instance-state-name", "Values": ["pending", "running"]}]
        pages = account.pages("ec2", region, "describe_instances", Filters=there)
        return [each for page in pages for reservation in page["Reservations"] for each in reservation["Instances"]]


def _limit(region: str, code: str) -> int | None:
    told = account.ask(
        "asking AWS for quotas",
        lambda: account.client("service-quotas", region).get_service_quota(ServiceCode="ec2", QuotaCode=code),
    )
    return int(told["Quota"]["Value"]) if told else None
