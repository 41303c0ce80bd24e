"""Replies on their way to the server's GPU: page-locked memory, and rows that are there when they are said to be."""

import gc

import posing
import pytest
import torch

from draco.errors import MissingError
from draco.training import device, staging


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
