"""Service quotas of EC2."""

import json
from typing import Any

from moto.servicequotas.responses import ServiceQuotasResponse

from fake_aws.world import QUOTAS, World


def fill(world: World) -> None:
    """See gaps."""
    original = ServiceQuotasResponse.get_service_quota

    def get_service_quota(self: Any) -> str:
        wanted = json.loads(self.body)
        if wanted.get("ServiceCode") != "ec2" or wanted.get("QuotaCode") not in world.quotas:
            said: str = original(self)
            return said
        return json.dumps({"Quota": _quota(world, wanted["QuotaCode"])})

    def list_service_quotas(self: Any) -> str:
        return json.dumps({"Quotas": [_quota(world, code) for code in world.quotas]})

    ServiceQuotasResponse.get_service_quota = get_service_quota
    ServiceQuotasResponse.list_service_quotas = list_service_quotas


def _quota(world: World, code: str) -> dict[str, Any]:
    name = QUOTAS.get(code, (code, 0.0))[0]
    return {
        "ServiceCode": "ec2", "ServiceName": "Amazon Elastic Compute Cloud (Amazon EC2)",
        "QuotaArn": f"arn:aws:servicequotas:{world.region}:{world.account}:ec2/{code}", "QuotaCode": code,
        "QuotaName": name, "Value": float(world.quotas[code]), "Unit": "None", "Adjustable": True,
        "GlobalQuota": False,
    }  # fmt: skip
