"""The fake AWS keeps its promises: its API beyond moto's, and instances that are nodes (as root on Linux)."""

import base64
import os
import re
import shlex
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import fake_aws
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from conftest import ROOT
from fake_aws.policies import decide

TYPE = "c6i.large"
PARAMETER = "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-6.1-x86_64"
ONE_PRODUCT = {"instanceType": TYPE, "regionCode": "us-east-1", "operatingSystem": "Linux", "tenancy": "Shared",
               "preInstalledSw": "NA", "capacitystatus": "Used"}  # fmt: skip
BOOT_LIMIT_S = 60


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[fake_aws.Fake]:
    with fake_aws.running(tmp_path_factory.mktemp("api"), nodes=False) as fake:
        yield fake


@pytest.fixture
def fake(api: fake_aws.Fake) -> fake_aws.Fake:
    """Return the API without nodes, as new."""
    api.set_faults({})
    api.set_prices({})
    api.set_quotas({"L-1216C47A": 256, "L-34B43A08": 256})
    api.reset()
    return api


class Account:
    """What tests do in an account: a VPC of their own, and instances in it."""

    def __init__(self, fake: fake_aws.Fake, key: str = "") -> None:
        self.fake = fake
        self.ec2 = fake.client("ec2")
        self.image = fake.client("ssm").get_parameter(Name=PARAMETER)["Parameter"]["Value"]
        self.vpc = self.ec2.create_vpc(CidrBlock="10.99.0.0/16")["Vpc"]["VpcId"]
        self.subnets = {
            zone: self.ec2.create_subnet(VpcId=self.vpc, CidrBlock=f"10.99.{i}.0/24", AvailabilityZone=zone)["Subnet"][
                "SubnetId"
            ]
            for i, zone in enumerate(("us-east-1a", "us-east-1b"))
        }
        if key:
            self.ec2.import_key_pair(KeyName="operator", PublicKeyMaterial=key.encode())
        else:
            self.ec2.create_key_pair(KeyName="operator")

    def group(self, name: str) -> str:
        made = self.ec2.create_security_group(GroupName=name, Description=name, VpcId=self.vpc)
        group: str = made["GroupId"]
        return group

    def let_in(self, group: str, source: str, port: int) -> None:
        """Let a network, or the members of a group, in to a TCP port of a group's members."""
        ranges: dict[str, Any] = {"IpRanges": [{"CidrIp": source}]}
        if source.startswith("sg-"):
            ranges = {"UserIdGroupPairs": [{"GroupId": source, "Description": "a group"}]}
        rule = {"IpProtocol": "tcp", "FromPort": port, "ToPort": port, **ranges}
        self.ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[rule])

    def run(self, group: str, zone: str = "us-east-1a", spot: str | None = None, **options: Any) -> str:
        """Run an instance as the Terraform provider does, on demand or with the most that a spot one may cost."""
        interface = {"DeviceIndex": 0, "SubnetId": self.subnets[zone], "Groups": [group],
                     "AssociatePublicIpAddress": True}  # fmt: skip
        if spot is not None:
            options["InstanceMarketOptions"] = {
                "MarketType": "spot", "SpotOptions": {"SpotInstanceType": "one-time", "MaxPrice": spot},
            }  # fmt: skip
        made = self.ec2.run_instances(
            ImageId=self.image, KeyName="operator", MinCount=1, MaxCount=1,
            NetworkInterfaces=[interface], InstanceInitiatedShutdownBehavior="terminate",
            **{"InstanceType": TYPE, **options},
        )  # fmt: skip
        instance: str = made["Instances"][0]["InstanceId"]
        return instance

    def about(self, instance: str) -> dict[str, Any]:
        found: dict[str, Any] = self.ec2.describe_instances(InstanceIds=[instance])["Reservations"][0]["Instances"][0]
        return found

    def request(self, instance: str) -> tuple[str, str]:
        """Return state and status of the spot request behind an instance."""
        wanted = self.about(instance)["SpotInstanceRequestId"]
        found = self.ec2.describe_spot_instance_requests(SpotInstanceRequestIds=[wanted])["SpotInstanceRequests"][0]
        return found["State"], found["Status"]["Code"]


def until(true: Callable[[], Any], limit_s: float = 20) -> Any:
    """Wait until something is true, and return it."""
    deadline = time.monotonic() + limit_s
    while not (found := true()):
        assert time.monotonic() < deadline, "this takes too long"
        time.sleep(0.1)
    return found


def code(refused: pytest.ExceptionInfo[ClientError]) -> str:
    found: str = refused.value.response["Error"]["Code"]
    return found


def impatient(fake: fake_aws.Fake, service: str) -> Any:
    """Return a client that asks once."""
    import boto3

    session = boto3.Session("testing", "testing", region_name="us-east-1")
    config = Config(retries={"total_max_attempts": 1})
    return session.client(service, endpoint_url=fake.endpoint, config=config)


# Prices and quotas.


def test_spot_prices_go_back_thirty_days(fake: fake_aws.Fake) -> None:
    start = datetime.now(UTC) - timedelta(days=30)
    pages = fake.client("ec2").get_paginator("describe_spot_price_history").paginate(
        InstanceTypes=[TYPE], ProductDescriptions=["Linux/UNIX"], StartTime=start
    )  # fmt: skip
    rows = [row for page in pages for row in page["SpotPriceHistory"]]
    zones = {row["AvailabilityZone"] for row in rows}
    assert len(zones) > 2
    assert all(len({r["SpotPrice"] for r in rows if r["AvailabilityZone"] == zone}) > 10 for zone in zones)
    assert min(row["Timestamp"] for row in rows) < start + timedelta(days=2)


def test_spot_prices_heed_zone_and_time(fake: fake_aws.Fake) -> None:
    fake.set_prices({"spot": {TYPE: {"us-east-1b": [[10, 0.05], [1, 0.02]], "*": 0.03}}})
    history = fake.client("ec2").describe_spot_price_history
    now = datetime.now(UTC)
    recent = history(InstanceTypes=[TYPE], AvailabilityZone="us-east-1b", StartTime=now - timedelta(days=2))
    assert [row["SpotPrice"] for row in recent["SpotPriceHistory"]] == ["0.020000", "0.050000"]
    current = history(InstanceTypes=[TYPE], AvailabilityZone="us-east-1b", StartTime=now)
    assert [row["SpotPrice"] for row in current["SpotPriceHistory"]] == ["0.020000"]
    assert history(InstanceTypes=[TYPE], StartTime=now)["SpotPriceHistory"][0]["SpotPrice"] == "0.030000"
    assert history(InstanceTypes=[TYPE], ProductDescriptions=["Windows"])["SpotPriceHistory"] == []


def test_placement_scores_are_by_zone_id(fake: fake_aws.Fake) -> None:
    fake.set_prices({"scores": {"us-east-1b": 3}})
    ec2 = fake.client("ec2")
    zones = {z["ZoneName"]: z["ZoneId"] for z in ec2.describe_availability_zones()["AvailabilityZones"]}
    wanted = {"InstanceTypes": [TYPE], "TargetCapacity": 4, "RegionNames": ["us-east-1"]}
    scores = ec2.get_spot_placement_scores(**wanted, SingleAvailabilityZone=True)["SpotPlacementScores"]
    assert {s["AvailabilityZoneId"]: s["Score"] for s in scores}[zones["us-east-1b"]] == 3
    assert [s["Region"] for s in ec2.get_spot_placement_scores(**wanted)["SpotPlacementScores"]] == ["us-east-1"]


def test_products_need_all_filters_to_be_one(fake: fake_aws.Fake) -> None:
    import json

    fake.set_prices({"on_demand": {TYPE: 0.5}})

    def products(**fields: str) -> list[float]:
        filters = [{"Type": "TERM_MATCH", "Field": field, "Value": value} for field, value in fields.items()]
        found = fake.client("pricing").get_products(ServiceCode="AmazonEC2", Filters=filters)["PriceList"]
        terms = [next(iter(json.loads(one)["terms"]["OnDemand"].values())) for one in found]
        return [float(next(iter(term["priceDimensions"].values()))["pricePerUnit"]["USD"]) for term in terms]

    assert products(**ONE_PRODUCT) == [0.5]
    assert len(set(products(**{k: v for k, v in ONE_PRODUCT.items() if k != "tenancy"}))) == 2
    assert products(instanceType="nothing.large") == []


def test_quotas_are_told_and_kept(fake: fake_aws.Fake) -> None:
    fake.set_quotas({"L-34B43A08": 2, "L-1216C47A": 2})
    quotas = fake.client("service-quotas")
    assert quotas.get_service_quota(ServiceCode="ec2", QuotaCode="L-34B43A08")["Quota"]["Value"] == 2
    with pytest.raises(ClientError) as unknown:
        quotas.get_service_quota(ServiceCode="ec2", QuotaCode="L-00000000")
    assert code(unknown) == "NoSuchResourceException"
    account = Account(fake)
    group = account.group("g")
    account.run(group)
    account.run(group, spot="1")
    with pytest.raises(ClientError) as on_demand:
        account.run(group)
    with pytest.raises(ClientError) as spot:
        account.run(group, spot="1")
    assert (code(on_demand), code(spot)) == ("VcpuLimitExceeded", "MaxSpotInstanceCountExceeded")


# Instances, as the API sees them.


def test_a_spot_request_stands_behind_a_spot_instance(fake: fake_aws.Fake) -> None:
    account = Account(fake)
    group = account.group("g")
    instance = account.run(group, spot="0.2")
    about = account.about(instance)
    assert about["InstanceLifecycle"] == "spot"
    assert [g["GroupId"] for g in about["SecurityGroups"]] == [group]
    assert account.request(instance) == ("active", "fulfilled")
    account.ec2.terminate_instances(InstanceIds=[instance])
    assert account.request(instance) == ("closed", "instance-terminated-by-user")
    assert account.ec2.describe_network_interfaces()["NetworkInterfaces"] == []


def test_an_interrupted_instance_says_so(fake: fake_aws.Fake) -> None:
    account = Account(fake)
    instance = account.run(account.group("g"), spot="0.2")
    fake.interrupt(instance, 0.5)
    assert account.request(instance) == ("active", "marked-for-termination")
    until(lambda: account.about(instance)["State"]["Name"] == "terminated")
    assert account.request(instance) == ("closed", "instance-terminated-no-capacity")
    assert account.about(instance)["StateReason"]["Code"] == "Server.SpotInstanceTermination"


def test_a_maximum_below_the_price_is_refused(fake: fake_aws.Fake) -> None:
    fake.set_prices({"spot": {TYPE: {"us-east-1a": 0.04, "us-east-1b": 0.02}}})
    account = Account(fake)
    group = account.group("g")
    with pytest.raises(ClientError) as refused:
        account.run(group, spot="0.03")
    assert code(refused) == "SpotMaxPriceTooLow"
    account.run(group, "us-east-1b", spot="0.03")


def test_an_instance_keeps_its_groups_when_its_shutdown_behaviour_is_set(fake: fake_aws.Fake) -> None:
    account = Account(fake)
    instance = account.run(account.group("g"))
    account.ec2.modify_instance_attribute(
        InstanceId=instance, InstanceInitiatedShutdownBehavior={"Value": "terminate"}
    )  # fmt: skip
    assert [group["GroupName"] for group in account.about(instance)["SecurityGroups"]] == ["g"]


def test_rules_that_name_a_group_keep_their_description(fake: fake_aws.Fake) -> None:
    account = Account(fake)
    group = account.group("g")
    account.let_in(group, group, 22)
    rules = account.ec2.describe_security_group_rules(Filters=[{"Name": "group-id", "Values": [group]}])
    assert "a group" in [rule.get("Description") for rule in rules["SecurityGroupRules"]]


def test_the_console_has_a_host_key_for_those_who_ask_for_the_latest(fake: fake_aws.Fake) -> None:
    account = Account(fake)
    instance = account.run(account.group("g"))
    assert "Output" not in account.ec2.get_console_output(InstanceId=instance)
    latest = account.ec2.get_console_output(InstanceId=instance, Latest=True)["Output"]
    assert re.search(r"BEGIN SSH HOST KEY KEYS-----\r\nssh-ed25519 \S+", latest)


def test_a_file_system_policy_can_be_deleted(fake: fake_aws.Fake) -> None:
    efs = fake.client("efs")
    system = efs.create_file_system(CreationToken="t", Encrypted=True)["FileSystemId"]
    efs.put_file_system_policy(FileSystemId=system, Policy='{"Version": "2012-10-17", "Statement": []}')
    efs.delete_file_system_policy(FileSystemId=system)
    with pytest.raises(ClientError) as gone:
        efs.describe_file_system_policy(FileSystemId=system)
    assert code(gone) == "PolicyNotFound"


# Faults.


def test_capacity_can_be_short_in_one_zone_of_one_market(fake: fake_aws.Fake) -> None:
    account = Account(fake)
    group = account.group("g")
    account.ec2 = impatient(fake, "ec2")
    fake.set_faults({"RunInstances": {"code": "InsufficientInstanceCapacity", "zone": "us-east-1a", "market": "spot"}})
    with pytest.raises(ClientError) as refused:
        account.run(group, "us-east-1a", spot="1")
    assert code(refused) == "InsufficientInstanceCapacity"
    account.run(group, "us-east-1b", spot="1")
    account.run(group, "us-east-1a")


def test_a_fault_happens_as_often_as_told(fake: fake_aws.Fake) -> None:
    sts = impatient(fake, "sts")
    fake.set_faults({"GetCallerIdentity": {"code": "AccessDenied", "after": 1, "times": 1}})
    sts.get_caller_identity()
    with pytest.raises(ClientError):
        sts.get_caller_identity()
    sts.get_caller_identity()


@pytest.mark.parametrize(("service", "call", "expected"), [
    ("ec2", "describe_instances", "RequestExpired"), ("sts", "get_caller_identity", "ExpiredToken"),
    ("efs", "describe_file_systems", "ExpiredTokenException"),
    ("ecr", "describe_repositories", "ExpiredTokenException"), ("s3", "list_buckets", "ExpiredToken"),
])  # fmt: skip
def test_expired_credentials_are_refused_everywhere(
    fake: fake_aws.Fake, service: str, call: str, expected: str
) -> None:
    fake.set_faults({"*": {"code": "ExpiredToken"}})
    with pytest.raises(ClientError) as refused:
        getattr(impatient(fake, service), call)()
    assert code(refused) == expected


def test_an_answer_can_take_its_time(fake: fake_aws.Fake) -> None:
    fake.set_faults({"GetCallerIdentity": {"delay_s": 0.5}})
    started = time.monotonic()
    fake.client("sts").get_caller_identity()
    assert time.monotonic() - started >= 0.5


def test_what_is_not_implemented_is_refused_at_once(fake: fake_aws.Fake) -> None:
    with pytest.raises(ClientError) as refused:
        fake.client("ec2").describe_fpga_images()
    assert code(refused) == "InvalidAction"


def test_calls_are_recorded(fake: fake_aws.Fake) -> None:
    fake.client("ec2").describe_vpcs(VpcIds=[])
    call = fake.calls("DescribeVpcs")[-1]
    assert (call["service"], call["region"], call["status"]) == ("ec2", "us-east-1", 200)


def test_the_callers_address_is_told(fake: fake_aws.Fake) -> None:
    with urllib.request.urlopen(fake.environment["DRACO_CHECKIP_URL"], timeout=5) as answer:
        assert answer.read() == b"127.0.0.1\n"


# Policies.

READ = {"Effect": "Allow", "Action": ["ec2:Describe*"], "Resource": "*"}
END_OWN = {"Effect": "Allow", "Action": "ec2:TerminateInstances", "Resource": "arn:aws:ec2:*:instance/*",
           "Condition": {"StringEquals": {"aws:ResourceTag/Cluster": "dev"}}}  # fmt: skip
NEVER = {"Effect": "Deny", "Principal": {"AWS": "*"}, "Action": "*", "Resource": "*",
         "Condition": {"Bool": {"aws:SecureTransport": "false"}}}  # fmt: skip


@pytest.mark.parametrize(("action", "tags", "expected"), [
    ("ec2:DescribeInstances", {}, True), ("ec2:RunInstances", {}, None),
    ("ec2:TerminateInstances", {"aws:ResourceTag/Cluster": "dev"}, True),
    ("ec2:TerminateInstances", {"aws:ResourceTag/Cluster": "other"}, None), ("ec2:TerminateInstances", {}, None),
])  # fmt: skip
def test_roles_may_do_what_their_policies_say(action: str, tags: dict[str, str], expected: bool | None) -> None:
    assert decide([READ, END_OWN], action, "arn:aws:ec2:us-east-1:1:instance/i-0", tags) is expected


@pytest.mark.parametrize(("secure", "expected"), [("true", None), ("false", False)])
def test_denials_go_first(secure: str, expected: bool | None) -> None:
    given = {"aws:SecureTransport": secure}
    assert decide([NEVER], "elasticfilesystem:ClientMount", None, given, "arn:aws:iam::1:role/r") is expected


def test_what_the_fake_does_not_understand_is_an_error() -> None:
    with pytest.raises(ValueError, match="NumericLessThan"):
        decide([{**READ, "Condition": {"NumericLessThan": {"x": "1"}}}], "ec2:DescribeInstances", None, {})


# Nodes.


class Operator:
    """Somebody with a key and ssh, on a fake with nodes."""

    def __init__(self, fake: fake_aws.Fake, folder: Path) -> None:
        self.fake, self.folder = fake, folder
        self.key = folder / "key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.key], check=True)
        self.account = Account(fake, self.key.with_suffix(".pub").read_text())
        with urllib.request.urlopen(fake.environment["DRACO_CHECKIP_URL"], timeout=5) as answer:
            self.address = answer.read().decode().strip()
        self.heads, self.workers = self.account.group("heads"), self.account.group("workers")
        self.account.let_in(self.heads, f"{self.address}/32", 22)
        self.account.let_in(self.workers, self.heads, 22)

    def host_key(self, instance: str) -> str:
        def shown() -> re.Match[str] | None:
            console = self.account.ec2.get_console_output(InstanceId=instance, Latest=True).get("Output", "")
            keys = console.partition("-----BEGIN SSH HOST KEY KEYS-----")[2]
            return re.search(r"^(ssh-ed25519 \S+)", keys, re.MULTILINE)

        found: re.Match[str] = until(shown, BOOT_LIMIT_S)
        return found[1]

    def ssh(self, instance: str, line: str, via: str = "") -> subprocess.CompletedProcess[str]:
        """Run a line on an instance, reached directly or through another; only the console's host key is trusted."""
        known = self.folder / "known_hosts"
        known.write_text("".join(f"{one} {self.host_key(one)}\n" for one in (instance, via) if one))
        about = self.account.about(instance)
        options = ["-i", str(self.key), "-o", f"UserKnownHostsFile={known}", "-o", "StrictHostKeyChecking=yes",
                   "-o", "ConnectTimeout=5", "-o", "BatchMode=yes", "-o", "LogLevel=ERROR"]  # fmt: skip
        if via:
            jump = ["ssh", *options, "-o", f"HostKeyAlias={via}", "-W", "%h:%p"]
            options += ["-o", f"ProxyCommand={' '.join(jump)} ec2-user@{self.account.about(via)['PublicIpAddress']}"]
        address = about["PrivateIpAddress"] if via else about["PublicIpAddress"]
        return subprocess.run(
            ["ssh", *options, "-o", f"HostKeyAlias={instance}", f"ec2-user@{address}", line],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    def on(self, instance: str, line: str, via: str = "") -> str:
        made = self.ssh(instance, line, via)
        assert made.returncode == 0, (line, made.stdout, made.stderr)
        return made.stdout


alone = pytest.mark.alone
needs_nodes = pytest.mark.skipif(bool(fake_aws.why_not()), reason=fake_aws.why_not() or "nodes")
needs_engine = pytest.mark.skipif(
    bool(fake_aws.why_not("dockerd", "docker", "docker-registry")),
    reason=fake_aws.why_not("dockerd", "docker", "docker-registry") or "an engine",
)
USER_DATA = """#!/bin/bash
echo hello from user data as $(id -un)
cat > /etc/systemd/system/tick.service << 'END'
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'echo tick >> /var/log/ticks'
END
cat > /etc/systemd/system/tick.timer << 'END'
[Timer]
OnBootSec=1s
OnUnitActiveSec=1min
END
systemctl enable --now tick.timer
"""


def metadata(path: str) -> str:
    """Return the shell line that reads a path of the metadata service."""
    token = "$(curl -s -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' http://169.254.169.254/latest/api/token)"
    return f'curl -s -f -H "X-aws-ec2-metadata-token: {token}" http://169.254.169.254/latest/{path}'


@pytest.fixture(scope="module")
def operator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    with fake_aws.running(tmp_path_factory.mktemp("fake"), minute_s=1) as fake:
        yield Operator(fake, tmp_path_factory.mktemp("operator"))


@pytest.fixture(scope="module")
def head(operator: Operator) -> str:
    role = {"Version": "2012-10-17", "Statement": []}
    iam = operator.fake.client("iam")
    iam.create_role(RoleName="head", AssumeRolePolicyDocument=str(role).replace("'", '"'))
    iam.create_instance_profile(InstanceProfileName="head")
    iam.add_role_to_instance_profile(InstanceProfileName="head", RoleName="head")
    tags = [{"ResourceType": "instance", "Tags": [{"Key": "Node", "Value": "head"}]}]
    return operator.account.run(
        operator.heads, UserData=USER_DATA, IamInstanceProfile={"Name": "head"}, TagSpecifications=tags,
        MetadataOptions={"HttpTokens": "required", "InstanceMetadataTags": "enabled"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def worker(operator: Operator) -> str:
    return operator.account.run(operator.workers, spot="1")


@alone
@needs_nodes
def test_the_operator_logs_in_with_the_consoles_host_key(operator: Operator, head: str) -> None:
    assert operator.on(head, "id -un; sudo id -un").split() == ["ec2-user", "root"]
    assert "hello from user data as root" in operator.on(head, "cat /var/log/cloud-init-output.log")
    assert operator.on(head, "hostname -I").strip() == operator.account.about(head)["PrivateIpAddress"]


@alone
@needs_nodes
def test_timers_run(operator: Operator, head: str) -> None:
    until(lambda: operator.on(head, "cat /var/log/ticks 2> /dev/null || true").count("tick") >= 2)


@alone
@needs_nodes
def test_metadata_need_a_token_and_follow_the_api(operator: Operator, head: str) -> None:
    status = "curl -s -o /dev/null -w '%{http_code}' http://169.254.169.254/latest/meta-data/"
    assert operator.on(head, status) == "401"
    about = operator.account.about(head)
    assert operator.on(head, metadata("meta-data/public-ipv4")) == about["PublicIpAddress"]
    assert operator.on(head, metadata("meta-data/tags/instance/Node")) == "head"
    operator.account.ec2.create_tags(Resources=[head], Tags=[{"Key": "ExpiresAt", "Value": "later"}])
    assert operator.on(head, metadata("meta-data/tags/instance/ExpiresAt")) == "later"
    assert operator.ssh(head, metadata("meta-data/spot/instance-action")).returncode == 22
    operator.fake.notice(head, "spot/instance-action", {"action": "terminate", "time": "soon"})
    assert '"terminate"' in operator.on(head, metadata("meta-data/spot/instance-action"))


@alone
@needs_nodes
def test_the_cli_has_the_roles_credentials_and_no_more_rights(operator: Operator, head: str) -> None:
    assert f"assumed-role/head/{head}" in operator.on(head, "aws sts get-caller-identity --region us-east-1")
    refused = operator.ssh(head, "aws ec2 describe-instances --region us-east-1")
    assert "UnauthorizedOperation" in refused.stderr


@alone
@needs_nodes
def test_security_groups_let_in_whom_they_name(operator: Operator, head: str, worker: str) -> None:
    about = operator.account.about(worker)
    operator.host_key(worker)
    with pytest.raises(OSError, match="timed out"):
        socket.create_connection((about["PublicIpAddress"], 22), timeout=1)
    assert operator.on(worker, "hostname -I", via=head).strip() == about["PrivateIpAddress"]
    back = f"timeout 2 bash -c ': < /dev/tcp/{operator.account.about(head)['PrivateIpAddress']}/22'"
    assert operator.ssh(worker, back, via=head).returncode == 124
    operator.account.let_in(operator.heads, operator.workers, 22)
    assert operator.ssh(worker, back, via=head).returncode == 0


@alone
@needs_nodes
def test_efs_is_mounted_as_its_policy_says(operator: Operator, head: str, worker: str) -> None:
    efs, account = operator.fake.client("efs"), operator.account
    system = efs.create_file_system(CreationToken="t")["FileSystemId"]
    group = account.group("efs")
    account.let_in(group, operator.heads, 2049)
    efs.create_mount_target(FileSystemId=system, SubnetId=account.subnets["us-east-1a"], SecurityGroups=[group])
    made = {"OwnerUid": 10001, "OwnerGid": 10001, "Permissions": "0755"}
    point = efs.create_access_point(
        ClientToken="p", FileSystemId=system, RootDirectory={"Path": "/data", "CreationInfo": made}
    )["AccessPointId"]
    mount = f"sudo mkdir -p /mnt/data && sudo mount -t efs -o {{}}accesspoint={point} {system}:/ /mnt/data"
    assert "tls is missing" in operator.ssh(head, mount.format("")).stderr
    assert "timed out" in operator.ssh(worker, mount.format("tls,iam,"), via=head).stderr
    operator.on(head, mount.format("tls,iam,"))
    assert operator.on(head, "sudo touch /mnt/data/x && stat -c %u /mnt/data").strip() == "10001"
    account.let_in(group, operator.workers, 2049)
    operator.on(worker, mount.format("tls,iam,_netdev,ro,"), via=head)
    assert operator.on(worker, "ls /mnt/data", via=head).strip() == "x"
    assert "Read-only" in operator.ssh(worker, "sudo touch /mnt/data/y", via=head).stderr


@alone
@needs_engine
def test_an_instance_with_a_gpu_has_a_driver_and_an_engine_that_takes_devices_once_it_is_told(
    operator: Operator, head: str
) -> None:
    """What Ansible's role `gpu` does there, by its own scripts."""
    operator.fake.set_quotas({"L-1216C47A": 256, "L-34B43A08": 256, "L-DB2E81BA": 8})
    instance = operator.account.run(operator.heads, InstanceType="g5.xlarge")
    count, cdi = (
        f"sudo bash -c {shlex.quote((ROOT / 'ansible/roles/gpu/files' / name).read_text())} gpu-1 /etc/cdi/nvidia.yaml"
        for name in ("count.sh", "cdi.sh")
    )
    assert operator.on(instance, count) == "580.105.08\n"
    assert operator.on(head, count) == "it has no nvidia-smi: install NVIDIA's driver\n"
    operator.on(instance, "sudo systemctl enable --now docker")
    run = "sudo docker run --rm --pull never --device nvidia.com/gpu=all tiny"
    assert "unresolvable CDI devices nvidia.com/gpu=all" in operator.ssh(instance, run).stderr
    assert [operator.on(instance, cdi) for _ in range(2)] == ["described enabled\n", "\n"]
    assert "No such image: tiny" in operator.ssh(instance, run).stderr  # the device is no fault
    operator.on(instance, "sudo rm /etc/cdi/nvidia.yaml")
    assert "unresolvable CDI devices nvidia.com/gpu=all" in operator.ssh(instance, run).stderr
    assert operator.on(instance, cdi) == "described\n"
    operator.on(instance, "echo failed | sudo tee /run/gpus/nvidia0")
    assert operator.on(instance, count) == "[Unknown Error]\n"


@alone
@needs_engine
def test_an_image_goes_through_ecr_to_an_instance(operator: Operator, head: str, tmp_path: Path) -> None:
    ecr = operator.fake.client("ecr")
    repository = ecr.create_repository(repositoryName="tiny")["repository"]["repositoryUri"]
    name, password = f"{repository}:one", f"{operator.fake.account}-auth-token"
    token = ecr.get_authorization_token()["authorizationData"][0]["authorizationToken"]
    assert base64.b64decode(token).decode() == f"AWS:{password}"
    shutil.copy("/usr/bin/docker-init", tmp_path / "init")
    archive = subprocess.run(["tar", "-C", str(tmp_path), "-c", "init"], capture_output=True, check=True).stdout
    engine = {"capture_output": True, "check": True, "env": {**os.environ, "DOCKER_CONFIG": str(tmp_path)}}
    login = ["login", "--username", "AWS", "--password-stdin", repository.split("/")[0]]
    subprocess.run(["docker", "import", "-", name], input=archive, **engine)
    try:
        subprocess.run(["docker", *login], input=password.encode(), **engine)
        subprocess.run(["docker", "push", "--quiet", name], **engine)
    finally:
        subprocess.run(["docker", "rmi", name], **engine)
    image = ecr.describe_images(repositoryName="tiny")["imageDetails"][0]
    assert image["imageTags"] == ["one"]
    where = f"{repository}@{image['imageDigest']}"
    operator.on(head, "sudo systemctl enable --now docker")
    assert "no basic auth" in operator.ssh(head, f"sudo docker pull --quiet {where}").stderr
    operator.on(head, f"echo {password} | sudo docker {' '.join(login)}")
    operator.on(head, f"sudo docker pull --quiet {where}")
    assert "tini" in operator.on(head, f"sudo docker run --rm --network=host {where} /init --version")


@alone
@needs_nodes
def test_an_instance_that_shuts_itself_down_is_terminated(operator: Operator) -> None:
    account = operator.account
    instance = account.run(operator.heads, "us-east-1b")
    pid = until(lambda: operator.fake.node(instance)["pid"])
    operator.ssh(instance, "sudo shutdown -h now")
    until(lambda: account.about(instance)["State"]["Name"] == "terminated")
    assert account.about(instance)["StateReason"]["Code"] == "Client.InstanceInitiatedShutdown"
    until(lambda: not Path(f"/proc/{pid}").exists())


@alone
@needs_nodes
def test_a_terminated_instance_is_gone_at_once(operator: Operator) -> None:
    instance = operator.account.run(operator.heads)
    operator.host_key(instance)
    node = operator.fake.node(instance)
    operator.account.ec2.terminate_instances(InstanceIds=[instance])
    assert not Path(f"/proc/{node['pid']}").exists()
    assert not Path("/run/netns", node["space"]).exists()


def found(*marks: str) -> dict[str, list[str]]:
    """Return what on this machine has one of these marks of a fake in its name."""
    listed = {
        "spaces": ["ip", "netns", "list"], "links": ["ip", "-brief", "link"], "routes": ["ip", "route"],
        "mounts": ["cat", "/proc/mounts"], "rules": ["iptables", "-S"], "hosts": ["cat", "/etc/hosts"],
        "processes": ["ps", "-ww", "-eo", "args"], "groups": ["find", "/sys/fs/cgroup", "-maxdepth", "2"],
        "certificates": ["find", "/etc/docker"],
    }  # fmt: skip
    lines = {
        name: subprocess.run(argv, capture_output=True, text=True, check=False).stdout.splitlines()
        for name, argv in listed.items()
    }
    return {name: kept for name in lines if (kept := [x for x in lines[name] if any(mark in x for mark in marks)])}


@alone
@needs_nodes
def test_nothing_is_left_on_this_machine(tmp_path: Path) -> None:
    with fake_aws.running(tmp_path / "fake") as fake:
        (tmp_path / "operator").mkdir()
        operator = Operator(fake, tmp_path / "operator")
        instance = operator.account.run(operator.heads)
        operator.on(instance, "sudo systemctl start docker; nohup sleep 1000 > /dev/null 2>&1 &")
        prefix = fake.node(instance)["space"].partition("n")[0]
        marks = (prefix, fake.account, str(tmp_path / "fake"))
        assert {"spaces", "links", "routes", "processes"} <= set(found(*marks))
    assert found(*marks) == {}
