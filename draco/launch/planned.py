"""What is run, as values: the command line of one process that is the whole job, its environment and its files."""

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from draco.job import Job
from draco.launch.roster import Roster


class Plan(NamedTuple):
    """One process that is the whole job."""

    argv: tuple[str, ...]
    environment: tuple[tuple[str, str], ...]  # what is added to the caller's
    files: tuple[tuple[Path, str], ...] = ()  # what it reads, to be written first
    roster: Roster | None = None  # the nodes it uses; None: this machine, or those of a scheduler
    starter: str = ""  # the program that starts the ranks, by its name; empty: the process is all that is started

    def __str__(self) -> str:
        settings = "".join(f"{name}={shlex.quote(value)} " for name, value in self.environment)
        files = "\n".join(f"{path}\n{text.rstrip()}" for path, text in self.files).splitlines()
        return "".join(f"# {line}\n" for line in files) + settings + shlex.join(self.argv)


class Allocation(NamedTuple):
    """What a scheduler has given, and where its ranks meet."""

    environment: Mapping[str, str]  # by which the program that starts ranks finds it
    nodes: tuple[str, ...]
    cores: tuple[int, ...]  # of each node
    port: int | None = None  # on the first node, where rank 0 is; None: not chosen yet


class Start(NamedTuple):
    """What a plan is made of."""

    job: Job
    run: Path
    ranks: Mapping[str, str]  # the environment that every rank needs
    python: str = sys.executable
    home: str = "/"  # the user's
    roster: Roster | None = None  # the nodes of a cluster of Draco's
    port: int | None = None  # of this machine's, free, for a launcher that has none of its own
    allocation: Allocation | None = None  # what a scheduler has given

    @property
    def rank(self) -> tuple[str, ...]:
        """The command line of one rank."""
        return (self.python, "-m", "draco", "rank", str(self.run))


def one_process(start: Start) -> Plan:
    """Server and workers in one process."""
    return Plan((*start.rank, "--simulate"), tuple(start.ranks.items()))
