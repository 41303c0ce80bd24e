"""Data sets by name: fetched and converted once, memory-mapped by every process, batched with explicit randomness.

    info <- originals, synthetic <- datasets (the table) <- folder (prepare, verify, load) <- batches (batch)
    shards: which worker owns which samples

Shapes: N images (N, c, h, w) uint8, labels (N,) int64 in 0..classes-1; a batch is (B, c, h, w) float32 and (B,) int64.
Invariants: no function reads global random state; torchvision is imported only to convert one of its
data sets, torch only to load one.
"""

from draco.data.datasets import DATASETS
from draco.data.folder import Split, load, prepare, verify
from draco.data.info import DatasetInfo

__all__ = ["DATASETS", "DatasetInfo", "Split", "load", "prepare", "verify"]
