"""What the guard has found, by rank, and how often it looked."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from draco.torch.claims import Finding

LOGGER = logging.getLogger("draco.torch")


@dataclass(frozen=True)
class Evidence:
    """One thing that one rank did wrong.

    Attributes:
        step: the step in which it showed, from 1.
        since: the first step after the last check: where not every step is checked, the fault may have lived since.
        what: "weights", "inputs", "outputs", "loss gradient", "gradient", "recomputation", "optimizer state".
        found: how it was found.
        repaired: how it was repaired.
        host: the name of the machine.
    """

    step: int
    since: int
    what: str
    found: str
    repaired: str
    host: str

    def __str__(self) -> str:
        lived = f"; steps {self.since} to {self.step - 1} were not checked" if self.since < self.step else ""
        return f"step {self.step}, {self.host}: {self.what}: {self.found}; {self.repaired}{lived}"


@dataclass
class Register:
    """Evidence by rank, and the counters; the log has a line for each finding, from rank 0 and from the suspect."""

    rank: int
    hosts: Sequence[str]
    suspects: dict[int, list[Evidence]] = field(default_factory=dict)
    steps: int = 0
    checked: int = 0
    disputes: int = 0
    repaired: int = 0
    last: int = 0  # the step that was checked last
    doubt: bool = False  # whether the next step is checked, and weights are compared, in any case

    def enter(self, findings: Sequence[Finding], step: int, since: int) -> None:
        """Keep what was found at a step."""
        for one in findings:
            evidence = Evidence(step, since, one.what, one.found, one.repaired, self.hosts[one.rank])
            self.suspects.setdefault(one.rank, []).append(evidence)
            if self.rank in (0, one.rank):
                LOGGER.warning("rank %d is suspect: %s", one.rank, evidence)
