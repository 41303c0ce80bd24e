"""The bytes of one reply: a fixed header and one flat vector, packed by a worker, checked and unpacked by the server.

A frame is 64 bytes of header and then the payload, in one buffer and one message:

    magic  dtype  compression  step  elements  payload bytes  compute seconds  encode seconds  (zeros)
    4s     u16    u16          i64   i64       i64            f64              f64             16x

The server fixes size, dtype, compression and step beforehand, and refuses a frame that says or is anything else. With
float32 and no compression nothing is copied: the reply matrix is a view of the receive buffer. Nothing is unpickled.

A worker whose task fails says so in a frame of its own: the magic DRCF, and a sentence. The server does not trust that
either: it refuses the frame, with the sentence as the reason.
"""

import struct
from typing import NamedTuple

import torch
from torch import Tensor

from draco.plain import plain
from draco.training import copies

HEADER = struct.Struct("<4sHHqqqdd16x")
MAGIC = b"DRC1"
FAULT = b"DRCF"
FAILED = "its code failed"  # begins the reason for which a frame with a fault is refused
_SENTENCE_CHARACTERS = 400
_BLOSC_MARGIN = 64  # bytes; a Blosc2 chunk that does not shrink is stored with 32 bytes of overhead
_ALIGNMENT = 64  # bytes; rows start on cache lines

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "complex128": torch.complex128,
    "uint8": torch.uint8,
}
COMPRESSIONS = ("none", "blosc2")

# Relative rounding error of one element; a decoder must not mistake it for an attack.
ROUNDING = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8, "complex128": 2.0**-53, "uint8": 0.0}


class Wire(NamedTuple):
    """How the vectors of one job travel."""

    elements: int  # of one reply
    dtype: str  # a key of DTYPES: what one element is on the wire
    compression: str  # one of COMPRESSIONS

    @property
    def payload_bytes(self) -> int:
        """Bytes of the vector before compression."""
        return self.elements * DTYPES[self.dtype].itemsize

    @property
    def frame_bytes(self) -> int:
        """Bytes of the largest frame, rounded up so that frames laid one behind the other stay aligned."""
        margin = _BLOSC_MARGIN if self.compression == "blosc2" else 0
        return -(-(HEADER.size + self.payload_bytes + margin) // _ALIGNMENT) * _ALIGNMENT

    @property
    def in_place(self) -> bool:
        """Whether a payload can be used where it was received."""
        return self.compression == "none" and self.dtype in ("float32", "complex128", "uint8")


class Timing(NamedTuple):
    """What a worker says of its own time, in seconds. Not to be trusted."""

    compute: float
    encode: float


def pack(vector: Tensor, wire: Wire, step: int, timing: Timing, frame: Tensor) -> int:
    """Write `vector` (elements,) into `frame` (uint8, `wire.frame_bytes` or more); return its length in bytes.

    A vector of a GPU is rounded there, and there when this returns; it comes fast where the frame is page-locked.
    """
    dtype = DTYPES[wire.dtype]
    payload = frame[HEADER.size : HEADER.size + wire.payload_bytes]
    copies.to_host(vector, payload.view(dtype))
    size = wire.payload_bytes
    if wire.compression == "blosc2":
        import blosc2

        chunk = blosc2.compress2(
            payload.numpy(), typesize=dtype.itemsize, codec=blosc2.Codec.LZ4, clevel=1, filters=[blosc2.Filter.SHUFFLE],
            filters_meta=[0], nthreads=1,
        )  # fmt: skip
        size = len(chunk)
        frame[HEADER.size : HEADER.size + size] = torch.frombuffer(bytearray(chunk), dtype=torch.uint8)
    header = HEADER.pack(
        MAGIC, list(DTYPES).index(wire.dtype), COMPRESSIONS.index(wire.compression), step, wire.elements, size,
        timing.compute, timing.encode,
    )  # fmt: skip
    frame[: HEADER.size] = torch.frombuffer(bytearray(header), dtype=torch.uint8)
    return HEADER.size + size


def pack_fault(sentence: str, frame: Tensor) -> int:
    """Write into `frame` why there is no reply; return its length in bytes."""
    raw = (FAULT + sentence[:_SENTENCE_CHARACTERS].encode())[: len(frame)]
    frame[: len(raw)] = torch.frombuffer(bytearray(raw), dtype=torch.uint8)
    return len(raw)


def unpack(frame: Tensor, length: int, wire: Wire, step: int, out: Tensor) -> Timing | str:
    """Check the frame of `length` received bytes and leave its vector in `out` (elements,).

    Where `wire.in_place`, `out` is expected to be the frame's own payload and is left as it is. Returns the worker's
    timing, or one sentence that says why the frame is refused. Whether the numbers are finite is not checked here.
    """
    timing = check(frame, length, wire, step)
    if isinstance(timing, str) or wire.in_place:
        return timing
    payload = frame[HEADER.size : length]
    if wire.compression == "blosc2":
        opened = torch.empty(wire.payload_bytes, dtype=torch.uint8)
        if fault := decompress(payload, opened):
            return fault
        payload = opened
    out.copy_(payload.view(DTYPES[wire.dtype]))
    return timing


def check(frame: Tensor, length: int, wire: Wire, step: int) -> Timing | str:
    """Return the timing in the header of a frame of `length` received bytes, or why the frame is refused."""
    if length >= len(FAULT) and frame[: len(FAULT)].numpy().tobytes() == FAULT:
        said = frame[len(FAULT) : min(length, len(FAULT) + 4 * _SENTENCE_CHARACTERS)].numpy().tobytes()
        return f"{FAILED}: {plain(said.decode(errors='replace'), _SENTENCE_CHARACTERS)}"
    if length < HEADER.size:
        return f"{length} bytes are shorter than a header"
    head = frame[: HEADER.size].numpy().tobytes()
    magic, dtype, compression, said_step, elements, size, compute, encode = HEADER.unpack(head)
    expected = (MAGIC, list(DTYPES).index(wire.dtype), COMPRESSIONS.index(wire.compression), wire.elements)
    if (magic, dtype, compression, elements) != expected:
        return f"the header announces another kind of vector than {wire.elements} elements of {wire.dtype}"
    if said_step != step:
        return f"it answers step {said_step}, not {step}"
    if size != length - HEADER.size or (wire.compression == "none" and size != wire.payload_bytes):
        return f"its payload has {length - HEADER.size} bytes, expected {wire.payload_bytes}"
    return Timing(compute, encode)


def decompress(chunk: Tensor, out: Tensor) -> str | None:
    """Open a compressed payload into `out`, which has its bytes; return why it is refused, or nothing.

    The sizes in it are checked before it is opened.
    """
    import blosc2

    raw = chunk.numpy().tobytes()
    try:
        nbytes, cbytes, _ = blosc2.get_cbuffer_sizes(raw)
        if (nbytes, cbytes) != (len(out), len(raw)):
            return f"its compressed chunk claims {nbytes} bytes, expected {len(out)}"
        blosc2.decompress2(raw, dst=out.numpy())
    except (RuntimeError, ValueError) as error:
        return f"its compressed chunk cannot be opened ({error})"
    return None


def reply_matrix(frames: Tensor, wire: Wire, dtype: torch.dtype) -> Tensor:
    """Return the (n, elements) matrix of `dtype` that decoding reads: a view of `frames` if possible, else new."""
    if wire.in_place:
        return frames[:, HEADER.size : HEADER.size + wire.payload_bytes].view(dtype)
    return torch.empty(frames.shape[0], wire.elements, dtype=dtype)
