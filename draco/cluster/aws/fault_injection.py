"""Evictions by AWS Fault Injection Service (FIS): AWS takes a spot instance away, with the notices of a real one.

An experiment is made from a template, which is removed as soon as the experiment runs. FIS acts in a role of its own,
`draco-<name>-interrupt` (infra/base/access.tf), which lets it interrupt this cluster's instances and nothing else.
"""

import contextlib
import math
import time
import uuid
from typing import Any, NamedTuple

from botocore.exceptions import BotoCoreError, ClientError

from draco.cluster.aws import account, instances
from draco.cluster.aws.cost.quote import dollars
from draco.cluster.aws.instances import Instance
from draco.cluster.backend import Cluster, Say
from draco.cluster.eviction import Eviction
from draco.errors import MissingError, NotConfiguredError, RefusedError

PER_MINUTE = 0.10  # dollars for each minute that an action runs
LEAST_MINUTES, MOST_MINUTES = 2, 15  # that FIS takes from notice to end
_ACTION = "aws:ec2:send-spot-instance-interruptions"
_START_LIMIT_S = 60.0
_END_LIMIT_S = 300.0  # after the time that was announced
_POLL_S = 2.0


class Target(NamedTuple):
    """An instance that is to be interrupted, and who does it."""

    region: str
    instance: Instance
    arn: str
    role: str  # ARN of the role that FIS assumes


def minutes(notice_s: float) -> int:
    """Return a notice in whole minutes, rounded up, and no fewer than FIS gives.

    Raises:
        RefusedError: more than FIS gives.
    """
    found = max(LEAST_MINUTES, math.ceil(notice_s / 60))
    if found > MOST_MINUTES:
        raise RefusedError(f"NOTICE={notice_s:g}: AWS gives at most {60 * MOST_MINUTES} seconds")
    return found


def target(cluster: Cluster, node: str) -> Target:
    """Return what FIS needs to interrupt a node.

    Raises:
        MissingError: the node or the role is not there.
        RefusedError: the node is on demand, and AWS takes only spot instances away.
    """
    region = str(cluster.details["region"])
    found = instances.alive(region, cluster.name).get(node)
    if found is None:
        raise MissingError(f"{cluster.name}: {node} has no instance; make cluster-up NAME={cluster.name} starts one")
    if found.market != "spot":
        raise RefusedError(f"{cluster.name}: {node} is on demand, and AWS interrupts spot instances only")
    name = f"draco-{cluster.name}-interrupt"
    try:
        with account.speaking(f"looking for the role {name}"):
            role = account.client("iam", region).get_role(RoleName=name)["Role"]["Arn"]
    except NotConfiguredError as error:
        if isinstance(error.__cause__, ClientError) and error.__cause__.response["Error"]["Code"] == "NoSuchEntity":
            raise MissingError(
                f"{cluster.name}: the role {name} is not there; make cluster-up NAME={cluster.name} makes it"
            ) from error
        raise
    _, partition, _, _, owner, _ = role.split(":", 5)
    return Target(region, found, f"arn:{partition}:ec2:{region}:{owner}:instance/{found.id}", role)


def eviction(cluster: Cluster, node: str, notice_s: float) -> Eviction:
    """Return how AWS takes a node away, with a notice of whole minutes, and what that costs.

    Raises:
        MissingError: the node or the role is not there.
        RefusedError: the node is on demand, or the notice is longer than AWS gives.
    """
    count = minutes(notice_s)
    which = target(cluster, node)
    about = f"{node}: AWS Fault Injection Service takes {dollars(PER_MINUTE * count)} for it, and the instance ends"
    other = f"NOTICE={notice_s:g}: AWS takes {count} minutes, from 2 on and whole ones"
    return Eviction(
        60.0 * count,
        lambda seconds: _announce(cluster, which, round(seconds / 60)),
        lambda seconds, say: _await_end(cluster, which, seconds, say),
        "AWS takes it all the same",
        (about,) if 60 * count == notice_s else (other, about),
        f"{cluster.name}: interrupt {node} ({which.instance.id})",
    )


def _announce(cluster: Cluster, which: Target, count: int) -> str:
    start(cluster.name, which, count)
    return f"AWS has begun to interrupt {which.instance.id}, which ends in {count} minutes"


def start(name: str, which: Target, count: int) -> str:
    """Start the experiment that ends an instance after so many minutes; return its id once it runs.

    Raises:
        MissingError: the credentials may not.
        NotConfiguredError: AWS says no, or the experiment failed; with its reason.
    """
    fis = account.client("fis", which.region)
    tags = {"Project": "draco", "Cluster": name, "Root": "cluster"}
    with account.speaking(f"interrupting {which.instance.id}"):
        template = fis.create_experiment_template(
            clientToken=str(uuid.uuid4()),
            description=f"Interrupt {which.instance.node} of the Draco cluster {name}",
            stopConditions=[{"source": "none"}],
            targets={
                "node": {"resourceType": "aws:ec2:spot-instance", "resourceArns": [which.arn], "selectionMode": "ALL"}
            },
            actions={
                "interrupt": {
                    "actionId": _ACTION,
                    "parameters": {"durationBeforeInterruption": f"PT{count}M"},
                    "targets": {"SpotInstances": "node"},
                }
            },
            roleArn=which.role,
            tags=tags,
        )["experimentTemplate"]["id"]
        try:
            begun = fis.start_experiment(clientToken=str(uuid.uuid4()), experimentTemplateId=template, tags=tags)
            experiment = begun["experiment"]["id"]
            _await_start(fis, experiment, which)
        finally:
            with contextlib.suppress(ClientError, BotoCoreError):  # one that stays costs nothing; leftovers lists it
                fis.delete_experiment_template(id=template)  # what has begun goes on without it
    return str(experiment)


def _await_start(fis: Any, experiment: str, which: Target) -> None:
    deadline = time.monotonic() + _START_LIMIT_S
    while True:
        found = fis.get_experiment(id=experiment)["experiment"]["state"]
        if found["status"] in ("running", "completed"):
            return
        if found["status"] in ("stopping", "stopped", "failed", "cancelled"):
            why = found.get("reason", "AWS does not say why")
            raise NotConfiguredError(f"{which.instance.id}: experiment {experiment} {found['status']}: {why}")
        if time.monotonic() > deadline:
            raise NotConfiguredError(
                f"{which.instance.id}: experiment {experiment} is {found['status']} after {_START_LIMIT_S:.0f} s; it "
                "may still begin"
            )
        time.sleep(_POLL_S)


def _await_end(cluster: Cluster, which: Target, seconds: float, say: Say) -> None:
    began = time.monotonic()
    while which.instance.id in (each.id for each in instances.alive(which.region, cluster.name).values()):
        left = began + seconds - time.monotonic()
        if left < -_END_LIMIT_S:
            raise NotConfiguredError(
                f"{which.instance.node}: AWS has announced its end, and {which.instance.id} still runs"
            )
        say(f"{which.instance.node} goes in {left:.0f} s" if left > 0 else f"{which.instance.node} goes")
        time.sleep(_POLL_S)
