"""The commands of `draco cluster` for a cluster on AWS: its price, its end, and what is left of it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from draco.cli.console import confirm, results
from draco.errors import ExitCode, LeftoversError, MissingError, RefusedError

if TYPE_CHECKING:
    from draco.cluster.backend import Request


def plan(request: "Request", folder: Path, *, as_json: bool) -> int:
    """Print what a cluster would cost, and refuse as `cluster-up` would; change nothing."""
    from draco.cluster.aws import agreement
    from draco.cluster.aws.cost import quote

    settings = agreement.wanted(request, folder)
    found = agreement.quoted(request, settings, agreement.standing(request, settings, folder))
    if as_json:
        print(json.dumps(quote.as_json(found), indent=1))
    else:
        results().print(quote.table(found), highlight=False)
    quote.refuse(found)
    return 0


def doctor(request: "Request", folder: Path) -> int:
    """Print what a cluster on AWS needs, and the remedy where it is missing."""
    from draco.cluster.aws import doctor as checks
    from draco.cluster.aws import home
    from draco.cluster.aws import settings as settings_module

    settings = settings_module.updated(settings_module.load(home.of(folder).settings), request.settings)
    console = results()
    with console.status("looking"):
        found = list(checks.checks(settings, request.image, request.workers))
    console.print(checks.table(found), highlight=False)
    return ExitCode.MISSING if any(each.ok is False for each in found) else 0


def leftovers(name: str | None, region: str | None, *, remove: bool, yes: bool, ups: Sequence[str]) -> int:
    """Print what there is of Draco in a region; or remove what is left of one cluster, its state lost or not."""
    from draco.cluster.aws import account
    from draco.cluster.aws.leftovers import cleanup as left

    region = region or account.default_region()
    if region is None:
        raise MissingError("no region: AWS_REGION=us-east-1, or REGION=us-east-1")
    if remove and name is None:
        raise RefusedError("REMOVE=1: of which cluster? NAME=dev")
    console = results()
    with console.status(f"looking in {region}"):
        found, unseen = left.find(region, name)
    console.print(left.table(found) if found else f"{region}: nothing of Draco", highlight=False)
    for fault in unseen:
        console.print(f"not seen: {fault}", highlight=False)
    orphans = [each for each in found if each.root == "cluster" and each.costs and each.name not in ups]
    if remove and name:
        if name in ups:
            raise RefusedError(f"{name}: is up; make cluster-down NAME={name}")
        confirm(f"{name}: remove its instances and what belongs to them (storage and runs stay)", yes)
        with console.status("removing") as spinner:
            left.remove(region, name, ["cluster"], spinner.update)
        console.print(f"{name}: removed; make cluster-purge NAME={name} CLUSTER=aws removes storage and runs too")
        return 0
    if orphans:
        names = sorted({each.name for each in orphans})
        raise LeftoversError(
            f"{', '.join(names)}: cost money and are not up from here; if they are yours: "
            f"make leftovers NAME={names[0]} REMOVE=1"
        )
    return ExitCode.LEFTOVERS if unseen else 0


def extend(name: str, folder: Path, hours: float, *, yes: bool) -> int:
    """Put a cluster's end off."""
    from draco.cluster import backend, state
    from draco.cluster.aws import extend as extending
    from draco.cluster.aws.cost import quote

    cluster = state.chosen(name)
    if not backend.paid(cluster.backend):
        raise RefusedError(f"{name}: is CLUSTER={cluster.backend}, which has no end to put off")
    per_hour = cluster.details["per_hour"]
    price = quote.dollars(per_hour * hours if per_hour else None)
    confirm(f"{name}: {hours:g} hours more, about {price} ({quote.dollars(per_hour)} per hour)", yes)
    until = extending.extend(cluster, folder, hours)
    print(f"{name}: ends itself at {until}")
    return 0
