"""Sorting networks, pruned to what a rule needs of the sorted values, over blocks of columns that fit the cache.

Shapes: n values to sort, d parameters, m rows that are finite.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from draco.aggregators.rows import CUDA_WIDTH
from draco.fused import columns, writing
from draco.fused.writing import Value
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


Choose = Callable[[Any, Any, Any], Any]  # (condition, yes, no) -> yes where it holds, in the place of `no`
Pick = Callable[[list[Any], Choose], list[Any]]  # values by place -> those to sum; it may write to those that are read


class Picking(NamedTuple):
    """Which of a column's m sorted values are summed."""

    fates: tuple[str, ...]
    kept: int  # how many are
    pick: Pick


@lru_cache(maxsize=64)
def middle(m: int, drop: int) -> Picking:
    """Return all but the `drop` largest and smallest values."""
    fates = (DROPPED,) * drop + (SUMMED,) * (m - 2 * drop) + (DROPPED,) * drop
    return Picking(fates, m - 2 * drop, lambda values, choose: values[drop : m - drop])


@lru_cache(maxsize=64)
def near_median(m: int, drop: int) -> Picking:
    """Return all but the `drop` values that are farthest from the median.

    Of two equally far the smaller is kept. The kept = m - drop nearest are neighbours in the sorted order. They begin
    as the smallest; the value in the k-th place gives way to that in place k + kept, if that is nearer, for k = 0, 1
    and so on: once one does not, none after it does.
    """
    # Read on their own: the median, and the values at both ends, which are compared. The rest is only summed.
    kept = m - drop
    centre, upper = (m - 1) // 2, m // 2
    read = {*range(drop), *range(kept, m), *((centre, upper) if drop else ())}

    def pick(values: list[Any], choose: Choose) -> list[Any]:
        nearest = values[:kept]
        if drop:
            median = values[centre] * 0.5 + values[upper] * 0.5  # halves first: the sum might overflow
            for k, high in enumerate(values[kept:]):
                low = nearest[k % kept]
                nearest[k % kept] = choose(high - median < median - low, high, low)
        return nearest

    return Picking(tuple(READ if place in read else SUMMED for place in range(m)), kept, pick)


def mean_of_picked(gradients: Tensor, rows: list[int], picking: Picking) -> Tensor:
    """Return the mean of every coordinate's picked values, of the chosen rows, all finite, (n, d) -> (d,).

    On a CPU it takes, beside the result, memory for slots of one block each.
    """
    out = None if gradients.is_cpu else _fused(gradients, rows, picking)
    return _in_blocks(gradients, rows, picking) if out is None else out


def mean_if_finite(gradients: Tensor, picking: Picking) -> Tensor | None:
    """Return what `mean_of_picked` does of all rows, read once; None where they are not finite, or this is no GPU."""
    return None if gradients.is_cpu else _fused(gradients, list(range(len(gradients))), picking, watch=True)


def _fused(gradients: Tensor, rows: list[int], picking: Picking, *, watch: bool = False) -> Tensor | None:
    what = f"sorting {len(rows)} rows"
    return columns.reduced(gradients, rows, _written(picking), what, watch=watch)


@lru_cache(maxsize=64)
def _written(picking: Picking) -> columns.Written:
    """Return what writes the mean of the picked values as a kernel's source."""

    def written(rows: list[Value], double: bool) -> Value:
        steps, places, slots = program(picking.fates)
        slot = [*rows, *rows[:1] * (slots - len(rows))]  # scratch holds anything
        for larger, a, b, to in steps:
            slot[to] = (writing.maximum if larger else writing.minimum)(slot[a], slot[b])
        picked = picking.pick([slot[place] for place in places], writing.where)
        total, scaled = picked[0] + 0.0, picked[0] * (1 / picking.kept) + 0.0  # 0 + -0 is 0
        for value in picked[1:]:
            total, scaled = total + value, scaled + value * (1 / picking.kept)
        return writing.finite_or(writing.quotient(total, picking.kept, double), scaled)

    return written


def _in_blocks(gradients: Tensor, rows: list[int], picking: Picking) -> Tensor:
    """Do it by calls on blocks of columns."""
    cpu = gradients.is_cpu
    ops: Any = np if cpu else torch  # numpy's calls cost half of torch's
    out = gradients.new_empty(gradients.shape[1])
    given, result = (gradients.numpy(), out.numpy()) if cpu else (gradients, out)
    steps, places, slots = program(picking.fates)
    width = min(SORT_WIDTH if cpu else CUDA_WIDTH, len(out))
    scratch = gradients.new_empty(slots - len(rows) + 1, width)
    memory: Any = scratch.numpy() if cpu else scratch
    # A GPU divides by a number of the host by multiplying with its inverse, and by one of its own as the CPU does.
    kept: Any = picking.kept if cpu else torch.full((), picking.kept, dtype=out.dtype, device=out.device)
    for start in range(0, len(out), max(width, 1)):
        # The slots of this block: the rows where they are, then scratch; the last one is for multiplied values.
        stop = min(start + width, len(out))
        slot: list[Any] = [given[row, start:stop] for row in rows]
        slot += list(memory[:, : stop - start])
        spare = slot.pop()
        for larger, a, b, to in steps:
            (ops.maximum if larger else ops.minimum)(slot[a], slot[b], out=slot[to])
        with np.errstate(over="ignore", invalid="ignore"):
            picked = picking.pick([slot[place] for place in places], _choose)
            total = result[start:stop]
            total[:] = 0
            for value in picked:
                total += value
            total /= kept
            overflown = ~ops.isfinite(total)
            if overflown.any():  # the sum overflowed, which the mean does not
                scaled = ops.zeros_like(total)
                for value in picked:
                    scaled += ops.multiply(value, 1 / picking.kept, out=spare)
                total[overflown] = scaled[overflown]
    return out


def _choose(condition: Any, yes: Any, no: Any) -> Any:
    into = torch.asarray(no)  # shares the memory of a numpy array
    torch.where(torch.asarray(condition), torch.asarray(yes), into, out=into)
    return no
