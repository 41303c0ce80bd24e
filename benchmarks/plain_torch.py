"""The process of `plain.py`: training in plain PyTorch on all cores; prints the seconds of each step as JSON.

python -m benchmarks.plain_torch lenet synthetic 180 20 FOLDER
"""

import json
import os
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks.simulated import with_torchs_pooling
from draco import data, models
from draco.data import batches
from draco.sampling import batch_indices


def main(model: str, name: str, batch_size: int, steps: int, folder: Path) -> None:
    """Take the steps."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    split = data.load(name, folder, "train")
    net = with_torchs_pooling(models.build_model(model, split.info.shape, split.info.classes, 1))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    taken = []
    for step in range(1, steps + 1):
        began = time.perf_counter()
        inputs, labels = batches.batch(split, batch_indices(1, step, batch_size, len(split.labels)), None)
        optimizer.zero_grad()
        F.cross_entropy(net(inputs), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        taken.append(time.perf_counter() - began)
    print(json.dumps(taken))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5]))
