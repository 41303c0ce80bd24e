"""Network interfaces: those that came with an instance go with it and share its groups; an EFA stays one."""

from typing import Any

from moto.ec2.models import EC2Backend
from moto.ec2.models.instances import Instance
from moto.ec2.responses import EC2Response

from fake_aws.world import World


def fill(world: World) -> None:
    """See gaps."""
    _keep_kind()
    _end_with_instance()
    _share_groups()


def _keep_kind() -> None:
    original = EC2Response.create_network_interface

    def create_network_interface(self: Any) -> Any:
        answered = original(self)
        answered.result["NetworkInterface"].interface_type = self._get_param("InterfaceType") or "interface"
        return answered

    EC2Response.create_network_interface = create_network_interface


def _end_with_instance() -> None:
    original = Instance.terminate

    def terminate(self: Any) -> Any:
        before = original(self)
        for interface in list(self.nics.values()):
            if interface.delete_on_termination:
                self.ec2_backend.enis.pop(interface.id, None)
            else:
                self.detach_eni(interface)
        return before

    Instance.terminate = terminate


def _share_groups() -> None:
    original = EC2Backend.modify_network_interface_attribute

    def modify(self: Any, eni_id: str, *args: Any, **options: Any) -> None:
        original(self, eni_id, *args, **options)
        interface = self.get_network_interface(eni_id)
        if interface.instance is not None and interface.device_index == 0:
            interface.instance.security_groups = list(interface._group_set)

    EC2Backend.modify_network_interface_attribute = modify
