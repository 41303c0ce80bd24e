"""Actions that moto does not have answer 400: the Terraform provider would repeat moto's own 500 for minutes."""

import sys
from typing import Any

from moto.core.responses import BaseResponse

from fake_aws.errors import error
from fake_aws.world import World


def fill(world: World) -> None:
    """See gaps."""
    original = BaseResponse.call_action

    def call_action(self: Any) -> Any:
        try:
            return original(self)
        except NotImplementedError as missing:
            sys.stderr.write(f"not implemented: {self.service_name}: {missing}\n")
            form = "Action" in (self.querystring or {})
            protocol = "ec2" if self.service_name == "ec2" else "query" if form else "json"
            answer = error(protocol, "InvalidAction", str(missing))
            headers = {"Content-Type": answer.content_type, "status": str(answer.status), **dict(answer.headers)}
            return answer.status, headers, answer.body.decode()

    BaseResponse.call_action = call_action
