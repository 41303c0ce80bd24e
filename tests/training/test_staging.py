"""Replies on their way to the server's GPU: page-locked memory, and rows that are there when they are said to be."""

import gc
import random

import posing
import pytest
import torch
from conftest import JOB
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scripted import D, Scripted

from draco.errors import MissingError
from draco.job import parse
from draco.schemes import build
from draco.training import collect, device, staging, wire
from draco.training.transport import Task
from draco.training.wire import HEADER, Timing, Wire


def test_memory_is_locked_as_long_as_a_tensor_is_over_it(gpu: torch.device) -> None:
    before = dict(posing.LOCKED)
    memory = staging.pinned(3, 100)
    assert (memory.shape, memory.dtype, int(memory.sum())) == ((3, 100), torch.uint8, 0)
    if gpu.type == "cuda":
        assert memory.is_pinned()
        return
    part = memory[1].view(torch.float32)
    del memory
    gc.collect()
    assert len(posing.LOCKED) == len(before) + 1
    assert part.tolist() == [0.0] * 25
    del part
    gc.collect()
    assert before == posing.LOCKED


def test_memory_that_cannot_be_locked_is_told_of(gpu: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = type("Runtime", (), {"cudaHostRegister": staticmethod(lambda *given: 2)})
    monkeypatch.setattr(device.of_gpus(), "cudart", lambda: runtime)
    with pytest.raises(MissingError, match=r"^1\.2 MB of this machine's memory cannot be locked .* \(CUDA error 2\)"):
        staging.pinned(12, 100_000)


# --- Rows ------------------------------------------------------------------------------------------------------------

KINDS = [
    ("float32", "none", torch.float32),
    ("float16", "none", torch.float32),
    ("bfloat16", "none", torch.float32),
    ("float32", "blosc2", torch.float32),
    ("bfloat16", "blosc2", torch.float32),
    ("complex128", "none", torch.complex128),
    ("uint8", "none", torch.uint8),
    ("uint8", "blosc2", torch.uint8),
]
WORKERS, ELEMENTS = 5, 203
FAULTS = ("none", "none", "nan", "inf", "step", "cut", "header", "fault", "chunk", "never")


def vector(dtype: torch.dtype, fault: str, draw: random.Random) -> torch.Tensor:
    source = torch.Generator().manual_seed(draw.getrandbits(40))
    if dtype == torch.uint8:
        return torch.randint(256, (ELEMENTS,), dtype=dtype, generator=source)
    made = torch.randn(ELEMENTS, dtype=dtype, generator=source)
    if fault in ("nan", "inf"):
        made[draw.randrange(ELEMENTS)] = float(fault) * (1j if dtype.is_complex else 1)
    return made


def send(frame: torch.Tensor, format_: Wire, dtype: torch.dtype, step: int, fault: str, draw: random.Random) -> int:
    """Write a worker's frame, good or bad; return its length."""
    if fault == "fault":
        return wire.pack_fault("my_task.py: no", frame)
    length = wire.pack(vector(dtype, fault, draw), format_, step + (fault == "step"), Timing(0.1, 0.2), frame)
    if fault == "header":
        frame[6] ^= 1
    if fault == "chunk" and format_.compression == "blosc2":
        frame[HEADER.size : HEADER.size + 8] = 255
    return length - 4 if fault == "cut" else length


@pytest.mark.parametrize(("sent", "compression", "dtype"), KINDS)
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32))
def test_rows_of_a_gpu_are_those_of_the_host(
    gpu: torch.device, sent: str, compression: str, dtype: torch.dtype, seed: int
) -> None:
    """Whatever comes, in whatever order, and though frames are written to as soon as their step is over."""
    draw, format_ = random.Random(seed), Wire(ELEMENTS, sent, compression)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(staging, "CHUNK", draw.choice([128, 256, 1 << 24]))
        here, there = (staging.build_rows(each, WORKERS, format_, dtype, 64) for each in (torch.device("cpu"), gpu))
    assert (there.frames.is_cpu, there.replies.device.type) == (True, gpu.type)
    for step in (1, 2, 3):
        told: list[list[tuple[int, bool]]] = [[], []]
        with here.step(), there.step():
            for row in draw.sample(range(WORKERS), WORKERS):
                fault = draw.choice(FAULTS)
                if fault == "never":
                    continue
                length = send(here.frames[row], format_, dtype, step, fault, draw)
                there.frames[row] = here.frames[row]
                assert here.put(row, length, step) == there.put(row, length, step)
                for rows, found in zip((here, there), told, strict=True):
                    if draw.random() < 0.5:
                        found += rows.settled(wait=False)
            for rows, found in zip((here, there), told, strict=True):
                found += rows.settled(wait=True)
        assert told[0] == told[1]
        there.frames.fill_(255)
        for row, finite in told[1]:
            if finite:
                assert torch.equal(there.replies[row].cpu(), here.replies[row])


def test_a_row_is_told_of_only_once_it_is_there(gpu: torch.device) -> None:
    if gpu.type == "cuda":
        pytest.skip("a GPU's copy may be early or late")
    rows, format_ = staging.build_rows(gpu, 2, Wire(4, "float32", "none"), torch.float32), Wire(4, "float32", "none")
    with rows.step():
        length = wire.pack(torch.tensor([1.0, float("nan"), 3, 4]), format_, 1, Timing(0, 0), rows.frames[1])
        assert rows.put(1, length, 1) == Timing(0, 0)
        assert [*rows.settled(wait=False)] == []
        assert [*rows.settled(wait=False)] == [(1, False)]
        assert [*rows.settled(wait=True)] == []


def test_a_step_that_ends_in_an_error_has_waited_for_its_copies(gpu: torch.device) -> None:
    format_ = Wire(4, "float32", "none")
    rows = staging.build_rows(gpu, 2, format_, torch.float32)
    length = wire.pack(torch.arange(4.0), format_, 1, Timing(0, 0), rows.frames[0])

    def broken_off() -> None:
        with rows.step():
            rows.put(0, length, 1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken_off()
    rows.frames.zero_()
    assert [*rows.settled(wait=True)] == []
    assert rows.replies[0].tolist() == [0, 1, 2, 3]


# --- An exchange -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["repetition", "cyclic"])
def test_an_exchange_with_a_late_worker_is_that_of_the_host(
    gpu: torch.device, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    job = parse(JOB, "test", ["scheme.name=repetition", "scheme.adversaries=1", "patience_s=7", "reply_timeout_s=60"])
    scheme = build(name, workers=5, adversaries=1)
    gradients = torch.randn(scheme.assignment.shape[1], D, generator=torch.Generator().manual_seed(1))
    replies = torch.stack([scheme.encode(row, gradients[scheme.assignment[row]]) for row in range(5)])
    found = []
    for where in (torch.device("cpu"), gpu):
        late = Late(replies, [(1, 1), (1, 2), (2, 4), (3, 5)])
        monkeypatch.setattr(collect.time, "monotonic", lambda late=late: late.now)
        collector = collect.Collector(job, scheme, late, Wire(D, "float32", "none"), where=where)
        got = collector.collect([Task(1, row) for row in (4, 2, 0, 1, 3)], torch.zeros(1), 3, lambda part: None)
        assert late.left
        found.append((got.absent, got.refused, got.decoded.suspects, got.timings, got.decoded.gradients.cpu()))
    assert found[0][:-1] == found[1][:-1]
    assert found[0][0] == {3}
    torch.testing.assert_close(found[1][-1], found[0][-1], rtol=0 if gpu.type != "cuda" else 1e-5, atol=0)


class Late(Scripted):
    """Worker 3's reply goes on coming into its row after the step was taken without it."""

    def exchange(self, tasks, model, frames):
        try:
            yield from super().exchange(tasks, model, frames)
        finally:
            frames[tasks[2].row] = 255
