"""Which operations are products that a transcript has, and what they put into it.

Both sides evaluate the same rule, from the shapes and types of an operation's arguments alone. A product is recorded if
checking it costs a small part of computing it. All else is computed by both sides: element-wise work, sums, products of
small matrices, products in other types than float32, convolutions in groups, and attention in one operation.
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

aten = torch.ops.aten

# Of one product: fewer multiply-adds than this take less time than the calls that a check consists of.
LEAST_MULTIPLY_ADDS = 1 << 21
# A check reads each number of the factors and the product about once. So many multiply-adds each must stand for. Those
# of a convolution take about twice as long as those of a matrix product.
LEAST_PER_NUMBER = 40


class Place(NamedTuple):
    """One tensor of a transcript."""

    shape: tuple[int, ...]
    channels_last: bool  # its numbers are in the order (N, H, W, C), as torch keeps images in that format

    @property
    def numbers(self) -> int:
        """How many numbers it has."""
        return prod(self.shape)


Places = tuple[Place | None, ...]  # of the outputs of one operation; None: one that was not asked for


def places(op: Any, args: Sequence[Any]) -> Places | None:
    """Return what an operation puts into a transcript; None: nothing, as it is no product or no check pays."""
    return PRODUCTS[op](args) if op in PRODUCTS else None


def to_numbers(product: Tensor, place: Place) -> tuple[Tensor, Tensor]:
    """Return a product in the layout of its place, and its numbers in the order of the transcript."""
    if place.channels_last:
        laid = product.contiguous(memory_format=torch.channels_last)
        return laid, laid.permute(0, 2, 3, 1).reshape(-1)
    laid = product.contiguous()
    return laid, laid.view(-1)


def from_numbers(numbers: Tensor, place: Place) -> Tensor:
    """Return the product of which these are the numbers; it shares their memory."""
    if place.channels_last:
        n, c, h, w = place.shape
        return numbers.view(n, h, w, c).permute(0, 3, 1, 2)
    return numbers.view(place.shape)


def _pays(multiply_adds: int, numbers: int) -> bool:
    return multiply_adds >= LEAST_MULTIPLY_ADDS and multiply_adds >= LEAST_PER_NUMBER * numbers


def _matrices(a: Tensor, b: Tensor) -> Places | None:
    """Return the place of a @ b, (m, n) or (batch, m, n)."""
    if a.dtype != torch.float32 or b.dtype != torch.float32:
        return None
    *batch, m, k = a.shape
    n, count = b.shape[-1], prod(batch)
    if not _pays(count * m * k * n, count * (m * k + k * n + m * n)):
        return None
    return (Place((*batch, m, n), channels_last=False),)


def _convolves(x: Tensor, weight: Tensor, output: Sequence[int], transposed: bool, groups: int) -> bool:
    """Return whether a convolution is checked; its backward pass, which costs twice as much, is checked with it."""
    if x.dtype != torch.float32 or weight.dtype != torch.float32 or transposed or groups != 1 or x.ndim not in (3, 4):
        return False
    multiply_adds = output[0] * prod(output[2:]) * weight.numel()
    images = x.shape[0] * prod(x.shape[2:]) * prod(weight.shape[2:])  # as many channels as places, for what is shifted
    return _pays(2 * multiply_adds, x.numel() + weight.numel() + prod(output) + images)


def _channels_last(x: Tensor, weight: Tensor) -> bool:
    return any(
        t.ndim == 4 and t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous()
        for t in (x, weight)
    )


def _convolution(args: Sequence[Any]) -> Places | None:
    x, weight, _, stride, padding, dilation, transposed, _, groups = args
    sizes = zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=False)
    out = (x.shape[0], weight.shape[0], *((i + 2 * p - d * (k - 1) - 1) // s + 1 for i, k, s, p, d in sizes))
    if not _convolves(x, weight, out, transposed, groups):
        return None
    return (Place(out, _channels_last(x, weight)),)


def _convolution_backward(args: Sequence[Any]) -> Places | None:
    grad, x, weight, _, _, _, _, transposed, _, groups, wanted = args
    if not _convolves(x, weight, grad.shape, transposed, groups) or not any(wanted[:2]):
        return None
    last = _channels_last(x, weight)
    shapes = [(tuple(x.shape), last), (tuple(weight.shape), last), ((weight.shape[0],), False)]
    return tuple(Place(*shape) if asked else None for shape, asked in zip(shapes, wanted, strict=True))


PRODUCTS: dict[Any, Callable[[Sequence[Any]], Places | None]] = {
    aten.mm.default: lambda args: _matrices(args[0], args[1]),
    aten.bmm.default: lambda args: _matrices(args[0], args[1]),
    aten.addmm.default: lambda args: _matrices(args[1], args[2]),
    aten.baddbmm.default: lambda args: _matrices(args[1], args[2]),
    aten.convolution.default: _convolution,
    aten.convolution_backward.default: _convolution_backward,
}
