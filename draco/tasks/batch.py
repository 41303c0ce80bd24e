"""What is done with batches of any task: a tensor, or tuples, lists and dicts of tensors whose first dimension is B."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

from draco.errors import OwnCodeError
from draco.lazy import Tensor, torch


def tensors(batch: Any) -> Iterator[Tensor]:
    """Yield the tensors of a batch, in their order."""
    if isinstance(batch, torch.Tensor):
        yield batch
    elif isinstance(batch, (tuple, list)):
        for part in batch:
            yield from tensors(part)
    elif hasattr(batch, "values"):
        for part in batch.values():
            yield from tensors(part)


def widened(batch: Any) -> Any:
    """Return a batch with its floating-point numbers in float64; what is drawn or counted in others stays as it is."""
    return mapped(batch, lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)


def joined(batches: Sequence[Any]) -> Any:
    """Return several batches as one, one after the other; None where their tensors cannot follow each other.

    They cannot where they differ beyond the first dimension, as sequences that are padded batch by batch.
    """
    if len(batches) == 1:
        return batches[0]
    columns = list(zip(*([*tensors(batch)] for batch in batches), strict=True))
    if not all(_fit(column) for column in columns):
        return None
    whole = iter([torch.cat(column) for column in columns])
    return mapped(batches[0], lambda tensor: next(whole))


def cut(batch: Any, sizes: Sequence[int]) -> list[Any]:
    """Return a batch as pieces of so many samples, one after the other, which share its memory.

    Raises:
        OwnCodeError: a tensor of the batch has another first dimension than the samples.
    """
    if len(sizes) == 1:
        return [batch]
    for tensor in tensors(batch):
        if not tensor.dim() or len(tensor) != sum(sizes):
            raise OwnCodeError(
                f"micro_batch: a batch of {sum(sizes)} samples has a tensor of shape {tuple(tensor.shape)}; it is "
                "cut by the first dimension of every tensor, which must be the samples: leave micro_batch out"
            )
    stops = list(accumulate(sizes))
    return [
        mapped(batch, lambda tensor, start=stop - size, stop=stop: tensor[start:stop])
        for size, stop in zip(sizes, stops, strict=True)
    ]


def _fit(column: Sequence[Tensor]) -> bool:
    return all(
        each.dim() and each.shape[1:] == column[0].shape[1:] and each.dtype == column[0].dtype for each in column
    )


def mapped(batch: Any, change: Any) -> Any:
    """Return a batch of the same kind with each of its tensors changed, in their order."""
    if isinstance(batch, torch.Tensor):
        return change(batch)
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(mapped(part, change) for part in batch))
    if isinstance(batch, (tuple, list)):
        return type(batch)(mapped(part, change) for part in batch)
    if hasattr(batch, "items"):
        return {key: mapped(part, change) for key, part in batch.items()}
    return batch
