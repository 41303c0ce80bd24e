"""A run's events as a stream, for an operator on another machine, who may also come back later.

One JSON object a line on stdout: the run's own events; `alive` every few seconds, so that silence means something; and
at the end one `state`, which is the run's verdict.
"""

import json
import sys
import time
from pathlib import Path

from draco.launch.roster import Roster
from draco.launch.settle import verdict
from draco.launch.supervise import launched_at

_POLL_S = 0.2
_ALIVE_EVERY_S = 2.0


def follow(directory: Path, roster: Roster | None) -> None:
    """Print what has happened since the last launch and what happens, until the run has ended."""
    path = directory / "events.jsonl"
    position, said = launched_at(directory), 0.0
    while True:
        ended = verdict(directory, roster)  # asked first: what happened before is printed
        if path.exists():
            with open(path, "rb") as file:
                file.seek(position)
                whole, newline, _ = file.read().rpartition(b"\n")
            position += len(whole) + len(newline)
            sys.stdout.buffer.write(whole + newline)
        if ended:
            print(json.dumps({"event": "state", **ended._asdict()}), flush=True)
            return
        if time.monotonic() - said > _ALIVE_EVERY_S:
            print('{"event": "alive"}')
            said = time.monotonic()
        sys.stdout.flush()
        time.sleep(_POLL_S)
