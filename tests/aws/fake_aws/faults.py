"""Errors and delays that tests order: per action, for some requests only, a number of times."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fake_aws.asked import Asked
from fake_aws.errors import Answer, error


@dataclass
class Fault:
    """What goes wrong with an action.

    Attributes:
        code: AWS's error code; None only delays.
        message: AWS's words.
        times: how often; None: always.
        after: how many matching requests go well first.
        zone, instance_type: which RunInstances it is about; None: all.
        market: likewise, spot or on-demand.
        delay_s: how long the answer takes.
        status: the HTTP status, where it is not the usual one of the code.
    """

    code: str | None = None
    message: str = "injected by a test"
    times: int | None = None
    after: int = 0
    zone: str | None = None
    instance_type: str | None = None
    market: str | None = None
    delay_s: float = 0.0
    status: int | None = None

    def concerns(self, asked: Asked, zone_of: Callable[[Asked], str]) -> bool:
        """Say whether a request is of the kind that it is about."""
        wanted = asked.parameters
        market = "spot" if wanted.get("InstanceMarketOptions.MarketType") == "spot" else "on-demand"
        return (
            (self.instance_type is None or self.instance_type == wanted.get("InstanceType"))
            and (self.market is None or self.market == market)
            and (self.zone is None or self.zone == zone_of(asked))
        )


class Faults:
    """The faults in force, by action; `*` is every action."""

    def __init__(self) -> None:
        self._by_action: dict[str, list[Fault]] = {}
        self._lock = threading.Lock()

    def set(self, by_action: Mapping[str, Mapping[str, Any] | Sequence[Mapping[str, Any]]]) -> None:
        """Replace all faults: `{"RunInstances": {"code": ..., "zone": ...}, "*": [{...}, {...}]}`."""
        made = {
            action: [Fault(**one) for one in ([given] if isinstance(given, Mapping) else given)]
            for action, given in by_action.items()
        }
        with self._lock:
            self._by_action = made

    def answer(self, asked: Asked, zone_of: Callable[[Asked], str]) -> Answer | None:
        """Wait as long as a fault says, and return its error; None: the request may go on."""
        with self._lock:
            fault = self._first(asked, zone_of)
        if fault is None:
            return None
        time.sleep(fault.delay_s)
        return error(asked.protocol, fault.code, fault.message, fault.status) if fault.code else None

    def _first(self, asked: Asked, zone_of: Callable[[Asked], str]) -> Fault | None:
        for fault in [*self._by_action.get(asked.action, []), *self._by_action.get("*", [])]:
            if fault.times == 0 or not fault.concerns(asked, zone_of):
                continue
            if fault.after > 0:
                fault.after -= 1
                continue
            if fault.times is not None:
                fault.times -= 1
            return fault
        return None
