"""The plan of torchrun: all ranks on this machine, started by PyTorch's own launcher (torch.distributed.run).

torchrun ends all of its processes when one of them fails, and exits. A worker that is lost is for Draco's server to
decide about. So what torchrun starts as a worker stands for it (fork_client.py): it says how its rank has ended, and
ends well itself. Where no fork server can be had the rank is torchrun's own process, and its loss ends the launch.
"""

from draco.launch import fork_client
from draco.launch.planned import Plan, Start
from draco.runs import spoken

NAME = "torchrun"
_MODULE = "torch.distributed.run"
_LOOPBACK = "127.0.0.1"
# torchrun is given 3 s to end its ranks, which is less than it has itself.
_ENVIRONMENT = {spoken.NAME: "torch", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "3", fork_client.SPARES: "1"}


def plan(start: Start) -> Plan:
    """One rank for the server and one per worker; torchrun chooses a free port, where its own process keeps the store.

    Without `--local-addr` ranks would look the store up by this machine's name, which may be known to nobody.
    """
    argv = (
        start.python, "-m", _MODULE, "--standalone", "--local-addr", _LOOPBACK,
        "--nproc-per-node", str(start.job.workers + 1), "--max-restarts", "0", *start.rank[1:],
    )  # fmt: skip
    return Plan(argv, tuple({**start.ranks, **_ENVIRONMENT}.items()), starter=NAME)
