"""The transport between server and workers: MPI or TCP between processes, or plain calls inside one process.

No other package imports mpi4py. The server sends the model to each worker directly, never through a tree of workers
that may be Byzantine. It reads how long a message is before it receives it, and nothing is pickled.

    server                                   worker
    announce(job as YAML)                    job() -> its text
    greetings(timeout) -> bytes of each      greet(bytes)
    hand_momenta([(rows, p), ...])           take_momenta(buffer), where workers keep momenta
    exchange(tasks, model, frames)           tasks(model) -> each task, the model in the given buffer
        yields (worker, length | fault)      reply(frame, length)
    stop()                                   tasks() ends

The server waits no longer than it wants to: whoever reads `exchange` may leave it at any time. A worker that
has not answered by then is *late*: it gets no task until its old reply has come and was thrown away. A worker whose
process has ended is *gone*. One that sends what nobody asked for, or too much of it, is *expelled*: what it sends from
then on is not taken.

**MPI** (server_side.py, worker_side.py): both sides poll mpi4py's upper-case calls on preallocated buffers, with short
sleeps, so that ranks that wait leave the cores to ranks that compute. ULFM reports who is gone (mpirun --with-ft ulfm;
Bland et al., IJHPCA 27(3), 2013).

**TCP** (meeting.py, line.py, torch_server.py, torch_worker.py): ranks meet by the variables of torch.distributed, and
by the store of torchrun. The bytes go by one connection for each worker, not by its send and recv over gloo.
With torch 2.13, five facts of gloo's do not allow for the contract:

- A message that is longer than its buffer ends the receiving process: gloo throws in a thread of its own.
- A shorter one completes the receive, and nothing tells how long it was.
- `is_completed()` of a receive that has completed is False until `wait()` was called, which blocks.
- `wait()` with a time limit that passes closes the connections to all ranks of the group.
- A group of its own for each worker keeps the last of these to that worker, but not the first.
"""

from draco.training.transport.choice import rank_and_size, server_side, worker_side
from draco.training.transport.contract import (
    TOO_LONG,
    UNASKED,
    Arrival,
    ServerGone,
    ServerRank,
    ServerTransport,
    Task,
    WorkerRank,
    new_frames,
    ranks,
)
from draco.training.transport.mpi import fail, leave, load
from draco.training.transport.simulated import Simulated

__all__ = [
    "TOO_LONG", "UNASKED", "Arrival", "ServerGone", "ServerRank", "ServerTransport", "Simulated", "Task", "WorkerRank",
    "fail", "leave", "load", "new_frames", "rank_and_size", "ranks", "server_side", "worker_side",
]  # fmt: skip
