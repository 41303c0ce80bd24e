"""What one process computes with the kernels that its environment allows it: step vectors, sketches, a fingerprint.

    python kernel_bits.py THREADS          prints a JSON object: `printed` says what is in it

Weights and samples are drawn by torch.rand, which gives the same everywhere; torch.randn does not.
"""

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from draco.job import parse
from draco.models import build_model
from draco.models.dropout import replace_dropout
from draco.protocols.sketch import sketch
from draco.replay.likeness import likeness
from draco.tasks import Task
from draco.training.gradients import Plan, StepVectors
from draco.training.greeting import platform_of

N, CLASSES = 40, 10
# What a process is told -> the kernels that it takes: those of other processors, or of torch itself.
KERNELS: Mapping[str, tuple[int, Mapping[str, str]]] = {
    "its own": (1, {}),
    "two threads, no oneDNN": (2, {"DRACO_TEST_NO_ONEDNN": "1", "OMP_WAIT_POLICY": "passive"}),
    "avx2": (1, {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}),
    "sse": (1, {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"}),
}


class Made(Task):
    """Classes of what was drawn, with a model of its own."""

    shape: tuple[int, ...] = (1, 28, 28)

    def model(self) -> nn.Module:
        return build_model("lenet", self.shape, CLASSES, 1)

    def samples(self, split: str) -> Any:
        source = torch.Generator().manual_seed(2)
        return torch.rand(N, *self.shape, generator=source) - 0.5, torch.randint(CLASSES, (N,), generator=source)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


class Normed(Made):
    """Convolutions with BatchNorm and dropout."""

    shape = (3, 12, 12)

    def model(self) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Flatten(), nn.Dropout(0.3), nn.Linear(16 * 64, CLASSES),
        )  # fmt: skip


class Sequences(Made):
    """A transformer; the biases of its keys have a gradient of zero but for rounding."""

    shape = (16, 32)

    def model(self) -> nn.Module:
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.2, batch_first=True)
        layer.self_attn.dropout = 0.0
        return nn.Sequential(
            nn.TransformerEncoder(layer, 2), nn.Dropout(0.2), nn.Flatten(), nn.Linear(16 * 32, CLASSES)
        )


MODELS: Mapping[str, type[Made]] = {"lenet": Made, "normed": Normed, "sequences": Sequences}


def vector(task: Made, precision: str) -> Tensor:
    """Return the vector of partition 0 of step 1."""
    model = task.model()
    replace_dropout(model)
    of = StepVectors(task, model, task.samples("train"), Plan(7, 24, 2, N, precision=precision))
    source = torch.Generator().manual_seed(3)
    of.load(1, (torch.rand(of.parameters, generator=source) - 0.5) * 0.2)
    out = torch.zeros(of.elements)
    of.partition(1, 0, out)
    return out


def sketches() -> list[Any]:
    """Return the SHA-256 of LeNet's vector, its sketch, and that of the vector with an error of 1e-5 of its length."""
    out = vector(Made(), "float32")
    wrong = out.clone()
    wrong[1000] += float(out.norm()) * 1e-5
    return [digest(out), sketch(out, 11), sketch(wrong, 11)]


def digest(vector: Tensor) -> str:
    return hashlib.sha256(vector.numpy().tobytes()).hexdigest()


def printed() -> dict[str, Any]:
    """Return model -> precision -> SHA-256 of its vector, and what else this process says of its kernels."""
    job = parse("{name: x, workers: 3, model: lenet, data: synthetic, batch_size: 9, steps: 1, scheme: uncoded}", "x")
    vectors = {
        name: {precision: digest(vector(kind(), precision)) for precision in ("float32", "float64_rounded")}
        for name, kind in MODELS.items()
    }
    capability = torch.backends.cpu.get_cpu_capability()
    said = {"capability": capability, "platform": platform_of(job), "likeness": likeness(), "sketches": sketches()}
    return vectors | said


def main() -> None:
    torch.set_num_threads(int(sys.argv[1]))
    torch.backends.mkldnn.set_flags(not os.environ.get("DRACO_TEST_NO_ONEDNN"))
    json.dump(printed(), sys.stdout)


if __name__ == "__main__":
    main()
