"""The transport between server and workers: MPI between processes, or plain calls inside one process.

No other package imports mpi4py. The server sends the model to each worker directly, never through a tree of workers
that may be Byzantine. Both sides poll with short sleeps, so that ranks that wait leave the cores to ranks that compute.
Messages are mpi4py's upper-case calls on preallocated buffers: nothing is pickled.

    server                                   worker
    announce(job as YAML)                    job() -> its text
    greetings(timeout) -> bytes of each      greet(bytes)
    hand_momenta([(rows, p), ...])           take_momenta(buffer), where workers keep momenta
    exchange(tasks, model, frames)           tasks(model) -> each task, the model in the given buffer
        yields (worker, length | fault)      reply(frame, length)
    stop()                                   tasks() ends

The server waits no longer than it wants to: whoever reads `exchange` may leave it at any time. A worker that
has not answered by then is *late*: it gets no task until its old reply has come and was thrown away. A worker whose
process has ended is *gone*, which MPI reports (ULFM: mpirun --with-ft ulfm; Bland et al., IJHPCA 27(3), 2013). One that
sends what nobody asked for, or too much of it, is *expelled*: what it sends from then on is thrown away.
"""

from draco.training.transport.contract import Arrival, ServerTransport, Task, new_frames, ranks
from draco.training.transport.mpi import fail, leave, load, rank_and_size
from draco.training.transport.server_side import TOO_LONG, UNASKED, MpiServer
from draco.training.transport.simulated import Simulated
from draco.training.transport.worker_side import MpiWorker, ServerGone

__all__ = [
    "TOO_LONG", "UNASKED", "Arrival", "MpiServer", "MpiWorker", "ServerGone", "ServerTransport", "Simulated", "Task",
    "fail", "leave", "load", "new_frames", "rank_and_size", "ranks",
]  # fmt: skip
