"""`make extend`: a later end of a cluster. Nodes read it from their own tags once a minute, so only tags change."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from draco.cluster.aws import account, home, instances, terraform
from draco.cluster.backend import Cluster
from draco.errors import MissingError, RefusedError

MOST_HOURS = 168


def extend(cluster: Cluster, folder: Path, hours: float) -> str:
    """Let a cluster live `hours` longer and return until when.

    Raises:
        RefusedError: that would be further off than a cluster may ask for at its start.
        MissingError: it has no instances any more.
    """
    there = home.of(folder)
    choice = there.choice()
    region = cluster.details["region"]
    alive = instances.alive(region, cluster.name)
    if choice is None or not alive:
        raise MissingError(f"{cluster.name}: none of its nodes is there any more; make cluster-up starts them again")
    now = datetime.now(UTC)
    until = max(home.moment(choice.expires_at), now) + timedelta(hours=hours)
    if not hours > 0 or until - now > timedelta(hours=MOST_HOURS):
        raise RefusedError(f"HOURS={hours:g}: must be above 0, and the end at most {MOST_HOURS} hours from now")
    expires = home.expiry(until)
    there.choose(choice._replace(expires_at=expires))
    terraform.prepare(  # so that the next cluster-up agrees
        "cluster", there.cluster, {**terraform.variables(there.cluster), "expires_at": expires},
        terraform.bucket(there.cluster),
    )  # fmt: skip
    with account.speaking(f"putting the end of {cluster.name} off"):
        account.client("ec2", region).create_tags(
            Resources=[each.id for each in alive.values()], Tags=[{"Key": "ExpiresAt", "Value": expires}]
        )
    return expires
