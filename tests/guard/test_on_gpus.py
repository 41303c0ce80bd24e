"""The guard on GPUs: its measures have the same bits there, a pass is computed again, and a fault is repaired."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from draco.torch.bits import digest, sketch
from draco.torch.measuring import Measure
from draco.torch.recording import Recorder

SIZES = (3, 40_000, 100_003, 900, 16_384)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_a_digest_is_the_same_on_the_cpu_and_a_gpu(gpu: torch.device, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(8)
    tensors = [(100 * torch.randn(size, generator=generator)).to(dtype) for size in SIZES]
    there = [tensor.to(gpu) for tensor in tensors]
    assert digest(there, 77).cpu().tolist() == digest(tensors, 77).tolist()
    assert digest([tensor[1:] for tensor in there], 77).cpu().tolist() == digest([t[1:] for t in tensors], 77).tolist()
    there[2][5] += 1
    assert digest(there, 77).cpu().tolist() != digest(tensors, 77).tolist()


def test_a_sketch_is_nearly_the_same(gpu: torch.device) -> None:
    generator = torch.Generator().manual_seed(8)
    tensors = [torch.randn(size, generator=generator) for size in SIZES]
    torch.testing.assert_close(
        sketch([t.to(gpu) for t in tensors], 77).cpu(), sketch(tensors, 77), rtol=1e-9, atol=1e-7
    )


def test_a_backward_pass_is_computed_again(gpu: torch.device) -> None:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Dropout(0.2), nn.Linear(144, 10))
    model.to(gpu)
    recorder = Recorder(model, gpu, Measure(tolerance=None, secret=5))
    images, labels = torch.randn(8, 1, 8, 8).to(gpu), torch.randint(10, (8,)).to(gpu)
    nn.functional.cross_entropy(model(images), labels).backward()
    torch.rand(3, device=gpu)  # the generators go on
    running = [buffer.clone() for buffer in model.buffers()]
    _, gradients = recorder.recompute(recorder.passes, recorder.base)
    for parameter in model.parameters():
        again = gradients[id(parameter)]
        assert again is not None
        assert parameter.grad is not None
        assert torch.equal(again, parameter.grad)
    assert all(map(torch.equal, running, model.buffers()))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_wrong_gradient_is_repaired_there(device: str, tmp_path: Path) -> None:
    """The program is the same on both, and has run on the CPU before it runs on a GPU."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    made = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
         Path(__file__).with_name("guarded_on.py"), device, tmp_path],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"},
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    first, second = (torch.load(tmp_path / f"rank-{rank}") for rank in range(2))
    assert first["suspects"] == second["suspects"] == [1]
    assert first["repaired"] == second["repaired"] == 1
    assert all(torch.equal(first["weights"][name], second["weights"][name]) for name in first["weights"])
