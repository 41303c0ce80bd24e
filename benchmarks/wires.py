"""The wire formats: bytes of a real gradient and the time to pack and unpack it, against plain float32."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.timing import Call, Row, alternate
from draco import data
from draco.tasks.images import ImageClassification
from draco.training.gradients import Plan, StepVectors
from draco.training.wire import COMPRESSIONS, Timing, Wire, pack, unpack

DTYPES = ("float32", "float16", "bfloat16")


def rows(repeats: int) -> Iterator[Row]:
    """Yield bytes and seconds of every wire format for one step vector of LeNet on synthetic images."""
    vector = _gradient()
    calls: dict[str, Call] = {}
    sizes: dict[str, int] = {}
    for dtype in DTYPES:
        for compression in COMPRESSIONS:
            wire = Wire(len(vector), dtype, compression)
            name = dtype if compression == "none" else f"{dtype} + {compression}"
            frame, out = torch.zeros(wire.frame_bytes, dtype=torch.uint8), torch.zeros(len(vector))

            def there_and_back(wire: Wire = wire, frame: torch.Tensor = frame, out: torch.Tensor = out) -> int:
                length = pack(vector, wire, 1, Timing(0.0, 0.0), frame)
                assert isinstance(unpack(frame, length, wire, 1, out), Timing)
                return length

            calls[name], sizes[name] = there_and_back, there_and_back()
    timed = alternate(calls, repeats)
    size = f"lenet d={len(vector):,}"
    for name in calls:
        yield Row(f"bytes of {name}", size, timed[name], "float32", sizes[name] / sizes["float32"], None)
        yield Row(f"pack and unpack {name}", size, timed[name], "float32", timed[name] / timed["float32"], None)


def _gradient() -> torch.Tensor:
    with tempfile.TemporaryDirectory() as folder:
        data.prepare("synthetic", Path(folder))
        task = ImageClassification("lenet", "synthetic", Path(folder), 7)
        samples = task.samples("train")
        vectors = StepVectors(task, task.model(), samples, Plan(7, 32, 1, len(samples)))
        vector = torch.zeros(vectors.elements)
        vectors.partition(1, 0, vector)
    return vector
