"""Freivalds' check of convolutions, forward and backward, by matrix products that read each image once.

A convolution contracts channels at each of the k places of its kernel, and sums the k images, each shifted by its
place. A secret combination of its output channels (of its input channels, for the gradient by the input) leaves one
image to compare. So channels are contracted first, by one product of k rows with all images. What is shifted and
summed are then k images instead of k times as many as there are channels.

Images are shifted on a grid that has zeros around them, and between their pixels where a stride leaves pixels out. A
place of the kernel is an offset in its memory there. So one view has all images, shifted.
"""

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from draco.replay.residual import Equation, Secrets, norm, rms

Sizes = Sequence[int]


def check_convolution(out: Sequence[Tensor], args: Sequence[Any], options: Any, secrets: Secrets) -> Iterator[Equation]:
    """Yield the equation of a convolution of x (N, I, ...) by weights (O, I, ...), contracted over output channels."""
    x, weight, bias, stride, padding, dilation, *_ = args
    r = secrets.take(weight.shape[0])
    mixed = torch.mv(weight.flatten(1).t(), r).view(weight.shape[1], -1)  # (I, k)
    padded = [size + 2 * pad for size, pad in zip(x.shape[2:], padding, strict=True)]
    grid = _grid(_contract(mixed.t(), x), padded, padding, [1] * len(padding))
    want = _sum(_shifted(grid, weight.shape[2:], dilation, stride, out[0].shape[2:]))
    if bias is not None:
        want += torch.dot(r, bias)
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
    kernel, image = weight.shape[2:], x.shape[2:]
    q, r = secrets.take(weight.shape[1]), secrets.take(weight.shape[0])
    # The gradient by pixel i of the input has place j of the kernel from output (i + padding - j * dilation) / stride.
    # On the grid outputs are `reach` further on, and places in reverse, so that offsets are positive.
    rows = [torch.matmul(q, weight.flatten(2)).t().flip(0)] if by_x else []  # (k, O)
    images = _contract(torch.cat([*rows, r[None]]), grad)
    reach = [(places - 1) * apart for places, apart in zip(kernel, dilation, strict=True)]
    size = [
        max(pixels + pad + far, (count - 1) * step + 1 + far)
        for pixels, pad, far, count, step in zip(image, padding, reach, grad.shape[2:], stride, strict=True)
    ]
    grid = _grid(images, size, reach, stride)
    ones = [1] * len(kernel)
    if by_x:
        want = _sum(_shifted(grid, kernel, dilation, ones, image, padding))
        got = _contract(q[None], out[0])[:, 0]
        yield Equation(0, 1, got, want, weight[:, 0].numel(), lambda: rms(grad) * norm(weight))
    one = images[:, -1]
    if by_weight:
        moved = _shifted(grid[:, -1], kernel, dilation, ones, image, padding)
        want = torch.bmm(moved.reshape(len(x), prod(kernel), -1), x.flatten(2).transpose(1, 2))
        want = want.sum(0).flip(0).t().reshape(weight.shape[1:])
        got = torch.mv(out[1].flatten(1).t(), r).view(weight.shape[1:])
        yield Equation(1, 0, got, want, one.numel(), lambda: norm(grad) * rms(x))
    if by_bias:
        yield Equation(2, 0, torch.dot(r, out[2]), one.sum(), one.numel(), lambda: norm(grad))


def _contract(rows: Tensor, images: Tensor) -> Tensor:
    """Return combinations of channels: rows (k, C) by images (N, C, ...) are (N, k, ...)."""
    flat = images.flatten(2)
    return torch.bmm(rows.expand(len(images), -1, -1), flat).view(len(images), len(rows), *images.shape[2:])


def _sum(shifted: Tensor) -> Tensor:
    """Return what `_shifted` has (N, *kernel, *size), summed over the kernel; torch's sum takes ten times as long."""
    size = shifted.shape[(shifted.ndim + 1) // 2 :]
    flat = shifted.reshape(len(shifted), -1, prod(size))
    return _contract(flat.new_ones(1, flat.shape[1]), flat).view(len(shifted), *size)


def _grid(images: Tensor, size: Sizes, before: Sizes, step: Sizes) -> Tensor:
    """Return zeros (N, k, *size) with images (N, k, ...) on them, whose pixels are `step` apart."""
    grid = images.new_zeros(*images.shape[:2], *size)
    where = (slice(b, b + (n - 1) * s + 1, s) for b, n, s in zip(before, images.shape[2:], step, strict=True))
    grid[(slice(None), slice(None), *where)] = images
    return grid


def _shifted(
    grid: Tensor, kernel: Sizes, apart: Sizes, step: Sizes, size: Sizes, origin: Sizes | None = None
) -> Tensor:
    """Return a view (N, *kernel, *size) of a grid: every `step`-th pixel of what is at each place of a kernel.

    Place j is that of image j, where the grid is (N, k, ...), and of the same image, where it is (N, ...).
    """
    by_pixel = grid.stride()[-len(kernel) :]
    by_image = grid.stride(1) if grid.ndim > len(kernel) + 1 else 0
    by_place = [by_image * prod(kernel[i + 1 :]) + apart[i] * by for i, by in enumerate(by_pixel)]
    begin = grid.storage_offset() + sum(o * by for o, by in zip(origin or (), by_pixel, strict=False))
    by_output = [s * by for s, by in zip(step, by_pixel, strict=True)]
    return grid.as_strided((len(grid), *kernel, *size), (grid.stride(0), *by_place, *by_output), begin)
