"""Security groups: rules that refer to a group keep their description."""

from typing import Any

from moto.ec2.models.security_groups import SecurityGroupRule

from fake_aws.world import World


def fill(world: World) -> None:
    """See gaps."""
    assert isinstance(SecurityGroupRule.description, property)

    def description(self: Any) -> Any:
        return self.ip_range.get("Description") or self.source_group.get("Description")

    SecurityGroupRule.description = property(description)
