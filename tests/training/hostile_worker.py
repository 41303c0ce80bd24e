"""A worker that speaks its transport and nothing else that is decent: one rank beside real ones, by test_hostile.py.

hostile_worker.py RUN SEED MANNER,MANNER,...    does one of them in every step, drawn from SEED
"""

import contextlib
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np

from draco.job import parse
from draco.runs.spoken import told
from draco.training import transport, wire
from draco.training.build import Built
from draco.training.transport.line import HEAD
from draco.training.worker import build_vectors

REPLY, OTHER = 4, 77
Frame = np.ndarray[tuple[int], np.dtype[np.uint8]]


class ByMpi:
    """Sends without waiting for anybody."""

    def __init__(self) -> None:
        from mpi4py import MPI

        self.comm = MPI.COMM_WORLD
        self.sent: list[MPI.Request] = []

    def begin(self, content: Frame, tag: int) -> None:
        self.sent.append(self.comm.Isend(content, dest=0, tag=tag))

    def end(self) -> None:
        self.sent = [request for request in self.sent if not request.Test()]


class ByTorch:
    """Sends the half of a message, and then the rest."""

    def __init__(self, side: transport.WorkerRank) -> None:
        self.connection: socket.socket = side.connection
        self.rest = b""

    def begin(self, content: Frame, tag: int) -> None:
        self.end()
        raw = HEAD.pack(tag, content.nbytes) + content.tobytes()
        self.connection.sendall(raw[: len(raw) // 2])
        self.rest = raw[len(raw) // 2 :]

    def end(self) -> None:
        self.connection.sendall(self.rest)
        self.rest = b""


class Hostile:
    """What the manners need to know."""

    def __init__(self, draw: random.Random, wire_: wire.Wire, by: ByMpi | ByTorch) -> None:
        self.draw, self.wire, self.by = draw, wire_, by

    def header(self, step: int, **changed: int | bytes) -> bytes:
        said = {"magic": wire.MAGIC, "dtype": 0, "compression": 0, "step": step, "elements": self.wire.elements,
                "bytes": self.wire.payload_bytes, **changed}  # fmt: skip
        return wire.HEADER.pack(*said.values(), 0.0, 0.0)

    def frame(self, step: int, value: float = 1.0, **changed: int | bytes) -> Frame:
        payload = np.full(self.wire.elements, value, np.float32).tobytes()
        return np.frombuffer(bytearray(self.header(step, **changed) + payload), np.uint8)

    def send(self, content: Frame, tag: int = REPLY) -> None:
        self.by.begin(content, tag)


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
                it.by.end()
    it.send(it.frame(step))


def gone(it: Hostile, step: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


MANNERS: dict[str, Callable[[Hostile, int], None]] = {
    manner.__name__: manner
    for manner in (short, long, noise, header, number, one_nan, silent, frozen, twice, flood, gone)
}


def main(name: str, seed: int, manners: list[str]) -> None:
    rank, _ = transport.rank_and_size()
    side = transport.worker_side(name, rank)
    job = parse(side.job(), "the server's job", checked=True)
    built = Built(job)
    vectors = build_vectors(built)
    it = Hostile(random.Random(seed), built.format, ByTorch(side) if told() == "torch" else ByMpi())
    import torch

    side.greet(it.draw.randbytes(100))
    with contextlib.suppress(transport.ServerGone, OSError):  # the server has closed the connection
        for task in side.tasks(torch.zeros(vectors.parameters)):
            MANNERS[it.draw.choice(manners)](it, task.step)
            it.by.end()
    os._exit(0)


if __name__ == "__main__":
    try:
        main(sys.argv[1], int(sys.argv[2]), sys.argv[3].split(","))
    finally:
        os._exit(1)  # else MPI would wait for the others
