"""The kinds of things that a cluster on AWS is made of: how each is looked up by its tags, and how it is deleted.

KINDS is in the order of deletion: a thing comes after those that depend on it. Things that go with another are not in
it: access points (file system), rules between the base's groups, and every network's own group and route table. Nor
are schedules: a cluster's end is a timer on each of its nodes.

Roles and instance profiles belong to the account, not to a region. Their tag Region says whose they are; without it
they are found from every region.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC
from typing import Any, NamedTuple

from botocore.exceptions import ClientError

from draco.cluster.aws.account import client, pages

_GONE = re.compile(r"NotFound|NoSuchEntity|\.Unknown$")


class Seen(NamedTuple):
    """One thing as AWS describes it."""

    id: str
    tags: Mapping[str, str]
    note: str = ""
    costs: bool = False
    ending: bool = False  # being deleted


class About(NamedTuple):
    """Remarks on a thing; see Seen."""

    note: str = ""
    costs: bool = False
    ending: bool = False


class Kind(NamedTuple):
    """One kind of thing. `look` may return others' things too: the caller compares the tags."""

    name: str
    names: str
    look: Callable[[str, str | None], Iterator[Seen]]  # region, cluster or all of them
    delete: Callable[[str, str], Any]  # region, id
    base: bool = False  # made by infra/base alone


def is_gone(error: ClientError) -> bool:
    """Return whether AWS says that there is no such thing (any more)."""
    return bool(_GONE.search(error.response["Error"]["Code"]))


def _tags(raw: Mapping[str, Any]) -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in raw.get("Tags") or raw.get("TagSet") or []}  # TagSet: interfaces


def _filters(name: str | None) -> list[dict[str, Any]]:
    wanted = {"Project": "draco"} | ({"Cluster": name} if name else {})
    return [{"Name": f"tag:{key}", "Values": [value]} for key, value in wanted.items()]


def _ec2(
    operation: str, key: str, identity: str, about: Callable[[Mapping[str, Any]], About | None] = lambda raw: About()
) -> Callable[[str, str | None], Iterator[Seen]]:
    """Return the look-up for a kind that EC2 filters by tags; where `about` returns None, the thing is left out."""

    def look(region: str, name: str | None) -> Iterator[Seen]:
        for page in pages("ec2", region, operation, Filters=_filters(name)):
            for raw in page[key]:
                if (said := about(raw)) is not None:
                    yield Seen(raw[identity], _tags(raw), *said)

    return look


def _by_ec2(operation: str, parameter: str) -> Callable[[str, str], Any]:
    """Return the deletion of one thing by one call to EC2."""
    return lambda region, identity: getattr(client("ec2", region), operation)(**{parameter: identity})


def _all_instances(region: str, name: str | None) -> Iterator[dict[str, Any]]:
    """Yield instances, also those that ended lately: their spot requests may still be open."""
    for page in pages("ec2", region, "describe_instances", Filters=_filters(name)):
        for reservation in page["Reservations"]:
            yield from reservation["Instances"]


def _instances(region: str, name: str | None) -> Iterator[Seen]:
    for raw in _all_instances(region, name):
        state = raw["State"]["Name"]
        if state != "terminated":
            tags = _tags(raw)
            since = f"{state} since {raw['LaunchTime'].astimezone(UTC):%Y-%m-%d %H:%M} UTC"
            market = raw.get("InstanceLifecycle") or "on demand"
            note = ", ".join(filter(None, [tags.get("Node"), raw["InstanceType"], market, since]))
            yield Seen(raw["InstanceId"], tags, note, True, state == "shutting-down")


def _spot_requests(region: str, name: str | None) -> Iterator[Seen]:
    """Yield tagged requests, and those of tagged instances: a launch does not tag its request."""
    owners: dict[str, dict[str, str]] = {}
    for raw in _all_instances(region, name):
        owners |= {raw[key]: _tags(raw) for key in ("InstanceId", "SpotInstanceRequestId") if raw.get(key)}
    wanted = [{"Name": "state", "Values": ["open", "active"]}]
    for page in pages("ec2", region, "describe_spot_instance_requests", Filters=wanted):
        for raw in page["SpotInstanceRequests"]:
            identity, instance, tags = raw["SpotInstanceRequestId"], raw.get("InstanceId", ""), _tags(raw)
            if "Project" not in tags:
                tags = owners.get(identity) or owners.get(instance) or {}
            is_open = raw["State"] == "open"
            note = "open: may start an instance" if is_open else f"active: {instance}"
            yield Seen(identity, tags, note, is_open)


def _volume(raw: Mapping[str, Any]) -> About:
    return About(f"{raw['Size']} GB {raw['VolumeType']}", True, raw["State"] in ("deleting", "deleted"))


def _group_rule(raw: Mapping[str, Any]) -> About | None:
    if _tags(raw).get("Root") == "base":
        return None  # goes with its group
    return About(f"{'out of' if raw['IsEgress'] else 'into'} {raw['GroupId']}: {raw.get('CidrIpv4') or 'a group'}")


def _group(raw: Mapping[str, Any]) -> About | None:
    return None if raw["GroupName"] == "default" else About(raw["GroupName"])


def _route_table(raw: Mapping[str, Any]) -> About | None:
    return None if any(link.get("Main") for link in raw["Associations"]) else About()


def _delete_group(region: str, identity: str) -> None:
    """Delete a security group after its rules: two groups that name each other can otherwise not be deleted."""
    ec2 = client("ec2", region)
    rules: dict[bool, list[str]] = {False: [], True: []}
    for page in pages(
        "ec2", region, "describe_security_group_rules", Filters=[{"Name": "group-id", "Values": [identity]}]
    ):
        for rule in page["SecurityGroupRules"]:
            rules[rule["IsEgress"]].append(rule["SecurityGroupRuleId"])
    if rules[False]:
        ec2.revoke_security_group_ingress(GroupId=identity, SecurityGroupRuleIds=rules[False])
    if rules[True]:
        ec2.revoke_security_group_egress(GroupId=identity, SecurityGroupRuleIds=rules[True])
    ec2.delete_security_group(GroupId=identity)


def _delete_rule(region: str, identity: str) -> None:
    ec2 = client("ec2", region)
    for rule in ec2.describe_security_group_rules(SecurityGroupRuleIds=[identity])["SecurityGroupRules"]:
        revoke = ec2.revoke_security_group_egress if rule["IsEgress"] else ec2.revoke_security_group_ingress
        revoke(GroupId=rule["GroupId"], SecurityGroupRuleIds=[identity])


def _delete_route_table(region: str, identity: str) -> None:
    ec2 = client("ec2", region)
    for table in ec2.describe_route_tables(RouteTableIds=[identity])["RouteTables"]:
        for link in table["Associations"]:
            ec2.disassociate_route_table(AssociationId=link["RouteTableAssociationId"])
    ec2.delete_route_table(RouteTableId=identity)


def _delete_gateway(region: str, identity: str) -> None:
    ec2 = client("ec2", region)
    for gateway in ec2.describe_internet_gateways(InternetGatewayIds=[identity])["InternetGateways"]:
        for link in gateway["Attachments"]:
            ec2.detach_internet_gateway(InternetGatewayId=identity, VpcId=link["VpcId"])
    ec2.delete_internet_gateway(InternetGatewayId=identity)


def _file_systems(region: str, name: str | None) -> Iterator[Seen]:
    for page in pages("efs", region, "describe_file_systems"):
        for raw in page["FileSystems"]:
            note = f"data and runs, {raw['SizeInBytes']['Value'] / 1e9:.1f} GB"
            yield Seen(raw["FileSystemId"], _tags(raw), note, True, raw["LifeCycleState"] in ("deleting", "deleted"))


def _mount_targets(region: str, name: str | None) -> Iterator[Seen]:
    """Yield the mount targets of Draco's file systems: they have no tags of their own."""
    for system in _file_systems(region, name):
        if system.tags.get("Project") == "draco" and not system.ending:
            for page in pages("efs", region, "describe_mount_targets", FileSystemId=system.id):
                for raw in page["MountTargets"]:
                    ending = raw["LifeCycleState"] in ("deleting", "deleted")
                    yield Seen(raw["MountTargetId"], system.tags, f"of {system.id}", False, ending)


def _delete_file_system(region: str, identity: str) -> None:
    efs = client("efs", region)
    for page in pages("efs", region, "describe_access_points", FileSystemId=identity):
        for point in page["AccessPoints"]:
            efs.delete_access_point(AccessPointId=point["AccessPointId"])
    efs.delete_file_system(FileSystemId=identity)


def _or_gone(operation: Callable[..., dict[str, Any]], **arguments: str) -> dict[str, Any] | None:
    """Call AWS about a thing that was listed a moment ago; None if it has gone since."""
    try:
        return operation(**arguments)
    except ClientError as error:
        if not is_gone(error):
            raise
        return None


def _repositories(region: str, name: str | None) -> Iterator[Seen]:
    ecr = client("ecr", region)
    for page in pages("ecr", region, "describe_repositories"):
        for raw in page["repositories"]:
            if raw["repositoryName"].startswith("draco-"):
                told = _or_gone(ecr.list_tags_for_resource, resourceArn=raw["repositoryArn"])
                if told is not None:
                    yield Seen(raw["repositoryName"], _tags({"Tags": told["tags"]}), "images", True)


def _of_iam(plural: str, singular: str) -> Callable[[str, str | None], Iterator[Seen]]:
    """Return the look-up for roles or instance profiles: by name, then by tags, which their list does not show."""

    def look(region: str, name: str | None) -> Iterator[Seen]:
        operation = re.sub(r"(?<!^)(?=[A-Z])", "_", singular).lower()  # InstanceProfile: instance_profile
        get = getattr(client("iam", region), f"get_{operation}")
        for page in pages("iam", region, f"list_{operation}s"):
            for raw in page[plural]:
                identity = raw[f"{singular}Name"]
                if identity.startswith(f"draco-{name}-" if name else "draco-"):
                    told = _or_gone(get, **{f"{singular}Name": identity})
                    if told is not None and _tags(told[singular]).get("Region", region) == region:
                        yield Seen(identity, _tags(told[singular]))

    return look


def _delete_profile(region: str, identity: str) -> None:
    iam = client("iam", region)
    for role in iam.get_instance_profile(InstanceProfileName=identity)["InstanceProfile"]["Roles"]:
        iam.remove_role_from_instance_profile(InstanceProfileName=identity, RoleName=role["RoleName"])
    iam.delete_instance_profile(InstanceProfileName=identity)


def _delete_role(region: str, identity: str) -> None:
    iam = client("iam", region)
    for page in pages("iam", region, "list_attached_role_policies", RoleName=identity):
        for policy in page["AttachedPolicies"]:
            iam.detach_role_policy(RoleName=identity, PolicyArn=policy["PolicyArn"])
    for page in pages("iam", region, "list_role_policies", RoleName=identity):
        for inline in page["PolicyNames"]:
            iam.delete_role_policy(RoleName=identity, PolicyName=inline)
    iam.delete_role(RoleName=identity)


def _experiment_templates(region: str, name: str | None) -> Iterator[Seen]:
    for page in pages("fis", region, "list_experiment_templates"):
        for raw in page["experimentTemplates"]:
            yield Seen(raw["id"], raw.get("tags", {}), raw.get("description", ""))


def _log_groups(region: str, name: str | None) -> Iterator[Seen]:
    logs = client("logs", region)
    for page in pages("logs", region, "describe_log_groups", logGroupNamePrefix=f"/draco/{name or ''}"):
        for raw in page["logGroups"]:
            told = _or_gone(logs.list_tags_for_resource, resourceArn=raw["arn"].removesuffix(":*"))
            if told is not None:
                size = raw.get("storedBytes", 0)
                yield Seen(raw["logGroupName"], told["tags"], f"{size / 1e6:.1f} MB", bool(size))


KINDS = (
    # An open request would replace an instance that is terminated before it.
    Kind("spot request", "spot requests", _spot_requests,
         lambda region, identity: client("ec2", region).cancel_spot_instance_requests(
             SpotInstanceRequestIds=[identity])),
    Kind("instance", "instances", _instances,
         lambda region, identity: client("ec2", region).terminate_instances(InstanceIds=[identity])),
    Kind("volume", "volumes", _ec2("describe_volumes", "Volumes", "VolumeId", _volume),
         _by_ec2("delete_volume", "VolumeId")),
    Kind("launch template", "launch templates",
         _ec2("describe_launch_templates", "LaunchTemplates", "LaunchTemplateId",
              lambda raw: About(raw["LaunchTemplateName"])),
         _by_ec2("delete_launch_template", "LaunchTemplateId")),
    Kind("placement group", "placement groups", _ec2("describe_placement_groups", "PlacementGroups", "GroupName",
         lambda raw: About("", False, raw["State"] in ("deleting", "deleted"))),
         _by_ec2("delete_placement_group", "GroupName")),
    Kind("network interface", "network interfaces",
         _ec2("describe_network_interfaces", "NetworkInterfaces", "NetworkInterfaceId"),
         _by_ec2("delete_network_interface", "NetworkInterfaceId")),
    Kind("address", "addresses",
         _ec2("describe_addresses", "Addresses", "AllocationId", lambda raw: About(raw["PublicIp"], True)),
         _by_ec2("release_address", "AllocationId")),
    Kind("experiment template", "experiment templates", _experiment_templates,
         lambda region, identity: client("fis", region).delete_experiment_template(id=identity)),
    Kind("key pair", "key pairs", _ec2("describe_key_pairs", "KeyPairs", "KeyName"),
         _by_ec2("delete_key_pair", "KeyName")),
    Kind("security group rule", "security group rules",
         _ec2("describe_security_group_rules", "SecurityGroupRules", "SecurityGroupRuleId", _group_rule), _delete_rule),
    Kind("mount target", "mount targets", _mount_targets,
         lambda region, identity: client("efs", region).delete_mount_target(MountTargetId=identity), base=True),
    Kind("file system", "file systems", _file_systems, _delete_file_system, base=True),
    Kind("security group", "security groups",
         _ec2("describe_security_groups", "SecurityGroups", "GroupId", _group), _delete_group),
    Kind("subnet", "subnets", _ec2("describe_subnets", "Subnets", "SubnetId"), _by_ec2("delete_subnet", "SubnetId"),
         base=True),
    Kind("route table", "route tables", _ec2("describe_route_tables", "RouteTables", "RouteTableId", _route_table),
         _delete_route_table, base=True),
    Kind("internet gateway", "internet gateways",
         _ec2("describe_internet_gateways", "InternetGateways", "InternetGatewayId"), _delete_gateway, base=True),
    Kind("network", "networks", _ec2("describe_vpcs", "Vpcs", "VpcId"), _by_ec2("delete_vpc", "VpcId"), base=True),
    Kind("image repository", "image repositories", _repositories,
         lambda region, identity: client("ecr", region).delete_repository(repositoryName=identity, force=True),
         base=True),
    Kind("instance profile", "instance profiles", _of_iam("InstanceProfiles", "InstanceProfile"), _delete_profile,
         base=True),
    Kind("role", "roles", _of_iam("Roles", "Role"), _delete_role, base=True),
    Kind("log group", "log groups", _log_groups,
         lambda region, identity: client("logs", region).delete_log_group(logGroupName=identity), base=True),
)  # fmt: skip
