"""Spot: the request behind an instance, what it says when, prices and scores."""

from datetime import UTC, datetime, timedelta
from typing import Any

from moto.core.responses import ActionResult
from moto.ec2.exceptions import EC2ClientError
from moto.ec2.models.core import TaggedEC2Resource
from moto.ec2.models.instance_types import INSTANCE_TYPES
from moto.ec2.models.instances import InstanceBackend, StateReason
from moto.ec2.models.spot_requests import LaunchSpecification, SpotInstanceRequest
from moto.ec2.responses import EC2Response
from moto.ec2.utils import random_spot_request_id

from fake_aws.world import World

_MESSAGES = {
    "fulfilled": "Your Spot request is fulfilled.",
    "marked-for-termination": "Your Spot instance is marked for termination.",
    "instance-terminated-by-user": "Your Spot instance was terminated because you requested it.",
    "instance-terminated-no-capacity": "Your Spot instance was terminated because there is no Spot capacity.",
    "instance-terminated-by-price": "Your Spot instance was terminated because the price rose above your maximum.",
}
_MOST_PRICES = 1000


class RunRequest(SpotInstanceRequest):
    """The request that EC2 makes for an instance of RunInstances; moto's own class would start another instance."""

    __module__ = SpotInstanceRequest.__module__
    create_time: Any = None  # in the class above it is a constant

    def __init__(self, backend: Any, instance: Any, options: dict[str, Any], tags: dict[str, str]) -> None:
        TaggedEC2Resource.__init__(self)
        self.ec2_backend = backend
        self.id = random_spot_request_id()
        price = options.get("MaxPrice")
        self.price = f"{float(price):.6f}" if price else None
        self.type = options.get("SpotInstanceType") or "one-time"
        self.instance_interruption_behaviour = options.get("InstanceInterruptionBehavior") or "terminate"
        self.valid_from = self.valid_until = self.launch_group = self.availability_zone_group = None
        self.user_data = self.spot_fleet_id = self.launch_spec = None
        self.launch_specification = LaunchSpecification(
            None, None, instance.image_id, instance.key_name, instance.instance_type, instance.placement.zone, False,
            instance.subnet_id,
        )  # fmt: skip
        self.launch_specification.groups = list(instance.security_groups)
        self.launched_availability_zone = instance.placement.zone
        self.instance = instance
        self.create_time = datetime.now(UTC)
        self.say("active", "fulfilled")
        self.add_tags(tags)

    def say(self, state: str, code: str) -> None:
        """Change state and status."""
        self.state, self._status_code, self.status_message = state, code, _MESSAGES.get(code, code)
        self.changed = datetime.now(UTC)

    @property
    def status(self) -> dict[str, Any]:
        return {"Code": self._status_code, "Message": self.status_message, "UpdateTime": self.changed}


def ask(response: Any, instance: Any, options: dict[str, Any]) -> None:
    """Make the request behind a new instance."""
    tags = response._parse_tag_specification().get("spot-instances-request", {})
    made = RunRequest(response.ec2_backend, instance, options, tags)
    response.ec2_backend.spot_instance_requests[made.id] = made
    instance.spot_instance_request_id = made.id


def requests(world: World, instances: list[str]) -> list[RunRequest]:
    """Return the requests behind instances."""
    return [
        request
        for request in list(world.ec2.spot_instance_requests.values())
        if isinstance(request, RunRequest) and request.instance.id in instances
    ]


def close(world: World, instances: list[str], code: str) -> None:
    """Close the requests behind instances that ended, unless they were closed before."""
    for request in requests(world, instances):
        if request.state == "active":
            request.say("closed", code)


def mark(world: World, instance: str, code: str = "marked-for-termination") -> None:
    """Set the status of the request behind an instance that goes on."""
    for request in requests(world, [instance]):
        request.say("active", code)


def interrupt(world: World, instance: Any, code: str = "instance-terminated-no-capacity") -> None:
    """End an instance as EC2 does when it wants it back."""
    instance.terminate()
    instance.state_reason = StateReason("Server.SpotInstanceTermination: Spot instance termination",
                                        "Server.SpotInstanceTermination")  # fmt: skip
    instance._reason = f"Server.SpotInstanceTermination ({datetime.now(UTC):%Y-%m-%d %H:%M:%S} GMT)"
    close(world, [instance.id], code)


def heed_price(world: World, response: Any, market: dict[str, Any]) -> None:
    """Refuse a maximum below the price of the moment."""
    most = (market.get("SpotOptions") or {}).get("MaxPrice")
    subnet = next((nic["SubnetId"] for nic in response._get_param("NetworkInterfaces", []) if "SubnetId" in nic),
                  response._get_param("SubnetId"))  # fmt: skip
    if not most or not subnet:
        return
    zone = response.ec2_backend.get_subnet(subnet).availability_zone
    price = world.prices.spot(response._get_param("InstanceType", "m1.small"), zone)
    if float(most) < price:
        raise EC2ClientError(
            "SpotMaxPriceTooLow",
            f"Your Spot request price of {most} is lower than the minimum required Spot request fulfillment price of "
            f"{price:g}.",
        )


def _history(world: World) -> Any:
    def describe_spot_price_history(self: Any) -> ActionResult:
        filters = {name: list(values) for name, values in self._filters_from_querystring().items()}
        zones = filters.pop("availability-zone", []) + [z for z in [self._get_param("AvailabilityZone")] if z]
        types = filters.pop("instance-type", []) + self._get_param("InstanceTypes", [])
        systems = filters.pop("product-description", []) + self._get_param("ProductDescriptions", [])
        rows = []
        if not systems or any(system.startswith("Linux/UNIX") for system in systems):
            for offer in self.ec2_backend.describe_spot_price_history(
                types, {"availability-zone": zones} if zones else {}
            ):
                rows += _within(world, offer["InstanceType"], offer["Location"], *_times(self))
        start, most = int(self._get_param("NextToken") or 0), int(self._get_param("MaxResults") or _MOST_PRICES)
        more = str(start + most) if start + most < len(rows) else ""
        return ActionResult({"SpotPriceHistory": rows[start : start + most], "NextToken": more})

    return describe_spot_price_history


def _times(response: Any) -> tuple[datetime, datetime]:
    now = datetime.now(UTC)
    start, end = response._get_param("StartTime"), response._get_param("EndTime")
    return _time(start) if start else now - timedelta(days=90), _time(end) if end else now


def _time(given: Any) -> datetime:
    at = given if isinstance(given, datetime) else datetime.fromisoformat(str(given))
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def _within(world: World, name: str, zone: str, start: datetime, end: datetime) -> list[dict[str, Any]]:
    """Return the changes of a price within a time, and the one that held when it began, newest first."""
    points = world.prices.history(name, zone)
    before = [point for point in points if point[0] <= start][-1:]
    kept = before + [point for point in points if start < point[0] <= end]
    return [
        {"InstanceType": name, "ProductDescription": "Linux/UNIX", "AvailabilityZone": zone, "Timestamp": at,
         "SpotPrice": f"{price:.6f}"}
        for at, price in reversed(kept)
    ]  # fmt: skip


def _scores(world: World) -> Any:
    def get_spot_placement_scores(self: Any) -> ActionResult:
        types = self._get_param("InstanceTypes", [])
        regions = self._get_param("RegionNames", []) or [self.region]
        unknown = [name for name in types if name not in INSTANCE_TYPES]
        if unknown or not types:
            raise EC2ClientError("InvalidParameterValue", f"Invalid instance type(s): {', '.join(unknown) or 'none'}")
        if not self._get_param("TargetCapacity"):
            raise EC2ClientError("MissingParameter", "The request must contain the parameter TargetCapacity")
        scores: list[dict[str, Any]] = []
        if self._get_param("SingleAvailabilityZone"):
            for zone in self.ec2_backend.describe_availability_zones():
                if zone.region_name in regions:
                    scores.append({"Region": zone.region_name, "AvailabilityZoneId": zone.zone_id,
                                   "Score": world.prices.score(zone.name)})  # fmt: skip
        else:
            scores = [{"Region": region, "Score": world.prices.score(region)} for region in regions]
        best = sorted(scores, key=lambda one: -one["Score"])[:10]
        return ActionResult({"SpotPlacementScores": best})

    return get_spot_placement_scores


def fill(world: World) -> None:
    """See gaps."""
    EC2Response.describe_spot_price_history = _history(world)
    EC2Response.get_spot_placement_scores = _scores(world)
    original = InstanceBackend.terminate_instances

    def terminate_instances(self: Any, ids: list[str]) -> Any:
        ended = original(self, ids)
        close(world, ids, "instance-terminated-by-user")
        return ended

    from moto.ec2.models import EC2Backend

    EC2Backend.terminate_instances = terminate_instances
