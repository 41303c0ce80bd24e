"""The quote of a cluster: its price, its ceiling and its quotas, before anything is created."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from rich.console import Group
from rich.table import Table

from draco.cluster.aws.cost import blocks, prices, quotas
from draco.cluster.aws.cost.blocks import Block
from draco.cluster.aws.cost.prices import Candidate, Prices
from draco.cluster.aws.cost.quotas import Kind, Quota
from draco.cluster.aws.settings import Settings
from draco.errors import MissingError, NoCapacityError, RefusedError

_HEAD_WITHOUT = "the head has no GPU: the server computes on its CPU (server_device: auto), and it costs less"


class Quote(NamedTuple):
    """The request, AWS's answers, and the sums that follow. In dollars; None where a price is not known."""

    name: str
    settings: Settings
    workers: int
    prices: Prices
    candidates: tuple[Candidate, ...]  # best first
    quotas: tuple[Quota, ...]  # of the best candidate
    kinds: Mapping[str, Kind] = {}  # by type
    block: Block | None = None  # that the workers are started in

    @property
    def best(self) -> Candidate | None:
        """Where the workers will be, if there is capacity."""
        return self.candidates[0] if self.candidates else None

    @property
    def region(self) -> str:
        """The region that was asked."""
        return self.prices.region

    @property
    def head(self) -> float | None:
        """Per hour, on demand."""
        return self.prices.on_demand.get(self.settings.head_type)

    @property
    def disks(self) -> float:
        """Per hour, of all nodes."""
        return (self.workers + 1) * self.settings.disk_gb * prices.GP3_GB_MONTH / prices.HOURS_A_MONTH

    @property
    def addresses(self) -> float:
        """Per hour, of all nodes."""
        return (self.workers + 1) * prices.ADDRESS_HOUR

    @property
    def per_hour(self) -> float | None:
        """The whole cluster at what the best candidate costs now."""
        return self.at(self.best.price) if self.best else None

    @property
    def ceiling(self) -> float | None:
        """The whole cluster per hour, whichever candidate it will be and however the spot price rises."""
        each = [_ceiling(candidate, self.settings.max_spot_price) for candidate in self.candidates]
        known = [price for price in each if price is not None]
        return self.at(max(known)) if known and len(known) == len(each) else None

    @property
    def most(self) -> float | None:
        """What it can cost until it expires."""
        return None if self.ceiling is None else self.ceiling * self.settings.hours

    def gpus(self, instance_type: str) -> int:
        """Return how many GPUs a node of a type has; 0 where AWS was not asked."""
        return self.kinds[instance_type].gpus if instance_type in self.kinds else 0

    def at(self, worker: float | None) -> float | None:
        """Return what the whole cluster costs per hour with workers at that price."""
        if worker is None or self.head is None:
            return None
        return self.head + self.workers * worker + self.disks + self.addresses


def quote(name: str, settings: Settings, workers: int) -> Quote:
    """Ask AWS what a cluster costs and whether its quotas have room for it; `settings.region` must be set.

    Candidates above max_price or beyond a quota are left out. If there are no others they stay, and `refuse` says why.

    Raises:
        RefusedError: an instance type does not exist in the region, or cannot run a node; or the capacity block is none
            for these workers.
        DracoError: AWS did not answer.
    """
    region = settings.region
    assert region
    block = None
    if settings.capacity_reservation:
        block = blocks.find(region, settings.capacity_reservation)
        blocks.refuse_unfit(block, settings, workers)
        settings = settings.model_copy(update={"worker_types": (block.type,), "zone": block.zone})
    survey = quotas.survey(region, name, settings.types)
    types = worker_types(settings, survey.kinds)
    quotas.refuse_unfit(region, (settings.head_type, *types), survey.kinds, efa=settings.efa, ami=settings.ami)
    found = prices.fetch(region, (settings.head_type, *types))
    scores = prices.scores(region, types, workers)
    bare = Quote(name, settings, workers, found, (), (), survey.kinds, block)

    def quotas_of(candidate: Candidate) -> tuple[Quota, ...]:
        return survey.quotas(settings.head_type, candidate.type, candidate.market, workers)

    usable = _preferring(
        startable(_ordered(bare, scores, types), found, settings),
        lambda candidate: _affordable(bare.at(candidate.price), settings.max_price),
        lambda candidate: not any(each.is_short for each in quotas_of(candidate)),
    )
    return bare._replace(candidates=usable, quotas=quotas_of(usable[0]) if usable else ())


def _ordered(bare: Quote, scores: Mapping[tuple[str, str], int], types: tuple[str, ...]) -> tuple[Candidate, ...]:
    """Return the candidates, best first: the capacity block, or all of them."""
    settings, block = bare.settings, bare.block
    if block is None:
        return prices.ordered(bare.prices, scores, types, settings.zone, settings.on_demand)
    return (
        Candidate(block.type, block.zone, "capacity-block", 0.0, None, bare.prices.on_demand.get(block.type), None),
    )  # fmt: skip


def worker_types(settings: Settings, kinds: Mapping[str, Kind]) -> tuple[str, ...]:
    """Return the workers' types. The default list loses the types that the region does not have."""
    there = tuple(each for each in settings.worker_types if each in kinds)
    return there if there and settings.is_default("worker_types") else settings.worker_types


def startable(found: tuple[Candidate, ...], prices: Prices, settings: Settings) -> tuple[Candidate, ...]:
    """Return the candidates whose zone has the head's type too, and whose price is not above the spot limit."""
    limit = math.inf if settings.max_spot_price is None else settings.max_spot_price
    return tuple(
        each for each in found
        if (settings.head_type, each.zone) in prices.offered
        and (each.market != "spot" or each.price is None or each.price <= limit)
    )  # fmt: skip


def refuse(quote: Quote) -> None:
    """Raise the first reason why this cluster must not start.

    Raises:
        NoCapacityError: there is nowhere to start workers.
        RefusedError: it costs more than max_price, or nobody knows.
        MissingError: a quota falls short.
    """
    limit = quote.settings.max_price
    if not quote.candidates:
        raise NoCapacityError(_nowhere(quote))
    if limit is not None and quote.per_hour is None:
        raise RefusedError(
            f"{quote.name}: AWS does not tell what it costs, and max_price={limit:g} is not to be passed: "
            "SET=max_price= takes the limit off"
        )
    if limit is not None and quote.per_hour is not None and quote.per_hour > limit:
        raise RefusedError(
            f"{quote.name}: costs {dollars(quote.per_hour)} per hour, above max_price={limit:g}: "
            f"SET=max_price={math.ceil(quote.per_hour * 100) / 100:g}, fewer WORKERS, or smaller SET=worker_types="
        )
    short = [each for each in quote.quotas if each.is_short]
    if short:
        raise MissingError("\n".join(
            f"{quote.region}: quota {each.name}: needs {each.needed}, {each.left} of {each.limit} left: "
            f"fewer WORKERS, or {each.remedy(quote.region)}" for each in short
        ))  # fmt: skip


def table(quote: Quote) -> Group:
    """Return the quote as a table, with remarks below it."""
    best, nodes, settings = quote.best, quote.workers + 1, quote.settings
    rows = Table("what", "how many", "of which kind", box=None, show_header=False, padding=(0, 2, 0, 2))
    rows.add_column(justify="right")
    rows.add_row("head", f"1 x {settings.head_type}", "on-demand", _hourly(quote.head))
    if best:
        price = None if best.price is None else best.price * quote.workers
        rows.add_row("workers", f"{quote.workers} x {best.type}", best.market, _hourly(price))
    rows.add_row("disks", f"{nodes} x {settings.disk_gb} GB", "gp3", _hourly(quote.disks))
    rows.add_row("addresses", str(nodes), "public IPv4", _hourly(quote.addresses))
    rows.add_row("total", "", "", _hourly(quote.per_hour))
    rows.add_row("ceiling", "", _ceiling_is(quote), _hourly(quote.ceiling))
    rows.add_row("lifetime", f"{settings.hours:g} h", "at most", dollars(quote.most))
    return Group(f"{quote.name}  {best.zone if best else quote.region}", rows, *_lines(quote))


def as_json(quote: Quote) -> dict[str, Any]:
    """Return the quote as plain values."""
    return {
        "name": quote.name, "region": quote.region, "zone": quote.best.zone if quote.best else None,
        "workers": quote.workers, "head": {"type": quote.settings.head_type, "price": quote.head},
        "candidates": [each._asdict() for each in quote.candidates],
        "disks_per_hour": quote.disks, "addresses_per_hour": quote.addresses,
        "per_hour": quote.per_hour, "ceiling_per_hour": quote.ceiling, "max_price": quote.settings.max_price,
        "hours": quote.settings.hours, "at_most": quote.most, "storage_per_gb_month": prices.EFS_GB_MONTH,
        "quotas": [{**each._asdict(), "left": each.left} for each in quote.quotas],
        "types": {name: quote.kinds[name]._asdict() for name in sorted(quote.kinds) if name in _shown_types(quote)},
    }  # fmt: skip


def dollars(amount: float | None) -> str:
    """Return an amount with four significant digits, and always two of cents.

    >>> [dollars(amount) for amount in (0.0104, 0.5, 1.7, 6.81336, 12.345, 1234.5, None)]
    ['$0.0104', '$0.50', '$1.70', '$6.813', '$12.35', '$1234.50', '-']
    """
    if amount is None:
        return "-"
    digits = max(2, 3 - math.floor(math.log10(amount))) if amount > 0 else 2
    whole, _, cents = f"{amount:.{digits}f}".partition(".")
    return f"${whole}.{cents.rstrip('0'):0<2}"


def _preferring(found: tuple[Candidate, ...], *tests: Callable[[Candidate], bool]) -> tuple[Candidate, ...]:
    """Return those that pass each test, as far as any do."""
    for test in tests:
        found = tuple(filter(test, found)) or found
    return found


def _affordable(per_hour: float | None, limit: float | None) -> bool:
    return limit is None or (per_hour is not None and per_hour <= limit)


def _ceiling(candidate: Candidate, max_spot_price: float | None) -> float | None:
    """Return the most that a worker can come to cost per hour: AWS never takes more for spot than on demand."""
    if candidate.market == "capacity-block":
        return candidate.price
    limits = [candidate.on_demand, max_spot_price if candidate.market == "spot" else None]
    return min((limit for limit in limits if limit is not None), default=None)


def _nowhere(quote: Quote) -> str:
    """Say where workers were looked for, and why there is no place for them."""
    settings = quote.settings
    looked = f"{quote.name}: no workers of {', '.join(settings.worker_types)} in {settings.zone or quote.region}"
    if settings.zone is not None and settings.zone not in quote.prices.zones:
        return f"{looked}: that is no zone of {quote.region}: SET=zone= takes any of {', '.join(quote.prices.zones)}"
    spot = [
        price.now for (each, zone), price in quote.prices.spot.items()
        if each in settings.worker_types and settings.zone in (None, zone)
    ]  # fmt: skip
    if settings.max_spot_price is not None and spot and min(spot) > settings.max_spot_price:
        why = f"spot costs {dollars(min(spot))} per hour or more, above max_spot_price={settings.max_spot_price:g}"
        return f"{looked}: {why}: SET=max_spot_price= takes the limit off"
    anywhere = settings.on_demand or quote.block
    market = "" if anywhere else " on the spot market"
    other = "SET=worker_types= or head_type=" + ("" if anywhere else ", or SET=on_demand=true")
    among = settings.zone or ", ".join(quote.prices.zones)
    return f"{looked}: none of them is offered{market} in one zone with a {settings.head_type} ({among}): {other}"


def _ceiling_is(quote: Quote) -> str:
    """Return the kind of the ceiling."""
    if quote.block:
        return "head on demand"
    limit = quote.settings.max_spot_price
    held = limit is not None and all(
        each.market == "spot" and (each.on_demand is None or limit <= each.on_demand) for each in quote.candidates
    )
    return "at max_spot_price" if held else "all on demand"


def _lines(quote: Quote) -> list[str]:
    """Return the remarks below the table."""
    lines = _gpu_lines(quote)
    if quote.block:
        lines.append(quote.block.line)
    if (best := quote.best) and best.market == "spot":
        score = "-" if best.score is None else f"{best.score}/10"
        lines.append(
            f"each worker: spot {dollars(best.price)} now, {dollars(best.month_max)} at most in 30 days; "
            f"{dollars(best.on_demand)} on demand; placement score {score}"
        )
    if others := quote.candidates[1:]:
        then = f"{others[0].type} in {others[0].zone}, {others[0].market} at {dollars(others[0].price)}"
        lines.append(f"without capacity there: {then}" + (f", and {len(others) - 1} more" if others[1:] else ""))
    lines.append(
        f"EFS stays after cluster-down: {dollars(prices.EFS_GB_MONTH)} per GB and month; "
        "reading, writing and traffic are not in these sums"
    )
    return lines + [f"quota {each.line}" for each in quote.quotas]


def _shown_types(quote: Quote) -> tuple[str, ...]:
    return (quote.settings.head_type, *([quote.best.type] if quote.best else []))


def _gpu_lines(quote: Quote) -> list[str]:
    """Return the lines about vCPUs and GPUs, where a node has any of these."""
    head, best = quote.settings.head_type, quote.best
    if not any(map(quote.gpus, _shown_types(quote))):
        return []
    line = f"head: {quote.kinds[head].words}"
    if best and best.type in quote.kinds:
        in_all = quote.workers * quote.gpus(best.type)
        line += f"; each worker: {quote.kinds[best.type].words}; {in_all} GPUs in workers"
    return [line] if quote.gpus(head) else [line, _HEAD_WITHOUT]


def _hourly(amount: float | None) -> str:
    """Return an amount for the table: always four decimals, so that amounts align."""
    return "-/h" if amount is None else f"${amount:.4f}/h"
