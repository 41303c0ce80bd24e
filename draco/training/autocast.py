"""The number format of a worker's forward and backward pass: `autocast` in a job, by torch.autocast.

Weights, gradients, their sums and what is sent stay float32. In float16 the loss is multiplied by a power of two before
the backward pass, so that small gradients of activations do not vanish, and the gradient is divided by it afterwards,
which rounds nothing. The factor does not change from step to step: it would have to be agreed on between workers. A
gradient that overflows is not finite; the server refuses it.

Source: Micikevicius et al., Mixed precision training, ICLR 2018 (arXiv:1710.03740), section 3.2, who found constant
factors from 8 to 32768 to do.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Autocast(NamedTuple):
    """What a job says of it."""

    dtype: str = "none"  # bfloat16, float16
    loss_scale: float = 1.0  # of float16 only

    def on(self, device: str) -> AbstractContextManager[Any]:
        """Return the context of a forward pass."""
        if self.dtype == "none":
            return nullcontext()
        return torch.autocast(device, dtype=getattr(torch, self.dtype))

    def scaled(self, loss: Tensor) -> Tensor:
        """Return the loss to go back from."""
        return loss * self.loss_scale if self.dtype == "float16" else loss

    def unscale(self, gradient: Tensor) -> None:
        """Take the factor off a gradient (p,), in place."""
        if self.dtype == "float16":
            gradient.div_(self.loss_scale)
