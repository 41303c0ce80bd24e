"""Dealing: who is asked for what, so that all compute equally much and nobody can foresee it."""

from __future__ import annotations

import math
from collections.abc import Sequence


def deal(order: Sequence[int], pairs: int, copies: int) -> list[tuple[int, ...]]:
    """Give each of `pairs` pairs to `copies` workers, and name one of them to upload.

    Pair j gets the `copies` places from j * copies on, round and round `order`. So loads differ by one at most. With
    g = gcd(copies, m) for m workers, a window's first place is a multiple of g, and m / g windows in a row have
    different ones. So the uploader at offset j * g // m (mod g) is another worker for each of m pairs in a row, and
    the numbers of uploads differ by one at most too.

    Args:
        order: the workers, in an order that they cannot foresee.
        pairs: how many pairs there are.
        copies: how many workers compute each, at most len(order).

    Returns:
        for each pair the workers, the one that uploads first.
    """
    size, common = len(order), math.gcd(copies, len(order))
    dealt = []
    for pair in range(pairs):
        members = [order[(pair * copies + place) % size] for place in range(copies)]
        uploader = members.pop(pair * common // size % common)
        dealt.append((uploader, *members))
    return dealt
