"""Freivalds' check of convolutions, forward and backward, by matrix products that read each image once.

A convolution is a matrix product by channels, for each of the k places of its kernel, and then a sum of the k images, each
shifted by its place. A secret combination of output channels, of input channels for the input's gradient, leaves one image
to compare. So the channels are contracted first, by one product of k rows with all images, and what is shifted
and summed are k images instead of k times as many as there are channels. The shifts are a convolution of k channels to one
whose kernel is 1 at the place of its channel, so that stride, padding and dilation are torch's own.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from math import prod
from typing import Any

import torch
from torch import Tensor

from draco.replay.residual import Equation, Secrets, norm, rms

aten = torch.ops.aten


def check_convolution(out: Sequence[Tensor], args: Sequence[Any], options: Any, secrets: Secrets) -> Iterator[Equation]:
    """Yield the equation of a convolution of x (N, I, ...) by weights (O, I, ...), contracted over output channels."""
    x, weight, bias, stride, padding, dilation, *_ = args
    r = secrets.take(weight.shape[0])
    mixed = torch.mv(weight.flatten(1).t(), r).view(weight.shape[1], -1)  # (I, k)
    images = _contract(mixed.t(), x)
    want = aten.convolution(images, _gather(weight.shape[2:]), None, stride, padding, dilation, False, [0] * (x.ndim - 2), 1)
    want = want[:, 0]
    if bias is not None:
        want = want + torch.dot(r, bias)
    yield Equation(0, 1, _contract(r[None], out[0])[:, 0], want, lambda: rms(x) * norm(weight) + _size(bias))


def check_convolution_backward(
    out: Sequence[Tensor], args: Sequence[Any], options: Any, secrets: Secrets
) -> Iterator[Equation]:
    """Yield the equations of the gradients by the input, the weights and the bias, as far as they were asked for.

    The input's is contracted over input channels, the other two over output channels with one vector. The images of all
    output channels are read once for the three.
    """
    grad, x, weight, _, stride, padding, dilation, _, _, _, (by_x, by_weight, by_bias) = args
    kernel, outputs, inputs = weight.shape[2:], *weight.shape[:2]
    rows = []
    if by_x:
        q = secrets.take(inputs)
        rows.append(_over_inputs(weight, q))
    r = secrets.take(outputs)
    if by_weight or by_bias:
        rows.append(r[None])
    images = _contract(torch.cat(rows) if len(rows) > 1 else rows[0], grad)
    if by_x:
        mixed = images[:, : prod(kernel)]
        want = _spread(mixed, _gather(kernel).transpose(0, 1), x.shape[2:], stride, padding, dilation)[:, 0]
        yield Equation(0, 1, _contract(q[None], out[0])[:, 0], want, lambda: rms(grad) * norm(weight))
    one = images[:, -1:]
    if by_weight:
        shifted = _spread(one, _gather(kernel), x.shape[2:], stride, padding, dilation)  # (N, k, ...)
        want = torch.bmm(x.flatten(2), shifted.flatten(2).transpose(1, 2)).sum(0)  # (I, k)
        got = torch.mv(out[1].flatten(1).t(), r)
        yield Equation(1, 0, got.view(weight.shape[1:]), want.view(weight.shape[1:]), lambda: norm(grad) * rms(x))
    if by_bias:
        yield Equation(2, 0, torch.dot(r, out[2]), one.sum(), lambda: norm(one))


def _contract(rows: Tensor, images: Tensor) -> Tensor:
    """Return combinations of channels: rows (k, C) by images (N, C, ...) are (N, k, ...)."""
    flat = images.flatten(2)
    return torch.bmm(rows.expand(len(images), -1, -1), flat).view(len(images), len(rows), *images.shape[2:])


def _over_inputs(weight: Tensor, q: Tensor) -> Tensor:
    """Return weights (O, I, ...) contracted with q (I,) over input channels, for each place of the kernel: (k, O)."""
    return torch.matmul(q, weight.flatten(2)).t()


def _spread(
    images: Tensor,
    kernel: Tensor,
    size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Return the transposed convolution of images, of the size that a convolution's input had."""
    sizes = zip(size, images.shape[2:], kernel.shape[2:], stride, padding, dilation, strict=True)
    missing = [i - ((o - 1) * s - 2 * p + d * (k - 1) + 1) for i, o, k, s, p, d in sizes]
    return aten.convolution(images, kernel, None, stride, padding, dilation, True, missing, 1)


@lru_cache(maxsize=64)
def _gather(kernel: Sequence[int]) -> Tensor:
    """Return weights (1, k, *kernel) that sum k images, each shifted by its place in the kernel."""
    return torch.eye(prod(kernel)).view(1, prod(kernel), *kernel)


def _scatter(kernel: Sequence[int]) -> Tensor:
    """Return weights (1, k, *kernel) of a transposed convolution that puts k copies of an image at their places."""
    return _gather(kernel)


def _size(bias: Tensor | None) -> float:
    return 0.0 if bias is None else norm(bias)


Check = Callable[[Sequence[Tensor], Sequence[Any], Any, Secrets], Iterator[Equation]]
