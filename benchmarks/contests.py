"""The contests of rules: which rule of a peer is the same as ours, how each is called, and on what gradients.

A rule that a peer lacks is not here. Settings are the same everywhere. Where the peers' defaults are another
computation, the contest's name says which one is timed. The geometric median of byzfl is three smoothed steps, that of
byzpy a fixed point to 1e-6. Krum sums n - f - 1 distances in both.
"""

from collections.abc import Callable, Mapping
from functools import partial
from math import comb
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.peers import load
from draco.aggregators import AGGREGATORS, PRE_AGGREGATORS, aggregate

Run = Callable[[Any], Any]  # the gradients (n, d), in the place of which byzpy takes a list of rows, too
Make = Callable[[int, int], Run]  # (n, f) -> what is timed


class Contest(NamedTuple):
    """One rule of ours beside the peers'."""

    rule: str  # its name in AGGREGATORS or PRE_AGGREGATORS
    target: float  # the fastest peer's time must be at least this many times ours
    peers: Mapping[str, Make]
    options: Mapping[str, Any] = {}
    note: str = ""

    @property
    def title(self) -> str:
        """Return the rule and what is particular about the settings."""
        return f"{self.rule}, {self.note}" if self.note else self.rule


def _byzfl(name: str, with_f: bool = True, **options: Any) -> Make:
    """Return how a rule of byzfl is called: a new object each time, as one keeps its last result."""

    def make(n: int, f: int) -> Run:
        rule = getattr(load("byzfl.aggregators"), name)
        settings = {**options, "f": f} if with_f else options
        return lambda gradients: rule(**settings)(gradients)

    return make


def _byzpy(kind: str, name: str, with_f: bool = True, **options: Any) -> Make:
    def make(n: int, f: int) -> Run:
        pre = kind == "pre_aggregators"
        rule = getattr(load(f"byzpy.{kind}" if pre else f"byzpy.aggregators.{kind}"), name)
        made = rule(**options, **({"f": f} if with_f else {}), **({"q": n - f} if name == "MultiKrum" else {}))
        return lambda gradients: (made.pre_aggregate if pre else made.aggregate)(list(gradients))

    return make


def _after_nnm(kind: str, name: str) -> Make:
    """Return how byzpy's nearest-neighbour mixing and a rule of it are called; byzfl's mixing alone takes longer."""

    def make(n: int, f: int) -> Run:
        mix = _byzpy("pre_aggregators", "NearestNeighborMixing")(n, f)
        rule = _byzpy(kind, name)(n, f)
        return lambda gradients: rule(mix(gradients))

    return make


def _hdmedians(n: int, f: int) -> Run:
    geomedian = load("hdmedians").geomedian
    return lambda gradients: geomedian(gradients.numpy(), axis=0)


NNM: Mapping[str, Any] = {"pre": [("nnm", {})]}
IN_PLACE = {"overwrite": True}  # byzfl's clipping and arc always do: each call gets a new copy, made off the clock

CONTESTS = (
    Contest("mean", 1, {"byzfl": _byzfl("Average", with_f=False)}),
    Contest(
        "median",
        5,
        {
            "byzfl": _byzfl("Median", with_f=False),
            "byzpy": _byzpy("coordinate_wise", "CoordinateWiseMedian", with_f=False),
        },
    ),
    Contest(
        "trimmed_mean",
        5,
        {"byzfl": _byzfl("TrMean"), "byzpy": _byzpy("coordinate_wise", "CoordinateWiseTrimmedMean")},
    ),
    Contest("meamed", 5, {"byzfl": _byzfl("Meamed"), "byzpy": _byzpy("coordinate_wise", "MeanOfMedians")}),
    Contest("sign_majority", 1, {}),
    Contest("median_of_means", 1, {}),
    Contest(
        "geometric_median",
        5,
        {"byzpy": _byzpy("geometric_wise", "GeometricMedian", with_f=False), "hdmedians": _hdmedians},
    ),
    Contest(
        "geometric_median",
        5,
        {"byzfl": _byzfl("GeometricMedian", with_f=False, nu=0.1, T=3)},
        {"nu": 0.1, "max_iterations": 3},
        "3 steps",
    ),
    Contest("krum", 2, {"byzfl": _byzfl("Krum"), "byzpy": _byzpy("geometric_wise", "Krum")}),
    Contest(
        "multi_krum",
        2,
        {"byzfl": _byzfl("MultiKrum"), "byzpy": _byzpy("geometric_wise", "MultiKrum")},
    ),
    Contest("bulyan", 1, {}),
    Contest("mda", 2, {"byzfl": _byzfl("MDA"), "byzpy": _byzpy("geometric_wise", "MinimumDiameterAveraging")}),
    Contest("smea", 1, {"byzfl": _byzfl("SMEA"), "byzpy": _byzpy("geometric_wise", "SMEA")}),
    Contest("caf", 1, {"byzfl": _byzfl("CAF"), "byzpy": _byzpy("norm_wise", "CAF")}),
    Contest(
        "centered_clipping",
        2,
        {
            "byzfl": _byzfl("CenteredClipping", with_f=False, L=1, tau=100.0),
            "byzpy": _byzpy("norm_wise", "CenteredClipping", with_f=False, c_tau=100.0, M=1, init="zero"),
        },
        {"tau": 100.0, "iterations": 1},
    ),
    Contest("monna", 1, {"byzfl": _byzfl("MoNNA"), "byzpy": _byzpy("geometric_wise", "MoNNA")}),
    Contest("cge", 1, {"byzpy": _byzpy("norm_wise", "ComparativeGradientElimination")}),
    Contest("nnm", 5, {"byzfl": _byzfl("NNM"), "byzpy": _byzpy("pre_aggregators", "NearestNeighborMixing")}),
    Contest("krum", 5, {"byzpy": _after_nnm("geometric_wise", "Krum")}, NNM, "after nnm"),
    Contest("trimmed_mean", 5, {"byzpy": _after_nnm("coordinate_wise", "CoordinateWiseTrimmedMean")}, NNM, "after nnm"),
    Contest(
        "bucketing",
        1,
        {
            "byzfl": _byzfl("Bucketing", with_f=False, s=2),
            "byzpy": _byzpy("pre_aggregators", "Bucketing", with_f=False, bucket_size=2),
        },
        {"size": 2},
    ),
    Contest(
        "clipping",
        1,
        {"byzpy": _byzpy("pre_aggregators", "Clipping", with_f=False, threshold=2.0)},
        {"c": 2.0},
    ),
    Contest("clipping", 1, {"byzfl": _byzfl("Clipping", with_f=False, c=2.0)}, {"c": 2.0, **IN_PLACE}, "in place"),
    Contest("arc", 1, {"byzpy": _byzpy("pre_aggregators", "ARC")}),
    Contest("arc", 1, {"byzfl": _byzfl("ARC")}, IN_PLACE, "in place"),
)


def gradients_of(n: int, d: int, device: str = "cpu") -> Tensor:
    """Return a common part and a spread of another size in every row, as shards of real data have.

    Rows of one size are near ties for rules that compare distances: at d = 1,000,000 they differ in the fourth digit.
    """
    source = torch.Generator().manual_seed(4)
    spread = torch.linspace(0.8, 1.25, n)[torch.randperm(n, generator=source)]
    common = torch.randn(d, generator=source)
    rows = torch.empty(n, d)
    for row in range(n):
        rows[row] = torch.randn(d, generator=source).mul_(spread[row]).add_(common)
    return rows.to(device)


def tolerated(rule: str, n: int, f: int) -> int:
    """Return f, or the most Byzantine rows that our rule tolerates with n gradients: Bulyan tolerates the fewest."""
    least = (AGGREGATORS.get(rule) or PRE_AGGREGATORS[rule]).least
    return max(fewer for fewer in range(f + 1) if fewer == 0 or least(fewer) <= n)


def ours(contest: Contest, n: int, f: int) -> Run | str:
    """Return our rule with the contest's options, or why it is not timed: what it says of n and f."""
    rule: Callable[..., Tensor] = {**AGGREGATORS, **PRE_AGGREGATORS}[contest.rule]
    if "pre" in contest.options:
        rule = partial(aggregate, rule=contest.rule)
    options = dict(contest.options)
    if contest.rule in PRE_AGGREGATORS and PRE_AGGREGATORS[contest.rule].draws:
        options["generator"] = torch.Generator().manual_seed(5)
    try:
        rule(torch.randn(n, 2, generator=torch.Generator().manual_seed(6)), f=f, **options)
    except ValueError as error:
        return str(error)
    return lambda gradients: rule(gradients, f=f, **options)


def hopeless(peer: str, rule: str, n: int, f: int, d: int, memory: float) -> str | None:
    """Return why a peer's rule is not called at this size: it would take hours, or more bytes than there are."""
    subsets = comb(n, f)
    if rule in ("mda", "smea") and subsets > (500 if (peer, rule) == ("byzfl", "smea") else 20_000):
        return f"{subsets:,} subsets"
    if (peer, rule) == ("byzfl", "nnm") and 4 * n * (n - f) * d > memory:
        return f"takes {4e-9 * n * (n - f) * d:.1f} GB"
    return None
