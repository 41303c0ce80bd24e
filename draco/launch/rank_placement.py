"""Which node hosts which ranks, and what it would mean if one node were lost or Byzantine."""

from collections.abc import Mapping

from draco.job import Job, aggregator_f, check, sizes
from draco.launch.roster import Roster
from draco.schemes import SCHEMES

Placement = Mapping[str, tuple[int, ...]]  # node -> its MPI ranks; rank 0 is the server


def place(roster: Roster, workers: int) -> Placement:
    """Give the server to the head and deal the workers 1..n out to the worker nodes in turn.

    So neighbouring ranks sit on different nodes and nodes differ by one rank at most. A cluster of a head alone hosts
    everything.
    """
    hosts = [node.name for node in roster.nodes[1:]] or [roster.nodes[0].name]
    ranks: dict[str, list[int]] = {node.name: [] for node in roster.nodes}
    ranks[roster.nodes[0].name].append(0)
    for rank in range(1, workers + 1):
        ranks[hosts[(rank - 1) % len(hosts)]].append(rank)
    return {name: tuple(held) for name, held in ranks.items()}


def nodes_of_workers(placement: Placement) -> list[str]:
    """Return the node of worker 1..n."""
    held = {rank: node for node, ranks in placement.items() for rank in ranks if rank}
    return [held[rank] for rank in sorted(held)]


def hostfile(roster: Roster, placement: Placement) -> str:
    """Return Open MPI's hostfile for `--map-by seq`: line i is the node of rank i, which is one slot there.

    Not a rank file: its path would stand in `--map-by rankfile:FILE=...`, and Open MPI 5.0.11 takes any "pe" in that
    (runs/my-experiment-1) for the directive PE.
    """
    held = sorted((rank, node.address) for node in roster.nodes for rank in placement[node.name])
    return "".join(f"{address}\n" for _, address in held)


def most_byzantine_of_a_node(job: Job, placement: Placement) -> tuple[int, int] | None:
    """Return (how many workers of one Byzantine node count, how many the job tolerates), as its scheme counts them.

    A scheme of groups counts within each, since the server spreads a node's workers over the groups; the other schemes
    and the robust aggregators count workers. None: the job tolerates none and promises nothing.
    """
    most = max(len([rank for rank in ranks if rank]) for ranks in placement.values())
    scheme = SCHEMES[job.scheme.name]
    tolerated = aggregator_f(job) if scheme.individual else job.scheme.adversaries
    if not tolerated:
        return None
    return (-(-most // sizes(job).partitions) if scheme.grouped else most), tolerated


def _remedy(job: Job, placement: Placement) -> str:
    """Say what would tolerate a whole node: more adversaries where the code has room for them, else more nodes only."""
    for s in range(job.scheme.adversaries + 1, (job.workers - 1) // 2 + 1):
        changes = [{"adversaries": s}, {"adversaries": s, "redundancy": None}]
        for change in changes if job.scheme.get("redundancy") else changes[:1]:
            other = job.model_copy(update={"scheme": job.scheme.model_copy(update=change)})
            if check(other):
                continue
            counted = most_byzantine_of_a_node(other, placement)
            if counted and counted[0] <= counted[1]:
                return f"more nodes or scheme.adversaries={s} would tolerate a whole node"
    return "only more nodes would tolerate a whole one"


def warnings(job: Job, roster: Roster, placement: Placement) -> list[str]:
    """Return one sentence for everything about the placement that the user should know."""
    out = []
    counted = most_byzantine_of_a_node(job, placement)
    if counted and counted[0] > counted[1]:
        node = max(placement, key=lambda name: len([rank for rank in placement[name] if rank]))
        ranks = ", ".join(str(rank) for rank in placement[node] if rank)
        where = " in one group" if SCHEMES[job.scheme.name].grouped else ""
        out.append(
            f"{node} hosts ranks {ranks}: if that node is Byzantine, {counted[0]} workers are{where}, and the job "
            f"tolerates {counted[1]}; {_remedy(job, placement)}"
        )
    for host in roster.nodes:
        held = len(placement[host.name])
        if held * job.threads > host.cores:
            each = f" of {job.threads} threads each" if job.threads > 1 else ""
            ranks = f"{held} rank{'' if held == 1 else 's'}"
            out.append(f"{host.name} is oversubscribed: {ranks}{each} on {host.cores} cores")
    return out
