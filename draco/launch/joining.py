"""The place of this process among many that somebody else has started: a user's own torchrun, or srun.

Every process runs the same command, `draco join JOB`. Rank 0 opens the run and is its server, with the supervisor that
any run has; the others become workers, and follow. What ranks are told is torch.distributed's, whoever started them.
"""

import contextlib
import os
import socket
import time
from collections.abc import Mapping
from typing import NamedTuple

from draco.errors import MissingError
from draco.job import LauncherName
from draco.launch import slurm
from draco.launch.meeting import port_of
from draco.runs import spoken

# Of torchrun's variables, besides which ranks need the store that its own process keeps.
_TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_LOCAL = ("LOCAL_RANK", "LOCAL_WORLD_SIZE")  # by which ranks of one node share its GPUs
_STEP = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NODELIST", "SLURM_JOB_ID", "SLURM_STEP_ID")


class Joined(NamedTuple):
    """One process among those that somebody has started."""

    launcher: LauncherName
    rank: int
    size: int
    environment: Mapping[str, str]  # what tells a rank where it is and where the others are
    name: str  # of this start; all its processes have the same, and no other start has
    again: bool = False  # what has started it did so before, and has lost some of it

    @property
    def told(self) -> dict[str, str]:
        """What a rank of it is told: where it is, how the ranks talk, and by which name they know each other."""
        return {**self.environment, spoken.NAME: "torch", spoken.JOINED: self.name}

    @property
    def alone(self) -> bool:
        """Whether all of them are on this machine, as far as is told."""
        return self.environment.get("LOCAL_WORLD_SIZE") == str(self.size)

    @property
    def starter(self) -> str:
        """The program that has started it."""
        return "srun" if self.launcher == "slurm" else self.launcher


def joined(environ: Mapping[str, str] | None = None) -> Joined | None:
    """Return the place of this process, None where it is no one of several."""
    environ = os.environ if environ is None else environ
    if all(name in environ for name in _TORCHRUN):
        told = {name: value for name, value in environ.items() if name.startswith("TORCHELASTIC_")}
        told |= {name: environ[name] for name in (*_TORCHRUN, *(name for name in _LOCAL if name in environ))}
        start, restarts = (environ.get(f"TORCHELASTIC_{name}", "0") for name in ("RUN_ID", "RESTART_COUNT"))
        rank, size = environ["RANK"], environ["WORLD_SIZE"]
        return Joined("torchrun", int(rank), int(size), told, f"torchrun/{start}/{restarts}", again=restarts != "0")
    if all(name in environ for name in _STEP):
        rank, size, nodes, *step = (environ[name] for name in _STEP)
        name = ".".join(step)
        address = environ.get("MASTER_ADDR") or _first(nodes)
        port = environ.get("MASTER_PORT") or str(port_of(name))
        told = {"RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": address, "MASTER_PORT": port}
        told |= {"LOCAL_RANK": environ["SLURM_LOCALID"]} if "SLURM_LOCALID" in environ else {}
        return Joined("slurm", int(rank), int(size), told, f"slurm/{name}")
    return None


def of_several(environ: Mapping[str, str] | None = None) -> Joined | None:
    """Return the place of this process where it is one of two or more that were started alike."""
    environ = os.environ if environ is None else environ
    if "TORCHELASTIC_RUN_ID" in environ or "SLURM_STEP_NUM_TASKS" in environ:
        found = joined({**environ, "MASTER_ADDR": environ.get("MASTER_ADDR", "unknown")})
        return found if found and found.size > 1 else None
    return None


def turn_away(place: Joined, limit_s: float) -> None:
    """Let the workers end that wait for a server which will not come: each is met where it is to be, and left.

    torchrun ends them itself when rank 0 fails, and srun does not.
    """
    if place.launcher != "slurm":
        return
    with contextlib.suppress(OSError), socket.create_server(("", int(place.environment["MASTER_PORT"]))) as door:
        deadline = time.monotonic() + limit_s
        for _ in range(1, place.size):
            door.settimeout(max(deadline - time.monotonic(), 0.01))
            door.accept()[0].close()


def _first(nodelist: str) -> str:
    """Return the first node of a list such as n[1-3], where rank 0 is.

    Raises:
        MissingError: Slurm's own tool cannot say it here.
    """
    nodes = slurm.hostnames(nodelist)
    if not nodes:
        raise MissingError(
            f"scontrol cannot say here which node is the first of {nodelist}: set MASTER_ADDR to its name"
        )
    return nodes[0]
