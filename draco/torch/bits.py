"""What members of a group compare in the place of gradients: a digest of 128 bits, or a sketch of a few numbers.

Both are made on the device where the tensors are, and nothing waits for it. `digest` tells whether all bits are equal.
`sketch` tells about how far apart two results are, where replicas round in another order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from draco.lazy import Tensor, torch

ROW = 1024  # bytes that one row of multipliers meets
COLUMNS = 8  # sums of a row: the fewest that matrix units make
LEAST = 32 * ROW  # bytes of a product: GPUs take no fewer than 17 rows
PIECE = 1 << 24  # bytes that are copied at most, or hashed in one go
FOLDED = 1 << 14  # sums from which the last level makes two numbers
WIDTH = 1024  # numbers of a row of a sketch

_MASK = (1 << 64) - 1


def digest(tensors: Sequence[Tensor], secret: int) -> Tensor:
    """Return two int64 numbers, (2,), that tell whether tensors of the same shapes and dtypes have the same bits.

    The bytes, zeros appended, are the rows of a matrix X of int8, ROW wide. A level takes X to X A, exact in int32,
    with A (ROW, COLUMNS) random in -64..63. The bytes of X A are the next level's, with another A. At the end every
    sum is multiplied by a random int64 number, and all are added modulo 2^64; twice.

    Theorem. Lists that differ, and were fixed before the multipliers were drawn, get the same digest with a probability
    below 2^-52. Proof. Some row differs, in byte i say. Whatever the other multipliers are, at most one of 128 values
    of a_i makes a column's sums equal: all 8 columns are with at most 2^-56, at every level. At the end some sum
    differs by 2^t times an odd number, t < 32, which 2^t of 2^64 multipliers hide: at most 2^-33, and twice 2^-66. A
    level leaves 1/32 of the bytes, so 8 levels do for 2^50 of them: 8 x 2^-56 + 2^-66.

    This is universal hashing (Carter & Wegman, Universal classes of hash functions, 1979) by inner products, modulo
    2^64 at the end (Dietzfelbinger 1996; Lemire & Kaser, arXiv:1202.4961). Multipliers are as random as a generator
    with 64 bits of state makes them (`_random`). That is for faults, which know nothing of it; not for an adversary.

    Processors without instructions for products of int8 add two of them in 16 bits, and cut what is above 32767, which
    2 x 255 x 64 is not. So sums are exact everywhere, in any order of summation; with 8 bits they would not be.

    Args:
        tensors: of any dtypes and strides, all on one device. NaNs of unlike bits are unlike, and so are -0 and 0.
        secret: drawn for this comparison alone, 0 to 2^63 - 1.

    Raises:
        ValueError: there is no tensor.
    """
    if not tensors:
        raise ValueError("digest: there are no tensors")
    level = 1
    sums = _products(tensors, secret, level)
    while sums.numel() > FOLDED:
        level += 1
        sums = _products([sums], secret, level)
    multipliers = _random(2 * sums.numel(), secret, 0, sums.device).view(2, -1)
    return (sums.view(-1).to(torch.int64) * multipliers).sum(1)


def _products(tensors: Sequence[Tensor], secret: int, level: int) -> Tensor:
    """Return X A of the tensors' bytes, (rows, COLUMNS) int32."""
    drawn = _random(ROW * COLUMNS // 8, secret, level, tensors[0].device).view(torch.int8)
    multipliers = (drawn >> 1).view(ROW, COLUMNS)
    return torch.cat([torch._int_mm(rows, multipliers) for rows in _matrices(tensors)])


def _matrices(tensors: Sequence[Tensor]) -> Iterator[Tensor]:
    """Yield the tensors' bytes as matrices (rows, ROW) of int8; what fills none is gathered in copies."""
    small: list[Tensor] = []
    size = 0
    for tensor in tensors:
        for piece in torch.split(tensor.detach().contiguous().view(-1).view(torch.int8), PIECE):
            whole = len(piece) // ROW * ROW if len(piece) >= LEAST else 0
            if whole:
                yield _aligned(piece[:whole]).view(-1, ROW)
            small.append(piece[whole:])
            size += len(small[-1])
            if size >= PIECE:
                yield _gathered(small, size)
                small, size = [], 0
    if small:
        yield _gathered(small, size)


def _aligned(piece: Tensor) -> Tensor:
    """Return bytes that begin where matrix units of a GPU can read: gradients within a bucket need not."""
    return piece.clone() if piece.is_cuda and piece.data_ptr() % 16 else piece


def _gathered(pieces: list[Tensor], size: int) -> Tensor:
    """Return a copy of the pieces, end to end, as a matrix (rows, ROW) that zeros fill up."""
    room = max(-(-size // ROW) * ROW, LEAST)
    return torch.cat([*pieces, pieces[0].new_zeros(room - size)]).view(-1, ROW)


def sketch(tensors: Sequence[Tensor], secret: int, count: int = 16) -> Tensor:
    """Return `count` secret projections of the tensors' numbers, and then their squared norm: float64, (count + 1,).

    The numbers of each tensor, zeros appended, are rows of a matrix E, WIDTH wide. Projection k is u_k^T E w_k, with
    independent standard normal numbers. So its square has the mean |E|^2, and `apart` estimates a distance.

    Theorem. Let E be fixed before they are drawn, and Q the mean of the squares divided by |E|^2. For f convex the mean
    of f(count Q) is at most that for E of rank one, where count Q is a sum of (g h)^2, g and h standard normal. Proof:
    given w, (u^T E w)^2 is g^2 |E w|^2, and |E w|^2 is an average of |E|^2 h_i^2 with the singular values' squares as
    weights (Jensen). With f(q) = exp(-x q) and Markov's inequality, for count = 16 (Chernoff's bound over all x):

        the estimate is below 1/5 of the truth with at most 2.5e-4, 1/10 with 3e-7, 1/25 with 1e-11

    Above twice the truth it is with 0.6 % where E has rank one (counted), such as one wrong number. Differences by
    rounding are spread over all rows, and Q is near a chi-square of `count` degrees: with about 1e-7.

    `draco.protocols.sketch` has sharper bounds for 4096 numbers; here a sketch is sent at every step.

    Args:
        tensors: real or whole numbers, all on one device; NaN and infinity show in the sketch.
        secret: as in `digest`.
        count: how many projections.

    Raises:
        ValueError: there is no tensor.
    """
    if not tensors:
        raise ValueError("sketch: there are no tensors")
    device = tensors[0].device
    right = _normal(WIDTH * count, secret, 0, device).view(WIDTH, count)
    total = torch.zeros(count + 1, dtype=torch.float64, device=device)
    pieces = (piece for tensor in tensors for piece in torch.split(tensor.detach().reshape(-1), PIECE // 64))
    for number, piece in enumerate((piece for piece in pieces if len(piece)), 1):
        rows = -(-len(piece) // WIDTH)
        numbers = torch.zeros(rows * WIDTH, dtype=torch.float64, device=device)
        numbers[: len(piece)] = piece
        left = _normal(rows * count, secret, number, device).view(rows, count)
        total[:count] += (left * (numbers.view(rows, WIDTH) @ right)).sum(0)
        total[count] += numbers @ numbers
    return total


def apart(one: Tensor, other: Tensor) -> Tensor:
    """Return the estimated distance of two sketched results, relative to the shorter: a float64 number, ().

    It is 0 where the sketches are equal, and NaN where one holds NaN or infinity: ask whether it is at most a
    tolerance, and not whether it is above.
    """
    squared = (one[:-1] - other[:-1]).square().mean()
    shorter = torch.minimum(one[-1], other[-1])
    return torch.where((one == other).all(), 0.0, (squared / shorter).sqrt())


def _random(count: int, secret: int, stream: int, device: torch.device) -> Tensor:
    """Return random int64 numbers (count,): SplitMix64, the same on every device and in every version of torch.

    Source: Steele, Lea, Flood, Fast Splittable Pseudorandom Number Generators, OOPSLA 2014, with the constants that
    the authors name as Stafford's variant 13. A stream starts where another secret would, mixed from both.
    """
    start = _mixed(_mixed(secret) + stream)
    z = torch.arange(1, count + 1, device=device) * _signed(0x9E3779B97F4A7C15) + _signed(start)
    z = (z ^ _shifted(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shifted(z, 27)) * _signed(0x94D049BB133111EB)
    return z ^ _shifted(z, 31)


def _mixed(z: int) -> int:
    """Return the number after `z` of the same generator, 0 to 2^64 - 1."""
    z = (z + 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ z >> 27) * 0x94D049BB133111EB) & _MASK
    return z ^ z >> 31


def _signed(z: int) -> int:
    """Return the int64 number of the same 64 bits."""
    return z - (1 << 64) if z >> 63 else z


def _shifted(z: Tensor, places: int) -> Tensor:
    """Return int64 numbers, their bits shifted to the right, with zeros from the left."""
    return (z >> places) & ((1 << 64 - places) - 1)


def _normal(count: int, secret: int, stream: int, device: torch.device) -> Tensor:
    """Return standard normal numbers, float64 (count,): Box & Muller 1958."""
    half = -(-count // 2)
    uniform = (_shifted(_random(2 * half, secret, stream, device), 11) + 1).to(torch.float64) * 2.0**-53
    radius, angle = (-2 * uniform[:half].log()).sqrt(), uniform[half:] * (2 * math.pi)
    return torch.cat([radius * angle.cos(), radius * angle.sin()])[:count]
