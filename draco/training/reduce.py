"""What the server makes of a step's decoded gradients: one step vector (d,), by the job's aggregator.

Shapes: m gradients after decoding, p parameters, b statistics, d = p + b + 1 elements of a step vector.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from draco.aggregators import AGGREGATORS
from draco.aggregators.rows import is_finite
from draco.errors import TrainingError
from draco.job import aggregator_f, sizes
from draco.training.build import Built
from draco.training.collect import DivergedError
from draco.training.state import Training

# (gradients (m, d or more), step, rows of workers 1..n, ranks that sent nothing of use) -> (d,)
Reduce = Callable[[Tensor, int, Sequence[int], Collection[int]], Tensor]


def build_reduce(built: Built, training: Training) -> Reduce:
    """Return the reduction: the gradient by the job's rule, statistics and loss by a rule of the same kind.

    It raises DivergedError where the result is not finite.
    """
    job, spec = built.job, built.job.aggregator
    rule, declared_f, most = AGGREGATORS[spec.name], aggregator_f(job), sizes(job).gradients
    p = training.flat.numel()

    def trusted_place(step: int, rows: Sequence[int], missing: Collection[int]) -> int:
        """Return which of the gradients that came is that of the worker whom the job trusts."""
        trusted = int(spec.get("trusted"))
        if trusted in missing:
            raise TrainingError(
                f"step {step}: worker {trusted}, whom the job trusts, sent no gradient that can be used"
            )
        row = rows[trusted - 1]
        return row - sum(rows[rank - 1] < row for rank in missing)

    def reduce(gradients: Tensor, step: int, rows: Sequence[int], missing: Collection[int]) -> Tensor:
        gradients = gradients[:, : training.elements]  # without the padding of some schemes
        if len(gradients) == 1 and not spec.pre and not rule.remembers:
            vector = gradients[0]
        else:
            # A gradient that is left out took as many Byzantine workers as making it wrong.
            f = max(declared_f - (most - len(gradients)), 0)
            trusted = trusted_place(step, rows, missing) if rule.trusts else None
            simple = "median" if rule.robust or spec.pre else "mean"
            rest = AGGREGATORS[simple](gradients[:, p:].contiguous(), f=f)
            own = built.aggregate(gradients[:, :p], f, step, trusted, training.centre)
            vector = torch.cat([own, rest])
        if not is_finite(vector):
            raise DivergedError(f"step {step}: the gradient is not finite")
        return vector

    return reduce
