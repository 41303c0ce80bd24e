"""Fault Injection Service: templates can be listed, and experiments that interrupt spot instances do."""

import json
import re
import time
import uuid
from typing import Any

from moto.fis.exceptions import FISException, ResourceNotFoundException
from moto.fis.responses import FISResponse
from moto.fis.urls import url_paths

from fake_aws import roles
from fake_aws.policies import decide
from fake_aws.world import World

_ACTION, _RESOURCE = "aws:ec2:send-spot-instance-interruptions", "aws:ec2:spot-instance"


class RefusalError(Exception):
    """What FIS has against an experiment that was started."""


def _minutes(given: str) -> int:
    found = re.fullmatch(r"PT(\d+)M", given)
    if not found or not 2 <= int(found[1]) <= 15:
        raise FISException(
            "ValidationException", f"durationBeforeInterruption is {given}; it must be from PT2M to PT15M"
        )
    return int(found[1])


def _check(template: Any) -> int:
    """Return after how many minutes a template interrupts, if it is one that the fake understands."""
    (action,) = template.actions.values()
    (target,) = template.targets.values()
    if (action["actionId"], target["resourceType"]) != (_ACTION, _RESOURCE):
        raise FISException("ValidationException", f"the fake knows {_ACTION} of {_RESOURCE} only")
    if action["targets"] != {"SpotInstances": next(iter(template.targets))} or target["selectionMode"] != "ALL":
        raise FISException("ValidationException", "the action must name its target, SpotInstances, and that select ALL")
    return _minutes(action["parameters"]["durationBeforeInterruption"])


def _interrupt(world: World, template: Any, arn: str) -> None:
    """Interrupt one instance, in the template's role."""
    found = [each for group in world.ec2.reservations.values() for each in group.instances
             if arn.endswith(f":instance/{each.id}") and each.state == "running"]  # fmt: skip
    if not found:
        raise RefusalError("Target resolution returned empty set")
    (instance,) = found
    if instance.lifecycle != "spot":
        raise RefusalError(f"{instance.id} is not a Spot Instance")
    who = world.iam.get_role_by_arn(template.role_arn)
    tags = {f"aws:ResourceTag/{tag['key']}": tag["value"] for tag in instance.get_tags()}
    trusted = json.loads(who.assume_role_policy_document)["Statement"][0]["Principal"] == {
        "Service": "fis.amazonaws.com"
    }
    if not trusted or not decide(roles.statements(world, who), "ec2:SendSpotInstanceInterruptions", arn, tags):
        raise RefusalError(f"the role {who.name} may not interrupt {instance.id}")
    seconds = _check(template) * world.minute_s
    world.parts["interrupt"]({"instance": instance.id, "after_s": seconds})


def fill(world: World) -> None:
    """See gaps."""
    begun: dict[str, dict[str, Any]] = {}

    def list_experiment_templates(self: Any) -> str:
        known = [template.to_dict(tags=self.fis_backend.tagger.get_tag_dict_for_resource(template.arn))
                 for template in self.fis_backend.experiment_templates.values()]  # fmt: skip
        return json.dumps({"experimentTemplates": known})

    def start_experiment(self: Any) -> Any:
        template = self.fis_backend.experiment_templates.get(self._get_param("experimentTemplateId"))
        if template is None:
            raise ResourceNotFoundException("there is no such template")
        _check(template)
        state = {"status": "running", "reason": "Experiment is running."}
        try:
            for arn in next(iter(template.targets.values()))["resourceArns"]:
                _interrupt(world, template, arn)
        except RefusalError as refused:
            state = {"status": "failed", "reason": str(refused)}
        identity = f"EXP{uuid.uuid4().hex[:16]}"
        begun[identity] = {
            "id": identity, "experimentTemplateId": template.id, "roleArn": template.role_arn, "state": state,
            "targets": template.targets, "startTime": time.time(), "tags": self._get_param("tags") or {},
        }  # fmt: skip
        return json.dumps({"experiment": {**begun[identity], "state": {"status": "initiating"}}})

    def get_experiment(self: Any) -> Any:
        found = begun.get(self._get_param("id"))
        if found is None:
            raise ResourceNotFoundException("there is no such experiment")
        return json.dumps({"experiment": found})

    FISResponse.list_experiment_templates = list_experiment_templates
    FISResponse.start_experiment = start_experiment
    FISResponse.get_experiment = get_experiment
    url_paths["{0}/experiments$"] = FISResponse.dispatch
    url_paths["{0}/experiments/(?P<id>[^/]+)$"] = FISResponse.dispatch
