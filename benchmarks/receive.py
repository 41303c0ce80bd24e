"""The time of an exchange with n processes against that of copying its bytes; benchmarks run it by mpirun.

The transport is the one that DRACO_TRANSPORT names.

mpirun -n 16 python -m benchmarks.receive D REPEATS [P]      replies of D floats to a model of P, 1 by default
"""

import json
import sys
import time
from statistics import median

import torch

from draco.training.transport import Task, new_frames, rank_and_size, server_side, worker_side

NAME = "receive"


def main(d: int, repeats: int, p: int = 1) -> None:
    """Serve or answer `repeats` exchanges of a model of p floats for frames of d; rank 0 prints the medians as JSON."""
    torch.set_num_threads(1)
    model = torch.zeros(p)
    rank, size = rank_and_size()
    if rank:
        transport, frame = worker_side(NAME, rank), new_frames(1, 4 * d)[0]
        for _ in transport.tasks(model):
            transport.reply(frame, 4 * d)
        return
    server = server_side(NAME, size)
    frames, source, copies = new_frames(size - 1, 4 * d), new_frames(size - 1, 4 * d), torch.zeros(size - 1, p)
    received, copied = [], []
    for step in range(1, repeats + 2):
        time.sleep(0.05)  # let the workers come back to waiting
        began = time.perf_counter()
        for _ in server.exchange([Task(step, row) for row in range(size - 1)], model, frames):
            pass
        received.append(time.perf_counter() - began)
        began = time.perf_counter()
        copies.copy_(model)
        frames.copy_(source)
        copied.append(time.perf_counter() - began)
    server.stop()
    print(json.dumps({"received": median(received[1:]), "copied": median(copied[1:])}))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
