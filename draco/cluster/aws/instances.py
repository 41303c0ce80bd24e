"""A cluster's instances as AWS knows them, found by their tags."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from draco.cluster.aws import account

ALIVE = ("pending", "running")
_PRESENT = (*ALIVE, "stopping", "stopped", "shutting-down")


class Instance(NamedTuple):
    """One of them."""

    id: str
    node: str
    state: str
    type: str
    zone: str
    market: str
    launched: datetime
    request: str | None  # of a spot instance


def find(region: str, name: str) -> list[Instance]:
    """Return the instances of a cluster that are not gone."""
    filters = [{"Name": "tag:Project", "Values": ["draco"]}, {"Name": "tag:Cluster", "Values": [name]},
               {"Name": "instance-state-name", "Values": list(_PRESENT)}]  # fmt: skip
    with account.speaking(f"looking for the instances of {name}"):
        pages = account.pages("ec2", region, "describe_instances", Filters=filters)
        return [_instance(each) for page in pages for group in page["Reservations"] for each in group["Instances"]]


def alive(region: str, name: str) -> dict[str, Instance]:
    """Return the instances of a cluster that run or begin to, by node."""
    return {each.node: each for each in find(region, name) if each.state in ALIVE}


def end(region: str, which: Iterable[Instance]) -> None:
    """End instances."""
    if ids := [each.id for each in which]:
        with account.speaking(f"ending {', '.join(ids)}"):
            account.client("ec2", region).terminate_instances(InstanceIds=ids)


def notices(region: str, found: Mapping[str, Instance]) -> dict[str, str]:
    """Return the status of each spot instance's request, by node: fulfilled, marked-for-termination, ..."""
    requests = {each.request: node for node, each in found.items() if each.request}
    if not requests:
        return {}
    with account.speaking("asking for spot notices"):
        answer = account.client("ec2", region).describe_spot_instance_requests(
            Filters=[{"Name": "spot-instance-request-id", "Values": list(requests)}]
        )
    return {requests[each["SpotInstanceRequestId"]]: each["Status"]["Code"] for each in answer["SpotInstanceRequests"]}


def last_words(region: str, name: str) -> str | None:
    """Return the last line of the log that a head wrote when it ended the cluster, or None.

    Raises:
        DracoError: AWS does not answer.
    """
    group = f"/draco/{name}"
    logs = account.client("logs", region)
    with account.speaking(f"reading the log of {name}"):
        streams = logs.describe_log_streams(logGroupName=group, orderBy="LastEventTime", descending=True, limit=1)
        for stream in streams["logStreams"]:
            events = logs.get_log_events(logGroupName=group, logStreamName=stream["logStreamName"], limit=1)["events"]
            return str(events[0]["message"]) if events else None
    return None


def age_hours(each: Instance, now: datetime | None = None) -> float:
    """Return for how long an instance has been paid for."""
    return ((now or datetime.now(UTC)) - each.launched).total_seconds() / 3600


def _instance(told: Mapping[str, Any]) -> Instance:
    tags = {tag["Key"]: tag["Value"] for tag in told.get("Tags", [])}
    return Instance(
        told["InstanceId"], tags.get("Node", "?"), told["State"]["Name"], told["InstanceType"],
        told["Placement"]["AvailabilityZone"], told.get("InstanceLifecycle", "on-demand"), told["LaunchTime"],
        told.get("SpotInstanceRequestId"),
    )  # fmt: skip
