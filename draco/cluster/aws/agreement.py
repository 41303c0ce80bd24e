"""The agreement before a start: which nodes, with which settings, at which prices.

`offer` makes it. Before instances start, `refuse_changed` and `dearer` check that it still holds.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from draco.cluster import engine
from draco.cluster.aws import account, home, instances, registry, terraform
from draco.cluster.aws import settings as settings_module
from draco.cluster.aws.cost import prices, quote
from draco.cluster.aws.cost.prices import Market
from draco.cluster.aws.cost.quote import Quote, dollars
from draco.cluster.aws.home import Choice
from draco.cluster.aws.settings import Settings
from draco.cluster.backend import HEAD, Offer, Request, names
from draco.errors import MissingError, RefusedError

MOST_WORKERS = 200
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")  # what an image repository may be called
# Settings whose change Terraform would answer with new nodes, or ignore.
FIXED = (
    "zone", "head_type", "worker_types", "hours", "max_spot_price", "volume_gb", "placement_group", "efa", "ami",
    "capacity_reservation",
)  # fmt: skip


class Agreement(NamedTuple):
    """What `start` may start; it starts nothing else."""

    settings: Settings  # with a region
    nodes: tuple[str, ...]  # to be started; none: all are there
    standing: bool  # some nodes are there, and the others must be like them
    quote: Quote | None  # of the whole cluster; None: nothing to start

    @property
    def region(self) -> str:
        """Where the cluster is."""
        assert self.settings.region
        return self.settings.region

    def price(self, choice: Choice, market: Market) -> float | None:
        """Return the agreed price of a worker of that choice on one market; None: AWS did not tell it."""
        for each in self.quote.candidates if self.quote else ():
            if (each.type, each.zone) == (choice.type, choice.zone) and market in (each.market, "on-demand"):
                return each.on_demand if market == "on-demand" else each.price
        return None


def offer(request: Request, folder: Path, console: Console) -> Offer:
    """Print what a start would cost, and return what the user has to agree to; no question where nothing is missing.

    Raises:
        RefusedError: the settings contradict nodes that are there, or it costs more than max_price.
        NoCapacityError, MissingError: there is nowhere to start it, or a quota falls short.
    """
    settings = wanted(request, folder)
    refuse_changes(request, settings, folder)
    lacking = tuple(missing(request, settings))
    choice = standing(request, settings, folder)
    if not lacking:
        return Offer(Agreement(settings, (), choice is not None, None), "")
    found = quoted(request, settings, choice)
    console.print(quote.table(found), highlight=False)
    quote.refuse(found)
    if any(found.gpus(each) for each in (settings.head_type, *(candidate.type for candidate in found.candidates))):
        engine.refuse_build(request.image)
    with console.status("scanning the image, if there is a scanner"):
        vulnerabilities = registry.scan(request.image)
    if vulnerabilities:
        console.print(vulnerabilities, highlight=False)
    if len(lacking) <= request.workers:
        console.print(f"to be started: {', '.join(lacking)}; the others are there", highlight=False)
    if choice:
        if again := [node for node in lacking if node in choice.promoted]:
            console.print(f"on demand, as before: {', '.join(again)}", highlight=False)
        if choice.market == "spot" and (settings.on_demand or request.on_demand):
            instead = promoted(choice, lacking, settings.max_price)
            if isinstance(instead, Choice):
                costs = f"on demand, {dollars(instead.per_hour)} per hour in all"
                console.print(f"without spot capacity: {costs}", highlight=False)
    return Offer(Agreement(settings, lacking, choice is not None, found), f"{request.name}: start it")


def refuse_changed(agreed: Agreement, request: Request, folder: Path) -> None:
    """Refuse to start nodes that nobody agreed to, because some have ended or come up since.

    Raises:
        RefusedError: names them.
    """
    more = [node for node in missing(request, agreed.settings) if node not in agreed.nodes]
    if more:
        raise RefusedError(
            f"{request.name}: {', '.join(more)} ended after the price was agreed; make cluster-up asks again"
        )
    if agreed.standing != (standing(request, agreed.settings, folder) is not None):
        raise RefusedError(
            f"{request.name}: other nodes came up or ended after the price was agreed; make cluster-up asks again"
        )


def dearer(agreed: Agreement, choice: Choice, market: Market) -> str:
    """Return how a worker of that choice has become dearer on one market than was agreed; empty: it has not.

    Raises:
        DracoError: AWS does not answer.
    """
    price = agreed.price(choice, market)
    if price is None:
        return ""
    now = prices.now(agreed.region, choice.type, choice.zone, market)
    if now is None:
        return f"AWS no longer tells its price, and {dollars(price)} per hour was agreed"
    return f"costs {dollars(now)} per hour now, and {dollars(price)} was agreed" if now > price else ""


def wanted(request: Request, folder: Path) -> Settings:
    """Return the settings of a request, on top of those of earlier requests; nothing is recorded.

    Raises:
        JobError: lists every fault of SET=.
        MissingError: no region.
        RefusedError: the cluster is in another region, or its state elsewhere.
    """
    there = home.of(folder)
    before = settings_module.load(there.settings)
    made = settings_module.updated(before, request.settings)
    region = made.region or account.default_region()
    if region is None:
        raise MissingError("no region: AWS_REGION=us-east-1, or SET=region=us-east-1")
    if before.region not in (None, region):
        raise RefusedError(
            f"{request.name}: is in {before.region}, not {region}; another NAME=, or make cluster-down and "
            "make cluster-purge first, which removes its runs"
        )
    if terraform.known(there.base) and made.state_bucket != before.state_bucket:
        raise RefusedError(
            f"{request.name}: its state is {_place(before)}, not {_place(made)}: "
            f"SET=state_bucket={before.state_bucket or ''}"
        )
    if not _NAME.fullmatch(request.name):
        raise RefusedError(f"NAME={request.name}: at AWS no dash may end it, nor follow another")
    if request.workers > MOST_WORKERS:
        raise RefusedError(f"WORKERS={request.workers}: AWS takes at most {MOST_WORKERS} worker nodes")
    return made.model_copy(update={"region": region})


def _place(settings: Settings) -> str:
    return f"in the bucket {settings.state_bucket}" if settings.state_bucket else "here"


def refuse_changes(request: Request, settings: Settings, folder: Path) -> None:
    """Refuse settings that running nodes do not have and cannot take over."""
    there = home.of(folder)
    before = settings_module.load(there.settings)
    changed = [key for key in FIXED if getattr(settings, key) != getattr(before, key)]
    if changed and standing(request, settings, folder):
        words = ", ".join(f"{key} from {getattr(before, key)} to {getattr(settings, key)}" for key in changed)
        longer = "; make extend puts the end off" if "hours" in changed else ""
        raise RefusedError(
            f"{request.name}: is up: {words} would take new nodes: make cluster-down first; runs and data stay{longer}"
        )


def missing(request: Request, settings: Settings) -> list[str]:
    """Return the nodes that would have to be started."""
    assert settings.region
    there = instances.alive(settings.region, request.name)
    return [node for node in names(request.workers) if node not in there]


def standing(request: Request, settings: Settings, folder: Path) -> Choice | None:
    """Return the choice that the running nodes were started with; None: no node runs."""
    assert settings.region
    choice = home.of(folder).choice()
    return choice if choice and instances.alive(settings.region, request.name) else None


def quoted(request: Request, settings: Settings, choice: Choice | None) -> Quote:
    """Return what the cluster costs; `choice`: of running nodes, beside which the others must start."""
    if choice is None:
        return quote.quote(request.name, settings, request.workers)
    settings = settings.model_copy(update={"worker_types": (choice.type,), "zone": choice.zone})
    found = quote.quote(request.name, settings, request.workers)
    same = tuple(each for each in found.candidates if each.market == choice.market)
    return found._replace(candidates=same) if same else found


def promoted(choice: Choice, lacking: Sequence[str], limit: float | None) -> Choice | str:
    """Return the choice with the lacking workers on demand, or the reason why that is refused."""
    new = [node for node in lacking if node not in (HEAD, *choice.promoted)]
    total = None
    if choice.per_hour is not None and choice.dearer is not None:
        total = choice.per_hour + len(new) * choice.dearer
    if limit is not None and (total is None or total > limit):
        costs = "nobody knows what" if total is None else dollars(total)
        return f"on demand: {costs} per hour in all, above max_price={limit:g}"
    return choice._replace(promoted=(*choice.promoted, *new), per_hour=total)
