"""`make interrupt` at AWS: an experiment for one instance, in a role that may touch no other; nothing is left of it."""

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from fake_account import renew, taken_for_aws
from fake_aws import Fake

from draco.cluster.aws import fault_injection
from draco.cluster.aws.fault_injection import Target
from draco.cluster.backend import Cluster, Node, quietly
from draco.errors import MissingError, NotConfiguredError, RefusedError

REGION = "us-east-1"
IMAGE = "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-6.1-x86_64"
MINUTE_S = 0.5
CLUSTER = Cluster(
    "dev", "aws", tuple(Node(name, "10.87.0.4") for name in ("head", "worker-01", "worker-02")), "10.87.0.0/20",
    "container", "python", "draco", "2026-01-01T00:00:00+00:00", {"region": REGION},
)  # fmt: skip


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fake]:
    with taken_for_aws(tmp_path_factory.mktemp("aws"), MINUTE_S) as fake:
        yield fake


class Account:
    """An account with the cluster dev: its role, and workers as a test has them."""

    def __init__(self, fake: Fake) -> None:
        self.fake = fake
        self.ec2, self.fis = fake.client("ec2"), fake.client("fis")
        vpc = self.ec2.create_vpc(CidrBlock="10.87.0.0/16")["Vpc"]["VpcId"]
        self._subnet = self.ec2.create_subnet(VpcId=vpc, CidrBlock="10.87.0.0/20")["Subnet"]["SubnetId"]
        self._image = fake.client("ssm").get_parameter(Name=IMAGE)["Parameter"]["Value"]

    def role(self, cluster: str = "dev", service: str = "fis.amazonaws.com") -> None:
        """Make the role as infra/base does."""
        allowed = [
            {"Effect": "Allow", "Action": "ec2:DescribeInstances", "Resource": "*"},
            {
                "Effect": "Allow",
                "Action": "ec2:SendSpotInstanceInterruptions",
                "Resource": f"arn:aws:ec2:{REGION}:{self.fake.account}:instance/*",
                "Condition": {"StringEquals": {"aws:ResourceTag/Project": "draco", "aws:ResourceTag/Cluster": cluster}},
            },
        ]
        trust = [{"Effect": "Allow", "Principal": {"Service": service}, "Action": "sts:AssumeRole"}]
        iam = self.fake.client("iam")
        iam.create_role(RoleName="draco-dev-interrupt", AssumeRolePolicyDocument=document(trust))
        iam.put_role_policy(RoleName="draco-dev-interrupt", PolicyName="interrupt", PolicyDocument=document(allowed))

    def worker(self, node: str, *, spot: bool = True, cluster: str = "dev") -> str:
        tags = {"Project": "draco", "Cluster": cluster, "Node": node}
        market = {"InstanceMarketOptions": {"MarketType": "spot"}} if spot else {}
        made = self.ec2.run_instances(
            ImageId=self._image, InstanceType="m6i.large", MinCount=1, MaxCount=1, SubnetId=self._subnet, **market,
            TagSpecifications=[
                {"ResourceType": "instance", "Tags": [{"Key": key, "Value": value} for key, value in tags.items()]}
            ],
        )  # fmt: skip
        return str(made["Instances"][0]["InstanceId"])

    def state(self, instance: str) -> str:
        told = self.ec2.describe_instances(InstanceIds=[instance])["Reservations"][0]["Instances"][0]
        return str(told["State"]["Name"])

    def templates(self) -> list[Any]:
        found: list[Any] = self.fis.list_experiment_templates()["experimentTemplates"]
        return found


def document(statements: list[Any]) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": statements})


@pytest.fixture
def account(running: Fake, monkeypatch: pytest.MonkeyPatch) -> Account:
    renew(running)
    running.reset()
    monkeypatch.setattr(fault_injection, "_POLL_S", 0.1)
    return Account(running)


@pytest.mark.parametrize(("asked", "gets"), [(0, 2), (5, 2), (120, 2), (121, 3), (180, 3), (900, 15)])
def test_aws_gives_whole_minutes_and_no_fewer_than_two(asked: float, gets: int) -> None:
    assert fault_injection.minutes(asked) == gets


def test_a_longer_notice_than_aws_gives_is_refused() -> None:
    with pytest.raises(RefusedError, match=r"^NOTICE=901: AWS gives at most 900 seconds$"):
        fault_injection.minutes(901)


def test_an_instance_is_told_and_ends_and_no_other_does(account: Account) -> None:
    account.role()
    first, second = account.worker("worker-01"), account.worker("worker-02")
    way = fault_injection.eviction(CLUSTER, "worker-02", 120.0)
    began = time.monotonic()
    assert way.announce(120) == f"AWS has begun to interrupt {second}, which ends in 2 minutes"
    assert account.templates() == []
    requests = account.ec2.describe_spot_instance_requests()["SpotInstanceRequests"]
    assert {each["InstanceId"]: each["Status"]["Code"] for each in requests} == {
        first: "fulfilled", second: "marked-for-termination",
    }  # fmt: skip
    way.end(120, quietly)
    assert time.monotonic() - began >= 2 * MINUTE_S * 0.9
    assert (account.state(first), account.state(second)) == ("running", "terminated")
    (made,) = account.fake.calls("CreateExperimentTemplate")
    asked = made["parameters"]
    assert asked["targets"]["node"]["resourceArns"] == [
        f"arn:aws:ec2:{REGION}:{account.fake.account}:instance/{second}"
    ]
    assert asked["tags"] == {"Project": "draco", "Cluster": "dev", "Root": "cluster"}
    assert asked["roleArn"] == f"arn:aws:iam::{account.fake.account}:role/draco-dev-interrupt"


def test_what_is_on_demand_is_refused(account: Account) -> None:
    account.role()
    account.worker("worker-01", spot=False)
    with pytest.raises(RefusedError, match=r"^dev: worker-01 is on demand, and AWS interrupts spot instances only$"):
        fault_injection.target(CLUSTER, "worker-01")


def test_a_node_without_an_instance_and_a_base_without_the_role_are_missing(account: Account) -> None:
    with pytest.raises(MissingError, match="worker-01 has no instance; make cluster-up NAME=dev"):
        fault_injection.target(CLUSTER, "worker-01")
    account.worker("worker-01")
    with pytest.raises(MissingError, match="the role draco-dev-interrupt is not there; make cluster-up NAME=dev"):
        fault_injection.target(CLUSTER, "worker-01")


def target(account: Account) -> Target:
    account.worker("worker-01")
    return fault_injection.target(CLUSTER, "worker-01")


@pytest.mark.parametrize(
    "role", [{"cluster": "prod"}, {"service": "ec2.amazonaws.com"}], ids=["another cluster's", "of instances"]
)
def test_an_experiment_that_fails_says_why_and_leaves_no_template(account: Account, role: dict[str, str]) -> None:
    account.role(**role)
    which = target(account)
    with pytest.raises(NotConfiguredError, match=r"experiment EXP\w+ failed: the role draco-dev-interrupt may not"):
        fault_injection.start("dev", which, 2)
    assert account.templates() == []
    assert account.state(which.instance.id) == "running"


@pytest.mark.parametrize("action", ["CreateExperimentTemplate", "StartExperiment", "GetExperiment"])
def test_what_aws_refuses_is_told_and_leaves_no_template(account: Account, action: str) -> None:
    account.role()
    which = target(account)
    account.fake.set_faults({action: {"code": "AccessDeniedException", "message": f"not fis:{action}"}})
    with pytest.raises(MissingError, match=f"interrupting {which.instance.id}: these credentials may not: not fis:"):
        fault_injection.start("dev", which, 2)
    account.fake.set_faults({})
    assert account.templates() == []


def test_a_template_that_cannot_be_removed_does_not_hide_that_the_experiment_runs(account: Account) -> None:
    account.role()
    which = target(account)
    account.fake.set_faults({"DeleteExperimentTemplate": {"code": "AccessDeniedException"}})
    assert fault_injection.start("dev", which, 2).startswith("EXP")
    assert len(account.templates()) == 1


def test_an_instance_that_does_not_end_is_told(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    account.role()
    which = target(account)
    monkeypatch.setattr(fault_injection, "_END_LIMIT_S", 0.0)
    with pytest.raises(NotConfiguredError, match=r"AWS has announced its end, and i-.* still runs"):
        fault_injection.eviction(CLUSTER, which.instance.node, 120.0).end(0, quietly)


def test_what_it_costs_is_said_and_asked_first(account: Account) -> None:
    account.role()
    instance = account.worker("worker-01")
    found = fault_injection.eviction(CLUSTER, "worker-01", 30)
    assert found.notice_s == 120
    assert found.about == (
        "NOTICE=30: AWS takes 2 minutes, from 2 on and whole ones",
        "worker-01: AWS Fault Injection Service takes $0.20 for it, and the instance ends",
    )
    assert found.question == f"dev: interrupt worker-01 ({instance})"
    assert account.state(instance) == "running"
