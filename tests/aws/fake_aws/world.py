"""The common state of the fake: its folder, what tests set at run time, and what was asked of it."""

import threading
import zlib
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fake_aws.asked import Asked
from fake_aws.errors import Answer
from fake_aws.faults import Faults
from fake_aws.prices import Prices

REGION = "us-east-1"
QUOTAS = {
    "L-1216C47A": ("Running On-Demand Standard (A, C, D, H, I, M, R, T, Z) instances", 256.0),
    "L-34B43A08": ("All Standard (A, C, D, H, I, M, R, T, Z) Spot Instance Requests", 256.0),
    "L-DB2E81BA": ("Running On-Demand G and VT instances", 0.0),
    "L-3819A6DF": ("All G and VT Spot Instance Requests", 0.0),
    "L-417A185B": ("Running On-Demand P instances", 0.0),
    "L-7212CCBC": ("All P4, P3 and P2 Spot Instance Requests", 0.0),
    "L-C4BD4855": ("All P5 Spot Instance Requests", 0.0),
}
_KEPT_CALLS = 20_000


class World:
    """One fake AWS.

    Attributes:
        folder: where logs, file systems, the registry and the nodes' disks are.
        prefix: what everything that it makes on this machine begins with (at most ten characters).
        account: the account's number; two fakes on one machine have different ones.
        faults: the errors and delays to answer with.
        prices: what instances cost.
        quotas: {quota code: vCPUs}.
        console_delay_s: how long a console stays empty for those who do not ask for its latest output.
        operator: the address that this machine has for nodes; None: there are no nodes.
        port: the port of the API, at 127.0.0.1 and that address.
        registry_host: the name of ECR's registry.
        images: a folder where the registry keeps layers for later fakes; None: nowhere.
        minute_s: how long a minute of an instance's timers is.
        calls: what was asked, oldest first.
        checks: called with every request before it is answered; may return an error to answer instead.
        after: called with every request that was answered, before its answer is sent.
        parts: handlers of the control endpoint by name; see control.py.
        lock: held by requests that change EC2's resources, since moto does not expect two at a time.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        number = zlib.crc32(str(self.folder).encode())
        self.prefix = f"fa{number:08x}"
        self.account = f"{10**11 + number:012d}"
        self.region = REGION
        self.faults = Faults()
        self.prices = Prices()
        self.quotas = {code: limit for code, (_, limit) in QUOTAS.items()}
        self.console_delay_s = 60.0
        self.operator: str | None = None
        self.port = 0
        self.images: Path | None = None
        self.minute_s = 60.0
        self.registry_host = f"{self.account}.dkr.ecr.{REGION}.amazonaws.com"
        self.calls: deque[dict[str, Any]] = deque(maxlen=_KEPT_CALLS)
        self.checks: list[Callable[[Asked], Answer | None]] = []
        self.after: list[Callable[[Asked], None]] = []
        self.parts: dict[str, Callable[[dict[str, Any]], Any]] = {}
        self.lock = threading.RLock()

    @property
    def ec2(self) -> Any:
        """moto's EC2 backend."""
        from moto.ec2.models import ec2_backends

        return ec2_backends[self.account][self.region]

    @property
    def efs(self) -> Any:
        """moto's EFS backend."""
        from moto.efs.models import efs_backends

        return efs_backends[self.account][self.region]

    @property
    def iam(self) -> Any:
        """moto's IAM backend."""
        from moto.iam.models import iam_backends

        return iam_backends[self.account]["aws"]

    @property
    def ecr(self) -> Any:
        """moto's ECR backend."""
        from moto.ecr.models import ecr_backends

        return ecr_backends[self.account][self.region]
