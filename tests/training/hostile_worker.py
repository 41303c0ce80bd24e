"""A worker that speaks MPI and nothing else that is decent: run as one rank beside real ones by test_hostile.py.

hostile_worker.py SEED MANNER,MANNER,...    does one of them in every step, drawn from SEED
"""

import os
import random
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
from mpi4py import MPI

from draco.job import parse
from draco.training import wire
from draco.training.build import Built
from draco.training.transport import MpiWorker
from draco.training.worker import build_vectors

REPLY, OTHER = 4, 77
Frame = np.ndarray[tuple[int], np.dtype[np.uint8]]


class Hostile:
    """What the manners need to know."""

    def __init__(self, draw: random.Random, wire_: wire.Wire) -> None:
        self.draw, self.wire = draw, wire_
        self.comm = MPI.COMM_WORLD
        self.sent: list[MPI.Request] = []

    def header(self, step: int, **changed: int | bytes) -> bytes:
        said = {"magic": wire.MAGIC, "dtype": 0, "compression": 0, "step": step, "elements": self.wire.elements,
                "bytes": self.wire.payload_bytes, **changed}  # fmt: skip
        return wire.HEADER.pack(*said.values(), 0.0, 0.0)

    def frame(self, step: int, value: float = 1.0, **changed: int | bytes) -> Frame:
        payload = np.full(self.wire.elements, value, np.float32).tobytes()
        return np.frombuffer(bytearray(self.header(step, **changed) + payload), np.uint8)

    def send(self, content: Frame, tag: int = REPLY) -> None:
        self.sent.append(self.comm.Isend(content, dest=0, tag=tag))


def short(it: Hostile, step: int) -> None:
    it.send(it.frame(step)[: it.draw.randrange(it.wire.frame_bytes)].copy())


def long(it: Hostile, step: int) -> None:
    it.send(np.concatenate([it.frame(step), np.ones(it.draw.randrange(1, 1 << 22), np.uint8)]))


def noise(it: Hostile, step: int) -> None:
    it.send(np.frombuffer(bytearray(it.draw.randbytes(len(it.frame(step)))), np.uint8))


def header(it: Hostile, step: int) -> None:
    name = it.draw.choice(["dtype", "compression", "step", "elements", "bytes", "magic"])
    wild = {"dtype": 0xFFFF, "compression": 1, "magic": b"\0\0\0\0"}.get(name, it.draw.choice([-1, 0, 2**62, step - 1]))
    it.send(it.frame(step, **{name: wild}))


def number(it: Hostile, step: int) -> None:
    it.send(it.frame(step, it.draw.choice([float("nan"), float("inf"), 3e38, -3e38, 1e-45, 0.0, -0.0])))


def one_nan(it: Hostile, step: int) -> None:
    frame = it.frame(step)
    struct.pack_into("<f", frame, 64 + 4 * it.draw.randrange(it.wire.elements), float("nan"))
    it.send(frame)


def silent(it: Hostile, step: int) -> None:
    time.sleep(1.0)
    it.send(it.frame(step))


def frozen(it: Hostile, step: int) -> None:
    """Stop in the middle of a message, for a second."""
    waker = subprocess.Popen(["sh", "-c", f"sleep 1; kill -CONT {os.getpid()}"])
    it.send(it.frame(step))
    os.kill(os.getpid(), signal.SIGSTOP)
    waker.wait()


def twice(it: Hostile, step: int) -> None:
    it.send(it.frame(step))
    it.send(it.frame(step + 1))


def flood(it: Hostile, step: int) -> None:
    """Half a gigabyte in three seconds, under every tag, without waiting for anybody."""
    for size, count in ((1 << 20, 256), (1 << 12, 65_536)):
        content = np.ones(size, np.uint8)
        for i in range(count):
            it.send(content, tag=(REPLY, OTHER)[i % 2])
            if i % 64 == 0:
                it.sent = [request for request in it.sent if not request.Test()]
    it.send(it.frame(step))


def gone(it: Hostile, step: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


MANNERS: dict[str, Callable[[Hostile, int], None]] = {
    manner.__name__: manner
    for manner in (short, long, noise, header, number, one_nan, silent, frozen, twice, flood, gone)
}


def main(seed: int, manners: list[str]) -> None:
    side = MpiWorker()
    job = parse(side.job(), "the server's job", checked=True)
    built = Built(job)
    vectors = build_vectors(built)
    it = Hostile(random.Random(seed), built.format)
    import torch

    side.greet(it.draw.randbytes(100))
    for task in side.tasks(torch.zeros(vectors.parameters)):
        MANNERS[it.draw.choice(manners)](it, task.step)
        it.sent = [request for request in it.sent if not request.Test()]
    os._exit(0)


if __name__ == "__main__":
    try:
        main(int(sys.argv[1]), sys.argv[2].split(","))
    finally:
        os._exit(1)  # else MPI would wait for the others
