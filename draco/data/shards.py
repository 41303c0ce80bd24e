"""The shards of heterogeneous data: which worker owns which training samples.

Shapes: N samples, n workers, C classes. A shard is the samples of one worker, (N // n or one more,) int64.

Both splits give every sample to exactly one worker, and shards differ in size by one sample at most. So the mean over
workers stays the mean over the data set, which shards of unequal sizes would silently change. Of N samples worker i
has N // n + (i < N % n). The same holds for a batch of B <= N samples, so a shard is no smaller than a batch's slice.
"""

from __future__ import annotations

from bisect import bisect_left

import numpy as np
import numpy.typing as npt

from draco.lazy import Tensor, torch
from draco.sampling import derive_seed, partition_bounds

Counts = npt.NDArray[np.int64]


def by_class(labels: Tensor, workers: int) -> list[Tensor]:
    """Return n shards of the samples (N,) sorted by label, one contiguous piece each: worker i has the i-th.

    The sorted split of McMahan et al., Communication-efficient learning of deep networks from decentralized data, 2017
    (arXiv:1602.05629), who deal two pieces to a worker. One piece is as in Karimireddy, He, Jaggi, Byzantine-robust
    learning on heterogeneous datasets via bucketing, 2022 (arXiv:2006.09365).

    Raises:
        ValueError: fewer samples than workers.
    """
    order = torch.sort(labels, stable=True).indices
    return [order[start:stop].sort().values for start, stop in partition_bounds(len(labels), workers)]


def dirichlet(labels: Tensor, workers: int, alpha: float, seed: int) -> list[Tensor]:
    """Return n shards of the samples (N,) whose class proportions are drawn from a Dirichlet distribution.

    Worker i draws q_i ~ Dirichlet(alpha C p), where p (C,) are the classes' shares of the data set. That is alpha for
    each of C equally frequent classes. Then the workers take turns. In its turn worker i draws the class of one more
    sample from q_i, restricted to classes that are not used up. A small alpha gives few classes to each, a large one
    shards that are like the data set.

    Source: Hsu, Qi, Brown, Measuring the effects of non-identical data distribution for federated visual
    classification, 2019 (arXiv:1909.06335). They write Dirichlet(alpha p) with sum(p) = 1: their alpha is C times
    ours, which is the one of most later work.

    Raises:
        ValueError: fewer samples than workers.
    """
    bounds = partition_bounds(len(labels), workers)
    classes = np.unique(labels.numpy(), return_inverse=True)[1]  # 0..C-1, those that occur
    frequencies = np.bincount(classes)
    high, low = divmod(derive_seed(seed, "shards"), 2**32)
    source = np.random.RandomState([high, low])  # its stream is promised never to change
    shares = alpha * len(frequencies) * frequencies / len(labels)
    counts = _deal(_log_gamma(source, shares, workers), frequencies, 1 - source.random_sample(len(labels)))
    shuffled = [source.permutation(np.flatnonzero(classes == c)) for c in range(len(frequencies))]
    stops = counts.cumsum(0)
    shards = [
        np.concatenate(
            [own[stop - count : stop] for own, stop, count in zip(shuffled, stops[i], counts[i], strict=True)]
        )
        for i in range(workers)
    ]
    assert [len(shard) for shard in shards] == [stop - start for start, stop in bounds]
    return [torch.from_numpy(np.sort(shard)) for shard in shards]


def _log_gamma(source: np.random.RandomState, shapes: npt.NDArray[np.float64], workers: int) -> npt.NDArray[np.float64]:
    """Return logarithms (n, C) of independent Gamma(shapes) values, which make a Dirichlet vector once normalised.

    G(a) = G(a + 1) U^(1/a) with U uniform (Marsaglia and Tsang, A simple method for generating gamma variables, 2000).
    Where `shapes` are small all C plain values may underflow to zero at once. Their logarithms do not.
    """
    size = (workers, len(shapes))
    larger = np.log(source.standard_gamma(shapes + 1, size))
    logs: npt.NDArray[np.float64] = larger + np.log(1 - source.random_sample(size)) / shapes
    return logs


def _deal(weights: npt.NDArray[np.float64], frequencies: Counts, draws: npt.NDArray[np.float64]) -> Counts:
    """Return how many samples of each class each worker gets, (n, C), from log-weights (n, C) and N draws in (0, 1]."""
    workers, classes = weights.shape
    left = frequencies.tolist()
    counts = np.zeros((workers, classes), np.int64)
    ladders = _ladders(weights, left)
    for turn, draw in enumerate(draws.tolist()):
        worker = turn % workers
        ladder = ladders[worker]
        chosen = bisect_left(ladder, draw * ladder[-1])
        counts[worker, chosen] += 1
        left[chosen] -= 1
        if not left[chosen] and turn + 1 < len(draws):
            ladders = _ladders(weights, left)
    return counts


def _ladders(weights: npt.NDArray[np.float64], left: list[int]) -> list[list[float]]:
    """Return each worker's cumulative weights over the classes of which samples are left, up to a factor."""
    there = np.array(left) > 0
    largest = weights[:, there].max(1, keepdims=True)  # so that one of them counts 1, however small all are
    ladders: list[list[float]] = np.exp(np.where(there, weights - largest, -np.inf)).cumsum(1).tolist()
    return ladders


def class_counts(labels: Tensor, shards: list[Tensor], classes: int) -> list[list[int]]:
    """Return how many samples of each class each worker owns, n lists of C."""
    return [torch.bincount(labels[shard], minlength=classes).tolist() for shard in shards]


def summary(split: str, counts: list[list[int]]) -> str:
    """Say in one line how far the shards are from the whole, from `class_counts`.

    >>> summary("by_class", [[8, 2], [2, 8]])
    'by_class: 2 shards of 10 samples; the commonest class makes 80% to 80% of a shard (median 80%), 50% of all'
    """
    sizes = sorted({sum(own) for own in counts})
    shares = [max(own) / sum(own) for own in counts]
    whole = np.sum(counts, 0)
    return (
        f"{split}: {len(counts)} shards of {' or '.join(map(str, sizes))} samples; the commonest class makes "
        f"{min(shares):.0%} to {max(shares):.0%} of a shard (median {np.median(shares):.0%}), "
        f"{whole.max() / whole.sum():.0%} of all"
    )
