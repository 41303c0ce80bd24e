"""The plan of a launch: the command line, environment and files of a job, as values."""

import json
import os
import shlex
import sys
import zlib
from pathlib import Path
from typing import NamedTuple

from draco.code.recorded import Copy
from draco.job import Job
from draco.launch import fork_client, meeting
from draco.launch import rank_placement as placing
from draco.launch.environment import ALWAYS, process_environment
from draco.launch.roster import Roster


class Plan(NamedTuple):
    """One process that is the whole job."""

    argv: tuple[str, ...]
    environment: tuple[tuple[str, str], ...]  # what is added to the caller's
    files: tuple[tuple[Path, str], ...] = ()  # what it reads, to be written first
    roster: Roster | None = None  # the nodes it uses; None: this machine

    @property
    def is_mpi(self) -> bool:
        """Whether mpirun starts it."""
        return Path(self.argv[0]).name == "mpirun"

    def __str__(self) -> str:
        settings = "".join(f"{name}={shlex.quote(value)} " for name, value in self.environment)
        files = "\n".join(f"{path}\n{text.rstrip()}" for path, text in self.files).splitlines()
        return "".join(f"# {line}\n" for line in files) + settings + shlex.join(self.argv)


# With more ranks than cores a rank that waits must give its core away: Open MPI then yields it in every probe and test
# that finds nothing. Draco's polls sleep besides. Were Open MPI to sleep, a poll would take 0.1 ms a call.
_YIELD = {"OMPI_MCA_mpi_yield_when_idle": "1", "OMPI_MCA_threads_pthreads_yield_strategy": "sched_yield"}
# A container's only user is often root; mpirun gains nothing that its caller lacks.
AS_ROOT = {f"{prefix}_ALLOW_RUN_AS_ROOT{suffix}": "1" for prefix in ("OMPI", "PRTE") for suffix in ("", "_CONFIRM")}


# mpirun has no home on this machine: it would take the parameters of ~/.openmpi, ~/.prte and ~/.pmix, which no setting
# keeps it from. Ranks get the user's.
NO_HOME = "/nonexistent"


def plan(
    job: Job,
    run: Path,
    roster: Roster | None = None,
    python: str = sys.executable,
    home: str | None = None,
    forks: str | None = None,
    code: Copy | None = None,
    port: int | None = None,
) -> Plan:
    """Return how `job` is run in the directory `run`: on the roster's nodes, or on this machine where it is None.

    `home` is the user's, by default that of the user database where HOME is not set. `forks` is the name of the fork
    server that ranks are forked by (fork_client.py); without it each starts by itself. `code` is where ranks find the
    job's own code, the same place on every node; None: it has none. `port` is where ranks without MPI meet; None: what
    follows from the run's name.
    """
    ranks = {**process_environment(job.threads), **({fork_client.NAME: forks} if forks else {})}
    ranks |= code.environment if code else {}
    ranks |= meeting.environment(job, run, roster.nodes[0].address if roster else meeting.HERE, port)
    if job.launcher == "simulate":
        return _simulate(ranks, run, python)
    return _cluster_mpi(job, ranks, run, roster) if roster else _local_mpi(job, ranks, run, python, home or _home())


def _home() -> str:
    found = os.path.expanduser("~")
    return found if found != "~" else "/"  # a user whom no database knows, as in containers


def _simulate(ranks: dict[str, str], run: Path, python: str) -> Plan:
    """Server and workers in one process."""
    return Plan((python, "-m", "draco", "rank", str(run), "--simulate"), tuple(ranks.items()))


# A rank that dies does not end the others: the server is told, and decides.
_FAULT_TOLERANT = ("--with-ft", "ulfm")


def _local_mpi(job: Job, ranks: dict[str, str], run: Path, python: str, home: str) -> Plan:
    """One rank for the server and one per worker on this machine, by the Open MPI of the virtual environment.

    Ranks are not bound to cores. One machine needs only shared memory; TCP is left out, so that nothing listens on
    the network.
    """
    mpi = {"OMPI_MCA_pml": "ob1", "OMPI_MCA_btl": "self,sm", **_YIELD}
    environment = {**ranks, **mpi, **AS_ROOT, "HOME": NO_HOME}
    argv = (
        _mpirun(python), *_FAULT_TOLERANT, "-x", f"HOME={home}", "-n", str(job.workers + 1),
        "--map-by", ":OVERSUBSCRIBE", "--bind-to", "none",
    )  # fmt: skip
    return Plan((*argv, *_rank(python, run)), tuple(environment.items()))


def _cluster_mpi(job: Job, ranks: dict[str, str], run: Path, roster: Roster) -> Plan:
    """The server on the head and the workers dealt out to the worker nodes, started from the head over ssh."""
    placement = placing.place(roster, job.workers, job.device)
    folder = run / "launch"
    hostfile = folder / "hostfile"
    argv = (
        *mpirun(roster, {**ranks, "OMPI_MCA_pml": "ob1", "OMPI_MCA_btl": "self,sm,tcp"}, run.name),
        *_FAULT_TOLERANT, "-n", str(job.workers + 1), "--hostfile", str(hostfile), "--map-by", "seq:OVERSUBSCRIBE",
        "--output", f"file={run / 'logs' / 'rank'},merge",
        *_rank(roster.python, run),
    )  # fmt: skip
    files = (
        (hostfile, placing.hostfile(roster, placement)),
        (folder / "nodes.json", json.dumps(placing.nodes_of_workers(placement))),
    )
    return Plan(argv, tuple(AS_ROOT.items()), files, roster)


# What firewalls have to let pass between the head and its workers, infra/base/security.tf among them. A daemon listens
# on every port it is given: those on the head that other mpiruns are given must be others.
RANK_PORTS = range(20_000, 20_800)
DAEMON_PORTS = range(20_800, 21_000)
_PORTS_OF_A_DAEMON = 4


def mpirun(roster: Roster, environment: dict[str, str], purpose: str) -> tuple[str, ...]:
    """Return the part of an mpirun command that any program on the roster's nodes needs.

    `purpose` differs between programs that run at the same time.

    Only the head logs in to nodes (no tree of daemons that log in to each other); both layers keep to the cluster's
    subnet, since any other interface (a bridge that every node has) would make them hang; a connection that has gone
    silent is noticed within half a minute. `-x` carries the environment to nodes reached by ssh. When a rank dies, the
    others see their connections break and abort: the delay lets mpirun see first which one it was, and of what it died.
    """
    places = len(DAEMON_PORTS) // _PORTS_OF_A_DAEMON
    first = DAEMON_PORTS[zlib.crc32(purpose.encode()) % places * _PORTS_OF_A_DAEMON]
    daemons = {
        "prte_if_include": roster.subnet, "plm_ssh_no_tree_spawn": "1",
        "plm_ssh_agent": f"ssh -F {roster.ssh_config}", "oob_tcp_keepalive_time": "10",
        "oob_tcp_keepalive_intvl": "5", "oob_tcp_keepalive_probes": "3",
        "oob_tcp_dynamic_ipv4_ports": f"{first}-{first + _PORTS_OF_A_DAEMON - 1}", "oob_tcp_disable_ipv6_family": "1",
    }  # fmt: skip
    ranks = {
        **ALWAYS, **environment, **_YIELD, "OMPI_MCA_mpi_abort_delay": "3", "OMPI_MCA_btl_tcp_disable_family": "6",
        "OMPI_MCA_btl_tcp_port_min_v4": str(RANK_PORTS.start), "OMPI_MCA_btl_tcp_port_range_v4": str(len(RANK_PORTS)),
    }  # fmt: skip
    return (
        _mpirun(roster.python), "--bind-to", "none", "--mca", "btl_tcp_if_include", roster.subnet,
        *(word for name, value in daemons.items() for word in ("--prtemca", name, value)),
        *(word for name, value in ranks.items() for word in ("-x", f"{name}={value}")),
    )  # fmt: skip


def _mpirun(python: str) -> str:
    return str(Path(python).parent / "mpirun")


def _rank(python: str, run: Path) -> tuple[str, ...]:
    return (python, "-m", "draco", "rank", str(run))
