"""Kernels written by hand, in Triton's language."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["d", "stride", "out_stride", "m"])
def weighted(
    given, rows, weights, first, others, d, stride, out_stride, m,
    SUMS: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sum m rows (a multiple of 4) with each of SUMS columns of weights (m, PADDED), in the weights' type.

    The first sum goes to `first`, the others to `others`, `out_stride` apart. A program reads all rows of its columns
    before it writes, so that the sums may take the place of rows.
    """
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < d
    apart = stride.to(tl.int64)
    which = tl.arange(0, PADDED)
    total = tl.zeros([PADDED, BLOCK], weights.dtype.element_ty)
    for start in range(0, m, 4):
        for i in tl.static_range(4):
            row = tl.load(rows + start + i)
            values = tl.load(given + row * apart + at, mask=inside, other=0.0).to(weights.dtype.element_ty)
            factors = tl.load(weights + (start + i) * PADDED + which)
            total += factors[:, None] * values[None, :]
    if SUMS > 1:
        tl.debug_barrier()  # other threads may still have to read what a sum takes the place of
    place = which.to(tl.int64)[:, None]
    into = tl.where(place == 0, first + at[None, :], others + (place - 1) * out_stride + at[None, :])
    tl.store(into, total.to(first.dtype.element_ty), mask=inside[None, :] & (place < SUMS))


@triton.jit(do_not_specialize=["d", "stride", "chunks"])
def projected(
    given, rows, directions, out, d, stride, chunks,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    """Write inner products of a chunk of a row with COUNT directions (COUNT, WIDTH) to out (rows, chunks, COUNT)."""
    chunk = tl.program_id(0).to(tl.int64)
    row = tl.load(rows + tl.program_id(1))
    place = tl.arange(0, PADDED)
    at = chunk * WIDTH + place
    values = tl.load(given + row * stride.to(tl.int64) + at, mask=(place < WIDTH) & (at < d), other=0.0)
    for q in tl.static_range(COUNT):
        direction = tl.load(directions + q * WIDTH + place, mask=place < WIDTH, other=0.0)
        product = tl.sum(values * direction, axis=0)
        tl.store(out + (row * chunks + chunk) * COUNT + q, product)


@triton.jit(do_not_specialize=["d", "stride", "m"])
def unequal(given, rows, flags, d, stride, m, BLOCK: tl.constexpr):
    """Set flags[i] to 1 where row rows[i] differs in a bit from row rows[0]; the numbers are given as integers."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < d
    apart = stride.to(tl.int64)
    first = tl.load(given + tl.load(rows) * apart + at, mask=inside, other=0)
    one = tl.full([BLOCK], 1, tl.int32)
    for i in range(1, m):
        other = tl.load(given + tl.load(rows + i) * apart + at, mask=inside, other=0)
        tl.store(flags + i + tl.zeros([BLOCK], tl.int32), one, mask=other != first)
