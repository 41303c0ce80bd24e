"""What moto 5.2.1 lacks or gets wrong and a cluster's Terraform and prices need; a file for each subject.

Everything here changes moto's classes in place, once per process, so it knows moto's insides: another version of moto
needs another look.
"""

import moto

from fake_aws.gaps import (
    console,
    efs,
    experiments,
    groups,
    images,
    instances,
    interfaces,
    parameters,
    placement,
    quotas,
    spot,
    templates,
    unimplemented,
)
from fake_aws.world import World

_VERSION = "5.2.1"
_SUBJECTS = (unimplemented, groups, placement, interfaces, templates, instances, spot, efs, images, quotas, console,
             experiments, parameters)  # fmt: skip


def fill(world: World) -> None:
    """Change moto's classes."""
    if moto.__version__ != _VERSION:
        raise RuntimeError(f"the fake AWS fills the gaps of moto {_VERSION}, and this is moto {moto.__version__}")
    for subject in _SUBJECTS:
        subject.fill(world)
