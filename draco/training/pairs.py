"""What a worker sends in a round: vectors and claims of pairs (step, partition), and the bytes in which they travel.

A frame is the 64 bytes of the header of `wire.py`, with a magic of its own and the number of pairs in the place of the
number of elements. What was asked for follows, vectors first, each in the order of the asks:

    vector      elements of the job's `wire.dtype`
    digest      32 bytes, the SHA-256 of those of the vector
    sketch      SKETCH float64
    commitment  32 bytes, the SHA-256 of the bytes of the transcript's float32
    verdict     32 bytes, the digest of the vector that the enclosed transcript makes, or DENIED
    transcript  an int64, the number of its float32, and these; an opening and a deposit too

The server knows the asks, so it knows every size but that of a transcript, which has a limit. Nothing is unpickled.
What a task encloses are transcripts in that form, one for each verdict, in the order of the asks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from draco.protocols.rounds import RECORDED, Ask, Send
from draco.protocols.sketch import COUNT
from draco.training import wire
from draco.training.wire import DTYPES, HEADER, Timing, Wire

MAGIC = b"DRCR"
ORDER: tuple[Send, ...] = ("vector", "digest", "sketch", "commitment", "verdict", *RECORDED)
ASK_NUMBERS = 4  # step, partition, place in ORDER, seed
DIGESTS: tuple[Send, ...] = ("digest", "commitment", "verdict")
DIGEST_BYTES, SKETCH = 32, COUNT * COUNT + 1


class Item(NamedTuple):
    """One thing of a frame: what was asked for, and where its bytes are."""

    ask: Ask
    start: int
    stop: int


def numbers_of(asks: Sequence[Ask]) -> tuple[int, ...]:
    """Return the asks of one worker as its task carries them."""
    return tuple(number for ask in asks for number in (ask.step, ask.partition, ORDER.index(ask.send), ask.seed))


def asks_of(worker: int, numbers: Sequence[int]) -> list[Ask]:
    """Return the asks that a task carries."""
    parts = [numbers[start : start + ASK_NUMBERS] for start in range(0, len(numbers), ASK_NUMBERS)]
    return [Ask(worker, step, partition, ORDER[kind], seed) for step, partition, kind, seed in parts]


def digest(values: Tensor) -> bytes:
    """Return the SHA-256 of the bytes of a vector, or of a transcript."""
    return hashlib.sha256(as_bytes(values).numpy().data).digest()


def in_order(asks: Iterable[Ask]) -> list[Ask]:
    """Return asks in the order in which a frame has what they ask for."""
    return sorted(asks, key=lambda ask: ORDER.index(ask.send))


def room(asks: Sequence[Ask], format_: Wire, transcript: int) -> int:
    """Return the bytes of the largest frame that answers the asks; `transcript`: the most numbers of one."""
    sizes = {
        "vector": format_.payload_bytes, "sketch": 8 * SKETCH, **dict.fromkeys(DIGESTS, DIGEST_BYTES),
        **dict.fromkeys(RECORDED, 8 + 4 * transcript),
    }  # fmt: skip
    return HEADER.size + sum(sizes[ask.send] for ask in asks)


def pack(items: Sequence[Tensor], format_: Wire, step: int, timing: Timing, frame: Tensor) -> int:
    """Write what answers the asks, in the frame's order, each as bytes (uint8); return the frame's length."""
    place = HEADER.size
    for item in items:
        frame[place : place + len(item)] = item
        place += len(item)
    header = HEADER.pack(
        MAGIC, list(DTYPES).index(format_.dtype), 0, step, len(items), place - HEADER.size, timing.compute,
        timing.encode,
    )  # fmt: skip
    frame[: HEADER.size] = torch.frombuffer(bytearray(header), dtype=torch.uint8)
    return place


def unpack(
    frame: Tensor, length: int, asks: Sequence[Ask], format_: Wire, step: int
) -> tuple[Timing, list[Item]] | str:
    """Check a frame of `length` received bytes; return where in it is what, or why it is no answer to the asks.

    `asks` are one worker's, in the order of `in_order`.
    """
    if length < HEADER.size:
        return f"{length} bytes are shorter than a header"
    magic, dtype, _, said_step, count, size, compute, encode = HEADER.unpack(frame[: HEADER.size].numpy().tobytes())
    if (magic, dtype, count) != (MAGIC, list(DTYPES).index(format_.dtype), len(asks)):
        return f"the header announces something else than {len(asks)} answers in {format_.dtype}"
    if said_step != step or size != length - HEADER.size:
        return f"it answers step {said_step} with {size} bytes, not step {step} with {length - HEADER.size}"
    items, place = [], HEADER.size
    for ask in asks:
        start, place = _bounds(frame, length, ask, format_, place)
        if place > length:
            return f"its {ask.send} of partition {ask.partition} is cut"
        items.append(Item(ask, start, place))
    if place != length:
        return f"{length - place} bytes follow what was asked for"
    return Timing(compute, encode), items


def fault_of(frame: Tensor, length: int) -> str | None:
    """Return what a worker says whose task has failed; None where the frame says no such thing."""
    said = wire.unpack(frame, length, Wire(0, "float32", "none"), 0, frame) if length >= len(wire.FAULT) else ""
    return said if isinstance(said, str) and said.startswith(wire.FAILED) else None


def take_vector(item: Item, frame: Tensor, format_: Wire, out: Tensor) -> bytes:
    """Write a vector as float32 into `out` (d,); return the digest of it as it came."""
    raw = frame[item.start : item.stop]
    out.view(torch.uint8)[: len(raw)] = raw  # aligned, whatever stands before it in the frame
    if format_.dtype != "float32":
        out.copy_(out.view(torch.uint8)[: len(raw)].clone().view(DTYPES[format_.dtype]))
    return hashlib.sha256(raw.numpy().data).digest()


def sketch_of(item: Item, frame: Tensor) -> tuple[float, ...]:
    """Return a sketch."""
    return tuple(frame[item.start : item.stop].clone().view(torch.float64).tolist())


def transcript_of(item: Item, frame: Tensor) -> Tensor:
    """Return a transcript, float32, in memory of its own."""
    return frame[item.start : item.stop].clone().view(torch.float32)


def bytes_of(frame: Tensor, item: Item) -> bytes:
    """Return the bytes of an item."""
    return frame[item.start : item.stop].numpy().tobytes()


def _bounds(frame: Tensor, length: int, ask: Ask, format_: Wire, place: int) -> tuple[int, int]:
    """Return where an item begins and ends; the end is beyond `length` where it is cut."""
    if ask.send == "vector":
        return place, place + format_.payload_bytes
    if ask.send in DIGESTS:
        return place, place + DIGEST_BYTES
    if ask.send == "sketch":
        return place, place + 8 * SKETCH
    if place + 8 > length:
        return place, length + 1
    numbers = int(frame[place : place + 8].clone().view(torch.int64))
    if not 0 <= numbers <= (length - place - 8) // 4:
        return place, length + 1
    return place + 8, place + 8 + 4 * numbers


def as_bytes(values: Tensor) -> Tensor:
    """Return the bytes of a contiguous tensor as uint8, without a copy."""
    return values.contiguous().view(torch.uint8).reshape(-1)


def sized(transcript: Tensor) -> Tensor:
    """Return a transcript as it travels: how many numbers it has, and these."""
    return torch.cat([as_bytes(torch.tensor([transcript.numel()])), as_bytes(transcript)])


def deposit_of(item: Item, frame: Tensor) -> Tensor:
    """Return a transcript with its length as it came, in memory of its own."""
    return frame[item.start - 8 : item.stop].clone()


def enclosed(deposits: Sequence[Tensor]) -> Tensor:
    """Return transcripts as a task encloses them; one alone is not copied."""
    return deposits[0] if len(deposits) == 1 else torch.cat(list(deposits))


def disclosed(values: Tensor) -> list[Tensor]:
    """Return the transcripts that a task of the server's encloses, each in memory of its own."""
    found, place = [], 0
    while place < len(values):
        numbers = int(values[place : place + 8].clone().view(torch.int64))
        found.append(values[place + 8 : place + 8 + 4 * numbers].clone().view(torch.float32))
        place += 8 + 4 * numbers
    return found
