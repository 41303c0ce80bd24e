"""Dropout with masks from explicit generators, one for each segment of a batch."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from draco.errors import OwnCodeError

Segments = Sequence[tuple[int, torch.Generator]]  # (rows of the batch, generator of their dropout masks), in order


class SeededDropout(nn.Module):
    """Dropout whose masks come from the generators that `set_dropout` gave it, never from global random state.

    Consecutive rows of the batch belong to consecutive segments, and each segment's mask comes from its own generator.
    So a partition gets the same masks alone and as a part of a larger batch. An input may have several rows for each
    row of the batch, such as the tokens of a sequence. Masks are drawn on the CPU, so they do not depend on the device.
    In evaluation mode it passes its input on, as nn.Dropout does.

    A model may compute activations again in the backward pass (torch.utils.checkpoint). The layer then draws the masks
    of the forward pass anew, and the generators stay where they are.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.segments: Segments = ()
        self.restored = False  # whether somebody else has put the generators back to where they were in the forward
        self._states: list[list[Tensor]] = []  # of the segments' generators, at each call since `announce`

    def announce(self, segments: Segments) -> None:
        """Take the segments of the next batch."""
        self.segments = segments
        self._states.clear()

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
        masks = [torch.rand(rows * each, *x.shape[1:], generator=source) >= self.p for rows, source in self._sources()]
        kept = torch.cat(masks)
        if not x.is_cpu:  # a byte each on the way to a GPU, which is not waited for
            kept = kept.pin_memory().to(x.device, non_blocking=True)
        kept = kept.to(x.dtype)
        return x * kept.div_(1 - self.p)

    def _sources(self) -> Segments:
        """Return the segments to draw from; in a backward pass, copies of the generators as they were in the forward.

        Raises:
            OwnCodeError: the layer ran several times in the forward, so that it is unknown which of them is repeated.
        """
        if self.restored:
            return self.segments
        if torch._C._current_graph_task_id() == -1:  # no backward pass is under way
            self._states.append([source.get_state() for _, source in self.segments])
            return self.segments
        if len(self._states) != 1:
            raise OwnCodeError(
                f"dropout: a layer that runs {len(self._states)} times in a forward pass is computed again by "
                "torch.utils.checkpoint; leave that out of the model, and name its modules in the job's `recompute`"
            )
        copies = [torch.Generator() for _ in self.segments]
        for copy, state in zip(copies, self._states[0], strict=True):
            copy.set_state(state)
        return [(rows, copy) for (rows, _), copy in zip(self.segments, copies, strict=True)]

    def extra_repr(self) -> str:
        """Return what `print(model)` shows of the layer."""
        return f"p={self.p}"


def replace_dropout(model: nn.Module) -> None:
    """Put a SeededDropout in the place of every nn.Dropout below `model`."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Dropout):
                setattr(parent, name, SeededDropout(child.p).train(child.training))


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
            module.announce(kept)
