"""The assignments, drawn or built, of codes whose encoding matrix is 0 and 1: which worker computes which partitions.

Sources:
- fractional repetition: Tandon, Lei, Dimakis & Karampatziakis, Gradient Coding, ICML 2017 (arXiv:1612.03301);
- Bernoulli codes: Charles, Papailiopoulos & Ellenberg, Approximate Gradient Coding via Sparse Random Graphs, 2017
  (arXiv:1711.06771);
- stochastic block codes: Charles & Papailiopoulos, Gradient Coding via the Stochastic Block Model, 2018
  (arXiv:1805.10378);
- election codes: Sohn, Han, Choi & Moon, Election Coding, NeurIPS 2020 (arXiv:1910.06093).

Deviation: a partition that nobody drew is given to a random worker, and a worker that drew nothing gets a random
partition. So no sample is lost and nobody is idle.
Shapes: n workers = k partitions; r workers compute a partition, exactly, at least or on average, as each design says.
"""

import numpy as np
import numpy.typing as npt

Design = npt.NDArray[np.bool_]  # (n, k): row i computes partition j


def fractional(n: int, r: int) -> Design:
    """Return n // r groups of r workers or more, each of which computes all of its group's partitions.

    Row i and partition j are of group i mod m and j mod m.
    """
    group = np.arange(n) % (n // r)
    return np.equal(group[:, None], group)


def bernoulli(n: int, r: int, seed: int) -> Design:
    """Return a design in which every worker computes every partition with the probability r / n."""
    generator = np.random.default_rng(seed)
    return _covered(generator.random((n, n)) < r / n, generator)


def stochastic_block(n: int, r: int, inside: float, seed: int) -> Design:
    """Return a design between `fractional` and `bernoulli`, with r partitions to a worker on average.

    A worker computes a partition of its own group with the probability `inside`. What that leaves of r is the number of
    its partitions of other groups. `inside` = 1 is nearly fractional repetition, and r / n is a Bernoulli code. Where
    the size of the groups leaves no such probability, it is cut to 0 or 1.
    """
    own = fractional(n, r)
    size = own.sum(1, keepdims=True)
    outside = np.clip((r - inside * size) / np.maximum(n - size, 1), 0.0, 1.0)
    generator = np.random.default_rng(seed)
    return _covered(generator.random((n, n)) < np.where(own, inside, outside), generator)


def deterministic(n: int, s: int) -> Design:
    """Return a design of n (odd) >= 2s + 1 workers with which s of them cannot turn a majority of signs.

    2s + 1 rows compute everything. The other rows come in (n - 2s - 1) / 2 pairs. One row of a pair computes partition
    j alone, the other all but j and one more.

    One of each pair is right. If j is against the majority, at most (n - 3) / 2 of the other n - 1 partitions are too.
    That is fewer than half of any n - 2 of them. So at least (n - 2s - 1) / 2 + 2s + 1 = (n + 1) / 2 + s rows are
    right. When s of them are Byzantine, (n + 1) / 2 still are, the majority.

    For n = 5 and s = 1 this is the matrix of the program that Sohn et al. published. Their construction for other n was
    not at hand, and this one may compute more.
    """
    pairs = (n - 2 * s - 1) // 2
    design = np.ones((n, n), dtype=np.bool_)
    for j in range(pairs):
        design[2 * j] = np.arange(n) == j
        design[2 * j + 1, [j, n - 1]] = False
    return design


def _covered(design: Design, generator: np.random.Generator) -> Design:
    """Give every partition a worker and every worker a partition."""
    n, k = design.shape
    for j in np.flatnonzero(~design.any(0)):
        design[generator.integers(n), j] = True
    for i in np.flatnonzero(~design.any(1)):
        design[i, generator.integers(k)] = True
    return design
