"""GPU types at AWS: what the plan says of them, their quotas, machine images, disks and capacity blocks."""

import io
import json
from datetime import UTC, datetime
from typing import Any

import fake_account
import pytest
from botocore.exceptions import ClientError
from fake_aws import Fake
from rich.console import Console

from draco.cluster.aws import account, home, machine_images, start
from draco.cluster.aws import settings as settings_module
from draco.cluster.aws.agreement import Agreement
from draco.cluster.aws.cost import blocks, prices, quotas, quote
from draco.cluster.aws.cost.blocks import Block
from draco.cluster.aws.cost.quote import Quote
from draco.cluster.aws.settings import Settings
from draco.errors import JobError, MissingError, RefusedError

REGION = "us-east-1"
A = "us-east-1a"
NOW = datetime(2026, 11, 29, 12, tzinfo=UTC)
BLOCK = Block("cr-0123456789abcdef0", "p5.48xlarge", A, 2, 2, "active", "capacity-block", NOW, NOW.replace(day=30))
fake = fake_account.fake
GPUS = {"L-DB2E81BA": 64, "L-3819A6DF": 64, "L-417A185B": 400, "L-7212CCBC": 400, "L-C4BD4855": 400}


@pytest.fixture
def aws(fake: Fake) -> Fake:
    fake_account.renew(fake)
    fake.set_quotas(GPUS)
    return fake


def settings(*words: str) -> Settings:
    return settings_module.updated(Settings.model_validate({"region": REGION}), words)


def shown(asked: Quote) -> str:
    out = io.StringIO()
    Console(file=out, width=200).print(quote.table(asked))
    return out.getvalue()


def test_the_plan_says_how_many_vcpus_and_gpus_there_are_and_what_quotas_they_take(aws: Fake) -> None:
    asked = quote.quote("dev", settings("worker_types=g5.xlarge", f"zone={A}"), 8)
    assert "head: 2 vCPU; each worker: 4 vCPU and 1 x NVIDIA A10G of 22 GiB; 8 GPUs in workers" in shown(asked)
    assert "quota spot vCPU (G and VT): needs 32, 0 of 64 in use" in shown(asked)
    assert "9 x 120 GB" in shown(asked)
    told = json.loads(json.dumps(quote.as_json(asked)))["types"]
    assert (told["g5.xlarge"]["gpus"], told["m6i.large"]["gpus"]) == (1, 0)
    quote.refuse(asked)


def test_a_head_with_gpus_and_workers_without_are_told_apart(aws: Fake) -> None:
    text = shown(quote.quote("dev", settings("head_type=g6e.xlarge", "worker_types=m6i.xlarge"), 2))
    assert "head: 4 vCPU and 1 x NVIDIA L40S of 45 GiB; each worker: 4 vCPU; 0 GPUs in workers" in text
    assert "GPU" not in shown(quote.quote("dev", settings("worker_types=m6i.xlarge"), 2))


@pytest.mark.parametrize(
    ("name", "code", "vcpus"),
    [("g4dn.xlarge", "L-3819A6DF", 4), ("g6.xlarge", "L-3819A6DF", 4), ("p4d.24xlarge", "L-7212CCBC", 96),
     ("p5.48xlarge", "L-C4BD4855", 192)],
)  # fmt: skip
def test_a_quota_that_is_short_is_named_by_its_family(aws: Fake, name: str, code: str, vcpus: int) -> None:
    aws.set_quotas({code: 2})
    with pytest.raises(MissingError, match=f"--quota-code {code} --desired-value {2 * vcpus}"):
        quote.refuse(quote.quote("dev", settings(f"worker_types={name}"), 2))


def test_gpus_that_no_known_machine_image_drives_are_refused_unless_one_is_named(aws: Fake) -> None:
    wanted = settings("worker_types=g4ad.xlarge,g5g.xlarge", "head_type=g4ad.xlarge")
    with pytest.raises(RefusedError) as raised:
        quote.quote("dev", wanted, 2)
    first, second = str(raised.value).splitlines()
    assert first.startswith(
        "g4ad.xlarge: no machine image with a driver for its AMD Radeon Pro V520 is known, but for g4dn"
    )
    assert second == "g5g.xlarge: is not x86_64, and the trainer image is"
    found = quotas.survey(REGION, "dev", ("g4ad.xlarge",)).kinds
    quotas.refuse_unfit(REGION, ("g4ad.xlarge",), found, efa=False, ami="ami-12345678")


def test_a_machine_image_is_the_newest_of_its_kind(aws: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Parameters:
        def get_parameter(self, **given: str) -> dict[str, Any]:
            asked.append(given["Name"])
            return {"Parameter": {"Value": f"ami-{len(asked):08x}"}}

    told = quote.quote("dev", settings("worker_types=g5.xlarge,m6i.xlarge", f"zone={A}"), 2)
    monkeypatch.setattr(account, "client", lambda service, region: Parameters())
    chosen = start._choices(Agreement(told.settings, (), False, told))
    assert sorted(asked) == sorted([machine_images.PLAIN, machine_images.WITH_DRIVER])
    by_type = {each.type: each for each in chosen}
    assert by_type["g5.xlarge"].worker_ami != by_type["g5.xlarge"].ami == by_type["m6i.xlarge"].worker_ami
    assert (by_type["g5.xlarge"].gpus, by_type["m6i.xlarge"].gpus, by_type["g5.xlarge"].head_gpus) == (1, 0, 0)
    asked.clear()
    own = told.settings.model_copy(update={"ami": "ami-12345678"})
    assert {each.worker_ami for each in start._choices(Agreement(own, (), False, told))} == {"ami-12345678"}
    assert asked == []


def test_disks_hold_the_machine_image_with_the_driver() -> None:
    assert (settings().disk_gb, settings("head_type=p5.48xlarge").disk_gb) == (30, 120)
    assert settings("worker_types=g5.xlarge", "volume_gb=200").disk_gb == 200
    assert settings("capacity_reservation=cr-0123456789abcdef0").disk_gb == 120


def test_settings_that_cannot_both_hold_are_told_all_at_once() -> None:
    with pytest.raises(JobError) as raised:
        settings(
            "capacity_reservation=cr-0123456789abcdef0",
            "on_demand=true",
            "max_spot_price=1",
            "placement_group=true",
            "volume_gb=30",
        )
    assert str(raised.value).splitlines() == [
        "capacity_reservation: its workers are paid for, and on_demand=true buys others: on_demand=false",
        "capacity_reservation: its workers are not spot, as max_spot_price is for: max_spot_price=",
        "capacity_reservation: AWS places its workers close together itself: placement_group=false",
        "volume_gb: is 30; the machine image with a GPU driver and the trainer's take 120: volume_gb=",
    ]
    assert settings("worker_types=g5.xlarge", "volume_gb=30", "ami=ami-12345678").disk_gb == 30


# Capacity blocks


def described(**changed: Any) -> dict[str, Any]:
    return {
        "CapacityReservationId": BLOCK.id, "InstanceType": BLOCK.type, "AvailabilityZone": A, "TotalInstanceCount": 2,
        "AvailableInstanceCount": 2, "State": "active", "ReservationType": "capacity-block", "StartDate": NOW,
        "EndDate": NOW.replace(day=30),
    } | changed  # fmt: skip


@pytest.fixture
def block(aws: Fake, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """A fake AWS that has the block."""
    monkeypatch.setattr(blocks, "find", lambda region, name: BLOCK)
    return aws


def test_a_block_is_read_as_aws_describes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, Any]] = [described()]

    class Ec2:
        def describe_capacity_reservations(self, **given: list[str]) -> dict[str, Any]:
            assert given == {"CapacityReservationIds": [BLOCK.id]}
            if not told:
                answer = {"Error": {"Code": "InvalidCapacityReservationId.NotFound", "Message": "does not exist"}}
                raise ClientError(answer, "DescribeCapacityReservations")
            return {"CapacityReservations": told}

    monkeypatch.setattr(account, "client", lambda service, region: Ec2())
    assert blocks.find(REGION, BLOCK.id) == BLOCK
    told.clear()
    with pytest.raises(RefusedError, match="capacity_reservation: us-east-1 has no cr-0123456789abcdef0"):
        blocks.find(REGION, BLOCK.id)


def test_a_block_is_the_only_place_it_costs_nothing_more_and_counts_against_no_quota(block: Fake) -> None:
    block.set_quotas({"L-417A185B": 0, "L-C4BD4855": 0})
    asked = quote.quote("dev", settings(f"capacity_reservation={BLOCK.id}"), 2)
    (only,) = asked.candidates
    assert (only.type, only.zone, only.market, only.price) == ("p5.48xlarge", A, "capacity-block", 0.0)
    assert asked.head is not None
    assert asked.per_hour == pytest.approx(asked.head + asked.disks + asked.addresses) == asked.ceiling
    assert [each.name for each in asked.quotas] == ["on-demand vCPU"]
    text = shown(asked)
    assert "capacity block cr-0123456789abcdef0: 2 of 2 p5.48xlarge free, paid when it was bought" in text
    assert "ends 2026-11-30 12:00 UTC, and AWS ends its instances from 30 minutes before" in text
    assert "2 x p5.48xlarge" in text
    assert "16 GPUs in workers" in text
    quote.refuse(asked)
    assert prices.now(REGION, only.type, A, "capacity-block") == 0.0
    assert home.chosen(only, "ami-1", "", asked.per_hour).dearer is None  # nothing replaces a block's instance


def test_a_block_that_does_not_fit_is_refused_with_every_reason() -> None:
    asked = settings(f"capacity_reservation={BLOCK.id}", "worker_types=g5.xlarge", "zone=us-east-1b")
    odd = BLOCK._replace(kind="default", state="scheduled", starts=NOW.replace(year=2027))
    with pytest.raises(RefusedError) as raised:
        blocks.refuse_unfit(odd, asked, 3, NOW)
    what = "capacity_reservation: cr-0123456789abcdef0"
    assert str(raised.value).splitlines() == [
        f"{what} is no capacity block, and only blocks are taken: SET=capacity_reservation=",
        f"{what} is scheduled, and must be active; it starts 2027-11-29 12:00 UTC",
        f"{what} is of p5.48xlarge, and worker_types=g5.xlarge",
        f"{what} is in us-east-1a, and zone=us-east-1b: SET=zone=",
        f"{what} has 2 instances, and WORKERS=3",
    ]
    blocks.refuse_unfit(BLOCK, settings(f"capacity_reservation={BLOCK.id}"), 2, NOW)


def test_instances_in_a_block_are_in_no_pool() -> None:
    kinds = {"p5.48xlarge": quotas.Kind(192, True, True, 8, "NVIDIA H100", 80.0)}
    running = [{"InstanceType": "p5.48xlarge", "InstanceLifecycle": "capacity-block"}, {"InstanceType": "p5.48xlarge"}]
    assert list(quotas.used(running, kinds, "dev").values()) == [192]
