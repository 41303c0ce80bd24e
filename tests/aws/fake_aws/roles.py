"""The roles of instances: credentials for the metadata service, and what they may do with them."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from fake_aws.asked import Asked
from fake_aws.errors import Answer, error
from fake_aws.policies import Statement, decide
from fake_aws.world import World

_LIFE = timedelta(hours=6)


def role(world: World, instance: Any) -> Any:
    """Return moto's role of an instance; None: it has none."""
    association = world.ec2.iam_instance_profile_associations.get(instance.id)
    profile = association.iam_instance_profile if association else None
    return profile.roles[0] if profile and profile.roles else None


def credentials(world: World, instance: Any) -> dict[str, str]:
    """Return an instance's credentials as the metadata service writes them."""
    from moto.sts.models import sts_backends

    known = instance.__dict__.setdefault("role_credentials", {})
    arn = role(world, instance).arn
    if arn not in known:
        backend = sts_backends[world.account]["aws"]
        known[arn] = backend.assume_role(
            region_name=world.region, role_session_name=instance.id, role_arn=arn, policy="",
            duration=int(_LIFE.total_seconds()), external_id="",
        )  # fmt: skip
    made, now = known[arn], datetime.now(UTC)
    return {
        "Code": "Success", "LastUpdated": f"{now:%Y-%m-%dT%H:%M:%SZ}", "Type": "AWS-HMAC",
        "AccessKeyId": made.access_key_id, "SecretAccessKey": made.secret_access_key, "Token": made.session_token,
        "Expiration": f"{now + _LIFE:%Y-%m-%dT%H:%M:%SZ}",
    }  # fmt: skip


def statements(world: World, who: Any) -> list[Statement]:
    """Return the statements of a role's own policies and of those attached to it."""
    attached = [version for policy in who.managed_policies.values() for version in policy.versions]
    documents = [*who.policies.values(), *(version.document for version in attached if version.is_default)]
    found: list[Statement] = []
    for document in documents:
        given = (json.loads(document) if isinstance(document, str) else document)["Statement"]
        found += given if isinstance(given, list) else [given]
    return found


def check(world: World, asked: Asked) -> Answer | None:
    """Refuse what an instance's role does not allow; everybody else may do everything."""
    from moto.sts.models import sts_backends

    session = sts_backends[world.account]["aws"].get_assumed_role_from_access_key(asked.access_key)
    if session is None or asked.service == "sts":
        return None
    who = world.iam.get_role_by_arn(session.role_arn)
    action = f"{asked.service}:{asked.action}"
    for resource, context in _resources(world, asked):
        if not decide(statements(world, who), action, resource, context):
            said = f"{session.arn} is not authorized to perform: {action}" + (f" on {resource}" if resource else "")
            return error(asked.protocol, "AccessDenied", said)
    return None


def _resources(world: World, asked: Asked) -> list[tuple[str | None, dict[str, str]]]:
    """Return what a request is about: ARNs and condition keys."""
    where = f"{world.region}:{world.account}"
    wanted = asked.parameters
    if asked.service == "ec2" and "InstanceId.1" in wanted and not asked.action.startswith("Describe"):
        ids = [value for name, value in wanted.items() if name.startswith("InstanceId.")]
        return [(f"arn:aws:ec2:{where}:instance/{one}", _tags(world, one)) for one in ids]
    if asked.service == "ecr" and "repositoryName" in wanted:
        return [(f"arn:aws:ecr:{where}:repository/{wanted['repositoryName']}", {})]
    if asked.service == "logs" and "logGroupName" in wanted:
        stream = wanted.get("logStreamName", "*")
        return [(f"arn:aws:logs:{where}:log-group:{wanted['logGroupName']}:log-stream:{stream}", {})]
    return [(None, {})]


def _tags(world: World, instance: str) -> dict[str, str]:
    listed = world.ec2.describe_tags(filters={"resource-id": [instance]})
    return {f"aws:ResourceTag/{tag['key']}": tag["value"] for tag in listed}
