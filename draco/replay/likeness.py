"""Whether two machines normalise and sum with the same bits, which replays of models with kinks rely on.

A checker takes products from the transcript, but computes all else itself. Where its normalisation rounds otherwise
than the worker's, a number next to zero may come out on the other side of a ReLU. From there on the two compute
different gradients, and products of an honest worker look false. So this fingerprint is compared first. Threads and
oneDNN change no bit of it, instruction sets do. Smooth activations are left out: what rounding does to them is small.
"""

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

_SIDE = 67  # odd, so that vectorised loops have remainders


def likeness() -> str:
    """Return 16 hexadecimal digits: equal where element-wise work has the same bits, on the CPU in float32."""
    digest = hashlib.sha256(torch.__version__.encode())
    for result in _results():
        digest.update(result.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _results() -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4, _SIDE, _SIDE, generator=generator).requires_grad_()
    image = x.unsqueeze(1).expand(-1, 3, -1, -1)
    side = torch.randn(_SIDE, generator=generator)
    outputs = (
        F.batch_norm(image, None, None, side[:3], side[3:6], training=True),
        F.layer_norm(x, (_SIDE,), side, side),
        F.group_norm(image, 3, side[:3], side[3:6]),
        F.avg_pool2d(image, 2),
        x.var(-1),
        x.abs().sqrt(),
        x / side,
        x.sum(-1),
        x.mean(0),
        x * side + side,
    )
    for output in outputs:
        by = torch.autograd.grad(output, x, output.detach().cos(), retain_graph=True)[0]
        yield output.detach()
        yield by
