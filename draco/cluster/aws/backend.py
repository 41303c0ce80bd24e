"""EC2 instances as nodes: CLUSTER=aws. The functions of Backend and Paid; `start` has the way up."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from draco.cluster import ssh
from draco.cluster.aws import account, agreement, fault_injection, home, instances, start, terraform
from draco.cluster.aws import settings as settings_module
from draco.cluster.aws.cost.quote import dollars
from draco.cluster.aws.leftovers import cleanup
from draco.cluster.backend import HEAD, Cluster, Offer, Request, Say, State, quietly
from draco.cluster.eviction import Eviction
from draco.errors import DracoError, LeftoversError, MissingError, RefusedError


def offer(request: Request, folder: Path, console: Console) -> Offer:
    """See Paid."""
    return agreement.offer(request, folder, console)


def up(request: Request, folder: Path, say: Say = quietly) -> Cluster:
    """See Backend."""
    return start.up(request, folder, say)


def down(cluster: Cluster, folder: Path, say: Say = quietly) -> None:
    """See Backend. What Terraform does not know is found by its tags and removed.

    Raises:
        LeftoversError: something is left.
    """
    there = home.of(folder)
    region = _region(cluster, folder)
    failed: DracoError | None = None
    if terraform.known(there.cluster):
        try:
            terraform.destroy(there.cluster, say)
        except MissingError:
            raise
        except DracoError as error:  # its state may be gone: tags still tell
            failed = error
    remaining(region, cluster.name, say, failed)
    there.choose(None)
    for pattern in ("operator_key*", "known_hosts", "ssh_config"):
        for path in folder.glob(pattern):
            path.unlink()


def remaining(region: str, name: str, say: Say, failed: DracoError | None = None) -> None:
    """Remove what is left of a cluster except its base, found by tags.

    Raises:
        LeftoversError: something could not be removed or looked up.
    """
    say("looking for leftovers")
    found, unseen = cleanup.find(region, name, ["cluster"])
    if found:
        cleanup.remove(region, name, ["cluster"], say)
    if unseen:
        raise LeftoversError("\n".join([f"{name}: nobody could see whether all is gone:", *unseen]))
    if failed and not found:
        raise failed


def purge(name: str, folder: Path, say: Say = quietly) -> None:
    """See Backend: network, storage, registry and roles go, and with them every run."""
    there = home.of(folder)
    region = _region(None, folder)
    if instances.alive(region, name):
        raise RefusedError(f"{name}: has instances; make cluster-down NAME={name} CLUSTER=aws first")
    if terraform.known(there.base):
        terraform.destroy(there.base, say)
    cleanup.remove(region, name, ["cluster", "base"], say)
    for path in sorted(there.path.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    if there.path.exists():
        there.path.rmdir()


def states(cluster: Cluster, folder: Path) -> dict[str, State]:
    """See Backend: the state at AWS, and for running instances whether they answer by ssh."""
    alive = instances.alive(_region(cluster, folder), cluster.name)
    answers = ssh.probed(folder, [node for node in cluster.nodes if node.name in alive])
    return {node.name: answers.get(node.name, "missing") for node in cluster.nodes}


def notes(cluster: Cluster, folder: Path) -> dict[str, Any]:
    """See Backend: place, market, cost so far, and expiry."""
    region = _region(cluster, folder)
    alive = instances.alive(region, cluster.name)
    choice = home.of(folder).choice()
    now = datetime.now(UTC)
    expires = home.moment(choice.expires_at if choice else cluster.details["expires_at"])
    per_hour = cluster.details["per_hour"]
    hours = [instances.age_hours(each, now) for each in alive.values()]
    return {
        "region": region,
        "zone": cluster.details["zone"],
        "type": cluster.details["type"],
        "market": {node: each.market for node, each in alive.items()},
        "notices": instances.notices(region, alive),
        "per_hour": per_hour,
        "spent": None if per_hour is None else per_hour / len(cluster.nodes) * sum(hours),
        "expires_at": home.expiry(expires),
        "hours_left": (expires - now).total_seconds() / 3600,
        "ended": None if HEAD in alive else instances.last_words(region, cluster.name),
    }


def command(cluster: Cluster, folder: Path, node: str, argv: Sequence[str], *, terminal: bool = False) -> list[str]:
    """See Backend: in the trainer's container."""
    return ssh.command(cluster, folder, node, argv, terminal=terminal)


def storage_command(cluster: Cluster, folder: Path, argv: Sequence[str]) -> list[str] | None:
    """See Backend: only the head mounts the runs."""


def connection(cluster: Cluster, folder: Path, node: str) -> dict[str, Any]:
    """See Backend."""
    return {
        **ssh.ansible_variables(folder, node),
        "ansible_become": True,
        "ansible_python_interpreter": "/usr/bin/python3",
    }


def images(cluster: Cluster, folder: Path) -> dict[str, str]:
    """See Backend."""
    return ssh.images(cluster, folder)


def eviction(cluster: Cluster, folder: Path, node: str, notice_s: float) -> Eviction:
    """See Backend: AWS itself gives notice and ends the instance."""
    return fault_injection.eviction(cluster, node, notice_s)


def replacing(cluster: Cluster) -> str:
    """See Paid."""
    more = cluster.details.get("dearer")
    if more is None:
        return ""
    return f"a lost worker that the spot market cannot replace is bought on demand: {dollars(more)} per hour more each"


def _region(cluster: Cluster | None, folder: Path) -> str:
    """Return the region of a cluster, also where only its name is known."""
    if cluster and "region" in cluster.details:
        return str(cluster.details["region"])
    region = settings_module.load(home.of(folder).settings).region or account.default_region()
    if region is None:
        raise MissingError("no region: AWS_REGION=us-east-1")
    return region
