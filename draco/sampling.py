"""The sources of randomness in training: explicit generators keyed by (seed, purpose, step, partition).

Nothing here or elsewhere in the core reads global random state. So a partition's samples, augmentation and dropout are
the same whichever worker and process computes it, before or after an interruption.

Shapes: N samples in the data set, B samples in a step's global batch, k partitions of it.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from draco.lazy import Tensor, torch


def derive_seed(seed: int | bytes, *key: int | str) -> int:
    """Return a 63-bit seed that depends on `seed` and every part of `key`, by SHA-256.

    Unlike sums of seeds and steps, distinct keys do not collide and neighbouring keys are unrelated.
    """
    text = "/".join([seed.hex() if isinstance(seed, bytes) else str(seed), *map(str, key)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int | bytes, *key: int | str) -> torch.Generator:
    """Return a fresh CPU generator for `(seed, *key)`."""
    return torch.Generator().manual_seed(derive_seed(seed, *key))


@lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, size: int, *key: int) -> Tensor:
    return torch.randperm(size, generator=generator(seed, "samples", epoch, *key))


def batch_indices(seed: int, step: int, batch_size: int, size: int, *key: int) -> Tensor:
    """Return the sample indices of step `step` (counted from 1), (B,) int64.

    Every epoch has a random order of all samples. These orders follow each other, and each step takes the next B
    samples. So every sample is used exactly once per epoch, and a batch may hold the end of one epoch and the start of
    the next. `key` tells several such sequences apart; that of a shard is its partition.
    """
    start = (step - 1) * batch_size
    positions = torch.arange(start, start + batch_size)
    epochs = positions // size
    out = torch.empty(batch_size, dtype=torch.int64)
    for epoch in sorted(set(epochs.tolist())):
        chosen = epochs == epoch
        out[chosen] = _epoch_order(seed, epoch, size, *key)[positions[chosen] % size]
    return out


def draw_rows(
    secret: bytes,
    step: int,
    workers: int,
    groups: Sequence[int] | None = None,
    nodes: Sequence[str] | None = None,
    attempt: int = 0,
) -> list[int]:
    """Return the row of the code that each worker 1..n gets at `step`, from the run's secret; others at each attempt.

    The rows are a uniformly random permutation, so that adversaries cannot choose their places.

    Rows may fall into groups that compute the same (`groups[row]`), and workers may share nodes (`nodes[worker - 1]`).
    Then the permutation is random among those that spread the c workers of a node evenly over the G groups: at most
    ceil(c / G) are in one group. So a Byzantine node is outvoted where a group tolerates that many.
    """
    source = generator(secret, "rows", step, *([attempt] if attempt else []))
    shuffled = torch.randperm(workers, generator=source).tolist()
    if groups is None or nodes is None:
        return shuffled
    first = {node: place for place, node in reversed(list(enumerate(nodes[worker] for worker in shuffled)))}
    by_node = sorted(shuffled, key=lambda worker: first[nodes[worker]])  # nodes, and workers within, in random order
    sizes, seen = Counter(groups), Counter[int]()
    turn = torch.randperm(len(sizes), generator=source).tolist()  # larger groups first: they have one turn more
    turns = []
    for row, group in enumerate(groups):
        turns.append((seen[group], -sizes[group], turn[group], row))
        seen[group] += 1
    rows = [0] * workers
    for worker, (*_, row) in zip(by_node, sorted(turns), strict=True):  # deal: one to every group, then again
        rows[worker] = row
    return rows


def partition_bounds(batch_size: int, partitions: int) -> list[tuple[int, int]]:
    """Cut a batch into k contiguous slices whose sizes differ by at most one, the larger ones first.

    Raises:
        ValueError: fewer samples than partitions.
    """
    if batch_size < partitions:
        raise ValueError(f"a batch of {batch_size} samples cannot be cut into {partitions} partitions")
    small, larger = divmod(batch_size, partitions)
    sizes = [small + (j < larger) for j in range(partitions)]
    stops = [sum(sizes[: j + 1]) for j in range(partitions)]
    return [(stop - size, stop) for size, stop in zip(sizes, stops, strict=True)]
