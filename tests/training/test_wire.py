"""Frames: what is packed is unpacked, and whatever else arrives is refused with a reason."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from draco.training.wire import COMPRESSIONS, HEADER, ROUNDING, Timing, Wire, pack, reply_matrix, unpack

REAL = ["float32", "float16", "bfloat16"]


def framed(wire: Wire, vector: torch.Tensor, step: int = 3) -> tuple[torch.Tensor, int, torch.Tensor]:
    """Return receive buffers of one row, the frame's length, and the matrix that decoding reads."""
    frames = torch.zeros(1, wire.frame_bytes, dtype=torch.uint8)
    length = pack(vector, wire, step, Timing(0.5, 0.25), frames[0])
    return frames, length, reply_matrix(frames, wire, vector.dtype)


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("dtype", REAL)
@given(elements=st.integers(1, 300), seed=st.integers(0, 2**31))
def test_a_vector_arrives_as_it_was_up_to_the_rounding_of_the_wire(
    dtype: str, compression: str, elements: int, seed: int
) -> None:
    vector = torch.randn(elements, generator=torch.Generator().manual_seed(seed))
    wire = Wire(elements, dtype, compression)
    frames, length, replies = framed(wire, vector)
    assert unpack(frames[0], length, wire, 3, replies[0]) == Timing(0.5, 0.25)
    assert length <= wire.frame_bytes
    torch.testing.assert_close(replies[0], vector, rtol=2 * ROUNDING[dtype], atol=1e-7)
    if dtype == "float32":
        assert torch.equal(replies[0], vector)


def test_complex_replies_travel_whole() -> None:
    vector = torch.randn(5, dtype=torch.complex128)
    wire = Wire(5, "complex128", "none")
    frames, length, replies = framed(wire, vector)
    assert isinstance(unpack(frames[0], length, wire, 3, replies[0]), Timing)
    assert torch.equal(replies[0], vector)


@pytest.mark.parametrize("compression", COMPRESSIONS)
@given(values=st.binary(min_size=1, max_size=300))
def test_bytes_arrive_as_they_were(compression: str, values: bytes) -> None:
    vector = torch.frombuffer(bytearray(values), dtype=torch.uint8)
    wire = Wire(len(values), "uint8", compression)
    frames, length, replies = framed(wire, vector)
    assert unpack(frames[0], length, wire, 3, replies[0]) == Timing(0.5, 0.25)
    assert replies.dtype == torch.uint8
    assert torch.equal(replies[0], vector)
    assert length <= wire.frame_bytes


def test_plain_float32_replies_are_not_copied() -> None:
    wire = Wire(4, "float32", "none")
    frames, _, replies = framed(wire, torch.arange(4.0))
    assert replies.untyped_storage().data_ptr() == frames.untyped_storage().data_ptr()
    assert torch.equal(replies[0], torch.arange(4.0))


def test_compressible_replies_get_shorter() -> None:
    vector = torch.zeros(10_000)
    assert framed(Wire(10_000, "float32", "blosc2"), vector)[1] < 4000


CORRUPTIONS = {
    "too short": (lambda frame: frame, lambda length: 10, "shorter than a header"),
    "another step": (lambda frame: frame, lambda length: length, "answers step 3, not 4"),
    "cut off": (lambda frame: frame, lambda length: length - 4, "payload"),
    "too long": (lambda frame: frame, lambda length: length + 4, "payload"),
    "other magic": (lambda frame: frame.__setitem__(0, 0), lambda length: length, "another kind"),
    "other dtype": (lambda frame: frame.__setitem__(4, 2), lambda length: length, "another kind"),
    "other compression": (lambda frame: frame.__setitem__(6, 1), lambda length: length, "another kind"),
    "other size": (lambda frame: frame.__setitem__(16, 9), lambda length: length, "another kind"),
}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_frame_that_is_not_what_was_asked_for_is_refused_with_a_reason(name: str) -> None:
    corrupt, shorten, reason = CORRUPTIONS[name]
    wire = Wire(8, "float32", "none")
    frames, length, replies = framed(wire, torch.ones(8))
    corrupt(frames[0])
    step = 4 if name == "another step" else 3
    fault = unpack(frames[0], shorten(length), wire, step, replies[0])
    assert isinstance(fault, str)
    assert reason in fault


@given(st.binary(min_size=0, max_size=200))
def test_no_bytes_of_a_worker_make_the_server_fail(junk: bytes) -> None:
    for compression in COMPRESSIONS:
        wire = Wire(16, "float32", compression)
        frame = torch.zeros(wire.frame_bytes, dtype=torch.uint8)
        length = min(len(junk), wire.frame_bytes)
        frame[:length] = torch.tensor(list(junk[:length]), dtype=torch.uint8)
        assert isinstance(unpack(frame, length, wire, 1, torch.zeros(16)), str)


@given(position=st.integers(HEADER.size, HEADER.size + 60), value=st.integers(0, 255))
def test_a_spoilt_compressed_chunk_is_refused_or_yields_a_vector_of_the_right_size(position: int, value: int) -> None:
    wire = Wire(64, "float32", "blosc2")
    frames, length, replies = framed(wire, torch.zeros(64))
    frames[0, min(position, length - 1)] = value
    outcome = unpack(frames[0], length, wire, 3, replies[0])
    assert isinstance(outcome, Timing | str)
    assert replies.shape == (1, 64)
