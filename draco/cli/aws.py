"""The command line's part that has to do with money: what a cluster on AWS costs, for how long, and what is left."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from draco.errors import LeftoversError, MissingError, RefusedError

if TYPE_CHECKING:
    from rich.console import Console

    from draco.cluster.backend import Cluster, Request
    from draco.cluster.interrupt import Way


def plan(request: "Request", folder: Path, *, as_json: bool) -> int:
    """Print what a cluster would cost, and refuse as `cluster-up` would; change nothing."""
    from draco.cluster.aws import start
    from draco.cluster.aws.cost import quote

    found = start.quoted(request, start.wanted(request, folder), folder)
    if as_json:
        print(json.dumps(quote.as_json(found), indent=1))
    else:
        _console().print(quote.table(found), highlight=False)
    quote.refuse(found)
    return 0


def agree(request: "Request", folder: Path, console: "Console", *, yes: bool) -> None:
    """Show the price of what would be started, and ask. Nothing to start: nothing to ask.

    Raises:
        RefusedError: declined, or above max_price.
        NoCapacityError, MissingError: there is nowhere to start it, or a quota falls short.
    """
    from draco.cluster.aws import registry, start
    from draco.cluster.aws.cost import quote

    settings = start.wanted(request, folder)
    start.refuse_changes(request, settings, folder)
    nodes = start.missing(request, settings)
    if not nodes:
        return
    found = start.quoted(request, settings, folder)
    console.print(quote.table(found), highlight=False)
    quote.refuse(found)
    with console.status("scanning the image, if there is a scanner"):
        vulnerabilities = registry.scan(request.image)
    if vulnerabilities:
        console.print(vulnerabilities, highlight=False)
    if len(nodes) <= request.workers:
        console.print(f"to be started: {', '.join(nodes)}; the others are there", highlight=False)
    _ask(f"{request.name}: start it", yes)


def _ask(what: str, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise RefusedError(f"{what}? There is nobody to ask: YES=1 says that it may")
    try:
        answer = input(f"{what}? [y/N] ")
    except EOFError:
        answer = ""
    if answer.strip().lower() not in ("y", "yes"):
        raise RefusedError("nothing was started or removed")


def doctor(request: "Request", folder: Path) -> int:
    """Print what a cluster on AWS needs, and the remedy where it is missing."""
    from draco.cluster.aws import doctor as checks
    from draco.cluster.aws import home
    from draco.cluster.aws import settings as settings_module

    settings = settings_module.updated(settings_module.load(home.of(folder).settings), request.settings)
    console = _console()
    with console.status("looking"):
        found = list(checks.checks(settings, request.image, request.workers))
    console.print(checks.table(found), highlight=False)
    return MissingError.exit_code if any(each.ok is False for each in found) else 0


def leftovers(name: str | None, region: str | None, *, remove: bool, yes: bool, ups: Sequence[str]) -> int:
    """Print what there is of Draco in a region; or remove what is left of one cluster, its state lost or not."""
    from draco.cluster.aws import account
    from draco.cluster.aws.leftovers import cleanup as left

    region = region or account.default_region()
    if region is None:
        raise MissingError("no region: AWS_REGION=us-east-1, or REGION=us-east-1")
    if remove and name is None:
        raise RefusedError("REMOVE=1: of which cluster? NAME=dev")
    console = _console()
    with console.status(f"looking in {region}"):
        found, unseen = left.find(region, name)
    console.print(left.table(found) if found else f"{region}: nothing of Draco", highlight=False)
    for fault in unseen:
        console.print(f"not seen: {fault}", highlight=False)
    orphans = [each for each in found if each.root == "cluster" and each.costs and each.name not in ups]
    if remove and name:
        if name in ups:
            raise RefusedError(f"{name}: is up; make cluster-down NAME={name}")
        _ask(f"{name}: remove its instances and what belongs to them (storage and runs stay)", yes)
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
    return LeftoversError.exit_code if unseen else 0


def extend(name: str, folder: Path, hours: float, *, yes: bool) -> int:
    """Put a cluster's end off."""
    from draco.cluster import state
    from draco.cluster.aws import extend as extending
    from draco.cluster.aws.cost import quote

    cluster = state.chosen(name)
    if cluster.backend != "aws":
        raise RefusedError(f"{name}: is CLUSTER={cluster.backend}, which has no end to put off")
    per_hour = cluster.details["per_hour"]
    price = quote.dollars(per_hour * hours if per_hour else None)
    _ask(f"{name}: {hours:g} hours more, about {price} ({quote.dollars(per_hour)} per hour)", yes)
    until = extending.extend(cluster, folder, hours)
    print(f"{name}: ends itself at {until}")
    return 0


def interruption(
    cluster: "Cluster", node: str, notice_s: float, console: "Console", *, yes: bool
) -> "tuple[Way, float]":
    """Say what AWS will do to a node and ask; return the way and the seconds between notice and end, as AWS has them.

    Raises:
        RefusedError: declined, on demand, or a notice longer than AWS gives.
        MissingError: the node or the role is not there.
    """
    from draco.cluster.aws import fault_injection
    from draco.cluster.aws.cost import quote

    minutes = fault_injection.minutes(notice_s)
    target = fault_injection.target(cluster, node)
    if 60 * minutes != notice_s:
        console.print(f"NOTICE={notice_s:g}: AWS takes {minutes} minutes, from 2 on and whole ones", highlight=False)
    cost = quote.dollars(fault_injection.PER_MINUTE * minutes)
    console.print(f"{node}: AWS Fault Injection Service takes {cost} for it, and the instance ends", highlight=False)
    _ask(f"{cluster.name}: interrupt {node} ({target.instance.id})", yes)
    return fault_injection.way(cluster, target), 60.0 * minutes


def _console() -> "Console":
    from rich.console import Console

    return Console(soft_wrap=True, width=None if sys.stdout.isatty() else 160)
