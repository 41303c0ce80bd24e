"""Which transport the ranks of a launch speak, as an environment variable tells them: workers see no run directory."""

import os
from collections.abc import Mapping

NAME = "DRACO_TRANSPORT"


def told(environment: Mapping[str, str] = os.environ) -> str:
    """Return the transport that the launch has named, `mpi` where it has named none."""
    return environment.get(NAME, "mpi")
