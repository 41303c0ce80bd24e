"""The exponential moving average of the weights, which the server keeps beside them: `ema` in a job.

After the optimizer step t the average is

    a_1 = w_1,    a_t = ema a_{t-1} + (1 - ema) w_t.

It begins with the weights after the first step, and has no other correction: that is what
torch.optim.swa_utils.AveragedModel does with get_ema_multi_avg_fn(ema), to the bit. As there, the running statistics of
BatchNorm are not averaged: the average is evaluated with the newest ones.

Source: Polyak, Juditsky, Acceleration of stochastic approximation by averaging, SIAM Journal on Control and
Optimization 30 (1992), for the idea. Shapes: p parameters.
"""

from torch import Tensor


class Average:
    """The moving average of the weights (p,)."""

    def __init__(self, weights: Tensor, ema: float) -> None:
        self.weights = weights.clone()
        self._ema = ema

    def update(self, weights: Tensor, before: int) -> None:
        """Take in the weights (p,) after an optimizer step; `before` says how many steps came before it."""
        if before:
            self.weights.lerp_(weights, 1 - self._ema)
        else:
            self.weights.copy_(weights)
