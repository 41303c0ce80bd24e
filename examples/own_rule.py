"""An aggregator of one's own: the mean of the gradients that are nearest to their coordinate-wise median.

    make train JOB=examples/own_rule.yaml SIMULATE=1

trains with it, and `draco.aggregate(gradients, "examples/own_rule.py:near_median", f=2)` applies it to rows of numbers.
An aggregator is a function of the gradients (m, d). It may take `f`, how many of them may be bad, and any option, which
a job gives it: `aggregator: {name: examples/own_rule.py:near_median, options: {keep: 3}}`.
"""

import torch


def near_median(gradients: torch.Tensor, *, f: int = 0, keep: int | None = None) -> torch.Tensor:
    """Return the mean of the `keep` gradients (all but f) that are nearest to their median, (m, d) -> (d,)."""
    m = len(gradients)
    if m < 2 * f + 1:
        raise ValueError(f"f = {f} needs at least {2 * f + 1} gradients, got {m}")
    median = gradients.sort(0).values[(m - 1) // 2]  # gradients.median(0) does not repeat its bits on a GPU
    distances = (gradients.double() - median).norm(dim=1)
    nearest = distances.argsort(stable=True)[: keep or m - f]
    return gradients[nearest].mean(0)
