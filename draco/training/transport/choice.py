"""The transport of this process: the one that its launch has named."""

from draco.runs.spoken import told
from draco.training.transport import meeting, mpi
from draco.training.transport.contract import ServerRank, WorkerRank
from draco.training.transport.server_side import MpiServer
from draco.training.transport.torch_server import TorchServer
from draco.training.transport.torch_worker import TorchWorker
from draco.training.transport.worker_side import MpiWorker


def rank_and_size() -> tuple[int, int]:
    """Return this process's rank and the number of ranks. With MPI all ranks are waited for.

    Raises:
        MissingError: no launcher has said so.
    """
    return meeting.rank_and_size() if told() == "torch" else mpi.rank_and_size()


def server_side(name: str, size: int) -> ServerRank:
    """Return rank 0's side of the run of that name, once all of its `size` ranks are there.

    Raises:
        MissingError: it cannot listen.
        WorkerError: some have not come.
    """
    return TorchServer(meeting.gather(name, size - 1)) if told() == "torch" else MpiServer()


def worker_side(name: str, rank: int) -> WorkerRank:
    """Return the side of a worker of the run of that name.

    Raises:
        WorkerError: the server cannot be reached.
    """
    return TorchWorker(meeting.reach(name, rank)) if told() == "torch" else MpiWorker()
