"""A scheme of one's own: the workers of a group compute the same gradient, and s + 1 equal replies make it count.

    make train JOB=examples/own_scheme.yaml SIMULATE=1

A scheme is a function of `workers` and `adversaries` that returns a `Scheme`: who computes what, what is sent, and what
the server makes of it. What else it takes is an option. A ValueError says why there is no such scheme for these
numbers; a DecodeError, that a step cannot be decoded. It never guesses.
"""

import numpy as np
import torch

from draco.schemes import Decoded, DecodeError, Scheme


def quorum(*, workers: int, adversaries: int, groups: int = 1) -> Scheme:
    """Return the scheme in which row i computes partition i mod k, for k = `groups` partitions."""
    if groups > (most := workers // (2 * adversaries + 1)):
        raise ValueError(f"groups must be at most n // (2s+1) = {most}, got {groups}")
    assignment = np.arange(workers)[:, None] % groups == np.arange(groups)

    def decode(replies: torch.Tensor, here: np.ndarray, seed: int, inspection: object) -> Decoded:
        winners, suspects = [], []
        for group in range(groups):
            rows = [row for row in range(group, workers, groups) if here[row]]
            alike = [[other for other in rows if torch.equal(replies[row], replies[other])] for row in rows]
            most = max(alike, key=len, default=[])
            if len(most) <= adversaries:
                raise DecodeError(f"quorum: group {group}: {len(most)} equal replies, needs {adversaries + 1}")
            winners.append(most[0])
            suspects += [row for row in rows if row not in most]
        return Decoded(replies[winners], tuple(sorted(suspects)))

    return Scheme(
        name="quorum",
        workers=workers,
        adversaries=adversaries,
        redundancy=1,
        assignment=assignment,
        weights=assignment.astype(np.float64),  # row i sends sum_j weights[i, j] g_j
        encoder=lambda row, gradients: gradients[0],
        decoder=decode,
        inspect=None,  # nothing is done before all replies are there
        dtype=torch.float32,
        amplification=None,  # exact
        summary=f"quorum: {workers} workers in {groups} groups, up to {adversaries} adversaries",
    )
