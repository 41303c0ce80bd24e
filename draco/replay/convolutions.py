"""Freivalds' check of convolutions, forward and backward, by matrix products that read each image once.

A convolution contracts channels at each of the k places of its kernel, and sums the k images, each shifted by its
place. A secret combination of its output channels (of its input channels, for the gradient by the input) leaves one
image to compare. So channels are contracted first, by one product of k rows with all images. What is shifted and
summed are then k images instead of k times as many as there are channels.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import product
from math import prod
from typing import Any

import torch
from torch import Tensor

from draco.replay.residual import Equation, Secrets, norm, rms

Sizes = tuple[int, ...]
_ALL: slice = slice(None)
# Places of one kernel: (where the output is, where the input is that it is multiplied with), as slices.
Shift = tuple[tuple[slice, ...], tuple[slice, ...]]


def check_convolution(out: Sequence[Tensor], args: Sequence[Any], options: Any, secrets: Secrets) -> Iterator[Equation]:
    """Yield the equation of a convolution of x (N, I, ...) by weights (O, I, ...), contracted over output channels."""
    x, weight, bias, stride, padding, dilation, *_ = args
    r = secrets.take(weight.shape[0])
    mixed = torch.mv(weight.flatten(1).t(), r).view(weight.shape[1], -1)  # (I, k)
    images = _contract(mixed.t(), x)
    want = images.new_zeros(out[0].shape[0], *out[0].shape[2:])
    if bias is not None:
        want += torch.dot(r, bias)
    how = (tuple(stride), tuple(padding), tuple(dilation))
    for place, (here, there) in enumerate(_shifts(weight.shape[2:], x.shape[2:], want.shape[1:], *how)):
        want[here].add_(images.select(1, place)[there])
    got = _contract(r[None], out[0])[:, 0]
    added = 0.0 if bias is None else norm(bias)
    yield Equation(0, 1, got, want, weight[0].numel(), lambda: rms(x) * norm(weight) + added)


def check_convolution_backward(
    out: Sequence[Tensor], args: Sequence[Any], options: Any, secrets: Secrets
) -> Iterator[Equation]:
    """Yield the equations of the gradients by input, weights and bias, as far as they were asked for.

    The first is contracted over input channels, the others over output channels with one vector. The images of all
    output channels are read once for the three.
    """
    grad, x, weight, _, stride, padding, dilation, _, _, _, (by_x, by_weight, by_bias) = args
    kernel = weight.shape[2:]
    shifts = _shifts(kernel, x.shape[2:], grad.shape[2:], tuple(stride), tuple(padding), tuple(dilation))
    q, r = secrets.take(weight.shape[1]), secrets.take(weight.shape[0])
    rows = [torch.matmul(q, weight.flatten(2)).t()] if by_x else []  # (k, O)
    images = _contract(torch.cat([*rows, r[None]]), grad)
    one = images[:, -1]
    if by_x:
        want = images.new_zeros(x.shape[0], *x.shape[2:])
        for place, (here, there) in enumerate(shifts):
            want[there].add_(images.select(1, place)[here])
        yield Equation(
            0, 1, _contract(q[None], out[0])[:, 0], want, weight[:, 0].numel(), lambda: rms(grad) * norm(weight)
        )
    if by_weight:
        moved = images.new_zeros(x.shape[0], prod(kernel), *x.shape[2:])
        for place, (here, there) in enumerate(shifts):
            moved.select(1, place)[there].copy_(one[here])
        want = torch.bmm(moved.flatten(2), x.flatten(2).transpose(1, 2)).sum(0).t()  # (I, k)
        got = torch.mv(out[1].flatten(1).t(), r)
        yield Equation(
            1, 0, got.view(weight.shape[1:]), want.reshape(weight.shape[1:]), one.numel(), lambda: norm(grad) * rms(x)
        )
    if by_bias:
        yield Equation(2, 0, torch.dot(r, out[2]), one.sum(), one.numel(), lambda: norm(grad))


def _contract(rows: Tensor, images: Tensor) -> Tensor:
    """Return combinations of channels: rows (k, C) by images (N, C, ...) are (N, k, ...)."""
    flat = images.flatten(2)
    return torch.bmm(rows.expand(len(images), -1, -1), flat).view(len(images), len(rows), *images.shape[2:])


@lru_cache(maxsize=256)
def _shifts(
    kernel: Sizes, inputs: Sizes, outputs: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes
) -> list[Shift]:
    """Return for each place of a kernel which outputs it takes part in, and with which inputs."""
    by_dimension = [
        [_overlap(size, count, step, place * apart - pad) for place in range(places)]
        for places, size, count, step, pad, apart in zip(
            kernel, inputs, outputs, stride, padding, dilation, strict=True
        )
    ]
    return [
        ((_ALL, *(here for here, _ in each)), (_ALL, *(there for _, there in each))) for each in product(*by_dimension)
    ]


def _overlap(size: int, count: int, step: int, offset: int) -> tuple[slice, slice]:
    """Return the outputs i of `count` whose input i * step + offset is one of `size`, and these inputs."""
    first = max(0, -(offset // step))
    last = min(count, (size - 1 - offset) // step + 1)
    if last <= first:
        return slice(0, 0), slice(0, 0)
    return slice(first, last), slice(first * step + offset, (last - 1) * step + offset + 1, step)
