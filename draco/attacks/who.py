"""The choice of Byzantine workers at each step: drawn from the seed, or those whose rows are the worst for the scheme.

Shapes: n workers = rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from draco import sampling
from draco.lazy import torch


def attackers(seed: int, step: int, workers: int, count: int, who: str) -> tuple[int, ...]:
    """Return the ranks of step `step`'s adversaries, `count` of 1..n in increasing order.

    Args:
        seed: of the job.
        step: counted from 1; it plays no part where the adversaries are fixed.
        workers: n.
        count: adversaries.
        who: "fixed" for the same ranks at every step, "drawn" for fresh ones, "rotating" for the next `count` of an
            order of all workers, so that each has as many turns; all depend on `seed`.

    Raises:
        ValueError: `count` is not in 0..n, or `who` is unknown.
    """
    if not 0 <= count <= workers:
        raise ValueError(f"{count} attackers among {workers} workers; it must be 0 to {workers}")
    if who not in ("fixed", "drawn", "rotating"):
        raise ValueError(f"who attacks is {who!r}; it must be fixed, drawn or rotating")
    key = ("attackers", step) if who == "drawn" else ("attackers",)
    drawn = torch.randperm(workers, generator=sampling.generator(seed, *key))
    turn = (step - 1) * count if who == "rotating" else 0
    return tuple(sorted((drawn.roll(-turn)[:count] + 1).tolist()))


def placed_rows(
    step: int, workers: int, groups: Sequence[int] | None, count: int, *, majorities: bool = False
) -> tuple[int, ...]:
    """Return the rows of `count` Byzantine workers that sit where they do the most harm, increasing.

    This presumes an adversary that has broken the secret permutation of rows: the worst case. Where rows fall into
    groups (`groups[row]`), Byzantine workers fill whole groups, one after the other. With `majorities` they take just
    enough of each for a majority, so that they win as many votes as they can. Without groups they are neighbours.
    Where they begin goes round with the steps.

    Raises:
        ValueError: `count` is not in 0..n.
    """
    if not 0 <= count <= workers:
        raise ValueError(f"{count} attackers among {workers} workers; it must be 0 to {workers}")
    if groups is None:
        return tuple(sorted((step - 1 + i) % workers for i in range(count)))
    sizes = Counter(groups)
    place = Counter[int]()
    order = []
    for row, group in enumerate(groups):
        needed = sizes[group] // 2 + 1 if majorities else sizes[group]
        order.append((place[group] >= needed, (group - step + 1) % len(sizes), place[group], row))
        place[group] += 1
    return tuple(sorted(row for *_, row in sorted(order)[:count]))
