"""The placement of ranks on nodes, and what it means for a job if one whole node is Byzantine."""

from collections.abc import Mapping, Sequence

from draco.errors import MissingError
from draco.job import Job, aggregator_f, check, sizes
from draco.launch.roster import Host, Roster
from draco.schemes import SCHEMES

Placement = Mapping[str, tuple[int, ...]]  # node -> its MPI ranks; rank 0 is the server


def place(roster: Roster, workers: int, device: str = "cpu") -> Placement:
    """Give the server to the head and deal the workers 1..n out to the worker nodes in turn.

    So neighbouring ranks sit on different nodes and nodes differ by one rank at most. A cluster of a head alone hosts
    everything. With `device` cuda a node has its turn once for each of its GPUs, and GPUs differ by one rank at most.
    """
    hosts = _slots(roster, device)
    ranks: dict[str, list[int]] = {node.name: [] for node in roster.nodes}
    ranks[roster.nodes[0].name].append(0)
    for rank in range(1, workers + 1):
        ranks[hosts[(rank - 1) % len(hosts)]].append(rank)
    return {name: tuple(held) for name, held in ranks.items()}


def _slots(roster: Roster, device: str) -> list[str]:
    """Return the nodes of workers in the order of their turns; several times those with several GPUs."""
    hosts = roster.nodes[1:] or roster.nodes[:1]
    most = max(host.gpus or 0 for host in hosts)
    if device == "cpu" or not most:
        return [host.name for host in hosts]
    return [host.name for turn in range(most) for host in hosts if turn < (host.gpus or 0)]


def require_gpus(job: Job, roster: Roster) -> None:
    """Make sure that GPUs which a job asks for are there, where somebody has counted them.

    Some node of workers needs one with `device: cuda`. The head, where the server is, needs one with `server_device:
    cuda` only.

    Raises:
        MissingError: none has.
    """
    head, hosts = roster.nodes[0], roster.nodes[1:] or roster.nodes[:1]
    if job.server_device == "cuda" and head.gpus == 0:
        raise MissingError(
            f"{head.name}: has no GPU, and the job says server_device: cuda; server_device=auto, or a head with a GPU"
        )
    if job.device != "cpu" and all(host.gpus == 0 for host in hosts):
        names = ", ".join(host.name for host in hosts)
        raise MissingError(f"{names}: no node of workers has a GPU, and the job says device: cuda; device=cpu")


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
        changes: list[dict[str, int | None]] = [{"adversaries": s}, {"adversaries": s, "redundancy": None}]
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
            f"{node} hosts ranks {ranks}: if that node is Byzantine, so are {counted[0]} workers{where}, and "
            f"the job tolerates {counted[1]}; {_remedy(job, placement)}"
        )
    for host in roster.nodes:
        held = len(placement[host.name])
        if held * job.threads > host.cores:
            each = f" of {job.threads} threads each" if job.threads > 1 else ""
            ranks = f"{held} rank{'' if held == 1 else 's'}"
            out.append(f"{host.name} is oversubscribed: {ranks}{each} on {host.cores} cores")
        if shared := _shared(job, host, placement[host.name]):
            out.append(f"{host.name}: {shared} share {host.gpus} GPU{'' if host.gpus == 1 else 's'}")
    return out


def _shared(job: Job, host: Host, ranks: Sequence[int]) -> str:
    """Say who has to share the GPUs of a node; nothing where each has one, or nobody computes there."""
    workers = len([rank for rank in ranks if rank]) if job.device != "cpu" else 0
    server = 0 in ranks and (job.server_device == "cuda" or (job.server_device == "auto" and job.device != "cpu"))
    if not host.gpus or workers + server <= host.gpus:
        return ""
    return " and ".join(
        [*(["the server"] if server else []), *([f"{workers} worker{'' if workers == 1 else 's'}"] if workers else [])]
    )
