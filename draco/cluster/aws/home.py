"""The files of a cluster's AWS side: what is kept between commands, and what stays fixed while it is up.

.clusters/<name>.aws/ outlives `cluster-down`, as the network and the storage at AWS do:
    settings.json    what the user asked for
    choice.json      zone, type, market, expiry: while there are instances
    host_keys.json   instance id -> the host key that its console printed
    base/ cluster/   copies of infra/base and infra/cluster, each with its variables, log and state

Every command reads these files, for `warnings`: nothing is imported here that takes time.
"""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from draco import files
from draco.cluster import state

if TYPE_CHECKING:
    from draco.cluster.aws.cost.prices import Candidate, Market

SOON = timedelta(minutes=30)  # before its end a cluster is warned of


class Choice(NamedTuple):
    """What was chosen at a cluster's start and holds until it is down."""

    type: str  # of the workers
    zone: str
    market: "Market"
    ami: str
    expires_at: str  # RFC 3339, UTC
    per_hour: float | None  # of the whole cluster in dollars, as quoted
    dearer: float | None = None  # dollars per hour by which a worker costs more on demand
    worker_ami: str | None = None  # None: the head's
    gpus: int = 0  # of each worker
    head_gpus: int = 0
    block: str | None = None  # the capacity block that workers are started in
    promoted: tuple[str, ...] = ()  # workers bought on demand, as the spot market had none to replace them with


class Home(NamedTuple):
    """The folder of one cluster's AWS side."""

    path: Path

    @property
    def settings(self) -> Path:
        """The file of the settings."""
        return self.path / "settings.json"

    @property
    def base(self) -> Path:
        """The copy of the root that outlives clusters."""
        return self.path / "base"

    @property
    def cluster(self) -> Path:
        """The copy of the root with the instances."""
        return self.path / "cluster"

    def choice(self) -> Choice | None:
        """Return the recorded choice, or None."""
        path = self.path / "choice.json"
        if not path.exists():
            return None
        found = Choice(**json.loads(path.read_text()))
        return found._replace(promoted=tuple(found.promoted))

    def choose(self, choice: Choice | None) -> None:
        """Record the choice; None: forget it."""
        path = self.path / "choice.json"
        if choice is None:
            path.unlink(missing_ok=True)
        else:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            files.replace(path, json.dumps(choice._asdict(), indent=1).encode())

    def host_keys(self) -> dict[str, str]:
        """Return the host keys that consoles printed, by instance."""
        path = self.path / "host_keys.json"
        found: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
        return found

    def keep_host_keys(self, keys: dict[str, str]) -> None:
        """Record host keys by instance."""
        files.replace(self.path / "host_keys.json", json.dumps(keys, indent=1).encode())


def of(folder: Path) -> Home:
    """Return the home that belongs to a cluster's own folder."""
    return Home(folder.with_name(f"{folder.name}.aws"))


def moment(text: str) -> datetime:
    """Return the moment that an expiry names."""
    return datetime.fromisoformat(text)


def expiry(moment: datetime) -> str:
    """Return a moment as the tag ExpiresAt has it."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def chosen(candidate: "Candidate", ami: str, expires_at: str, per_hour: float | None) -> Choice:
    """Return the choice of a candidate."""
    dearer = None
    if candidate.market != "capacity-block" and candidate.on_demand is not None and candidate.price is not None:
        dearer = candidate.on_demand - candidate.price
    return Choice(candidate.type, candidate.zone, candidate.market, ami, expires_at, per_hour, dearer)


def warnings(now: datetime | None = None, root: Path = state.ROOT) -> list[str]:
    """Return a sentence for each cluster that ends soon, has expired, or costs money though it came up only in part."""
    now = now or datetime.now(UTC)
    found = []
    for path in sorted(root.glob("*.aws/choice.json")):
        name = path.parent.name.removesuffix(".aws")
        left = datetime.fromisoformat(json.loads(path.read_text())["expires_at"]) - now
        if left <= timedelta(0):
            found.append(f"{name}: has expired; make cluster-down NAME={name} sees that nothing is left of it")
        elif name not in state.names(root):
            found.append(
                f"{name}: came up only in part and costs money; make cluster-up NAME={name} goes on, "
                f"make cluster-down NAME={name} removes it"
            )
        elif left < SOON:
            minutes = left.total_seconds() / 60
            found.append(f"{name}: ends itself in {minutes:.0f} minutes; make extend NAME={name} HOURS=2 puts it off")
    return found
