"""Prices of instances, and the candidates for workers: (type, zone, market) in the order in which they are tried."""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, NamedTuple

from draco.cluster.aws import account

# From AWS's price pages for us-east-1 (EBS, VPC, EFS), the same in 2024-02 and 2026-06. Other regions differ, mostly by
# less than a third. All three are small beside an instance's price.
GP3_GB_MONTH = 0.08
ADDRESS_HOUR = 0.005  # each public IPv4 address
EFS_GB_MONTH = 0.30  # standard storage; what is read and written costs extra, 0.03 and 0.06 $/GB
HOURS_A_MONTH = 730

_PRICE_LIST_REGION = "us-east-1"  # one of the few regions with the price list, which covers all regions
_LOOKED_BACK = timedelta(days=30)
_UNKNOWN_SCORE = 5
_FEWEST_TYPES = 3  # for fewer AWS's score is always low, whatever the capacity

Market = Literal["spot", "on-demand", "capacity-block"]


class Spot(NamedTuple):
    """What a type costs on the spot market of one zone, in dollars per hour."""

    now: float
    month_max: float


class Prices(NamedTuple):
    """What instances cost in one region. A type that AWS does not know or offer in a zone is absent."""

    region: str
    zones: tuple[str, ...]
    offered: frozenset[tuple[str, str]]  # (type, zone)
    spot: Mapping[tuple[str, str], Spot]  # by (type, zone)
    on_demand: Mapping[str, float | None]  # by type; None: AWS did not tell


class Candidate(NamedTuple):
    """One type in one zone on one market; prices are in dollars per hour, None where AWS did not tell."""

    type: str
    zone: str
    market: Market
    price: float | None
    month_max: float | None  # of the spot price
    on_demand: float | None
    score: int | None  # 1-10, AWS's guess whether the spot request would succeed


def fetch(region: str, types: tuple[str, ...]) -> Prices:
    """Ask AWS what the types cost in every zone of the region.

    Raises:
        DracoError: AWS did not answer.
    """
    names = tuple(sorted(zones(region).values()))
    offered = frozenset(pair for pair in _offered(region, types) if pair[1] in names)
    there = tuple(name for name in dict.fromkeys(types) if any(name == pair[0] for pair in offered))
    spot = spot_prices(_spot_history(region, there)) if there else {}
    on_demand = account.ask(
        "asking AWS for on-demand prices",
        lambda: {name: on_demand_price(_products(region, name)) for name in there},
    )
    return Prices(
        region, names, offered, {pair: price for pair, price in spot.items() if pair in offered},
        on_demand or dict.fromkeys(there),
    )  # fmt: skip


def now(region: str, name: str, zone: str, market: Market) -> float | None:
    """Ask AWS what one type costs at this moment, in dollars per hour; None: AWS does not tell.

    Raises:
        DracoError: AWS did not answer.
    """
    if market == "capacity-block":
        return 0.0  # paid when it was bought
    if market == "spot":
        found = spot_prices(_spot_history(region, (name,))).get((name, zone))
        return found.now if found else None
    return account.ask("asking AWS for an on-demand price", lambda: on_demand_price(_products(region, name)))


def zones(region: str) -> dict[str, str]:
    """Return the names of the region's available zones, by zone ID."""
    with account.speaking(f"asking AWS for the zones of {region}"):
        told = account.client("ec2", region).describe_availability_zones(
            Filters=[{"Name": "state", "Values": ["available"]}, {"Name": "zone-type", "Values": ["availability-zone"]}]
        )
    return {zone["ZoneId"]: zone["ZoneName"] for zone in told["AvailabilityZones"]}


def ordered(
    prices: Prices, scores: Mapping[tuple[str, str], int], types: Sequence[str], zone: str | None, on_demand: bool
) -> tuple[Candidate, ...]:
    """Return the candidates, best first; on-demand ones come last, if at all.

    A spot candidate ranks by price x (2 - score / 10). The score is read as the chance, in tenths, that an hour's work
    is kept; lost work is done once more. On-demand candidates rank by price alone.
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
    """Return AWS's spot placement scores by (type, zone). AWS scores a zone for all types together.

    Empty where AWS does not tell them, and for fewer than three types.

    Raises:
        DracoError: AWS answers nothing at all.
    """
    if len(set(types)) < _FEWEST_TYPES:
        return {}
    names = zones(region)
    pages = account.ask(
        "asking AWS for spot placement scores",
        lambda: list(account.pages(
            "ec2", region, "get_spot_placement_scores", InstanceTypes=list(types), TargetCapacity=workers,
            TargetCapacityUnitType="units", SingleAvailabilityZone=True, RegionNames=[region],
        )),
    )  # fmt: skip
    told = [each for page in pages or () for each in page["SpotPlacementScores"]]
    by_zone = {names[each["AvailabilityZoneId"]]: each["Score"] for each in told if each["AvailabilityZoneId"] in names}
    return {(name, zone): score for name in types for zone, score in by_zone.items()}


def spot_prices(history: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], Spot]:
    """Return the newest and the highest price of every (type, zone) in a spot price history."""
    newest: dict[tuple[str, str], tuple[datetime, float]] = {}
    highest: dict[tuple[str, str], float] = {}
    for entry in history:
        pair, price = (entry["InstanceType"], entry["AvailabilityZone"]), float(entry["SpotPrice"])
        if pair not in newest or newest[pair][0] < entry["Timestamp"]:
            newest[pair] = (entry["Timestamp"], price)
        highest[pair] = max(price, highest.get(pair, 0.0))
    return {pair: Spot(price, highest[pair]) for pair, (_, price) in newest.items()}


def on_demand_price(products: Iterable[str]) -> float | None:
    """Return the one price in dollars per hour that the products name; None where they name none, or several."""
    named = {
        float(dimension["pricePerUnit"].get("USD", 0))
        for product in map(json.loads, products)
        for term in product["terms"].get("OnDemand", {}).values()
        for dimension in term["priceDimensions"].values()
        if dimension["unit"] == "Hrs"
    } - {0.0}  # what a reservation has paid for already
    return named.pop() if len(named) == 1 else None


def _offered(region: str, types: Sequence[str]) -> list[tuple[str, str]]:
    with account.speaking(f"asking AWS where in {region} there is {', '.join(types)}"):
        pages = account.pages(
            "ec2", region, "describe_instance_type_offerings", LocationType="availability-zone",
            Filters=[{"Name": "instance-type", "Values": sorted(set(types))}],
        )  # fmt: skip
        return [(each["InstanceType"], each["Location"]) for page in pages for each in page["InstanceTypeOfferings"]]


def _spot_history(region: str, types: Sequence[str]) -> list[Mapping[str, Any]]:
    with account.speaking(f"asking AWS for the spot prices of {region}"):
        pages = account.pages(
            "ec2", region, "describe_spot_price_history", InstanceTypes=list(types),
            ProductDescriptions=["Linux/UNIX"], StartTime=datetime.now(UTC) - _LOOKED_BACK,
        )  # fmt: skip
        return [entry for page in pages for entry in page["SpotPriceHistory"]]


def _products(region: str, name: str) -> list[str]:
    """Return the price list's entries for a plain Linux instance of the type, each a JSON text."""
    wanted = {
        "regionCode": region, "instanceType": name, "operatingSystem": "Linux", "tenancy": "Shared",
        "preInstalledSw": "NA", "capacitystatus": "Used",
    }  # fmt: skip
    pages = account.pages(
        "pricing", _PRICE_LIST_REGION, "get_products", ServiceCode="AmazonEC2",
        Filters=[{"Type": "TERM_MATCH", "Field": field, "Value": value} for field, value in wanted.items()],
    )  # fmt: skip
    return [product for page in pages for product in page["PriceList"]]
