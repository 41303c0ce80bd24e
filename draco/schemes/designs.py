"""The designs of placement: which workers compute which partitions, so that few workers share many partitions.

Sources: `mols` and `ramanujan` are of Konstantinidis & Ramamoorthy, ByzShield, 2020 (arXiv:2010.04902), the latter
after Burnwal et al., Deterministic completion of rectangular matrices using Ramanujan bigraphs II. `subset` is of
Konstantinidis & Ramamoorthy, Aspis, 2021 (arXiv:2108.02416).
Shapes: n workers, k partitions, r workers per partition, load = k r / n partitions per worker. The order of a square is
l, that of a field or block q; p is a prime. Every design returns the assignment (n, k) bool. `exists` says which
(n, r) it takes.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from draco.declaration import OptionError

Assignment = npt.NDArray[np.bool_]
PARTITIONS = 4096  # the most that a design may have: each is a gradient on the server
WORKERS = 512  # the most, among whom the worst placed Byzantine ones are searched for within seconds


def mols(n: int, r: int) -> Assignment:
    """Place the k = l^2 cells of a square of prime-power order l = n / r by r mutually orthogonal Latin squares.

    Worker t l + x computes the cells that hold symbol x in square t + 1. Any two workers of different squares share
    exactly one partition, and workers of one square none.
    """
    squares = latin_squares(n // r)[:r]
    cells: Assignment = squares[:, None] == np.arange(n // r)[:, None, None]  # (r, l, l, l): square, symbol, i, j
    return cells.reshape(n, -1)


def latin_squares(order: int) -> npt.NDArray[np.int64]:
    """Return the order - 1 mutually orthogonal Latin squares (t, i, j) -> t i + j over the field of that order.

    Source: Bose 1938. Raises a ValueError where the order is no prime power.
    """
    add, multiply = field(order)
    return add[multiply[1:][:, :, None], np.arange(order)]


@lru_cache(maxsize=8)
def field(order: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the tables (q, q) of addition and multiplication of the field of order q = p^e.

    An element is a polynomial over the integers mod p, written as the number with its coefficients as digits to base p.
    Products are taken modulo the first monic polynomial of degree e that leaves no divisors of zero. That polynomial
    is irreducible.
    """
    p, e = prime_power(order) or (0, 0)
    if not p:
        raise ValueError(f"there is no field of {order} elements, it must be a prime power")
    places = p ** np.arange(e)
    digits = np.arange(order)[:, None] // places % p  # (q, e), lowest first
    add = (digits[:, None] + digits) % p @ places
    for lower in digits:  # products modulo x^e + lower, that is with x^e = -lower
        power, product = digits, np.zeros((order, order, e), np.int64)
        for i in range(e):
            product += power[:, None] * digits[None, :, i, None]  # power = element * x^i
            power = (np.pad(power, ((0, 0), (1, 0)))[:, :e] - power[:, -1:] * lower) % p
        multiply = product % p @ places
        if multiply[1:, 1:].all():
            return add, multiply
    raise AssertionError("there is an irreducible polynomial of every degree")


def prime_power(number: int) -> tuple[int, int] | None:
    """Return the prime p and e with number = p^e, None where there are none."""
    p = next((p for p in range(2, math.isqrt(max(number, 0)) + 1) if number % p == 0), number)
    e = 1
    while p > 1 and p**e < number:
        e += 1
    return (p, e) if p > 1 and p**e == number else None


def ramanujan(n: int, r: int) -> Assignment:
    """Place by an array of q x q blocks P^(i j), P the cyclic shift of prime order q, i and j the block's place.

    Case 1, n = r q with r < q: partitions are the rows of the q block rows, workers the columns of the r block columns;
    k = q^2. Case 2, n = r^2 with r = q: the other way round; k = r^2. The paper's further block columns repeat these.
    """
    q = n // r
    i, x, j, y = np.ogrid[:q, :q, :r, :q]
    blocks: Assignment = y == (x + i * j) % q  # the one of block row i, column j is P^(i j)
    array = blocks.reshape(q * q, r * q)
    return array if n == r * r else array.T.copy()


def subset(n: int, r: int) -> Assignment:
    """Place one partition on every r of the n workers: k = C(n, r)."""
    assignment: Assignment = np.zeros((n, math.comb(n, r)), np.bool_)
    if 2 * r > n:  # the workers that are left out are fewer, and come in the opposite order
        for j, others in enumerate(itertools.combinations(range(n), n - r), start=1):
            assignment[list(others), -j] = True
        return ~assignment
    for j, chosen in enumerate(itertools.combinations(range(n), r)):
        assignment[list(chosen), j] = True
    return assignment


def _prime(number: int) -> bool:
    return (prime_power(number) or (0, 0))[1] == 1


# Per design: how the assignment is made, which (n, r) it exists for, and those in words.
DESIGNS: Mapping[str, tuple[Callable[[int, int], Assignment], Callable[[int, int], bool], str]] = {
    "mols": (
        mols,
        lambda n, r: n % r == 0 and n // r > r and prime_power(n // r) is not None,
        "n = r l workers, l a prime power above r",
    ),
    "ramanujan": (
        ramanujan,
        lambda n, r: n % r == 0 and n // r >= r and _prime(n // r),
        "n = r q workers, q a prime above r, or n = r^2, r a prime",
    ),
    "subset": (subset, lambda n, r: r <= n, "n >= r workers"),
}


def partitions(design: str, n: int, r: int) -> int:
    """Return k."""
    return math.comb(n, r) if design == "subset" else (n // r) ** 2


def exists(design: str, n: int, r: int) -> bool:
    """Say whether there is such a design for n workers and r of them on each partition."""
    return (
        r >= 3 and r % 2 == 1 and n <= WORKERS and DESIGNS[design][1](n, r) and partitions(design, n, r) <= PARTITIONS
    )


def place(design: str, n: int, r: int) -> Assignment:
    """Return the design's assignment (n, k).

    Raises:
        ValueError: there is none; says which there are.
    """
    if design not in DESIGNS:
        raise OptionError("placement", "design", f"must be one of {', '.join(DESIGNS)}, got {design!r}")
    if r < 3 or r % 2 == 0:
        message = f"must be odd and 3 or more, so that most of r can be right, got {r}"
        raise OptionError("placement", "redundancy", message)
    if exists(design, n, r):
        return DESIGNS[design][0](n, r)
    near = sorted(itertools.islice(_nearest(design, n, r), 3))
    others = [str(o) for o in range(3, n + 1, 2) if exists(design, n, o)]
    raise ValueError(
        f"placement: {design} has {DESIGNS[design][2]}, at most {WORKERS} of them and {PARTITIONS} partitions; there "
        f"is none for {n} workers and redundancy {r}. Nearest for redundancy {r}: "
        f"{', '.join(map(str, near)) or 'no'} workers; for {n} workers: redundancy {', '.join(others) or '(none)'}"
    )


def _nearest(design: str, n: int, r: int) -> Iterator[int]:
    for distance in range(1, 256):
        yield from (m for m in (n - distance, n + distance) if m > 0 and exists(design, m, r))
