"""Which transport the ranks of a launch speak, as an environment variable tells them: workers see no run directory."""

import os
from collections.abc import Mapping
from pathlib import Path

NAME = "DRACO_TRANSPORT"
JOINED = "DRACO_JOINED"  # the name by which ranks know each other that somebody else has started; else their run's
NUMBERED = (  # rank and size as launchers tell them; the innermost counts: mpirun may be called in an allocation
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"), ("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS"),
)  # fmt: skip


def told(environment: Mapping[str, str] = os.environ) -> str:
    """Return the transport that the launch has named, `mpi` where it has named none."""
    return environment.get(NAME, "mpi")


def name(run: Path, environment: Mapping[str, str] = os.environ) -> str:
    """Return what the ranks of a launch all know it by, and others do not."""
    return environment.get(JOINED, run.name)


def rank(environment: Mapping[str, str] = os.environ) -> str | None:
    """Return the rank of this process as its launcher numbers it, None where it has none."""
    return next((environment[number] for number, _ in NUMBERED if number in environment), None)
