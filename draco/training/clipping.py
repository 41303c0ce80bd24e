"""The clipping of a gradient by its Euclidean norm, at a worker before it sends and at the server before the optimizer.

It is torch.nn.utils.clip_grad_norm_ over the flat gradient, but for two things. The norm is summed in float64, as
float32 squares overflow from 1e19 on. And a gradient that is short enough keeps its bits.

Source: Pascanu, Mikolov, Bengio, On the difficulty of training recurrent neural networks, ICML 2013 (arXiv:1211.5063),
algorithm 1. Shapes: p parameters.
"""

import torch
from torch import Tensor


def norm_of(gradient: Tensor) -> float:
    """Return the Euclidean norm of a gradient (p,), summed in float64."""
    return float(torch.linalg.vector_norm(gradient, dtype=torch.float64))


def clip(gradient: Tensor, limit: float) -> None:
    """Scale a gradient (p,) to a Euclidean norm of at most `limit`, in place."""
    norm = norm_of(gradient)
    if norm > limit:
        gradient.mul_(limit / norm)


def clipped(gradient: Tensor, limit: float) -> tuple[Tensor, float]:
    """Return a gradient (p,) scaled to a Euclidean norm of at most `limit`, and the norm that it had."""
    norm = norm_of(gradient)
    return gradient * (limit / norm) if norm > limit else gradient, norm
