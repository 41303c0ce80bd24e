"""Dropout with masks from explicit generators, one for each segment of a batch."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

Segments = Sequence[tuple[int, torch.Generator]]  # (rows of the batch, generator of their dropout masks), in order


class SeededDropout(nn.Module):
    """Dropout whose masks come from the generators that `set_dropout` gave it, never from global random state.

    Consecutive rows of the batch belong to consecutive segments, and each segment's mask comes from its own generator.
    So a partition gets the same masks alone and as a part of a larger batch. An input may have several rows for each
    row of the batch, such as the tokens of a sequence. Masks are drawn on the CPU, so they do not depend on the device.
    In evaluation mode it passes its input on, as nn.Dropout does.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.segments: Segments = ()

    def forward(self, x: Tensor) -> Tensor:
        """Return x (N, ...) with each value zero with probability p, and scaled by 1 / (1 - p) otherwise."""
        if not self.training or self.p == 0:
            return x
        announced = sum(rows for rows, _ in self.segments)
        if not announced or len(x) % announced:
            raise RuntimeError(
                f"dropout: the batch has {len(x)} rows but set_dropout announced {announced}; "
                "call set_dropout(model, segments) before every forward in training mode"
            )
        each = len(x) // announced
        masks = [torch.rand(rows * each, *x.shape[1:], generator=source) >= self.p for rows, source in self.segments]
        return x * torch.cat(masks).to(x.device, x.dtype).div_(1 - self.p)

    def extra_repr(self) -> str:
        """Return what `print(model)` shows of the layer."""
        return f"p={self.p}"


def replace_dropout(model: nn.Module) -> None:
    """Put a SeededDropout in the place of every nn.Dropout below `model`."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Dropout):
                setattr(parent, name, SeededDropout(child.p))


def set_dropout(model: nn.Module, segments: Segments) -> None:
    """Tell the model's dropout layers which consecutive rows of the next batch draw from which generator.

    Every layer draws from the same generators, in the order in which the layers run. One forward uses them up, so pass
    fresh ones before each. In a batch of several partitions each gets, bit for bit, the masks that it gets alone with
    the same generator. A model without dropout ignores the call. Not for torch.func.vmap over partitions, whose calls
    would share one mask; the count of rows catches this.

    Args:
        model: whose dropout layers are told.
        segments: (rows, generator) for each partition, in the order in which they stand in the batch.
    """
    kept = tuple(segments)
    for module in model.modules():
        if isinstance(module, SeededDropout):
            module.segments = kept
