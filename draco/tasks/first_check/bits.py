"""Batches taken apart: their tensors by name, in words, and by digests of their bits.

A batch is a tensor, or a tuple, list or dict of batches. Shapes: B samples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def leaves(batch: Any, name: str = "batch") -> Iterator[tuple[str, Any]]:
    """Yield (name, value) of all that is no tuple, list or dict in a batch: `batch["x"]`, `batch[0]`."""
    if isinstance(batch, Mapping):
        for key, value in batch.items():
            yield from leaves(value, f"{name}[{key!r}]")
    elif isinstance(batch, tuple | list):
        for place, value in enumerate(batch):
            yield from leaves(value, f"{name}[{place}]")
    else:
        yield name, batch


def tensors(batch: Any, name: str = "batch") -> dict[str, Tensor]:
    """Return the tensors of a batch by name."""
    return {name: value for name, value in leaves(batch, name) if isinstance(value, Tensor)}


def shapes(batch: Any, name: str = "batch") -> str:
    """Return the shapes and types of a batch in words: `batch[0] (12, 1, 28, 28) float32, batch[1] (12,) int64`."""
    return ", ".join(f"{name} {kind(value)}" for name, value in leaves(batch, name))


def kind(value: Any) -> str:
    """Return the shape and type of one value."""
    if isinstance(value, Tensor | np.ndarray):
        return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    return type(value).__name__


def digest(values: Iterable[Any]) -> str:
    """Return 16 digits that tell the bits, shapes and types of some tensors; of other values, what they look like."""
    whole = hashlib.sha256()
    for value in values:
        whole.update(kind(value).encode())
        if isinstance(value, Tensor):
            flat = value.detach().cpu().contiguous().reshape(-1)
            whole.update(flat.view(torch.uint8).numpy().data)
        else:
            whole.update(repr(value).encode())
    return whole.hexdigest()[:16]


def digests(batch: Any, name: str = "batch") -> dict[str, str]:
    """Return the digest of each leaf of a batch, by name."""
    return {name: digest([value]) for name, value in leaves(batch, name)}


def unlike(first: Mapping[str, str], second: Mapping[str, str]) -> list[str]:
    """Return the names under which two tables of digests differ, in the first's order."""
    return [name for name in {**first, **second} if first.get(name) != second.get(name)]


def not_finite(batch: Any, name: str = "batch") -> list[str]:
    """Return the names of the tensors that hold a NaN or an infinity."""
    return [name for name, value in tensors(batch, name).items() if not bool(value.isfinite().all())]


def some(names: Iterable[Any], most: int = 3) -> str:
    """Return some names in words: `a, b, c and 4 more`."""
    listed = [str(name) for name in names]
    rest = len(listed) - most
    return ", ".join(listed[:most]) + (f" and {rest} more" if rest > 0 else "")
