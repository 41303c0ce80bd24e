"""Freivalds' check of matrix products: C r = A (B r) for a secret vector r, which reads each matrix once."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from draco.replay.residual import Equation, Secrets, norm

Tensors = Sequence[Tensor]
Factors = Mapping[str, float]  # alpha and beta of an operation, where they are not 1


def check_mm(out: Tensors, args: Tensors, options: Factors, secrets: Secrets) -> Iterator[Equation]:
    """Yield the equation of a @ b, (m, k) and (k, n)."""
    a, b = args
    r = secrets.take(b.shape[1])
    yield Equation(0, 1, torch.mv(out[0], r), torch.mv(a, torch.mv(b, r)), a.shape[1], _natural(a, b))


def check_addmm(out: Tensors, args: Tensors, options: Factors, secrets: Secrets) -> Iterator[Equation]:
    """Yield the equation of beta * c + alpha * a @ b."""
    c, a, b = args
    alpha, beta = options.get("alpha", 1), options.get("beta", 1)
    r = secrets.take(b.shape[1])
    want = torch.mv(a, torch.mv(b, r * alpha if alpha != 1 else r))
    if beta:
        want = want + (c.expand(out[0].shape) @ r if c.ndim > 1 else (c.expand(len(r)) @ r)) * beta
    natural = _natural(a, b, alpha)
    yield Equation(0, 1, torch.mv(out[0], r), want, a.shape[-1], lambda: natural() + _added(c, beta, out[0]))


def check_bmm(out: Tensors, args: Tensors, options: Factors, secrets: Secrets) -> Iterator[Equation]:
    """Yield the equation of a @ b, (batch, m, k) and (batch, k, n); rows of all matrices are rows of one product."""
    a, b = args
    r = secrets.take(b.shape[2])
    yield Equation(0, 2, _times(out[0], r), _batched(a, _times(b, r)), a.shape[2], _natural(a, b))


def check_baddbmm(out: Tensors, args: Tensors, options: Factors, secrets: Secrets) -> Iterator[Equation]:
    """Yield the equation of beta * c + alpha * a @ b."""
    c, a, b = args
    alpha, beta = options.get("alpha", 1), options.get("beta", 1)
    r = secrets.take(b.shape[2])
    want = _batched(a, _times(b, r)) * alpha
    if beta:
        want = want + torch.matmul(c.expand(out[0].shape), r) * beta
    natural = _natural(a, b, alpha)
    yield Equation(0, 2, _times(out[0], r), want, a.shape[-1], lambda: natural() + _added(c, beta, out[0]))


def _times(matrices: Tensor, r: Tensor) -> Tensor:
    """Return each of the matrices (batch, m, n) times one vector (n,)."""
    if matrices.is_contiguous():
        return torch.mv(matrices.view(-1, matrices.shape[2]), r).view(matrices.shape[:2])
    return _batched(matrices, r.expand(len(matrices), -1))


def _batched(matrices: Tensor, vectors: Tensor) -> Tensor:
    """Return each of the matrices (batch, m, k) times its own vector (batch, k); rows are quicker than columns."""
    return torch.bmm(vectors.unsqueeze(1), matrices.transpose(1, 2)).squeeze(1)


def _natural(a: Tensor, b: Tensor, alpha: float = 1) -> Callable[[], Tensor]:
    """Return |a_i| |B|_F / sqrt(k) for each row i, in float64: squares overflow float32 from 1e19 on."""

    def compute() -> Tensor:
        rows = torch.linalg.vector_norm(a, dim=-1, dtype=torch.float64)
        all_of_b = torch.linalg.vector_norm(b, dim=(-2, -1), dtype=torch.float64).unsqueeze(-1)
        natural: Tensor = rows * all_of_b * (abs(alpha) / math.sqrt(max(a.shape[-1], 1)))
        return natural

    return compute


def _added(c: Tensor, beta: float, out: Tensor) -> float:
    """Return the size of a row of what is added to a product."""
    return abs(beta) * norm(c) * math.sqrt(out.shape[-1] / max(c.numel(), 1)) if beta else 0.0
