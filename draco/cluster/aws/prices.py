"""What a cluster's parts cost: spot and on-demand prices as AWS tells them now, and a few that hardly ever change."""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, NamedTuple

from draco.cluster.aws import account, optional

# From AWS's price pages for us-east-1 (EBS, VPC, EFS), the same in 2024-02 and 2026-06. Other regions differ, mostly by
# less than a third; beside an instance's price none of the three weighs much.
GP3_GB_MONTH = 0.08
ADDRESS_HOUR = 0.005  # each public IPv4 address
EFS_GB_MONTH = 0.30  # standard storage; what is read and written costs extra, 0.03 and 0.06 $/GB
HOURS_A_MONTH = 730

_PRICE_LIST_REGION = "us-east-1"  # one of the few with the service; it tells the prices of all of them
_LOOKED_BACK = timedelta(days=30)


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


@cache
def fetch(region: str, types: tuple[str, ...]) -> Prices:
    """Ask AWS what the types cost in every zone of the region; asked again, the answer is the same and costs nothing.

    Raises:
        DracoError: AWS did not answer.
    """
    names = tuple(sorted(zones(region).values()))
    offered = frozenset(pair for pair in _offered(region, types) if pair[1] in names)
    there = tuple(name for name in dict.fromkeys(types) if any(name == pair[0] for pair in offered))
    spot = spot_prices(_spot_history(region, there)) if there else {}
    on_demand = optional.ask(
        "asking AWS for on-demand prices",
        lambda: {name: on_demand_price(_products(region, name)) for name in there},
    )
    return Prices(
        region, names, offered, {pair: price for pair, price in spot.items() if pair in offered},
        on_demand or dict.fromkeys(there),
    )  # fmt: skip


def zones(region: str) -> dict[str, str]:
    """Return the names of the region's own zones that can be used now, by zone ID."""
    with account.speaking(f"asking AWS for the zones of {region}"):
        told = account.client("ec2", region).describe_availability_zones(
            Filters=[{"Name": "state", "Values": ["available"]}, {"Name": "zone-type", "Values": ["availability-zone"]}]
        )
    return {zone["ZoneId"]: zone["ZoneName"] for zone in told["AvailabilityZones"]}


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
        pages = (
            account.client("ec2", region)
            .get_paginator("describe_instance_type_offerings")
            .paginate(
                LocationType="availability-zone", Filters=[{"Name": "instance-type", "Values": sorted(set(types))}]
            )
        )
        return [(each["InstanceType"], each["Location"]) for page in pages for each in page["InstanceTypeOfferings"]]


def _spot_history(region: str, types: Sequence[str]) -> list[Mapping[str, Any]]:
    with account.speaking(f"asking AWS for the spot prices of {region}"):
        pages = (
            account.client("ec2", region)
            .get_paginator("describe_spot_price_history")
            .paginate(
                InstanceTypes=list(types),
                ProductDescriptions=["Linux/UNIX"],
                StartTime=datetime.now(UTC) - _LOOKED_BACK,
            )
        )
        return [entry for page in pages for entry in page["SpotPriceHistory"]]


def _products(region: str, name: str) -> list[str]:
    """Return the price list's entries for a plain Linux instance of the type, each a JSON text."""
    wanted = {
        "regionCode": region, "instanceType": name, "operatingSystem": "Linux", "tenancy": "Shared",
        "preInstalledSw": "NA", "capacitystatus": "Used",
    }  # fmt: skip
    pages = (
        account.client("pricing", _PRICE_LIST_REGION)
        .get_paginator("get_products")
        .paginate(
            ServiceCode="AmazonEC2",
            Filters=[{"Type": "TERM_MATCH", "Field": field, "Value": value} for field, value in wanted.items()],
        )
    )
    return [product for page in pages for product in page["PriceList"]]
