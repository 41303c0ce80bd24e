"""Placement groups: made, described, deleted; instances join them with RunInstances (instances.py)."""

from typing import Any

from moto.core.responses import ActionResult, EmptyResult
from moto.ec2.exceptions import EC2ClientError
from moto.ec2.models.core import TaggedEC2Resource
from moto.ec2.responses import EC2Response
from moto.ec2.utils import EC2_PREFIX_TO_RESOURCE, EC2_RESOURCE_TO_PREFIX, random_id

from fake_aws.world import World


class PlacementGroup(TaggedEC2Resource):
    """One group; the names of its attributes are the API's."""

    __module__ = "moto.ec2.models.placement_groups"  # where moto thinks that the class is decides the service

    def __init__(self, backend: Any, name: str, request: Any) -> None:
        self.ec2_backend = backend
        self.id = self.group_id = random_id("pg")
        self.group_name = name
        self.strategy = request._get_param("Strategy") or "cluster"
        self.state = "available"
        self.partition_count = request._get_int_param("PartitionCount")
        self.spread_level = request._get_param("SpreadLevel")
        self.group_arn = f"arn:aws:ec2:{backend.region_name}:{backend.account_id}:placement-group/{name}"
        self.add_tags(request._parse_tag_specification().get("placement-group", {}))


def groups(backend: Any) -> dict[str, PlacementGroup]:
    """Return a region's groups by name."""
    found: dict[str, PlacementGroup] = backend.__dict__.setdefault("placement_groups", {})
    return found


def group(backend: Any, name: str) -> PlacementGroup:
    """Return a group by its name or id."""
    for known in groups(backend).values():
        if name in (known.group_name, known.id):
            return known
    raise EC2ClientError("InvalidPlacementGroup.Unknown", f"The Placement Group '{name}' is unknown.")


def create(self: Any) -> ActionResult:
    """CreatePlacementGroup."""
    name = self._get_param("GroupName")
    if name in groups(self.ec2_backend):
        raise EC2ClientError("InvalidPlacementGroup.Duplicate", f"The Placement Group '{name}' already exists.")
    made = groups(self.ec2_backend)[name] = PlacementGroup(self.ec2_backend, name, self)
    return ActionResult({"PlacementGroup": made})


def describe(self: Any) -> ActionResult:
    """DescribePlacementGroups."""
    named = [*self._get_param("GroupNames", []), *self._get_param("GroupIds", [])]
    found = [group(self.ec2_backend, name) for name in named] or list(groups(self.ec2_backend).values())
    for name, values in self._filters_from_querystring().items():
        wanted = {"group-name": "group_name", "state": "state", "strategy": "strategy"}.get(name)
        if wanted:
            found = [one for one in found if getattr(one, wanted) in values]
        else:
            found = [one for one in found if one.get_filter_value(name) in values]
    return ActionResult({"PlacementGroups": found})


def delete(self: Any) -> EmptyResult:
    """DeletePlacementGroup."""
    gone = group(self.ec2_backend, self._get_param("GroupName"))
    if any(
        instance.placement.group_name == gone.group_name
        for reservation in list(self.ec2_backend.reservations.values())
        for instance in reservation.instances
        if instance.state in ("pending", "running", "stopping", "stopped")
    ):
        said = f"The placement group {gone.group_name} is in use and may not be deleted."
        raise EC2ClientError("InvalidPlacementGroup.InUse", said)
    del groups(self.ec2_backend)[gone.group_name]
    return EmptyResult()


def fill(world: World) -> None:
    """See gaps."""
    EC2_RESOURCE_TO_PREFIX["placement-group"] = "pg"  # they can be tagged
    EC2_PREFIX_TO_RESOURCE["pg"] = "placement-group"
    EC2Response.create_placement_group = create
    EC2Response.describe_placement_groups = describe
    EC2Response.delete_placement_group = delete
