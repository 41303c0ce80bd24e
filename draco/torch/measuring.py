"""What a tensor is compared by: its digest where bits must be equal, its sketch where a tolerance is given.

Both are a few int64 numbers, so that one kind of row is sent. A sketch's float64 numbers travel as their bits.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from draco.torch.bits import apart, digest, sketch

SECRETS = (1 << 62) - 1  # the largest secret; what is added to one stays below 2^63


@dataclass
class Measure:
    """Measures lists of tensors with the secret of the step; `tolerance` is relative, None means equal bits."""

    tolerance: float | None
    secret: int = 0

    @property
    def width(self) -> int:
        """How many int64 numbers a measure has."""
        return 2 if self.tolerance is None else 17

    def __call__(self, tensors: Sequence[Tensor], stream: int = 0) -> Tensor:
        """Return the measure of tensors on one device, (width,) int64, on that device; nothing waits for it.

        Measures that are joined have other streams, so that what moves from one list to another shows.
        """
        if not tensors:
            return torch.zeros(self.width, dtype=torch.int64)
        if self.tolerance is None:
            return digest(tensors, self.secret + stream)
        return sketch(tensors, self.secret + stream).view(torch.int64)

    def joined(self, measured: Sequence[Tensor]) -> list[int]:
        """Return one measure of several lists' measures: `width` numbers."""
        if not measured:
            return [0] * self.width
        rows = torch.stack(list(measured))
        if self.tolerance is None:
            joined = digest([rows], self.secret)
        else:
            joined = rows.view(torch.float64).sum(0).view(torch.int64)
        numbers: list[int] = joined.tolist()
        return numbers

    def same(self, one: Sequence[int], other: Sequence[int]) -> bool:
        """Return whether two measures are of the same bits, or near enough; not finite is near not finite."""
        if list(one) == list(other) or self.tolerance is None:
            return list(one) == list(other)
        a, b = (torch.tensor(row, dtype=torch.int64).view(torch.float64) for row in (one, other))
        finite = [bool(row.isfinite().all()) for row in (a, b)]
        return bool(apart(a, b) <= self.tolerance) if all(finite) else not any(finite)

    def classes(self, rows: Sequence[Sequence[int]], known: list[Sequence[int]]) -> list[int]:
        """Return a number for each row: rows with the same one are the same. New ones join `known`."""
        return [self._class_of(row, known) for row in rows]

    def _class_of(self, row: Sequence[int], known: list[Sequence[int]]) -> int:
        """Return the place in `known` of the row that this one is the same as."""
        for place, other in enumerate(known):
            if self.same(row, other):
                return place
        known.append(row)
        return len(known) - 1


def draw() -> int:
    """Return this rank's share of the next secret, from the machine's own source."""
    return secrets.randbelow(SECRETS + 1)


def common(shares: Sequence[int]) -> int:
    """Return the secret that all ranks' shares make: fresh if one of them is."""
    return sum(shares) & SECRETS


def exact(leaves: Sequence[Any], secret: int) -> list[int]:
    """Return four int64 numbers that tell whether tensors on any devices, and plain values among them, are the same.

    Of values that are neither tensors nor plain only the types count.
    """
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    header = [describe(leaf) for leaf in leaves]
    here = [torch.frombuffer(bytearray(json.dumps(header).encode()), dtype=torch.uint8)]
    here += [tensor for tensor in tensors if tensor.device.type == "cpu"]
    there = [tensor for tensor in tensors if tensor.device.type != "cpu"]
    numbers: list[int] = digest(here, secret).tolist() + (digest(there, secret).tolist() if there else [0, 0])
    return numbers


def describe(leaf: Any) -> list[Any]:
    """Return what a leaf is, as plain values: its dtype, shape and kind of device; its value; or its type's name."""
    if isinstance(leaf, Tensor):
        return ["tensor", str(leaf.dtype).removeprefix("torch."), list(leaf.shape), leaf.device.type]
    if leaf is None or isinstance(leaf, bool | int | float | str):
        return ["value", leaf]
    return ["other", type(leaf).__name__]


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors of the same shape and dtype have the same bits, be they NaN or not."""
    return torch.equal(as_bytes(one), as_bytes(other))


def as_bytes(tensor: Tensor) -> Tensor:
    """Return a tensor's bytes, (bytes,) uint8, in order of its elements."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)
