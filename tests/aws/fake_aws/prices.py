"""The prices of instances: on demand per type, as spot per type and zone with thirty days of history."""

import zlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

# Linux in us-east-1, $/h. Other types get a price by their size; tests that care set their own.
_ON_DEMAND = {
    "t3.micro": 0.0104, "t3.small": 0.0208, "t3.medium": 0.0416, "t3.large": 0.0832, "t3.xlarge": 0.1664,
    "c5.large": 0.085, "c5.xlarge": 0.17, "c6i.large": 0.085, "c6i.xlarge": 0.17, "c6i.2xlarge": 0.34,
    "c6a.large": 0.0765, "c6a.xlarge": 0.153, "c7i.large": 0.08925, "c7i.xlarge": 0.1785, "c7i.2xlarge": 0.357,
    "m5.large": 0.096, "m5.xlarge": 0.192, "m6i.large": 0.096, "m6i.xlarge": 0.192, "m6i.2xlarge": 0.384,
    "m6a.large": 0.0864, "m6a.xlarge": 0.1728, "m7i.large": 0.1008, "m7i.xlarge": 0.2016, "m7i.2xlarge": 0.4032,
    "g4dn.xlarge": 0.526, "g5.xlarge": 1.006,
}  # fmt: skip
_SPOT_SHARE = 0.4
_HISTORY = timedelta(days=30)
_STEP = timedelta(hours=8)


class Prices:
    """Prices by instance type, and scores for spot capacity; what a test sets goes before what is made up here."""

    def __init__(self) -> None:
        self._on_demand: dict[str, float] = {}
        self._spot: dict[str, Any] = {}
        self._scores: dict[str, Any] = {}

    def set(self, given: Mapping[str, Any]) -> None:
        """Replace all prices that were set.

        Args:
            given: any of `on_demand`: {type: $/h}; `spot`: {type: {zone or "*": $/h, or its history as
                [[days ago, $/h], ...]}}; `scores`: {zone or region: 1..10}.
        """
        unknown = set(given) - {"on_demand", "spot", "scores"}
        if unknown:
            raise ValueError(f"prices: unknown {sorted(unknown)}; known are on_demand, spot, scores")
        self._on_demand = dict(given.get("on_demand", {}))
        self._spot = dict(given.get("spot", {}))
        self._scores = dict(given.get("scores", {}))

    def on_demand(self, instance_type: str) -> float:
        """Return the price of a type on demand."""
        known = self._on_demand.get(instance_type, _ON_DEMAND.get(instance_type))
        return known if known is not None else _by_size(instance_type)

    def spot(self, instance_type: str, zone: str) -> float:
        """Return the spot price of the moment."""
        return self.history(instance_type, zone)[-1][1]

    def history(self, instance_type: str, zone: str) -> list[tuple[datetime, float]]:
        """Return when the spot price changed to what, oldest first; the last one holds now."""
        now = datetime.now(UTC).replace(microsecond=0)
        by_zone = self._spot.get(instance_type, {})
        given = by_zone.get(zone, by_zone.get("*"))
        if isinstance(given, Sequence):
            points = ((now - timedelta(days=float(days)), float(price)) for days, price in given)
            return sorted(points, key=lambda point: point[0])
        seed = zlib.crc32(f"{instance_type} {zone}".encode())
        base = float(given) if given is not None else self.on_demand(instance_type) * _SPOT_SHARE * _between(seed)
        count = _HISTORY // _STEP
        points = []
        for i in range(count):
            swing = 0.0 if i == count - 1 else _between(seed + i) - 1
            at = now - (count - 1 - i) * _STEP - timedelta(minutes=5 + seed % 200)
            points.append((at, round(base * (1 + swing / 4), 6)))
        return points

    def score(self, place: str) -> int:
        """Return how well spot requests are likely to do in a zone or region, 1 to 10."""
        return int(self._scores.get(place, 9 if zlib.crc32(place.encode()) % 2 else 8))


def _between(seed: int) -> float:
    """Return a number from 0.8 to 1.2 that is always the same."""
    return 0.8 + (seed * 2654435761 % 2**32) / 2**32 * 0.4


def _by_size(instance_type: str) -> float:
    from moto.ec2.models.instance_types import INSTANCE_TYPES

    about = INSTANCE_TYPES.get(instance_type)
    if about is None:
        return 0.0
    cores, memory = about["VCpuInfo"]["DefaultVCpus"], about["MemoryInfo"]["SizeInMiB"] / 1024
    accelerators = sum(gpu.get("Count", 0) for gpu in about.get("GpuInfo", {}).get("Gpus", []))
    return round(cores * 0.033 + memory * 0.0036 + accelerators * 0.35, 4)
