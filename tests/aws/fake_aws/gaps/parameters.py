"""SSM: the public parameter of the machine image with NVIDIA's driver, which here is another one of Amazon Linux."""

from typing import Any

from moto.ssm.models import SimpleSystemManagerBackend

from fake_aws.world import World

_WITH_DRIVER = (
    "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-amazon-linux-2023/latest/ami-id"
)  # fmt: skip
_STANDS_FOR_IT = "/aws/service/ami-amazon-linux-latest/al2023-ami-minimal-kernel-default-x86_64"


def fill(world: World) -> None:
    """See gaps."""
    original = SimpleSystemManagerBackend.get_parameter

    def get_parameter(self: Any, name: str) -> Any:
        return original(self, _STANDS_FOR_IT if name == _WITH_DRIVER else name)

    SimpleSystemManagerBackend.get_parameter = get_parameter
