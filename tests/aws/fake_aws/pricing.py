"""The price list service, which moto lacks: GetProducts for instances."""

import json
import zlib
from collections.abc import Iterator
from typing import Any

from fake_aws.asked import Asked
from fake_aws.errors import Answer, error
from fake_aws.world import World

_LOCATIONS = {"us-east-1": "US East (N. Virginia)", "us-east-2": "US East (Ohio)", "us-west-2": "US West (Oregon)",
              "eu-west-1": "EU (Ireland)", "eu-central-1": "EU (Frankfurt)"}  # fmt: skip
# Who forgets a filter gets these too, as with the real list: another price for the same type.
_SYSTEMS = {"Linux": 1.0, "Windows": 1.9}
_TENANCIES = {"Shared": 1.0, "Dedicated": 1.06}
_SOFTWARE = {"NA": 0.0, "SQL Std": 0.48}
_STATUSES = {"Used": 1.0, "UnusedCapacityReservation": 1.0, "AllocatedCapacityReservation": 0.0}
_MOST = 100


def answer(world: World, asked: Asked) -> Answer:
    """Answer a request to the price list service."""
    if asked.action != "GetProducts":
        return error("json", "InvalidAction", f"{asked.action} is not implemented")
    wanted = asked.parameters
    if not wanted.get("ServiceCode"):
        return error("json", "InvalidParameterException", "ServiceCode is missing")
    filters = {one["Field"]: one["Value"] for one in wanted.get("Filters", [])}
    found = list(_products(world, filters)) if wanted["ServiceCode"] == "AmazonEC2" else []
    start, most = int(wanted.get("NextToken") or 0), min(int(wanted.get("MaxResults") or _MOST), _MOST)
    page: dict[str, Any] = {"FormatVersion": "aws_v1", "PriceList": found[start : start + most]}
    if start + most < len(found):
        page["NextToken"] = str(start + most)
    return Answer(200, "application/x-amz-json-1.1", json.dumps(page).encode())


def _products(world: World, filters: dict[str, str]) -> Iterator[str]:
    from moto.ec2.models.instance_types import INSTANCE_TYPES

    wanted = filters.get("instanceType")
    for name in INSTANCE_TYPES if wanted is None else [wanted] if wanted in INSTANCE_TYPES else []:
        for region, location in _LOCATIONS.items():
            for attributes, price in _variants(world, name, region, location):
                if all(attributes.get(field) == value for field, value in filters.items()):
                    yield _product(attributes, price)


def _variants(world: World, name: str, region: str, location: str) -> Iterator[tuple[dict[str, str], float]]:
    from moto.ec2.models.instance_types import INSTANCE_TYPES

    about = INSTANCE_TYPES[name]
    shared = {
        "servicecode": "AmazonEC2", "servicename": "Amazon Elastic Compute Cloud", "productFamily": "Compute Instance",
        "locationType": "AWS Region", "location": location, "regionCode": region, "instanceType": name,
        "vcpu": str(about["VCpuInfo"]["DefaultVCpus"]), "memory": f"{about['MemoryInfo']['SizeInMiB'] / 1024:g} GiB",
        "currentGeneration": "Yes", "licenseModel": "No License required", "marketoption": "OnDemand",
    }  # fmt: skip
    for system, by_system in _SYSTEMS.items():
        for tenancy, by_tenancy in _TENANCIES.items():
            for software, extra in _SOFTWARE.items():
                for status, by_status in _STATUSES.items():
                    kind = {"operatingSystem": system, "tenancy": tenancy, "preInstalledSw": software,
                            "capacitystatus": status, "operation": "RunInstances" if system == "Linux" else
                            "RunInstances:0002"}  # fmt: skip
                    price = (world.prices.on_demand(name) * by_system * by_tenancy + extra) * by_status
                    yield {**shared, **kind}, price


def _product(attributes: dict[str, str], price: float) -> str:
    sku = f"FAKE{zlib.crc32(json.dumps(attributes).encode()):012d}"
    term, rate = f"{sku}.JRTCKXETXF", f"{sku}.JRTCKXETXF.6YS6EN2CT7"
    family = attributes.pop("productFamily")
    what = f"${price:.10f} per {attributes['operatingSystem']} {attributes['instanceType']} Instance Hour"
    return json.dumps({
        "product": {"productFamily": family, "attributes": attributes, "sku": sku},
        "serviceCode": "AmazonEC2",
        "terms": {"OnDemand": {term: {
            "priceDimensions": {rate: {
                "unit": "Hrs", "endRange": "Inf", "description": what, "appliesTo": [], "rateCode": rate,
                "beginRange": "0", "pricePerUnit": {"USD": f"{price:.10f}"},
            }},
            "sku": sku, "effectiveDate": "2026-01-01T00:00:00Z", "offerTermCode": "JRTCKXETXF", "termAttributes": {},
        }}},
        "version": "20260101000000", "publicationDate": "2026-01-01T00:00:00Z",
    })  # fmt: skip
