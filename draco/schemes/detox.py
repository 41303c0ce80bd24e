"""DETOX: votes in small groups outvote most Byzantine workers, and a robust aggregator deals with the groups they win.

Source: Rajput, Wang, Charles, Papailiopoulos, DETOX, NeurIPS 2019 (arXiv:1907.12205). The groups of r workers are those
of the repetition code, but s may exceed (r - 1) / 2. Byzantine workers win a group in which they are the majority, with
(r + 1) / 2 of them. So s of them win floor(s / ((r + 1) / 2)) groups at most, which the aggregator has to tolerate as
its f. Groups are drawn at random and secretly, so they seldom win so many. The paper then aggregates in two levels, the
first within buckets of winners.

A group in which nobody has the majority is left out. It took as many Byzantine workers as winning it, so f is one
lower. Suspects are those who were outvoted; in a group that Byzantine workers won these are its honest workers.
Shapes: n workers, m = k = n // r groups, d parameters, r odd; leftover workers join groups.
"""

from draco.declaration import Option, OptionError
from draco.schemes.declaration import SchemeDeclaration, Sizes, require_workers
from draco.schemes.repetition import in_groups
from draco.schemes.scheme import Scheme
from draco.schemes.vote import OPTIONS, TOLERANCE, checked_vote

REDUNDANCY = 3


def _sizes(workers: int, adversaries: int, redundancy: int = REDUNDANCY, **_: object) -> Sizes:
    n, s, r = workers, adversaries, redundancy
    require_workers("detox", n, s)
    if r < 1 or r % 2 == 0:
        raise OptionError("detox", "redundancy", f"must be odd, so that a vote always has two sides, got {r}")
    if n < r:
        raise OptionError("detox", "redundancy", f"must be at most {n} workers, got {r}")
    groups = n // r
    bad = lost_groups(n, groups, s)
    if 2 * bad >= groups:
        most = next(q for q in range(s, -1, -1) if 2 * lost_groups(n, groups, q) < groups)
        raise ValueError(
            f"detox: {s} adversaries may win {bad} of {groups} groups of {r}, which must be less than half of them; "
            f"{n} workers tolerate {most}"
        )
    return Sizes(partitions=groups, gradients=groups, bad=bad)


def detox(
    *,
    workers: int,
    adversaries: int,
    redundancy: int = REDUNDANCY,
    vote: str = "exact",
    tolerance: float = TOLERANCE,
) -> Scheme:
    """Return the scheme for n >= r workers, of which s may win or spoil less than half of the groups.

    `redundancy` is the least number r of workers in a group; `vote` and `tolerance` are those of repetition.
    """
    n, s, r = workers, adversaries, redundancy
    groups, _, bad = _sizes(n, s, r)
    return in_groups(
        "detox", n, s, groups, checked_vote("detox", vote, tolerance),
        votes=[len(range(j, n, groups)) // 2 + 1 for j in range(groups)], bad=bad,
        summary=f"detox: {n} workers in {groups} groups of {r} or more, up to {s} adversaries, who may win or spoil "
        f"{bad} groups",
    )  # fmt: skip


def lost_groups(workers: int, groups: int, adversaries: int) -> int:
    """Return the most of m groups of n workers, of sizes that differ by at most one, in which s Byzantine are half."""
    small, larger = divmod(workers, groups)  # m - larger groups of `small` workers, the others have one more
    cheap, dear = (small + 1) // 2, (small + 2) // 2  # half of a small group and of a larger one
    first = min(groups - larger, adversaries // cheap)
    return first + min(larger, (adversaries - first * cheap) // dear)


DETOX = SchemeDeclaration(
    name="detox",
    function=detox,
    text="votes in small groups, some of which Byzantine workers may win, before a robust aggregator",
    options={
        "redundancy": Option(int | None, None, f"Workers in a group, odd; null: {REDUNDANCY}.", ge=1, le=4096),
        **OPTIONS,
    },
    sizes=_sizes,
    tolerance=TOLERANCE,
)
