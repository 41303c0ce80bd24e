"""Where workers could run: every (type, zone, market) in the order in which they are to be tried."""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from draco.cluster.aws import account, optional
from draco.cluster.aws.prices import Prices, zones

Market = Literal["spot", "on-demand"]
_UNKNOWN_SCORE = 5
_FEWEST_TYPES = 3  # for fewer AWS's score is always low, whatever the capacity


class Candidate(NamedTuple):
    """One type in one zone on one market; prices are in dollars per hour, None where AWS did not tell."""

    type: str
    zone: str
    market: Market
    price: float | None
    month_max: float | None  # of the spot price
    on_demand: float | None
    score: int | None  # 1-10, AWS's guess whether the spot request would succeed


def ordered(
    prices: Prices, scores: Mapping[tuple[str, str], int], types: Sequence[str], zone: str | None, on_demand: bool
) -> tuple[Candidate, ...]:
    """Return the candidates, best first; on-demand ones come last, if at all.

    A spot candidate ranks by price x (2 - score / 10): the score is read as the chance, in tenths, that an hour's work
    is kept, and what is lost is done once more. On-demand candidates rank by price alone.
    """
    pairs = sorted(pair for pair in prices.offered if pair[0] in types and zone in (None, pair[1]))
    spot = [
        Candidate(
            *pair, "spot", prices.spot[pair].now, prices.spot[pair].month_max, prices.on_demand[pair[0]],
            scores.get(pair),
        )
        for pair in pairs if pair in prices.spot
    ]  # fmt: skip
    dear = [
        Candidate(*pair, "on-demand", prices.on_demand[pair[0]], None, prices.on_demand[pair[0]], None)
        for pair in pairs if on_demand
    ]  # fmt: skip
    return tuple(sorted([*spot, *dear], key=lambda candidate: _rank(candidate, types)))


def _rank(candidate: Candidate, types: Sequence[str]) -> tuple[bool, float, int, str]:
    price = float("inf") if candidate.price is None else candidate.price
    if candidate.market == "spot":
        price *= 2 - (_UNKNOWN_SCORE if candidate.score is None else candidate.score) / 10
    return candidate.market != "spot", price, types.index(candidate.type), candidate.zone


def scores(region: str, types: Sequence[str], workers: int) -> dict[tuple[str, str], int]:
    """Return AWS's spot placement scores of the region's zones, the same for every type: they are asked for together.

    Nothing where AWS does not tell them, and for fewer than three types.

    Raises:
        DracoError: AWS answers nothing at all.
    """
    if len(set(types)) < _FEWEST_TYPES:
        return {}
    names = zones(region)
    pages = optional.ask(
        "asking AWS for spot placement scores",
        lambda: list(
            account.client("ec2", region).get_paginator("get_spot_placement_scores").paginate(
                InstanceTypes=list(types), TargetCapacity=workers, TargetCapacityUnitType="units",
                SingleAvailabilityZone=True, RegionNames=[region],
            )
        ),
    )  # fmt: skip
    told = [each for page in pages or () for each in page["SpotPlacementScores"]]
    by_zone = {names[each["AvailabilityZoneId"]]: each["Score"] for each in told if each["AvailabilityZoneId"] in names}
    return {(name, zone): score for name in types for zone, score in by_zone.items()}
