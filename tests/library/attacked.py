"""Honest replies and wrong ones in their place, for the tests of the schemes."""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from draco.schemes import Scheme

Rows = tuple[int, ...]


def gradients_for(scheme: Scheme, d: int, seed: int = 0) -> Tensor:
    """Return (k, d) random partition gradients."""
    return torch.randn(scheme.assignment.shape[1], d, generator=torch.Generator().manual_seed(seed))


def honest(scheme: Scheme, gradients: Tensor, noise: float = 0.0) -> Tensor:
    """Return (n, d), what honest workers send, each entry with a relative noise of its own."""
    loads = [torch.from_numpy(np.flatnonzero(row)) for row in scheme.assignment]
    sent = torch.stack([scheme.encode(i, gradients[load]) for i, load in enumerate(loads)])
    generator = torch.Generator().manual_seed(99)
    return sent * (1 + noise * torch.randn(sent.shape, generator=generator)) if noise else sent


def wrong_replies(scheme: Scheme, sent: Tensor, rows: Sequence[int], seed: int = 0) -> dict[str, Tensor]:
    """Return, by name, wrong replies that Byzantine `rows` may send instead of `sent[rows]`."""
    generator = torch.Generator().manual_seed(seed)
    v = sent[list(rows)]
    n, d = v.shape
    size = float(sent.abs().square().mean().sqrt())
    direction = torch.randn(d, generator=generator) * size
    # Of gradients whose replies have d elements, or of longer ones whose replies are cut.
    width = next((width for width in range(1, d + 1) if scheme.elements(width) == d), d * -(-d // scheme.elements(d)))
    other = honest(scheme, torch.randn(scheme.assignment.shape[1], width, generator=generator))[list(rows), :d]
    last, middle = v.clone(), v.clone()
    last[:, -1] = float("inf")
    middle[:, d // 2] += size
    mixed = -v
    mixed[0] = v[0] * 1e30
    return {
        "reverse": v * -100,
        "flip": -v,
        "one percent": v * 1.01,
        "constant": torch.full_like(v, -100),
        "random": torch.randn(n, d, generator=generator).to(v.dtype) * size,
        "colluding": v + direction,
        "colluding, scaled": v + direction * torch.randn(n, 1, generator=generator),
        "nan": torch.full_like(v, float("nan")),
        "inf at the end": last,
        "huge": v * 1e30,
        "huge and flip": mixed,
        "just above the noise": v * (1 + 1e-4 * torch.randn(n, d, generator=generator)),
        "another message": other,
        "another message added": v + other,
        "one coordinate": middle,
    }


def with_wrong(sent: Tensor, rows: Sequence[int], wrong: Tensor) -> Tensor:
    replies = sent.clone()
    replies[list(rows)] = wrong
    return replies


def every_placement(n: int, s: int) -> Iterator[Rows]:
    yield from itertools.combinations(range(n), s)


def neighbours(n: int, s: int) -> list[Rows]:
    return [tuple(sorted((i + j) % n for j in range(s))) for i in range(n)]


def error_of(decoded: Tensor, gradients: Tensor) -> float:
    """Return the relative error of the mean of (m, d) against the float64 mean of the honest gradients."""
    truth = gradients.double().mean(0)
    return float((decoded.double().mean(0) - truth).norm() / truth.norm())
