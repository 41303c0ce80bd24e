"""Sorting networks, pruned to what a rule needs of the sorted values, over blocks of columns that fit the cache.

Shapes: n values to sort, d parameters, m rows that are finite.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from draco.aggregators.rows import CUDA_WIDTH
from draco.lazy import Tensor, torch

SORT_WIDTH = 24_576  # below torch's grain size of 32768, above which it hands every small call to its thread pool

Pairs = list[tuple[int, int]]
# What becomes of the value at a place of the sorted order: it is read on its own, summed with others (whichever is
# which), or dropped.
READ, SUMMED, DROPPED = "read", "summed", "dropped"


class Comparator(NamedTuple):
    """One exchange of a sorting network: the smaller value goes to place `low`, the larger to place `high`."""

    low: int
    high: int
    keep_low: bool  # False: nothing reads the smaller value any more
    keep_high: bool


class Step(NamedTuple):
    """One call: the smaller or larger of the values in slots a and b, elementwise, goes to slot `out`."""

    larger: bool
    a: int
    b: int
    out: int


class Program(NamedTuple):
    """A network as calls. Slots 0 .. n-1 are the given rows, which no step writes to; the others are scratch."""

    steps: tuple[Step, ...]
    places: tuple[int, ...]  # the slot of every place of the sorted order; that of a dropped one holds anything
    slots: int


def sorting_network(n: int, shifted: bool = False) -> Pairs:
    """Return the exchanges of a merge sort of n values by Batcher's odd-even merges.

    In a pair (low, high) the smaller value goes to `low`. Each number is the place at which its value is in the end.

    Source: Knuth, TAOCP 3, 5.3.4, merges of any two lengths; both halves are as long as each other, up to one.
    `shifted` merges as if one more value, the least, stood before either run: as good a network, another when pruned.
    """
    pairs, order = _sort(list(range(n)), shifted)
    place = {wire: place for place, wire in enumerate(order)}
    return [(place[low], place[high]) for low, high in pairs]


def _sort(wires: list[int], shifted: bool) -> tuple[Pairs, list[int]]:
    """Return the exchanges that sort `wires`, and the wires in the order of the values they then hold."""
    if len(wires) < 2:
        return [], wires
    left, a = _sort(wires[: len(wires) // 2], shifted)
    right, b = _sort(wires[len(wires) // 2 :], shifted)
    pairs, order = _merge(a, b, shifted)
    return left + right + pairs, order


def _merge(a: list[int], b: list[int], shifted: bool) -> tuple[Pairs, list[int]]:
    """Return the exchanges that merge two sorted runs of wires, and the wires in order."""
    if not a or not b:
        return [], a + b
    if len(a) == len(b) == 1:
        return [(a[0], b[0])], a + b
    # Merge every second wire of both runs, and the others likewise.
    if shifted:
        first, evens = _merge(a[1::2], b[::2], shifted)
        second, odds = _merge(a[::2], b[1::2], shifted)
        order = []
    else:
        first, evens = _merge(a[::2], b[::2], shifted)
        second, odds = _merge(a[1::2], b[1::2], shifted)
        order = [evens.pop(0)]
    # In the two results laid side by side, only neighbours may be in the wrong order: one more exchange for each pair.
    both = list(zip(odds, evens, strict=False))
    order += [wire for pair in both for wire in pair] + odds[len(both) :] + evens[len(both) :]
    return first + second + both, order


def pruned(pairs: Pairs, fates: Sequence[str]) -> list[Comparator]:
    """Return what is needed of a sorting network if the sorted values have these fates.

    From the last exchange backwards, one between two values that are both dropped, or both just summed, is left out.
    """
    fate = list(fates)
    needed = []
    for low, high in reversed(pairs):
        if fate[low] == fate[high] != READ:  # dropped or summed alike: which is which does not matter
            continue
        needed.append(Comparator(low, high, fate[low] != DROPPED, fate[high] != DROPPED))
        fate[low] = fate[high] = READ  # the exchange reads both values
    return needed[::-1]


@lru_cache(maxsize=64)
def program(fates: tuple[str, ...]) -> Program:
    """Return the calls that bring the values with these fates in their places: the better of two networks."""
    n = len(fates)
    candidates = [pruned(sorting_network(n, shifted), fates) for shifted in (False, True)]
    return compiled(n, min(candidates, key=lambda network: sum(c.keep_low + c.keep_high for c in network)))


def compiled(n: int, network: list[Comparator]) -> Program:
    """Return the network as calls that read the rows where they are and write to as few scratch slots as they can."""
    place, steps, slots = list(range(n)), [], n
    free: list[int] = []  # what was freed last is taken first: it is in the cache
    for low, high, keep_low, keep_high in network:
        a, b = place[low], place[high]
        owned = [slot for slot in (a, b) if slot >= n]  # scratch: nothing else reads these two values afterwards
        if keep_low and keep_high:  # the smaller value takes a slot of its own
            if not free:
                free, slots = [slots], slots + 1
            place[low] = free.pop()
            steps.append(Step(False, a, b, place[low]))  # a and b are read once more
        # The last value written may take the place of one that is read: the call is elementwise.
        if not owned:
            if not free:
                free, slots = [slots], slots + 1
            owned = [free.pop()]
        place[high if keep_high else low] = out = owned.pop()
        steps.append(Step(keep_high, a, b, out))
        free += owned
    return Program(tuple(steps), tuple(place), slots)


Pick = Callable[[list[Any]], list[Any]]  # values by place -> those to sum; it may write to those that are read


def mean_of_picked(gradients: Tensor, rows: list[int], fates: tuple[str, ...], kept: int, pick: Pick) -> Tensor:
    """Return the mean of the `kept` values of every coordinate that `pick` chooses of the sorted ones, (n, d) -> (d,).

    Beside the result it takes memory for slots of one block each.
    """
    out = gradients.new_empty(gradients.shape[1])
    _sum_picked(gradients, rows, fates, pick, out, 1.0)
    out /= kept
    if len(out) and not all(map(math.isfinite, out.aminmax())):  # the sum overflowed, which the mean does not
        _sum_picked(gradients, rows, fates, pick, out, 1 / kept)
    return out


def _sum_picked(
    gradients: Tensor, rows: list[int], fates: tuple[str, ...], pick: Pick, out: Tensor, factor: float
) -> None:
    """Sum what `pick` chooses, times `factor`, into `out`."""
    cuda = gradients.is_cuda
    ops: Any = torch if cuda else np  # numpy's calls cost half of torch's
    given, result = (gradients, out) if cuda else (gradients.numpy(), out.numpy())
    steps, places, slots = program(fates)
    width = min(CUDA_WIDTH if cuda else SORT_WIDTH, len(out))
    scratch = gradients.new_empty(slots - len(rows) + 1, width)
    memory: Any = scratch if cuda else scratch.numpy()
    for start in range(0, len(out), max(width, 1)):
        # The slots of this block: the rows where they are, then scratch; the last one is for multiplied values.
        stop = min(start + width, len(out))
        slot: list[Any] = [given[row, start:stop] for row in rows]
        slot += list(memory[:, : stop - start])
        spare = slot.pop()
        for larger, a, b, to in steps:
            (ops.maximum if larger else ops.minimum)(slot[a], slot[b], out=slot[to])
        with np.errstate(over="ignore", invalid="ignore"):
            total = result[start:stop]
            total[:] = 0
            for value in pick([slot[place] for place in places]):
                total += value if factor == 1 else ops.multiply(value, factor, out=spare)


def mean_of_middle(gradients: Tensor, rows: list[int], drop: int) -> Tensor:
    """Return the mean of every coordinate without its `drop` largest and smallest values, (n, d) -> (d,)."""
    m = len(rows)
    fates = (DROPPED,) * drop + (SUMMED,) * (m - 2 * drop) + (DROPPED,) * drop
    return mean_of_picked(gradients, rows, fates, m - 2 * drop, lambda values: values[drop : m - drop])


def mean_near_median(gradients: Tensor, rows: list[int], drop: int) -> Tensor:
    """Return the mean of every coordinate without the `drop` values that are farthest from its median, (n, d) -> (d,).

    Of two equally far the smaller is kept. The kept = m - drop nearest are neighbours in the sorted order. They begin
    as the smallest; the value in the k-th place gives way to that in place k + kept, if that is nearer, for k = 0, 1
    and so on: once one does not, none after it does.
    """
    # Read on their own: the median, and the values at both ends, which are compared. The rest is only summed.
    m, kept = len(rows), len(rows) - drop
    middle, upper = (m - 1) // 2, m // 2
    read = {*range(drop), *range(kept, m), *((middle, upper) if drop else ())}
    fates = tuple(READ if place in read else SUMMED for place in range(m))

    def pick(values: list[Any]) -> list[Any]:
        nearest = values[:kept]
        if drop:
            median = values[middle] * 0.5 + values[upper] * 0.5  # halves first: the sum might overflow
            for k, high in enumerate(values[kept:]):
                low = nearest[k % kept]
                into = torch.asarray(low)  # shares the memory of a numpy array
                torch.where(torch.asarray(high - median < median - low), torch.asarray(high), into, out=into)
        return nearest

    return mean_of_picked(gradients, rows, fates, kept, pick)
