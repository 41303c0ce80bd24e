"""Prices of a cluster on AWS, the zones where it could be, and whether the quotas have room for it."""

import io
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import fake_account
import pytest
from botocore.exceptions import EndpointConnectionError
from fake_aws import Fake
from rich.console import Console

from draco.cluster.aws import account
from draco.cluster.aws.cost import prices, quotas, quote
from draco.cluster.aws.cost.prices import Candidate, Prices, Spot
from draco.cluster.aws.cost.quotas import Kind, Quota, Survey
from draco.cluster.aws.cost.quote import Quote, dollars
from draco.cluster.aws.settings import Settings
from draco.errors import MissingError, NoCapacityError, RefusedError

REGION = "us-east-1"
A, B = "us-east-1a", "us-east-1b"
SETTINGS = Settings(region=REGION, worker_types=("m6i.xlarge", "m5.xlarge"))
fake, aws = fake_account.fake, fake_account.aws
PRICES = Prices(
    REGION, (A, B),
    frozenset({("m6i.large", A), ("m6i.large", B), ("m6i.xlarge", A), ("m5.xlarge", A), ("m5.xlarge", B)}),
    {("m6i.xlarge", A): Spot(0.08, 0.09), ("m5.xlarge", A): Spot(0.07, 0.10), ("m5.xlarge", B): Spot(0.075, 0.11)},
    {"m6i.large": 0.096, "m6i.xlarge": 0.192, "m5.xlarge": 0.180},
)  # fmt: skip
SPOT = Candidate("m5.xlarge", A, "spot", 0.07, 0.10, 0.18, 8)
ROOMY = (Quota("spot vCPU", 64, 24, 40, "L-34B43A08"), Quota("on-demand vCPU", 32, 0, 2, "L-1216C47A"))
IMAGE = "ami-12c6146b"
SPOT_OPTIONS = {"MarketType": "spot"}
KINDS = {"m6i.large": Kind(2, True, False), "m6i.xlarge": Kind(4, True, False), "g5.xlarge": Kind(4, True, False)}


def made(candidate: Candidate | None = SPOT, found: tuple[Quota, ...] = ROOMY, **changed: Any) -> Quote:
    """Return a quote for ten workers."""
    settings = Settings.model_validate(SETTINGS.model_dump() | changed)
    return Quote("dev", settings, 10, PRICES, (candidate,) if candidate else (), found if candidate else ())


def shown(asked: Quote) -> str:
    out = io.StringIO()
    Console(file=out, width=120).print(quote.table(asked))
    return out.getvalue()


def entry(hours_ago: float, price: str, zone: str = A) -> dict[str, Any]:
    at = datetime(2026, 1, 31, tzinfo=UTC) - timedelta(hours=hours_ago)
    return {"InstanceType": "m5.xlarge", "AvailabilityZone": zone, "SpotPrice": price, "Timestamp": at}


def product(*price: str, unit: str = "Hrs", currency: str = "USD", terms: str = "OnDemand") -> str:
    dimensions = {str(i): {"unit": unit, "pricePerUnit": {currency: each}} for i, each in enumerate(price)}
    return json.dumps({"terms": {terms: {"sku.term": {"priceDimensions": dimensions}}}})


# Prices


def test_now_is_the_newest_entry_whatever_the_order_and_the_maximum_is_of_all() -> None:
    history = [entry(5, "0.07"), entry(1, "0.08"), entry(700, "0.20"), entry(2, "0.05", B)]
    assert prices.spot_prices(history) == {("m5.xlarge", A): Spot(0.08, 0.20), ("m5.xlarge", B): Spot(0.05, 0.05)}


def test_an_empty_history_has_no_prices() -> None:
    assert prices.spot_prices([]) == {}


@pytest.mark.parametrize(
    ("products", "price"),
    [
        ([product("0.0104")], 0.0104),
        ([product("0.0104"), product("0.0104")], 0.0104),
        ([product("0.0000000000"), product("0.0104")], 0.0104),
        ([], None),
        ([product("0.01"), product("0.02")], None),
        ([product("1.2", currency="CNY")], None),
        ([product("30", unit="Month")], None),
        ([product("0.01", terms="Reserved")], None),
    ],
    ids=["one", "twice", "a reservation's", "none", "two", "another currency", "another unit", "not on demand"],
)
def test_an_on_demand_price_is_told_or_unknown_never_guessed(products: list[str], price: float | None) -> None:
    assert prices.on_demand_price(products) == price


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (0.0104, "$0.0104"), (0.00001, "$0.00001"), (0.5, "$0.50"), (1.7, "$1.70"), (6.81336, "$6.813"),
        (12.345678, "$12.35"), (1234.5, "$1234.50"), (0, "$0.00"), (0.99999, "$1.00"), (None, "-"),
    ],
)  # fmt: skip
def test_an_amount_has_the_digits_that_matter(amount: float | None, text: str) -> None:
    assert dollars(amount) == text


# Candidates


def test_without_scores_the_cheapest_is_first() -> None:
    found = prices.ordered(PRICES, {}, SETTINGS.worker_types, None, on_demand=False)
    assert [(each.type, each.zone) for each in found] == [("m5.xlarge", A), ("m5.xlarge", B), ("m6i.xlarge", A)]
    assert {each.market for each in found} == {"spot"}


def test_a_better_score_outweighs_a_slightly_higher_price() -> None:
    scores = {("m5.xlarge", A): 3, ("m5.xlarge", B): 9, ("m6i.xlarge", A): 3}
    first = prices.ordered(PRICES, scores, SETTINGS.worker_types, None, on_demand=False)[0]
    assert first == Candidate("m5.xlarge", B, "spot", 0.075, 0.11, 0.180, 9)


def test_no_score_counts_as_one_in_the_middle() -> None:
    equal = PRICES._replace(spot=dict.fromkeys(PRICES.spot, Spot(0.07, 0.07)))
    scores = {("m5.xlarge", A): 4, ("m6i.xlarge", A): 6}
    found = prices.ordered(equal, scores, SETTINGS.worker_types, None, on_demand=False)
    assert [each.score for each in found] == [6, None, 4]


def test_equal_candidates_come_in_the_order_in_which_their_types_were_named() -> None:
    equal = PRICES._replace(spot=dict.fromkeys(PRICES.spot, Spot(0.07, 0.07)))
    found = prices.ordered(equal, {}, ("m6i.xlarge", "m5.xlarge"), None, on_demand=False)
    assert [(each.type, each.zone) for each in found] == [("m6i.xlarge", A), ("m5.xlarge", A), ("m5.xlarge", B)]


def test_on_demand_comes_last_cheapest_type_first_in_every_zone() -> None:
    found = prices.ordered(PRICES, {}, SETTINGS.worker_types, None, on_demand=True)
    assert [each.market for each in found] == ["spot"] * 3 + ["on-demand"] * 3
    assert [(each.type, each.zone, each.price) for each in found[3:]] == [
        ("m5.xlarge", A, 0.18), ("m5.xlarge", B, 0.18), ("m6i.xlarge", A, 0.192)
    ]  # fmt: skip


def test_an_unknown_on_demand_price_comes_after_the_known_ones() -> None:
    unknown = PRICES._replace(on_demand={**PRICES.on_demand, "m5.xlarge": None})
    found = prices.ordered(unknown, {}, SETTINGS.worker_types, None, on_demand=True)
    assert [each.price for each in found[3:]] == [0.192, None, None]


def test_a_zone_that_was_asked_for_is_the_only_one() -> None:
    found = prices.ordered(PRICES, {}, SETTINGS.worker_types, B, on_demand=True)
    assert {each.zone for each in found} == {B}
    assert prices.ordered(PRICES, {}, SETTINGS.worker_types, "us-east-1z", on_demand=True) == ()


def test_workers_never_have_the_heads_type_by_accident() -> None:
    assert all(each.type != "m6i.large" for each in prices.ordered(PRICES, {}, ("m5.xlarge",), None, on_demand=True))


def test_a_candidate_needs_a_zone_that_has_the_heads_type() -> None:
    without = PRICES._replace(offered=PRICES.offered - {("m6i.large", A)})
    found = prices.ordered(without, {}, SETTINGS.worker_types, None, on_demand=True)
    assert {each.zone for each in quote.startable(found, without, SETTINGS)} == {B}


def test_spot_above_the_spot_limit_is_no_candidate_but_on_demand_stays() -> None:
    found = prices.ordered(PRICES, {}, SETTINGS.worker_types, None, on_demand=True)
    limited = Settings.model_validate(SETTINGS.model_dump() | {"max_spot_price": 0.072})
    assert [each.price for each in quote.startable(found, PRICES, limited)] == [0.07, 0.18, 0.18, 0.192]


# Quotas


@pytest.mark.parametrize(
    ("name", "market", "code"),
    [
        ("m6i.xlarge", "spot", "L-34B43A08"), ("t3.micro", "on-demand", "L-1216C47A"),
        ("c7i-flex.large", "spot", "L-34B43A08"), ("im4gn.large", "spot", "L-34B43A08"),
        ("g4dn.xlarge", "spot", "L-3819A6DF"), ("vt1.3xlarge", "on-demand", "L-DB2E81BA"),
        ("gr6.4xlarge", "on-demand", "L-DB2E81BA"), ("p4d.24xlarge", "spot", "L-7212CCBC"),
        ("p5.48xlarge", "spot", "L-C4BD4855"), ("p5en.48xlarge", "on-demand", "L-417A185B"),
        ("p6-b200.48xlarge", "spot", None), ("inf2.xlarge", "spot", None),
        ("hpc6a.48xlarge", "on-demand", None), ("dl1.24xlarge", "spot", None),
        ("x2iedn.xlarge", "spot", None), ("u-6tb1.metal", "on-demand", None), ("mac2-m2.metal", "on-demand", None),
    ],
)  # fmt: skip
def test_a_type_counts_against_the_quota_of_its_family(name: str, market: Any, code: str | None) -> None:
    assert quotas.pool(name, market).code == code


def test_workers_and_head_need_vcpus_of_two_markets() -> None:
    survey = Survey(KINDS, {"L-34B43A08": 64, "L-1216C47A": 32}, {quotas.pool("m5.large", "spot"): 24})
    spot, on_demand = survey.quotas("m6i.large", "m6i.xlarge", "spot", 10)
    assert spot == Quota("spot vCPU", 64, 24, 40, "L-34B43A08")
    assert (on_demand.name, on_demand.needed, on_demand.used) == ("on-demand vCPU", 2, 0)
    assert (spot.left, spot.is_short) == (40, False)
    assert spot.line == "spot vCPU: needs 40, 24 of 64 in use"


def test_workers_on_demand_share_the_heads_quota() -> None:
    survey = Survey(KINDS, {"L-1216C47A": 32}, {})
    (only,) = survey.quotas("m6i.large", "m6i.xlarge", "on-demand", 10)
    assert (only.needed, only.is_short) == (42, True)


def test_gpu_workers_have_a_quota_of_their_own() -> None:
    survey = Survey(KINDS, {"L-DB2E81BA": 0, "L-1216C47A": 32}, {})
    assert [each.name for each in survey.quotas("m6i.large", "g5.xlarge", "on-demand", 2)] == [
        "on-demand vCPU (G and VT)", "on-demand vCPU",
    ]  # fmt: skip


def test_an_unknown_limit_is_never_short() -> None:
    (spot, _) = Survey(KINDS, {}, {}).quotas("m6i.large", "m6i.xlarge", "spot", 10_000)
    assert (spot.limit, spot.left, spot.is_short) == (None, None, False)
    assert spot.line == "spot vCPU: needs 40000, 0 in use, limit unknown"


def test_what_is_in_use_is_counted_by_market_without_the_cluster_itself() -> None:
    own = [{"Key": "Project", "Value": "draco"}, {"Key": "Cluster", "Value": "dev"}]
    others = [{"Key": "Project", "Value": "draco"}, {"Key": "Cluster", "Value": "other"}]
    instances = [
        {"InstanceType": "m6i.xlarge", "InstanceLifecycle": "spot", "Tags": own},
        {"InstanceType": "m6i.xlarge", "InstanceLifecycle": "spot", "Tags": others},
        {"InstanceType": "m6i.large"},
        {"InstanceType": "m6i.large", "Tags": []},
        {"InstanceType": "g5.xlarge", "InstanceLifecycle": "spot"},
        {"InstanceType": "gone.large"},
    ]
    used = {pool.name: count for pool, count in quotas.used(instances, KINDS, "dev").items()}
    assert used == {"spot vCPU": 4, "on-demand vCPU": 4, "spot vCPU (G and VT)": 4}


def test_types_that_cannot_run_a_node_are_refused_all_at_once() -> None:
    kinds = {"m7g.large": Kind(2, False, False), "m6i.large": Kind(2, True, False)}
    with pytest.raises(RefusedError) as raised:
        quotas.refuse_unfit(REGION, ("m6i.large", "m7g.large", "m9z.huge", "m9z.huge"), kinds, efa=False)
    assert str(raised.value).splitlines() == [
        "m7g.large: is not x86_64, and the trainer image is", "m9z.huge: us-east-1 has no such instance type",
    ]  # fmt: skip
    with pytest.raises(RefusedError, match=r"m6i\.large: has no Elastic Fabric Adapter"):
        quotas.refuse_unfit(REGION, ("m6i.large",), kinds, efa=True)


# The sum


def test_an_hour_is_head_workers_disks_and_addresses() -> None:
    disks, addresses = 11 * 30 * 0.08 / 730, 11 * 0.005
    asked = made()
    assert asked.per_hour == pytest.approx(0.096 + 10 * 0.07 + disks + addresses)
    assert asked.ceiling == pytest.approx(0.096 + 10 * 0.18 + disks + addresses)
    assert asked.most == pytest.approx(4 * (0.096 + 10 * 0.18 + disks + addresses))


def test_the_spot_limit_lowers_the_ceiling_and_never_raises_it() -> None:
    assert made(max_spot_price=0.10).ceiling == pytest.approx(made().at(0.10))
    assert made(max_spot_price=0.50).ceiling == pytest.approx(made().at(0.18))
    assert "at max_spot_price" in shown(made(max_spot_price=0.10))
    assert "all on demand" in shown(made(max_spot_price=0.50))


def test_the_ceiling_covers_every_candidate_that_may_be_taken_instead() -> None:
    dear = Candidate("m6i.xlarge", A, "on-demand", 0.192, None, 0.192, None)
    asked = made(max_spot_price=0.10)._replace(candidates=(SPOT, dear))
    assert asked.ceiling == pytest.approx(asked.at(0.192))


def test_a_price_that_is_not_known_is_shown_as_unknown() -> None:
    asked = made()._replace(prices=PRICES._replace(on_demand=dict.fromkeys(PRICES.on_demand)))
    assert (asked.per_hour, asked.ceiling, asked.most) == (None, None, None)
    assert "-/h" in shown(asked)
    quote.refuse(asked)


def test_the_table_says_what_how_much_and_where() -> None:
    text = shown(made())
    for part in (
        "dev  us-east-1a", "1 x m6i.large", "$0.0960/h", "10 x m5.xlarge", "spot", "$0.7000/h", "11 x 30 GB",
        "$0.0550/h", "$0.8872/h", "$1.9872/h", "4 h", "$7.949", "spot $0.07 now, $0.10 at most in 30 days",
        "$0.18 on demand", "placement score 8/10", "$0.30 per GB and month",
        "quota spot vCPU: needs 40, 24 of 64 in use",
    ):  # fmt: skip
        assert part in text


def test_small_prices_keep_their_digits_in_the_table() -> None:
    tiny = PRICES._replace(on_demand={**PRICES.on_demand, "t3.micro": 0.0104})
    assert "$0.0104/h" in shown(made(head_type="t3.micro")._replace(prices=tiny))


def test_a_quote_without_candidates_can_be_shown() -> None:
    text = shown(made(None))
    assert "dev  us-east-1\n" in text
    assert "workers" not in text


def test_a_quote_is_plain_json() -> None:
    told = json.loads(json.dumps(quote.as_json(made(max_price=2))))
    assert told["candidates"][0]["type"] == "m5.xlarge"
    assert told["zone"] == A
    assert told["max_price"] == 2
    assert told["at_most"] == pytest.approx(told["ceiling_per_hour"] * told["hours"])
    assert told["quotas"][0] == {
        "name": "spot vCPU", "limit": 64, "used": 24, "needed": 40, "code": "L-34B43A08", "left": 40,
    }  # fmt: skip


# Refusals


def test_a_cluster_that_fits_is_not_refused() -> None:
    fitting = made(max_price=0.89)
    assert fitting.per_hour is not None
    assert fitting.per_hour <= 0.89
    quote.refuse(fitting)


def test_a_price_above_the_limit_is_refused_with_both_numbers_and_the_way_out() -> None:
    with pytest.raises(RefusedError, match=r"costs \$0\.8872 per hour, above max_price=0\.5: SET=max_price=0\.89"):
        quote.refuse(made(max_price=0.5))


def test_a_limit_cannot_be_kept_where_the_price_is_not_known() -> None:
    asked = made(max_price=0.5)._replace(prices=PRICES._replace(on_demand=dict.fromkeys(PRICES.on_demand)))
    with pytest.raises(RefusedError, match="does not tell what it costs"):
        quote.refuse(asked)


def test_a_short_quota_is_named_with_what_is_left_and_how_to_get_more() -> None:
    short = Quota("spot vCPU", 32, 24, 40, "L-34B43A08")
    with pytest.raises(MissingError) as raised:
        quote.refuse(made(found=(short, ROOMY[1])))
    for part in (
        "quota spot vCPU: needs 40, 8 of 32 left", "--quota-code L-34B43A08", "--desired-value 64", "fewer WORKERS"
    ):  # fmt: skip
        assert part in str(raised.value)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (
            {},
            "m5.xlarge in us-east-1: none of them is offered on the spot market in one zone with a m6i.large",
        ),
        ({"on_demand": True}, "none of them is offered in one zone"),
        ({"zone": "us-east-1z"}, "no zone of us-east-1: SET=zone= takes any of us-east-1a, us-east-1b"),
        ({"max_spot_price": 0.01}, "spot costs $0.07 per hour or more, above max_spot_price=0.01"),
    ],
    ids=["spot", "on demand", "no such zone", "spot limit"],
)
def test_without_candidates_the_error_says_where_it_looked_and_why(changed: dict[str, Any], told: str) -> None:
    with pytest.raises(NoCapacityError) as raised:
        quote.refuse(made(None, **changed))
    assert told in str(raised.value)


# Against the fake


def start(name: str, count: int, **options: Any) -> list[str]:
    """Start instances that use up a quota."""
    made = account.client("ec2", REGION).run_instances(
        ImageId=IMAGE, InstanceType=name, MinCount=count, MaxCount=count, **options
    )
    return [instance["InstanceId"] for instance in made["Instances"]]


def test_prices_are_what_aws_tells(aws: Fake) -> None:
    aws.set_prices({
        "spot": {"m5.xlarge": {A: [[40, 0.5], [20, 0.09], [1, 0.07]], "*": 0.08}}, "on_demand": {"m5.xlarge": 0.2}
    })  # fmt: skip
    found = prices.fetch(REGION, ("m5.xlarge", "m9z.huge"))
    assert found.spot["m5.xlarge", A] == Spot(0.07, 0.5)  # what held 30 days ago was set before
    assert found.spot["m5.xlarge", B].now == 0.08
    assert found.on_demand == {"m5.xlarge": 0.2}
    assert {name for name, _ in found.offered} == {"m5.xlarge"}


def test_a_zone_that_lacks_a_type_is_absent(aws: Fake) -> None:
    found = prices.fetch(REGION, ("m6i.xlarge",))
    assert ("m6i.xlarge", "us-east-1e") not in found.offered
    assert ("m6i.xlarge", "us-east-1e") not in found.spot
    assert "us-east-1e" in found.zones


def test_a_history_of_several_pages_is_read_to_its_end(aws: Fake) -> None:
    points = [[29 - i / 100, 0.05 + i / 100_000] for i in range(1500)]
    aws.set_prices({"spot": {"m5.xlarge": {A: points}}})
    assert prices.fetch(REGION, ("m5.xlarge",)).spot["m5.xlarge", A].month_max == pytest.approx(0.06499)
    assert len(aws.calls("DescribeSpotPriceHistory")) > 1


def test_prices_on_demand_that_may_not_be_asked_for_are_unknown(aws: Fake) -> None:
    aws.set_faults({"GetProducts": {"code": "AccessDenied"}})
    assert prices.fetch(REGION, ("m5.xlarge",)).on_demand == {"m5.xlarge": None}


@pytest.mark.parametrize("action", ["GetProducts", "DescribeSpotPriceHistory", "GetSpotPlacementScores"])
def test_credentials_that_expired_are_never_swallowed(aws: Fake, action: str) -> None:
    aws.set_faults({action: {"code": "ExpiredToken"}})
    with pytest.raises(MissingError, match="credentials have expired"):
        quote.quote("dev", Settings(region=REGION), 2)


def test_no_answer_at_all_is_an_error(aws: Fake) -> None:
    def question() -> None:
        raise EndpointConnectionError(endpoint_url="http://127.0.0.1:9")

    with pytest.raises(MissingError, match="asking: AWS does not answer"):
        account.ask("asking", question)


def test_scores_are_asked_for_all_types_at_once_and_named_by_zone(aws: Fake) -> None:
    before = len(aws.calls("GetSpotPlacementScores"))
    aws.set_prices({"scores": {A: 3, B: 10}})
    found = prices.scores(REGION, ("m5.xlarge", "m6i.xlarge", "m5a.xlarge"), 4)
    assert (found["m5.xlarge", A], found["m6i.xlarge", B]) == (3, 10)
    assert len(aws.calls("GetSpotPlacementScores")) == before + 1


def test_scores_for_fewer_than_three_types_say_nothing_and_are_not_asked_for(aws: Fake) -> None:
    before = len(aws.calls("GetSpotPlacementScores"))
    assert prices.scores(REGION, ("m5.xlarge", "m6i.xlarge", "m5.xlarge"), 4) == {}
    assert len(aws.calls("GetSpotPlacementScores")) == before


@pytest.mark.parametrize("code", ["AccessDenied", "MaxConfigLimitExceeded", "UnsupportedOperation"])
def test_without_scores_there_is_a_quote_all_the_same(aws: Fake, code: str) -> None:
    aws.set_faults({"GetSpotPlacementScores": {"code": code}})
    asked = quote.quote("dev", Settings(region=REGION), 2)
    assert asked.candidates
    assert {each.score for each in asked.candidates} == {None}


def test_a_quote_finds_the_cheapest_place(aws: Fake) -> None:
    aws.set_prices({"spot": {"m5a.xlarge": {B: 0.0104}}, "scores": {B: 10}})
    asked = quote.quote("dev", Settings(region=REGION), 3)
    assert asked.best is not None
    assert (asked.best.type, asked.best.zone, asked.best.price) == ("m5a.xlarge", B, 0.0104)
    assert [each.needed for each in asked.quotas] == [12, 2]
    quote.refuse(asked)
    assert "spot $0.0104 now" in shown(asked)


def test_running_instances_count_but_those_of_the_cluster_itself_do_not(aws: Fake) -> None:
    tags = [{"Key": "Project", "Value": "draco"}, {"Key": "Cluster", "Value": "dev"}]
    gone = start("m5.xlarge", 1, InstanceMarketOptions=SPOT_OPTIONS)
    account.client("ec2", REGION).terminate_instances(InstanceIds=gone)
    there = start("m5.xlarge", 3, InstanceMarketOptions=SPOT_OPTIONS)
    there += start("c5.large", 2)
    there += start("m5.xlarge", 1, TagSpecifications=[{"ResourceType": "instance", "Tags": tags}])
    try:
        survey = quotas.survey(REGION, "dev", ("m6i.large", "m6i.xlarge"))
    finally:
        account.client("ec2", REGION).terminate_instances(InstanceIds=there)
    assert [each.used for each in survey.quotas("m6i.large", "m6i.xlarge", "spot", 2)] == [12, 4]


def test_a_candidate_beyond_its_quota_gives_way_to_one_within(aws: Fake) -> None:
    aws.set_quotas({"L-34B43A08": 4})
    asked = quote.quote("dev", Settings(region=REGION, on_demand=True), 2)
    assert {each.market for each in asked.candidates} == {"on-demand"}
    quote.refuse(asked)
    with pytest.raises(MissingError, match="needs 8, 4 of 4 left"):
        quote.refuse(quote.quote("dev", Settings(region=REGION), 2))


def test_a_candidate_above_the_price_limit_gives_way_to_one_below(aws: Fake) -> None:
    aws.set_prices({"spot": {name: {"*": 0.5} for name in Settings().worker_types[1:]} | {"m6i.xlarge": {"*": 0.1}}})
    asked = quote.quote("dev", Settings(region=REGION, max_price=1), 2)
    assert {each.type for each in asked.candidates} == {"m6i.xlarge"}
    quote.refuse(asked)
    with pytest.raises(RefusedError, match=r"above max_price=0\.1"):
        quote.refuse(quote.quote("dev", Settings(region=REGION, max_price=0.1), 2))


def test_quotas_that_may_not_be_asked_for_are_unknown_and_no_obstacle(aws: Fake) -> None:
    aws.set_faults({"GetServiceQuota": {"code": "AccessDenied"}})
    asked = quote.quote("dev", Settings(region=REGION), 200)
    assert [each.limit for each in asked.quotas] == [None, None]
    quote.refuse(asked)
    assert "limit unknown" in shown(asked)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"worker_types": ("m9z.huge", "m5.xlarge")}, "m9z.huge: us-east-1 has no such instance type"),
        ({"head_type": "m9z.huge"}, "m9z.huge: us-east-1 has no such instance type"),
        ({"worker_types": ("m6g.xlarge",)}, "m6g.xlarge: is not x86_64"),
        ({"efa": True}, "has no Elastic Fabric Adapter"),
    ],
    ids=["worker", "head", "architecture", "adapter"],
)
def test_types_are_checked_before_prices_are_asked_for(aws: Fake, changed: dict[str, Any], told: str) -> None:
    before = len(aws.calls("DescribeSpotPriceHistory"))
    with pytest.raises(RefusedError) as raised:
        quote.quote("dev", Settings(region=REGION, **changed), 2)
    assert told in str(raised.value)
    assert len(aws.calls("DescribeSpotPriceHistory")) == before


def test_the_types_that_nobody_chose_need_not_all_exist() -> None:
    kinds = {"m5.xlarge": Kind(4, True, False)}
    assert quote.worker_types(Settings(), kinds) == ("m5.xlarge",)
    chosen = Settings(worker_types=("m5.xlarge", "m6i.xlarge"))
    assert quote.worker_types(chosen, kinds) == ("m5.xlarge", "m6i.xlarge")
    assert quote.worker_types(Settings(), {}) == Settings().worker_types
