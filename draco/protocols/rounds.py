"""One step as a coroutine of rounds: it yields what is asked of which worker, and is sent what came.

A *pair* is (step, partition). A worker's *claim* on a pair is the digest of the vector that it says is right. Vectors
are opaque here: only the digest is looked at. Workers are ranks 1..n, partitions 0..k-1.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

from draco.protocols.court import Court

T = TypeVar("T")
# "vector": its step vector. "digest": the SHA-256 of that. "transcript": the products of which the server makes the
# vector, after their check. "sketch": secret projections of the vector, drawn by `Ask.seed`.
# "commitment": the SHA-256 of its transcript, which it keeps for the step. "opening": that transcript, for the server.
# "deposit": its transcript, which the server keeps for verifiers. "verdict": the digest of the vector that a deposit
# makes, or DENIED where it fails its check. "replay": the same by the server itself, with every product compared whole.
Send = Literal["vector", "digest", "transcript", "sketch", "commitment", "opening", "deposit", "verdict", "replay"]
RECORDED: tuple[Send, ...] = ("transcript", "opening", "deposit")  # transcripts travel
SERVER = 0  # the rank that is asked for a "replay"
DENIED = bytes(32)  # the verdict on a deposit that fails; no vector is known to have this digest


class Ask(NamedTuple):
    """What one worker is asked for. It knows the model of the step."""

    worker: int
    step: int
    partition: int
    send: Send
    seed: int = 0  # of a sketch
    of: int = 0  # whose deposit a verdict or a replay is about


class Upload(NamedTuple):
    """A vector as it came, or as it was made of a transcript that passed its check."""

    digest: bytes  # of its bytes as they came, by the server
    vector: Any  # (d,), valid until the end of the step after this one
    commitment: bytes = b""  # of an opening: the SHA-256 of the transcript of which the vector was made


class Rejected(NamedTuple):
    """What came proves by itself that its sender lies: another size or kind than was asked for, or a failed check."""

    why: str


# To "digest", "commitment" and "verdict": 32 bytes; to "deposit": b""; to "sketch": a tuple of floats. None: nothing
# came in time, which proves nothing.
Answer = Upload | bytes | tuple[float, ...] | Rejected | None
Rounds = Generator[Sequence[Ask], Mapping[Ask, Answer], T]  # no ask twice in a step; every ask of a round is answered


class Committed(NamedTuple):
    """A step whose vectors were used and are not verified yet."""

    step: int
    uploads: tuple[Upload, ...]  # of partitions 0..k-1
    workers: tuple[int, ...]  # who sent each


class Outcome(NamedTuple):
    """What a step came to."""

    uploads: tuple[Upload, ...]  # of partitions 0..k-1; empty: nothing, as the step before was false
    workers: tuple[int, ...] = ()  # who sent each
    # Of the step before: the true vectors in the place of false ones, by partition. Where there are any, that step is
    # to be undone and taken again with them, and then this step from its beginning.
    replaced: Mapping[int, Upload] = {}
    suspects: tuple[int, ...] = ()  # who lied at this step and is not expelled, increasing


class Protocol(NamedTuple):
    """A protocol built for n workers and up to s Byzantine ones."""

    name: str
    partitions: int  # k
    # (court, step, the step before where it is not verified yet) -> rounds of the step
    step: Callable[[Court, int, Committed | None], Rounds[Outcome]]
    # (court, that step) -> the true vectors in the place of false ones; None: each step is right when it ends
    close: Callable[[Court, Committed], Rounds[Mapping[int, Upload]]] | None
    summary: str  # one line for the user at the start of a job
    copies: Callable[[int], int]  # lies that are left -> copies of each partition where nobody lies
    sends: tuple[Send, ...] = ("vector", "digest")  # what it may ask for
    failure: float | None = None  # the probability that any step of a run is false, at most; None: it is exact
    expected_false: float | None = None  # false vectors that a whole run uses, on the average, at most; None: none
