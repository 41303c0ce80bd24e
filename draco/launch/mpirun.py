"""The plans of mpirun: all ranks on this machine, or on the nodes of a cluster, started from its head over ssh."""

import json
import zlib
from pathlib import Path

from draco.launch import meeting
from draco.launch import rank_placement as placing
from draco.launch.environment import ALWAYS
from draco.launch.planned import Plan, Start
from draco.launch.roster import Roster

NAME = "mpirun"
# With more ranks than cores a rank that waits must give its core away: Open MPI then yields it in every probe and test
# that finds nothing. Draco's polls sleep besides. Were Open MPI to sleep, a poll would take 0.1 ms a call.
_YIELD = {"OMPI_MCA_mpi_yield_when_idle": "1", "OMPI_MCA_threads_pthreads_yield_strategy": "sched_yield"}
# A container's only user is often root; mpirun gains nothing that its caller lacks.
AS_ROOT = {f"{prefix}_ALLOW_RUN_AS_ROOT{suffix}": "1" for prefix in ("OMPI", "PRTE") for suffix in ("", "_CONFIRM")}

# mpirun has no home on this machine: it would take the parameters of ~/.openmpi, ~/.prte and ~/.pmix, which no setting
# keeps it from. Ranks get the user's.
NO_HOME = "/nonexistent"


# A rank that dies does not end the others: the server is told, and decides.
_FAULT_TOLERANT = ("--with-ft", "ulfm")


def plan(start: Start) -> Plan:
    """The server on the head and workers on the nodes of the roster, or all of them here where there is none."""
    address = start.roster.nodes[0].address if start.roster else meeting.HERE
    start = start._replace(ranks={**start.ranks, **meeting.environment(start.job, start.run, address, start.port)})
    return _cluster(start, start.roster) if start.roster else _local(start)


def _local(start: Start) -> Plan:
    """One rank for the server and one per worker on this machine, by the Open MPI of the virtual environment.

    Ranks are not bound to cores. One machine needs only shared memory; TCP is left out, so that nothing listens on
    the network.
    """
    mpi = {"OMPI_MCA_pml": "ob1", "OMPI_MCA_btl": "self,sm", **_YIELD}
    environment = {**start.ranks, **mpi, **AS_ROOT, "HOME": NO_HOME}
    argv = (
        _mpirun(start.python), *_FAULT_TOLERANT, "-x", f"HOME={start.home}", "-n", str(start.job.workers + 1),
        "--map-by", ":OVERSUBSCRIBE", "--bind-to", "none",
    )  # fmt: skip
    return Plan((*argv, *start.rank), tuple(environment.items()), starter=NAME)


def _cluster(start: Start, roster: Roster) -> Plan:
    """The server on the head and the workers dealt out to the worker nodes, started from the head over ssh."""
    placement = placing.place(roster, start.job.workers, start.job.device)
    folder = start.run / "launch"
    hostfile = folder / "hostfile"
    argv = (
        *mpirun(roster, {**start.ranks, "OMPI_MCA_pml": "ob1", "OMPI_MCA_btl": "self,sm,tcp"}, start.run.name),
        *_FAULT_TOLERANT, "-n", str(start.job.workers + 1), "--hostfile", str(hostfile),
        "--map-by", "seq:OVERSUBSCRIBE", "--output", f"file={start.run / 'logs' / 'rank'},merge",
        *start._replace(python=roster.python).rank,
    )  # fmt: skip
    files = (
        (hostfile, placing.hostfile(roster, placement)),
        (folder / "nodes.json", json.dumps(placing.nodes_of_workers(placement))),
    )
    return Plan(argv, tuple(AS_ROOT.items()), files, roster, NAME)


# What firewalls have to let pass between the head and its workers, infra/base/security.tf among them. A daemon listens
# on every port it is given: those on the head that other mpiruns are given must be others.
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
        "OMPI_MCA_btl_tcp_port_min_v4": str(meeting.PORTS.start),
        "OMPI_MCA_btl_tcp_port_range_v4": str(len(meeting.PORTS)),
    }  # fmt: skip
    return (
        _mpirun(roster.python), "--bind-to", "none", "--mca", "btl_tcp_if_include", roster.subnet,
        *(word for name, value in daemons.items() for word in ("--prtemca", name, value)),
        *(word for name, value in ranks.items() for word in ("-x", f"{name}={value}")),
    )  # fmt: skip


def _mpirun(python: str) -> str:
    return str(Path(python).parent / "mpirun")
