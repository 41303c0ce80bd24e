"""RunInstances: groups, placement groups, quotas; and why an instance ended."""

from typing import Any

from moto.ec2.exceptions import EC2ClientError
from moto.ec2.models.instance_types import INSTANCE_TYPES
from moto.ec2.models.instances import StateReason
from moto.ec2.responses import EC2Response

from fake_aws.gaps import placement, spot, templates
from fake_aws.world import World

_ACCELERATED = ("g", "vt")


def fill(world: World) -> None:
    """See gaps."""
    original = EC2Response.run_instances

    def run_instances(self: Any) -> Any:
        named = self._get_param("LaunchTemplate")
        market = self._get_param("InstanceMarketOptions") or templates.market(self.ec2_backend, named)
        group = self._get_param("Placement.GroupName")
        if group:
            group = placement.group(self.ec2_backend, group).group_name
        brought = templates.interfaces(self.ec2_backend, named)
        if brought and not self._get_param("NetworkInterfaces"):
            self.params["NetworkInterfaces"] = brought
        if market.get("MarketType") == "capacity-block":
            _heed_block(market)
        else:
            _heed_quota(world, self, market)
        spot.heed_price(world, self, market)
        answered = original(self)
        for instance in answered.result.instances:
            _complete(instance, self._get_param("NetworkInterfaces", []))
            if group:
                instance.placement.group_name = group
            if market.get("MarketType") == "spot":
                instance.lifecycle = "spot"
                spot.ask(self, instance, market.get("SpotOptions") or {})
            elif market.get("MarketType") == "capacity-block":
                instance.lifecycle = "capacity-block"
        return answered

    EC2Response.run_instances = run_instances
    _modify_shutdown_behavior()


def _modify_shutdown_behavior() -> None:
    """ModifyInstanceAttribute: moto takes this attribute for an order to leave all security groups."""
    original = EC2Response._dot_value_instance_attribute_handler

    def handle(self: Any) -> bool:
        value = self._get_param("InstanceInitiatedShutdownBehavior.Value")
        if value is None:
            done: bool = original(self)
            return done
        instance = self._get_param("InstanceId")
        self.ec2_backend.modify_instance_attribute(instance, "instance_initiated_shutdown_behavior", value)
        return True

    EC2Response._dot_value_instance_attribute_handler = handle


def _complete(instance: Any, wanted: list[dict[str, Any]]) -> None:
    """Say what moto leaves out where the groups come with a network interface."""
    if not instance.security_groups and instance.nics:
        instance.security_groups = list(instance.nics[0].group_set)
    brought = {one["NetworkInterfaceId"] for one in wanted if one.get("NetworkInterfaceId")}
    kinds = {int(one.get("DeviceIndex", 0)): one.get("InterfaceType") for one in wanted}
    for index, interface in instance.nics.items():
        if interface.id not in brought:
            interface.delete_on_termination = True
            interface.interface_type = kinds.get(index) or "interface"


def _heed_block(market: dict[str, Any]) -> None:
    """Refuse a capacity block that no reservation is named for."""
    if not str(market.get("CapacityReservationId", "")).startswith("cr-"):
        raise EC2ClientError("InvalidParameterCombination", "A capacity block needs the id of its reservation")


def _heed_quota(world: World, request: Any, market: dict[str, Any]) -> None:
    """Refuse what goes beyond the account's vCPUs."""
    wanted = request._get_param("InstanceType", "m1.small")
    is_spot = market.get("MarketType") == "spot"
    code = _quota(wanted, is_spot)
    used = sum(
        _cores(instance.instance_type)
        for reservation in list(request.ec2_backend.reservations.values())
        for instance in reservation.instances
        if instance.state in ("pending", "running")
        and instance.lifecycle != "capacity-block"
        and _quota(instance.instance_type, instance.lifecycle == "spot") == code
    )
    if used + _cores(wanted) * int(request._get_param("MinCount", 1)) <= world.quotas.get(code, float("inf")):
        return
    if is_spot:
        raise EC2ClientError("MaxSpotInstanceCountExceeded", "Max spot instance count exceeded")
    limit = int(world.quotas[code])
    raise EC2ClientError(
        "VcpuLimitExceeded",
        f"You have requested more vCPU capacity than your current vCPU limit of {limit} allows for the instance bucket "
        "that the specified instance type belongs to. Please visit http://aws.amazon.com/contact-us/ec2-request to "
        "request an adjustment to this limit.",
    )


def _quota(instance_type: str, is_spot: bool) -> str:
    if _family(instance_type) == "p":
        return "L-417A185B" if not is_spot else "L-C4BD4855" if instance_type.startswith("p5") else "L-7212CCBC"
    if _family(instance_type) in _ACCELERATED:
        return "L-3819A6DF" if is_spot else "L-DB2E81BA"
    return "L-34B43A08" if is_spot else "L-1216C47A"


def _family(instance_type: str) -> str:
    """Return the letters that a type begins with."""
    return instance_type[: next((i for i, c in enumerate(instance_type) if c.isdigit()), 0)]


def _cores(instance_type: str) -> int:
    about = INSTANCE_TYPES.get(instance_type)
    return int(about["VCpuInfo"]["DefaultVCpus"]) if about else 0


def end(world: World, instance: Any, code: str, message: str) -> None:
    """Terminate an instance for a reason other than a user's request."""
    instance.terminate()
    instance.state_reason = StateReason(f"{code}: {message}", code)
    instance._reason = message
    spot.close(world, [instance.id], "instance-terminated-by-user")
