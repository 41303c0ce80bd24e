"""EFS: a folder for each file system, which instances mount as far as access points, policies and groups let them."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from fake_aws import roles
from fake_aws.asked import Asked
from fake_aws.nodes import firewall
from fake_aws.policies import decide
from fake_aws.world import World

_PORT = 2049


def mount(world: World, instance: Any, given: str) -> str:
    """Answer mount.efs: what to bind and how, `<path below the folder of all file systems> ro|rw`.

    Args:
        world: where the file systems are.
        instance: moto's, the one that mounts.
        given: source and options, `fs-...:/ tls,iam,accesspoint=fsap-...`.

    Raises:
        ValueError: why this cannot be mounted.
    """
    source, _, listed = given.partition(" ")
    options = dict(one.partition("=")[::2] for one in listed.strip().split(",") if one)
    name, _, below = source.partition(":")
    system = world.efs.file_systems_by_id.get(name)
    if system is None:
        raise ValueError(f'Failed to resolve "{name}.efs.{world.region}.amazonaws.com" - there is no such file system')
    missing = [option for option in ("tls", "iam") if option not in options]
    if missing:
        raise ValueError(f"the option {missing[0]} is missing: access denied by the file system's policy")
    _reach(world, system, instance)
    point = _access_point(world, name, options.get("accesspoint"))
    if below.strip("/") and point:
        raise ValueError("mount.nfs4: access denied by server: an access point is mounted at its root, fs-...:/")
    writes = _may_write(world, instance, system, point)
    folder = _folder(world, name, point)
    return f"{folder.relative_to(world.folder / 'efs')} {'rw' if writes and 'ro' not in options else 'ro'}\n"


def follow(world: World, asked: Asked) -> None:
    """Remove the folders of file systems that were deleted."""
    if asked.service == "elasticfilesystem" and asked.action == "DeleteFileSystem":
        for folder in (world.folder / "efs").iterdir():
            if folder.name not in world.efs.file_systems_by_id:
                shutil.rmtree(folder, ignore_errors=True)


def _reach(world: World, system: Any, instance: Any) -> None:
    """Raise unless the instance's zone has a mount target whose security groups let it in."""
    target = next(
        (one for one in system.iter_mount_targets() if one.availability_zone_name == instance.placement.zone), None
    )
    if target is None:
        raise ValueError(
            f'Failed to resolve "{system.file_system_id}.efs.{world.region}.amazonaws.com" - there is no mount target '
            f"in {instance.placement.zone}"
        )
    groups = target.security_groups or []
    if not firewall.lets_in(world, groups, instance, _PORT):
        raise ValueError(f"mount.nfs4: Connection timed out: {', '.join(groups)} let port {_PORT} in from others only")


def _access_point(world: World, system: str, wanted: str | None) -> Any:
    if wanted is None:
        return None
    point = world.efs.access_points.get(wanted)
    if point is None or point.file_system_id != system:
        raise ValueError(f"mount.nfs4: access denied by server: {wanted} is no access point of {system}")
    return point


def _may_write(world: World, instance: Any, system: Any, point: Any) -> bool:
    """Say whether the instance's role may write; raise unless it may mount at all."""
    who = roles.role(world, instance)
    policy = json.loads(system.file_system_policy)["Statement"] if system.file_system_policy else None
    if policy is None:  # everybody who reaches it may do everything
        return True
    if who is None:
        raise ValueError("Unable to find AWS credentials: the instance has no role")
    context = {"aws:SecureTransport": "true", "elasticfilesystem:AccessedViaMountTarget": "true"}
    if point:
        context["elasticfilesystem:AccessPointArn"] = point.access_point_arn

    def allowed(action: str) -> bool:
        own = decide(roles.statements(world, who), action, system.file_system_arn, context)
        its = decide(policy, action, system.file_system_arn, context, who.arn)
        return own is not False and its is not False and bool(own or its)

    if not allowed("elasticfilesystem:ClientMount"):
        raise ValueError(f"mount.nfs4: access denied by server: {who.name} may not mount this")
    return allowed("elasticfilesystem:ClientWrite")


def _folder(world: World, system: str, point: Any) -> Path:
    """Return the folder to mount, made as the access point says."""
    root = world.folder / "efs" / system
    root.mkdir(parents=True, exist_ok=True)
    if point is None:
        return root
    about = point.root_directory
    folder = root / about["Path"].strip("/")
    if not folder.exists():
        made = about.get("CreationInfo")
        if not made:
            raise ValueError(f"mount.nfs4: access denied by server: {about['Path']} does not exist")
        folder.mkdir(parents=True)
        os.chown(folder, int(made["OwnerUid"]), int(made["OwnerGid"]))
        folder.chmod(int(made["Permissions"], 8))
    return folder
