"""Capacity blocks: GPU instances that were bought for a time beforehand, by the id of their reservation."""

from datetime import UTC, datetime
from typing import Any, NamedTuple

from botocore.exceptions import ClientError

from draco.cluster.aws import account
from draco.cluster.aws.settings import Settings
from draco.errors import RefusedError


class Block(NamedTuple):
    """One capacity block as AWS describes it."""

    id: str
    type: str
    zone: str
    total: int  # instances
    free: int  # of them, those that nobody runs
    state: str  # active: it can be started in
    kind: str  # "capacity-block", or "default" for a reservation on demand
    starts: datetime | None
    ends: datetime | None

    @property
    def line(self) -> str:
        """What is left of it, in one line."""
        until = f"; ends {_moment(self.ends)}, and AWS ends its instances from 30 minutes before" if self.ends else ""
        return f"capacity block {self.id}: {self.free} of {self.total} {self.type} free, paid when it was bought{until}"


def find(region: str, name: str) -> Block:
    """Return the capacity reservation of that id.

    Raises:
        DracoError: AWS did not answer, or there is none.
    """
    with account.speaking(f"asking AWS for the capacity reservation {name}"):
        found = _known(region, name)
    if not found:
        raise RefusedError(f"capacity_reservation: {region} has no {name}")
    return _block(found[0])


def refuse_unfit(block: Block, settings: Settings, workers: int, now: datetime | None = None) -> None:
    """Refuse a block that these workers cannot be started in.

    Raises:
        RefusedError: lists every reason.
    """
    now, what, faults = now or datetime.now(UTC), f"capacity_reservation: {block.id}", []
    if block.kind != "capacity-block":
        faults.append(f"{what} is no capacity block, and only blocks are taken: SET=capacity_reservation=")
    if block.state != "active":
        opens = f"; it starts {_moment(block.starts)}" if block.starts and block.starts > now else ""
        faults.append(f"{what} is {block.state}, and must be active{opens}")
    if not settings.is_default("worker_types") and block.type not in settings.worker_types:
        faults.append(f"{what} is of {block.type}, and worker_types={','.join(settings.worker_types)}")
    if settings.zone not in (None, block.zone):
        faults.append(f"{what} is in {block.zone}, and zone={settings.zone}: SET=zone=")
    if block.total < workers:
        faults.append(f"{what} has {block.total} instances, and WORKERS={workers}")
    if faults:
        raise RefusedError("\n".join(faults))


def _known(region: str, name: str) -> list[dict[str, Any]]:
    """Return what AWS knows of an id; of one that it does not know, nothing, where AWS itself says an error."""
    try:
        told = account.client("ec2", region).describe_capacity_reservations(CapacityReservationIds=[name])
    except ClientError as error:
        if error.response["Error"]["Code"].startswith("InvalidCapacityReservationId"):
            return []
        raise
    found: list[dict[str, Any]] = told["CapacityReservations"]
    return found


def _block(told: dict[str, Any]) -> Block:
    return Block(
        told["CapacityReservationId"], told["InstanceType"], told["AvailabilityZone"], told["TotalInstanceCount"],
        told["AvailableInstanceCount"], told["State"], told.get("ReservationType", "default"),
        told.get("StartDate"), told.get("EndDate"),
    )  # fmt: skip


def _moment(moment: datetime | None) -> str:
    return "-" if moment is None else moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
