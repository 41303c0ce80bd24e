"""Leftovers of Draco are found by tags and removed without a state file; what is not Draco's is never touched."""

import base64
import itertools
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import moto_in_process
import pytest
from botocore.exceptions import EndpointConnectionError
from fake_aws.gaps import experiments, placement
from moto_in_process import REGION, SERVICES, Aws, error
from rich.console import Console

from draco.cluster.aws.account import client
from draco.cluster.aws.leftovers import cleanup
from draco.cluster.aws.leftovers import kinds as resources
from draco.errors import LeftoversError, MissingError

EXPIRES = "2026-11-23T14:00:00Z"
BASE = {"mount target", "file system", "security group", "subnet", "route table", "internet gateway", "network",
        "image repository", "instance profile", "role", "log group"}  # fmt: skip
CLUSTER = {"spot request", "instance", "volume", "network interface", "address", "key pair", "security group rule",
           "security group", "placement group", "launch template", "experiment template"}  # fmt: skip
POLICY = """{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "ecr:GetAuthorizationToken",
    "Resource": "*"}]}"""
PUBLIC_KEY = b"ssh-ed25519 " + base64.b64encode(b"\0\0\0\x0bssh-ed25519\0\0\0\x20" + bytes(32))
_prefixes = itertools.count(1)


@pytest.fixture(scope="module", autouse=True)
def _clients() -> Iterator[None]:
    placement.fill(None)  # moto has no placement groups
    experiments.fill(None)  # and does not list templates of experiments
    with moto_in_process.clients() as patch:
        patch.setattr(cleanup, "_POLL_S", 0.02)
        patch.setattr(cleanup, "_AFTER_A_FAULT_S", 0.2)
        yield


@pytest.fixture
def aws() -> Iterator[Aws]:
    with moto_in_process.aws() as made:
        yield made


def tags(name: str, root: str, **more: str) -> dict[str, str]:
    return {"Project": "draco", "Cluster": name, "Owner": "alice", "Root": root, **more}


def pairs(given: dict[str, str]) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in given.items()]


def marked(kind: str, given: dict[str, str]) -> list[dict[str, Any]]:
    return [{"ResourceType": kind, "Tags": pairs(given)}]


def make_base(name: str, given: dict[str, str] | None = None) -> dict[str, str]:
    """Make what infra/base makes, tagged as it tags; return the identities that a cluster needs."""
    given = tags(name, "base") if given is None else given
    ec2, efs, iam = client("ec2", REGION), client("efs", REGION), client("iam", REGION)
    prefix = f"10.{next(_prefixes) % 250}"
    vpc = ec2.create_vpc(CidrBlock=f"{prefix}.0.0/16", TagSpecifications=marked("vpc", given))["Vpc"]["VpcId"]
    subnet = ec2.create_subnet(
        VpcId=vpc, CidrBlock=f"{prefix}.0.0/20", TagSpecifications=marked("subnet", given),
        AvailabilityZone=f"{REGION}a",
    )["Subnet"]["SubnetId"]  # fmt: skip
    gateway = ec2.create_internet_gateway(TagSpecifications=marked("internet-gateway", given))
    gateway_id = gateway["InternetGateway"]["InternetGatewayId"]
    ec2.attach_internet_gateway(InternetGatewayId=gateway_id, VpcId=vpc)
    table = ec2.create_route_table(VpcId=vpc, TagSpecifications=marked("route-table", given))["RouteTable"]
    ec2.create_route(RouteTableId=table["RouteTableId"], DestinationCidrBlock="0.0.0.0/0", GatewayId=gateway_id)
    ec2.associate_route_table(RouteTableId=table["RouteTableId"], SubnetId=subnet)
    groups = {
        role: ec2.create_security_group(
            GroupName=f"draco-{name}-{role}", Description=role, VpcId=vpc,
            TagSpecifications=marked("security-group", given),
        )["GroupId"]
        for role in ("head", "worker", "file-system")
    }  # fmt: skip
    default = ec2.describe_security_groups(
        Filters=[{"Name": "vpc-id", "Values": [vpc]}, {"Name": "group-name", "Values": ["default"]}]
    )
    ec2.create_tags(Resources=[default["SecurityGroups"][0]["GroupId"]], Tags=pairs(given))
    for into, of, port in (("head", "worker", 20000), ("worker", "head", 22), ("file-system", "head", 2049)):
        ec2.authorize_security_group_ingress(
            GroupId=groups[into], TagSpecifications=marked("security-group-rule", given),
            IpPermissions=[{"IpProtocol": "tcp", "FromPort": port, "ToPort": port,
                            "UserIdGroupPairs": [{"GroupId": groups[of]}]}],
        )  # fmt: skip
    system = efs.create_file_system(CreationToken=f"draco-{name}", Tags=pairs(given))["FileSystemId"]
    efs.create_mount_target(FileSystemId=system, SubnetId=subnet, SecurityGroups=[groups["file-system"]])
    efs.create_access_point(FileSystemId=system, ClientToken="runs", Tags=pairs(given))
    client("ecr", REGION).create_repository(repositoryName=f"draco-{name}", tags=pairs(given))
    client("logs", REGION).create_log_group(logGroupName=f"/draco/{name}", tags=given)
    for role in ("head", "worker"):
        called = f"draco-{name}-{role}"
        iam.create_role(RoleName=called, AssumeRolePolicyDocument=POLICY, Tags=pairs(given))
        iam.put_role_policy(RoleName=called, PolicyName="pull", PolicyDocument=POLICY)
        policy = iam.create_policy(PolicyName=called, PolicyDocument=POLICY)
        iam.attach_role_policy(RoleName=called, PolicyArn=policy["Policy"]["Arn"])
        iam.create_instance_profile(InstanceProfileName=called, Tags=pairs(given))
        iam.add_role_to_instance_profile(InstanceProfileName=called, RoleName=called)
    return {"subnet": subnet, "head": groups["head"], "worker": groups["worker"], "file_system": system, "vpc": vpc}


def make_cluster(name: str, base: dict[str, str], given: dict[str, str] | None = None) -> list[str]:
    """Make what infra/cluster makes, and more of what may be left of one; return the instances."""
    given = tags(name, "cluster", ExpiresAt=EXPIRES) if given is None else given
    ec2 = client("ec2", REGION)
    ec2.import_key_pair(
        KeyName=f"draco-{name}", PublicKeyMaterial=PUBLIC_KEY, TagSpecifications=marked("key-pair", given)
    )
    ec2.authorize_security_group_ingress(
        GroupId=base["head"], TagSpecifications=marked("security-group-rule", given),
        IpPermissions=[{"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": "192.0.2.7/32"}]}],
    )  # fmt: skip
    nodes = []
    for node in ("head", "worker-01"):
        spot = {"InstanceMarketOptions": {"MarketType": "spot"}} if node != "head" else {}
        nodes += ec2.run_instances(
            ImageId="ami-12c6146b", MinCount=1, MaxCount=1, InstanceType="m6i.xlarge", SubnetId=base["subnet"],
            TagSpecifications=marked("instance", given | {"Node": node}) + marked("volume", given), **spot,
        )["Instances"]  # fmt: skip
    ec2.create_volume(AvailabilityZone=f"{REGION}a", Size=30, TagSpecifications=marked("volume", given))
    ec2.create_network_interface(
        SubnetId=base["subnet"], Groups=[base["head"]], TagSpecifications=marked("network-interface", given)
    )
    ec2.allocate_address(Domain="vpc", TagSpecifications=marked("elastic-ip", given))
    ec2.request_spot_instances(
        SpotPrice="0.1", LaunchSpecification={"ImageId": "ami-12c6146b", "InstanceType": "m5.large"},
        TagSpecifications=marked("spot-instances-request", given),
    )  # fmt: skip
    ec2.create_placement_group(
        GroupName=f"draco-{name}", Strategy="cluster", TagSpecifications=marked("placement-group", given)
    )
    ec2.create_launch_template(
        LaunchTemplateName=f"draco-{name}-head", LaunchTemplateData={"InstanceType": "m6i.large"},
        TagSpecifications=marked("launch-template", given),
    )  # fmt: skip
    client("fis", REGION).create_experiment_template(
        clientToken=name, description="interrupt", stopConditions=[{"source": "none"}], roleArn="arn:aws:iam::1:role/a",
        actions={"interrupt": {"actionId": "aws:ec2:send-spot-instance-interruptions"}}, tags=given,
    )  # fmt: skip
    efa = ec2.create_security_group(
        GroupName=f"draco-{name}-efa", Description="efa", VpcId=base["vpc"],
        TagSpecifications=marked("security-group", given),
    )["GroupId"]  # fmt: skip
    for authorize in (ec2.authorize_security_group_ingress, ec2.authorize_security_group_egress):
        authorize(
            GroupId=efa, TagSpecifications=marked("security-group-rule", given),
            IpPermissions=[{"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": efa}]}],
        )  # fmt: skip
    return [node["InstanceId"] for node in nodes]


def found(name: str | None = None) -> list[cleanup.Left]:
    things, unseen = cleanup.find(REGION, name)
    assert unseen == []
    return things


def kinds(name: str | None = None) -> set[str]:
    return {thing.kind for thing in found(name)}


def remove(name: str, *roots: str, limit_s: float = 200) -> list[str]:
    said: list[str] = []
    cleanup.remove(REGION, name, roots, said.append, limit_s)
    return said


def test_there_is_nothing_where_nothing_was_made(aws: Aws) -> None:
    assert found() == []


def test_every_kind_of_thing_is_found(aws: Aws) -> None:
    make_cluster("dev", make_base("dev"))
    assert {thing.kind for thing in found("dev") if thing.root == "base"} == BASE
    assert {thing.kind for thing in found("dev") if thing.root == "cluster"} == CLUSTER
    assert {kind.name for kind in resources.KINDS} == BASE | CLUSTER
    assert {(thing.name, thing.owner) for thing in found("dev")} == {("dev", "alice")}


def test_what_costs_by_being_there_is_marked(aws: Aws) -> None:
    make_cluster("dev", make_base("dev"))
    costly = {thing.kind for thing in found() if thing.costs}
    assert costly == {"instance", "volume", "address", "file system", "image repository"}


def test_an_instance_says_what_it_is_and_when_it_expires(aws: Aws) -> None:
    make_cluster("dev", make_base("dev"))
    worker = next(thing for thing in found("dev") if thing.note.startswith("worker-01"))
    assert worker.note.startswith("worker-01, m6i.xlarge, spot, running since 20")
    assert worker.expires_at == datetime(2026, 11, 23, 14, tzinfo=UTC)
    assert any(thing.note.startswith("head, m6i.xlarge, on demand, running") for thing in found("dev"))
    assert "data and runs, " in next(thing.note for thing in found("dev") if thing.kind == "file system")


def test_an_expiry_that_somebody_garbled_is_none(aws: Aws) -> None:
    make_cluster("dev", make_base("dev"), tags("dev", "cluster", ExpiresAt="tomorrow"))
    assert all(thing.expires_at is None for thing in found())


def everything() -> set[tuple[str, str, str]]:
    """Return kind, id and tags of each thing in the account, whosever it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resources, "_filters", lambda name: [])
        return {
            (kind.name, one.id, " ".join(f"{key}={value}" for key, value in sorted(one.tags.items())))
            for kind in resources.KINDS
            for one in kind.look(REGION, None)
        }


def test_things_of_others_and_of_other_clusters_are_neither_found_nor_touched(aws: Aws) -> None:
    make_cluster("dev", make_base("dev"))
    for name, given in (
        ("other", {"Project": "other", "Cluster": "dev"}),  # somebody's whose cluster is called dev too
        ("bare", {"Name": "draco-dev"}),  # in name only
        ("dev-2", tags("dev-2", "base")),
    ):
        make_cluster(name, make_base(name, given), given)
    before = everything()
    assert {thing.name for thing in found()} == {"dev", "dev-2"}
    assert len(before) > 3.5 * len(found("dev"))
    remove("dev", "cluster", "base")
    assert found("dev") == []
    gone = before - everything()
    assert {kind for kind, _, tagging in gone if not tagging} <= {"network interface", "security group rule"}
    assert {tagging.partition(" Owner")[0] for _, _, tagging in gone if tagging} <= {
        "Cluster=dev", f"Cluster=dev ExpiresAt={EXPIRES}", f"Cluster=dev ExpiresAt={EXPIRES} Node=head",
        f"Cluster=dev ExpiresAt={EXPIRES} Node=worker-01",
    }  # fmt: skip
    assert all("Project=draco" in tagging.split() for _, _, tagging in gone if tagging)


def test_a_wildcard_for_a_name_matches_no_cluster(aws: Aws) -> None:
    make_cluster("dev", make_base("dev"))
    before = everything()
    remove("*", "cluster", "base")
    assert everything() == before


def test_a_cluster_whose_state_is_lost_is_removed_wholly_and_its_base_stays(aws: Aws) -> None:
    base = make_base("dev")
    nodes = make_cluster("dev", base)
    said = remove("dev", "cluster")
    assert kinds("dev") == BASE
    states = client("ec2", REGION).describe_instances(InstanceIds=nodes)["Reservations"]
    assert {raw["State"]["Name"] for reservation in states for raw in reservation["Instances"]} == {"terminated"}
    rules = client("ec2", REGION).describe_security_group_rules(
        Filters=[{"Name": "group-id", "Values": [base["head"]]}]
    )["SecurityGroupRules"]
    assert not [rule for rule in rules if rule.get("CidrIpv4") == "192.0.2.7/32"], "ssh is closed again"
    assert [rule for rule in rules if rule.get("ReferencedGroupInfo")], "MPI is as the base has it"
    assert "removing 2 instances" in said


def test_removing_the_cluster_does_not_even_ask_for_the_base(aws: Aws) -> None:
    make_cluster("dev", make_base("dev"))
    aws.calls.clear()
    things, unseen = cleanup.find(REGION, "dev", ["cluster"])
    assert ({thing.kind for thing in things}, {thing.root for thing in things}, unseen) == (CLUSTER, {"cluster"}, [])
    remove("dev", "cluster")
    assert not {"DescribeFileSystems", "ListRoles", "DescribeRepositories", "DescribeVpcs"} & set(aws.calls)


def test_base_and_cluster_are_removed_wholly(aws: Aws) -> None:
    make_cluster("dev", make_base("dev"))
    aws.calls.clear()
    remove("dev", "cluster", "base")
    assert found() == []
    first = {call: aws.calls.index(call) for call in reversed(aws.calls)}
    for chain in (
        ("CancelSpotInstanceRequests", "TerminateInstances", "DeleteVolume", "DeleteMountTarget", "DeleteAccessPoint",
         "DeleteFileSystem", "DeleteSecurityGroup", "DeleteSubnet", "DeleteRouteTable", "DetachInternetGateway",
         "DeleteInternetGateway", "DeleteVpc"),
        ("TerminateInstances", "DeletePlacementGroup"),
        ("RevokeSecurityGroupIngress", "DeleteSecurityGroup"),
        ("RemoveRoleFromInstanceProfile", "DeleteInstanceProfile", "DeleteRole"),
        ("DetachRolePolicy", "DeleteRole"),
        ("DeleteRolePolicy", "DeleteRole"),
    ):  # fmt: skip
        assert [first[call] for call in chain] == sorted(first[call] for call in chain), chain


def test_removing_what_is_removed_already_does_nothing(aws: Aws) -> None:
    make_cluster("dev", make_base("dev"))
    remove("dev", "cluster", "base")
    assert remove("dev", "cluster", "base") == []


def test_groups_that_name_each_other_are_removed(aws: Aws) -> None:
    """Moto deletes a group that another's rule names; AWS does not."""
    make_base("dev")

    def refuse(sent: dict[str, str]) -> dict[str, Any] | None:
        rules = client("ec2", REGION).describe_security_group_rules()["SecurityGroupRules"]
        named = {rule.get("ReferencedGroupInfo", {}).get("GroupId") for rule in rules if not rule["IsEgress"]}
        return error("DependencyViolation") if sent["GroupId"] in named else None

    aws.answer("ec2", "DeleteSecurityGroup", refuse)
    remove("dev", "base")
    assert found() == []


@pytest.mark.parametrize(
    ("service", "operation", "code"),
    [
        ("ec2", "DeleteVolume", "VolumeInUse"),
        ("ec2", "DeletePlacementGroup", "InvalidPlacementGroup.InUse"),
        ("ec2", "DeleteNetworkInterface", "InvalidNetworkInterface.InUse"),
        ("ec2", "DeleteSecurityGroup", "DependencyViolation"),
        ("ec2", "DeleteVpc", "DependencyViolation"),
        ("efs", "DeleteFileSystem", "FileSystemInUse"),
        ("iam", "DeleteRole", "DeleteConflict"),
        ("ec2", "DeleteSubnet", "InvalidSubnetID.NotFound"),
    ],
)
def test_what_is_refused_for_now_is_tried_again(aws: Aws, service: str, operation: str, code: str) -> None:
    make_cluster("dev", make_base("dev"))
    aws.refuse(service, operation, code, times=3)
    said = remove("dev", "cluster", "base")
    assert found() == []
    assert any(line.startswith("waiting for ") for line in said)


def test_instances_are_waited_for_before_anything_that_they_hold(aws: Aws) -> None:
    nodes = make_cluster("dev", make_base("dev"))
    steps = iter(["running", "shutting-down", "shutting-down"])
    tagging = pairs(tags("dev", "cluster"))

    def describe(sent: dict[str, str]) -> dict[str, Any] | None:
        if sent.get("Filter.1.Name") != "tag:Project" or "TerminateInstances" not in aws.calls:
            return None
        state = next(steps, "terminated")
        return {"Reservations": [{"Instances": [
            {"InstanceId": nodes[0], "State": {"Name": state}, "InstanceType": "m6i.large", "Tags": tagging,
             "LaunchTime": datetime.now(UTC)}]}]}  # fmt: skip

    aws.answer("ec2", "DescribeInstances", describe)
    aws.calls.clear()
    remove("dev", "cluster")
    looked = [i for i, call in enumerate(aws.calls) if call == "DescribeInstances"]
    assert aws.calls.index("DeleteVolume") > looked[-1]
    assert next(steps, None) is None


def test_what_is_on_its_way_out_is_not_found(aws: Aws) -> None:
    tagging = pairs(tags("dev", "cluster"))
    raw = {"InstanceId": "i-1", "State": {"Name": "shutting-down"}, "InstanceType": "m6i.large", "Tags": tagging,
           "LaunchTime": datetime.now(UTC)}  # fmt: skip
    aws.answer("ec2", "DescribeInstances", lambda sent: {"Reservations": [{"Instances": [raw]}]})
    volume = {"VolumeId": "vol-1", "Size": 30, "VolumeType": "gp3", "State": "deleting", "Tags": tagging}
    aws.answer("ec2", "DescribeVolumes", lambda sent: {"Volumes": [volume]})
    assert found("dev") == []
    with pytest.raises(LeftoversError, match=r"i-1 .* was told to go, and is still there"):
        remove("dev", "cluster", limit_s=0.1)


def test_an_untagged_request_of_a_tagged_instance_is_cancelled(aws: Aws) -> None:
    nodes = make_cluster("dev", make_base("dev"))
    untagged = [
        {"SpotInstanceRequestId": "sir-1", "State": "active", "InstanceId": nodes[1]},
        {"SpotInstanceRequestId": "sir-2", "State": "active", "InstanceId": "i-0somebodys"},
        {"SpotInstanceRequestId": "sir-3", "State": "open"},
    ]
    cancelled: list[str] = []

    def cancel(sent: dict[str, str]) -> dict[str, Any]:
        cancelled.append(sent["SpotInstanceRequestId.1"])
        untagged[:] = [raw for raw in untagged if raw["SpotInstanceRequestId"] not in cancelled]
        return {}

    aws.answer("ec2", "DescribeSpotInstanceRequests", lambda sent: {"SpotInstanceRequests": untagged})
    aws.answer("ec2", "CancelSpotInstanceRequests", cancel)
    assert [thing.id for thing in found("dev") if thing.kind == "spot request"] == ["sir-1"]
    remove("dev", "cluster")
    assert cancelled == ["sir-1"]


@pytest.mark.parametrize(("region", "left"), [(REGION, 0), ("eu-west-1", 2)])
def test_roles_of_a_cluster_in_another_region_are_not_touched(aws: Aws, region: str, left: int) -> None:
    make_base("dev", tags("dev", "base", Region=region))
    assert BASE - kinds("dev") == ({"role", "instance profile"} if left else set())
    remove("dev", "base")
    iam = client("iam", REGION)
    assert len(iam.list_roles()["Roles"]) == len(iam.list_instance_profiles()["InstanceProfiles"]) == left


def test_what_vanishes_meanwhile_is_no_fault(aws: Aws) -> None:
    make_cluster("dev", make_base("dev"))
    aws.refuse("iam", "GetRole", "NoSuchEntity")
    aws.refuse("iam", "GetInstanceProfile", "NoSuchEntity")
    aws.refuse("ecr", "ListTagsForResource", "RepositoryNotFoundException")
    assert not {"role", "instance profile", "image repository"} & kinds("dev")


def test_what_may_not_be_looked_at_is_said_and_the_rest_is_found(aws: Aws) -> None:
    make_cluster("dev", make_base("dev"))
    aws.refuse("ec2", "DescribeVolumes", "UnauthorizedOperation")
    aws.refuse("efs", "DescribeFileSystems", "AccessDeniedException")
    things, unseen = cleanup.find(REGION, "dev")
    assert {thing.kind for thing in things} == (BASE | CLUSTER) - {"volume"} - {"file system", "mount target"}
    assert [line.partition(": these")[0] for line in unseen] == [
        f"us-east-1: {names} cannot be looked at" for names in ("volumes", "mount targets", "file systems")
    ]


def test_if_nothing_may_be_looked_at_that_is_an_error(aws: Aws) -> None:
    for service in SERVICES:
        aws.refuse(service, "", "ExpiredToken")
    with pytest.raises(MissingError, match="spot requests cannot be looked at: the AWS credentials have expired"):
        cleanup.find(REGION)


def test_if_aws_does_not_answer_that_is_an_error(aws: Aws) -> None:
    def silent(sent: Any) -> None:
        raise EndpointConnectionError(endpoint_url="https://ec2")

    aws.answer("ec2", "", silent)
    with pytest.raises(MissingError, match="AWS does not answer"):
        cleanup.find(REGION)
    with pytest.raises(MissingError, match="AWS does not answer"):
        remove("dev", "cluster")


def test_what_cannot_be_removed_is_listed_with_the_reason_and_the_rest_goes(aws: Aws) -> None:
    make_cluster("dev", make_base("dev"))
    aws.refuse("ec2", "DeleteVolume", "UnauthorizedOperation")
    aws.refuse("ec2", "ReleaseAddress", "InvalidIPAddress.InUse")
    aws.refuse("ec2", "DescribeKeyPairs", "UnauthorizedOperation")
    with pytest.raises(LeftoversError) as caught:
        remove("dev", "cluster", limit_s=0.2)
    said = str(caught.value).splitlines()
    assert said[0] == "dev: not everything could be removed; the same command may be given again"
    assert sum(line.startswith("dev: volume vol-") for line in said) == len(said) - 3, said
    assert any("volume vol-" in line and "these credentials may not" in line for line in said)
    assert any("address eipalloc-" in line and "ReleaseAddress is refused" in line for line in said)
    assert any("key pairs cannot be looked at" in line for line in said)
    assert caught.value.exit_code == 9
    things, _ = cleanup.find(REGION, "dev")
    assert {thing.kind for thing in things if thing.root == "cluster"} == {"volume", "address"}


def test_what_is_forbidden_is_not_tried_until_the_limit(aws: Aws) -> None:
    make_cluster("dev", make_base("dev"))
    attempts = aws.refuse("ec2", "TerminateInstances", "UnauthorizedOperation")
    with pytest.raises(LeftoversError, match=r"instance i-.* cannot be removed: these credentials may not"):
        remove("dev", "cluster", limit_s=1e6)
    assert len(attempts) == 2, "once for each"


def test_what_is_not_told_of_something_listed_is_not_taken_for_gone(aws: Aws) -> None:
    make_base("dev")
    aws.refuse("iam", "GetRole", "Throttling")
    _, unseen = cleanup.find(REGION)
    assert unseen == [
        "us-east-1: roles cannot be looked at: AWS takes no more calls for now (Throttling); try again in a minute"
    ]


def test_the_table_has_the_clusters_own_things_first(aws: Aws) -> None:
    make_cluster("dev", make_base("dev"))
    console = Console(width=200, color_system=None)
    with console.capture() as captured:
        console.print(cleanup.table(found()))
    lines = captured.get().splitlines()[1:]
    assert len(lines) == len(found())
    own = [any(f" {kind} " in line for kind in CLUSTER) and " of fs-" not in line for line in lines]
    assert "$" in lines[0]
    assert "2026-11-23 14:00 UTC" in lines[0]
    first_of_base = next(i for i, line in enumerate(lines) if " file system " in line)
    assert all(own[:first_of_base])


def test_a_sentence_for_each_thing(aws: Aws) -> None:
    thing = cleanup.Left(
        "instance", "i-1", "dev", "cluster", "alice", "head, running", True, datetime(2026, 11, 23, 14, tzinfo=UTC)
    )
    assert cleanup.sentence([thing, cleanup.Left("role", "r", "", "base", "", "", False, None)]) == (
        "dev: instance i-1 (head, running), costs money, expires 2026-11-23 14:00 UTC, of alice\n?: role r"
    )
