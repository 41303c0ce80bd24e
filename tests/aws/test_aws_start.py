"""The way up and down at AWS: real Terraform and its real provider against a fake AWS that starts no machines.

What only machines show (host keys, ssh, Ansible, training) is in test_aws.py. One network and one process of the
provider serve all tests here, and the state is kept in a bucket (in test_aws.py it is in the folder, and each command
of Terraform starts the provider).
"""

import io
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import terraform as terraform_here
from fake_account import renew, taken_for_aws
from fake_aws import Fake
from rich.console import Console

from draco.cluster import engine, state
from draco.cluster.aws import backend, extend, home, instances, machine_images, registry, start, terraform
from draco.cluster.aws import settings as settings_module
from draco.cluster.aws.cost import blocks
from draco.cluster.aws.cost.blocks import Block
from draco.cluster.aws.cost.quote import dollars
from draco.cluster.aws.home import Home
from draco.cluster.aws.leftovers import cleanup
from draco.cluster.aws.settings import Settings
from draco.cluster.backend import Cluster, Request, Say, quietly
from draco.errors import MissingError, NoCapacityError, NotConfiguredError, RefusedError

pytestmark = [
    pytest.mark.skipif(bool(terraform_here.why_not()), reason=terraform_here.why_not() or "-"),
    pytest.mark.timeout(300),
]

REGION = "us-east-1"
DIGEST = f"@sha256:{'ab' * 32}"
BUCKET = "draco-state"
GIVEN = ("worker_types=m6i.xlarge", "ssh_cidr=203.0.113.7/32", f"state_bucket={BUCKET}", "on_demand=false", "zone=")


class Account:
    """An operator's folder, and the fake AWS it talks to."""

    def __init__(self, fake: Fake, root: Path) -> None:
        self.fake, self.root, self.said = fake, root, []
        self.folder, self.shown = root / "dev", io.StringIO()

    def request(self, *words: str, workers: int = 2) -> Request:
        return Request("dev", workers, settings=(*GIVEN, *words))

    def up(self, *words: str, workers: int = 2) -> Cluster:
        return self.start(self.agreed(self.request(*words, workers=workers)))

    def agreed(self, request: Request) -> Request:
        """Agree to what is offered, as YES=1 does."""
        self.folder.mkdir(exist_ok=True)
        offer = backend.offer(request, self.folder, Console(file=self.shown, width=200))
        return request._replace(agreed=offer.agreed)

    def start(self, request: Request) -> Cluster:
        made = start.up(request, self.folder, self.said.append)
        state.save(made, self.root)
        return made

    def down(self, name: str = "dev") -> None:
        nothing = Cluster(name, "aws", (), "", "container", "", "", "", {})
        backend.down(nothing, self.root / name, quietly)

    def alive(self) -> dict[str, instances.Instance]:
        return instances.alive(REGION, "dev")

    def plan(self) -> dict[str, int]:
        """Return what Terraform would still change."""
        folder = home.of(self.folder).cluster
        command = ["terraform", "plan", "-json", "-input=false"]
        made = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout
        (summary,) = [e for e in map(json.loads, made.splitlines()) if e["type"] == "change_summary"]
        changes = summary["changes"]
        return {key: changes[key] for key in ("add", "change", "remove")}


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Account]:
    folder = tmp_path_factory.mktemp("aws")
    environment = terraform_here.environment(folder)
    with (
        taken_for_aws(folder / "fake") as fake,
        terraform_here.provider(folder, environment | fake.environment) as attached,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in (environment | {"TF_REATTACH_PROVIDERS": attached}).items():
            patch.setenv(name, value)
        passed_on = terraform._environment  # which leaves out where an attached provider is
        patch.setattr(terraform, "_environment", lambda: passed_on() | {"TF_REATTACH_PROVIDERS": attached})
        patch.setattr(engine, "image_id", lambda image: f"sha256:{'cd' * 32}")
        patch.setattr(registry, "push", lambda region, url, image, say: url + DIGEST)
        patch.setattr(start, "_way_in", lambda *_: None)
        patch.setattr(start, "_base", once(start._base))
        fake.client("s3").create_bucket(Bucket=BUCKET)
        yield Account(fake, folder)


def once(make: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Make the base once for each folder that there is: to look at it again takes Terraform ten seconds."""

    def made(name: str, settings: Settings, owner: str, there: Home, say: Say) -> dict[str, Any]:
        if terraform.known(there.base):
            return terraform.outputs(there.base)
        return make(name, settings, owner, there, say)

    return made


@pytest.fixture(autouse=True)
def clean(account: Account) -> Iterator[None]:
    """No instances before and after every test; the base stays. By tags, which takes less time than Terraform."""
    account.said.clear()
    yield
    renew(account.fake)
    if account.alive():
        cleanup.remove(REGION, "dev", ["cluster"], quietly)
        account.fake.client("s3").delete_object(Bucket=BUCKET, Key="draco/dev/cluster.tfstate")
        home.of(account.folder).choose(None)
    assert account.alive() == {}


def test_a_cluster_comes_up_is_repaired_put_off_guarded_and_taken_down(account: Account, tmp_path: Path) -> None:
    made = account.up()
    nodes = account.alive()
    assert {node: each.market for node, each in nodes.items()} == {
        "head": "on-demand", "worker-01": "spot", "worker-02": "spot",
    }  # fmt: skip
    assert account.plan() == {"add": 0, "change": 0, "remove": 0}
    assert made.details["image_name"].endswith(DIGEST)
    assert made.details["inventory_variables"]["storage_kind"] == "mount"

    terminated = nodes["worker-02"]
    account.fake.client("ec2").terminate_instances(InstanceIds=[terminated.id])
    assert backend.states(made, account.folder)["worker-02"] == "missing"
    account.up()
    after = account.alive()
    assert {node for node in nodes if after[node].id != nodes[node].id} == {"worker-02"}

    changed = r"^dev: is up: head_type from m6i.large to c6i.large, efa from False to True would take new nodes"
    with pytest.raises(RefusedError, match=changed):
        account.up("head_type=c6i.large", "efa=true")
    with pytest.raises(RefusedError, match="make extend puts the end off"):
        account.up("hours=9")
    with pytest.raises(RefusedError, match=f"its state is in the bucket {BUCKET}, not here: SET=state_bucket={BUCKET}"):
        account.up("state_bucket=")
    before = home.of(account.folder).choice()
    assert before
    until = extend.extend(made, account.folder, 2.0)
    assert datetime.fromisoformat(until) - datetime.fromisoformat(before.expires_at) == timedelta(hours=2)
    described = account.fake.client("ec2").describe_instances(InstanceIds=[each.id for each in after.values()])
    tags = [
        {tag["Key"]: tag["Value"] for tag in each["Tags"]}
        for group in described["Reservations"] for each in group["Instances"]
    ]  # fmt: skip
    assert {each["ExpiresAt"] for each in tags} == {until}
    assert {each["Role"] for each in tags} == {"head", "worker"}
    notes = backend.notes(made, account.folder)
    assert notes["expires_at"] == until
    assert 5.9 < notes["hours_left"] <= 6
    with pytest.raises(RefusedError, match=r"^HOURS=200: must be above 0, and the end at most 168 hours from now$"):
        extend.extend(made, account.folder, 200)

    with pytest.raises(RefusedError, match="has worker-02 beside the WORKERS=1 asked for"):
        account.up(workers=1)

    other = Account(account.fake, tmp_path)
    with pytest.raises(RefusedError, match=r"^dev: there is such a cluster in us-east-1 \(\d+ things of moto\)"):
        other.up("state_bucket=")
    with pytest.raises(RefusedError, match=r"^dev: there is such a cluster in us-east-1, and roles are global"):
        other.up("region=us-west-2", "state_bucket=")
    with pytest.raises(RefusedError, match=r"^dev: is up, started from elsewhere"):
        other.up()
    with pytest.raises(RefusedError, match=r"^dev: has instances; make cluster-down"):
        backend.purge("dev", other.folder)
    other.down()  # nothing is known of it there but its name
    found, unseen = cleanup.find(REGION, "dev")
    assert unseen == []
    assert {each.root for each in found} == {"base"}, cleanup.sentence(found)
    account.down()  # what Terraform's state still names is gone: no error


def test_without_spot_capacity_on_demand_is_tried_at_last(account: Account) -> None:
    account.fake.set_faults({"RunInstances": {"code": "InsufficientInstanceCapacity", "market": "spot"}})
    account.up("zone=us-east-1a", "on_demand=true", workers=1)
    nodes = account.alive()
    assert {each.market for each in nodes.values()} == {"on-demand"}
    assert {each.zone for each in nodes.values()} == {"us-east-1a"}


def test_what_spot_cannot_replace_is_bought_on_demand_where_that_is_allowed(account: Account) -> None:
    before = account.up()
    first = account.alive()
    account.fake.client("ec2").terminate_instances(InstanceIds=[first["worker-02"].id])
    account.fake.set_faults({"RunInstances": {"code": "InsufficientInstanceCapacity", "market": "spot"}})
    per_hour, dearer = before.details["per_hour"], before.details["dearer"]
    with pytest.raises(
        NoCapacityError, match=rf"\non demand: \$[\d.]+ per hour in all, above max_price={per_hour:g}\n"
    ):
        account.up(f"max_price={per_hour}", "on_demand=true")
    made = account.start(account.agreed(account.request("max_price=")._replace(on_demand=True)))
    assert f"without spot capacity: on demand, {dollars(per_hour + dearer)} per hour in all" in account.shown.getvalue()
    assert made.details["per_hour"] == pytest.approx(per_hour + dearer)
    assert [line for line in account.said if "on demand: worker-02; $" in line]
    after = account.alive()
    assert {node: each.market for node, each in after.items()} == {
        "head": "on-demand", "worker-01": "spot", "worker-02": "on-demand",
    }  # fmt: skip
    assert after["worker-01"].id == first["worker-01"].id
    account.up()  # it stays so, whoever asks
    assert {node: each.id for node, each in account.alive().items()} == {node: each.id for node, each in after.items()}
    account.down()
    assert account.alive() == {}
    assert home.of(account.folder).choice() is None


def test_a_price_above_the_cap_is_refused_before_anything_exists(account: Account) -> None:
    account.fake.set_faults({"RunInstances": {"code": "InternalError"}})  # nobody may even ask
    with pytest.raises(RefusedError, match=r"^dev: costs \$0\.\d+ per hour, above max_price=0.01"):
        account.up("max_price=0.01")
    account.fake.set_quotas({"L-34B43A08": 4.0})
    with pytest.raises(MissingError, match="quota spot vCPU: needs 8, 4 of 4 left"):
        account.up("max_price=")
    account.fake.set_faults({"*": {"code": "ExpiredToken"}})
    with pytest.raises(MissingError, match=r"^looking for the instances of dev: the AWS credentials have expired: "):
        account.up()


def test_what_is_started_is_what_was_agreed(account: Account) -> None:
    """Prices, capacity and nodes change between the agreement and the start."""
    asked = account.request("worker_types=m6i.xlarge,m5.xlarge", "zone=us-east-1a")
    spot = {"m6i.xlarge": {"*": 0.05}, "m5.xlarge": {"*": 0.06}}
    account.fake.set_prices({"spot": spot})
    agreed = account.agreed(asked)
    account.fake.set_prices({"spot": {**spot, "m6i.xlarge": {"*": 0.07}}})
    with pytest.raises(RefusedError) as refused:
        account.start(agreed)
    assert str(refused.value).splitlines() == [
        "m6i.xlarge in us-east-1a, spot: costs $0.07 per hour now, and $0.05 was agreed",
        "dev: nothing is running; make cluster-up asks again, at what it costs now",
    ]
    assert account.alive() == {}
    assert home.of(account.folder).choice() is None

    account.fake.set_prices({"spot": {**spot, "m5.xlarge": {"*": 0.04}}})  # now the cheapest, and not agreed
    account.start(agreed)
    started = account.alive()
    assert {started[node].type for node in ("worker-01", "worker-02")} == {"m6i.xlarge"}
    with pytest.raises(RefusedError, match=r"^dev: other nodes came up or ended after the price was agreed"):
        account.start(agreed)
    nothing_to_start = account.agreed(asked)
    assert (nothing_to_start.agreed.nodes, nothing_to_start.agreed.quote) == ((), None)
    account.fake.client("ec2").terminate_instances(InstanceIds=[started["worker-02"].id])
    with pytest.raises(RefusedError, match=r"^dev: worker-02 ended after the price was agreed; make cluster-up asks"):
        account.start(nothing_to_start)
    repair = account.agreed(asked)
    assert repair.agreed.nodes == ("worker-02",)
    account.fake.set_prices({"spot": {**spot, "m6i.xlarge": {"*": 0.08}}})
    with pytest.raises(RefusedError, match=r"costs \$0.08 per hour now, and \$0.05 was agreed\ndev: its other nodes"):
        account.start(repair)
    assert set(account.alive()) == {"head", "worker-01"}


def test_workers_in_a_capacity_block_start_from_their_own_machine_image_and_stay_as_they_are(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = Block("cr-0123456789abcdef0", "p5.48xlarge", "us-east-1a", 2, 2, "active", "capacity-block", None, None)
    plain, other = [each["ImageId"] for each in account.fake.client("ec2").describe_images()["Images"][:2]]
    monkeypatch.setattr(blocks, "find", lambda region, name: block)
    monkeypatch.setattr(
        machine_images, "newest", lambda region, name: other if machine_images.has_gpus(name) else plain
    )
    monkeypatch.setattr(engine, "torch_build", lambda image: "cuda")
    made = account.up(f"capacity_reservation={block.id}", "worker_types=p5.48xlarge", "idle_minutes=60")
    nodes = account.alive()
    assert {node: (each.market, each.type) for node, each in nodes.items()} == {
        "head": ("on-demand", "m6i.large"),
        "worker-01": ("capacity-block", "p5.48xlarge"), "worker-02": ("capacity-block", "p5.48xlarge"),
    }  # fmt: skip
    described = account.fake.client("ec2").describe_instances(InstanceIds=[each.id for each in nodes.values()])
    found = [each for group in described["Reservations"] for each in group["Instances"]]
    assert {each["InstanceType"]: each["ImageId"] for each in found} == {"m6i.large": plain, "p5.48xlarge": other}
    assert made.details["gpus"] == {"head": 0, "worker-01": 8, "worker-02": 8}
    assert made.details["per_hour"] < 0.3  # the head, disks and addresses: the block was paid before
    assert account.plan() == {"add": 0, "change": 0, "remove": 0}
    account.down()
    monkeypatch.setattr(engine, "torch_build", lambda image: "cpu")
    with pytest.raises(RefusedError, match="holds torch's CPU build, which sees no GPU: make image TORCH=cuda"):
        account.up(f"capacity_reservation={block.id}", "worker_types=p5.48xlarge")
    with pytest.raises(RefusedError, match="has 2 instances, and WORKERS=3"):
        account.up(f"capacity_reservation={block.id}", "worker_types=p5.48xlarge", workers=3)
    settings_module.save(Settings(region=REGION, state_bucket=BUCKET), home.of(account.folder).settings)


def test_without_capacity_the_next_place_is_tried_and_nothing_that_was_not_agreed(account: Account) -> None:
    account.fake.set_prices({"spot": {"m6i.xlarge": {"*": 0.05}, "m5.xlarge": {"*": 0.06}}})
    agreed = account.agreed(account.request("worker_types=m6i.xlarge,m5.xlarge", "zone=us-east-1a"))
    account.fake.set_faults({"RunInstances": {"code": "InsufficientInstanceCapacity", "market": "spot"}})
    with pytest.raises(NoCapacityError) as refused:
        account.start(agreed)
    assert "m6i.xlarge in us-east-1a, spot: " in str(refused.value)
    assert "m5.xlarge in us-east-1a, spot: " in str(refused.value)
    assert "InsufficientInstanceCapacity" in str(refused.value)
    assert "dev: nothing is running; try again later" in str(refused.value)
    assert "on-demand" not in str(refused.value)
    assert account.alive() == {}
    assert home.of(account.folder).choice() is None
    account.fake.set_prices({"spot": {"m6i.xlarge": {"*": 0.05}, "m5.xlarge": {"*": 0.09}}})
    with pytest.raises(RefusedError) as dearer:  # the second costs more now than it did
        account.start(agreed)
    assert "m6i.xlarge in us-east-1a, spot: " in str(dearer.value)
    assert "m5.xlarge in us-east-1a, spot: costs $0.09 per hour now, and $0.06 was agreed" in str(dearer.value)
    assert account.alive() == {}


def test_after_ctrl_c_expired_credentials_and_a_crowded_api_the_next_call_goes_on(account: Account) -> None:
    account.fake.set_faults({"RunInstances": {"delay_s": 4, "market": "spot"}})

    def interrupt() -> None:
        while not any("aws_instance.worker" in line for line in account.said):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        account.up()
    thread.join()
    assert "stopping: Terraform finishes what is under way and saves its state; please wait" in account.said
    kept = account.fake.client("s3").get_object(Bucket=BUCKET, Key="draco/dev/cluster.tfstate")["Body"].read()
    assert b"aws_key_pair" in kept
    time.sleep(4)  # AWS answers after all: there are workers that nobody has heard of
    account.fake.set_faults({"RunInstances": {"code": "ExpiredToken", "after": 1}})
    with pytest.raises(MissingError, match="credentials have expired"):
        account.up()
    account.fake.set_faults({"RunInstances": {"code": "RequestLimitExceeded", "times": 2}})
    made = account.up()
    alive = [each for each in instances.find(REGION, "dev") if each.state in instances.ALIVE]
    assert {each.node: each.id for each in alive} == made.details["instances"]
    assert len(alive) == 3


def test_a_lost_folder_goes_on_from_the_bucket(account: Account) -> None:
    before = terraform.outputs(home.of(account.folder).base)["file_system_id"]
    shutil.rmtree(home.of(account.folder).path)
    account.up(workers=1)
    assert terraform.outputs(home.of(account.folder).base)["file_system_id"] == before


def test_somebody_else_at_work_is_told_apart(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terraform, "_OPTIONS", ("-input=false", "-lock-timeout=0s"))
    account.fake.set_faults({"DescribeVpcs": {"delay_s": 12, "times": 1}})
    folder = home.of(account.folder).base
    faults: list[Exception] = []

    def first() -> None:
        os.system(f"cd {folder} && terraform plan -input=false > plan.log 2>&1")

    thread = threading.Thread(target=first)
    thread.start()
    time.sleep(6)
    try:
        terraform.apply(folder, quietly)
    except (RefusedError, NotConfiguredError) as error:
        faults.append(error)
    thread.join()
    assert [type(fault) for fault in faults] == [RefusedError]
    assert "somebody else" in str(faults[0])


def test_purging_takes_the_network_and_the_storage_too(account: Account) -> None:
    """The last test here."""
    account.fake.client("ec2")
    backend.purge("dev", account.folder)
    found, unseen = cleanup.find(REGION, "dev")
    assert (found, unseen) == ([], [])
    assert not home.of(account.folder).path.exists()


def test_wrong_settings_are_all_told_before_anything_is_asked(account: Account) -> None:
    asked = len(account.fake.calls())
    with pytest.raises(ValueError, match="regoin: did you mean region") as refused:
        account.up("regoin=x", "hours=-1", "ssh_cidr=0.0.0.0/0")
    assert len(str(refused.value).splitlines()) == 3
    assert len(account.fake.calls()) == asked
