"""Launch templates: their tags are their own and change; RunInstances heeds their network interfaces and market."""

from typing import Any

from moto.ec2.models.launch_templates import LaunchTemplate

from fake_aws.world import World


def fill(world: World) -> None:
    """See gaps."""
    original = LaunchTemplate.create_version

    def create_version(self: Any, data: dict[str, Any], description: str) -> Any:
        specifications = data.get("TagSpecifications", [])
        kept = [one for one in specifications if one.get("ResourceType") != "launch-template"]
        rest = {name: value for name, value in data.items() if name != "TagSpecifications"}
        return original(self, {**rest, **({"TagSpecifications": kept} if kept else {})}, description)

    LaunchTemplate.create_version = create_version
    LaunchTemplate.tags = property(lambda self: self.get_tags(), lambda self, _: None)


def market(backend: Any, named: dict[str, Any] | None) -> dict[str, Any]:
    """Return the market of a template that a request names; a capacity block has its reservation's id beside it."""
    if not named:
        return {}
    data = backend._get_template_from_args(named).data
    target = data.get("CapacityReservationSpecification", {}).get("CapacityReservationTarget", {})
    return {**data.get("InstanceMarketOptions", {}), **target}


def interfaces(backend: Any, named: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Return the network interfaces of a template that a request names, as RunInstances has them."""
    if not named:
        return []
    data = backend._get_template_from_args(named).data
    return [{"DeviceIndex": 0, **one} for one in data.get("NetworkInterfaces", [])]
