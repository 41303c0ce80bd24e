"""One small round of messages over MPI: every rank sends to rank 0 what it is and a megabyte, and gets it back.

Run by the pre-flight check on the nodes that a job will use; rank 0 prints the seconds of each rank as JSON. Without
torch, so that it takes no longer than MPI itself.
"""

import json
import sys
import time

import numpy as np
from mpi4py import MPI

_BYTES = 1 << 20
_TAG = 1


def main() -> None:
    """Do this rank's part."""
    comm = MPI.COMM_WORLD
    rank, size = comm.Get_rank(), comm.Get_size()
    message = np.full(_BYTES, rank % 251, np.uint8)
    if rank:
        comm.Send(message, dest=0, tag=_TAG)
        comm.Recv(message, source=0, tag=_TAG)
        return
    seconds = {}
    for other in range(1, size):
        began = time.perf_counter()
        status = MPI.Status()
        waiting = comm.Mprobe(source=other, tag=_TAG, status=status)
        if status.Get_count(MPI.BYTE) != _BYTES:  # before it has a place: Open MPI would write past the buffer's end
            raise SystemExit(f"rank {other}: sent {status.Get_count(MPI.BYTE)} bytes, not {_BYTES}")
        waiting.Recv(message)
        if not (message == other % 251).all():
            raise SystemExit(f"rank {other}: its message arrived changed")
        comm.Send(message, dest=other, tag=_TAG)
        seconds[other] = round(time.perf_counter() - began, 4)
    json.dump(seconds, sys.stdout)


if __name__ == "__main__":
    main()
