"""Warns, with every command, of clusters that cost money and end soon, have expired, or came up only in part.

Reads files alone: it asks nobody, and takes no time.
"""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

from draco.cluster import state

SOON = timedelta(minutes=30)


def warnings(now: datetime | None = None, root: Path = state.ROOT) -> list[str]:
    """Return a sentence for each such cluster."""
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
