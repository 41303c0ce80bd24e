"""events.jsonl: what happened in a run, one JSON object a line, written by the server only.

Every event has `event` and `time` (seconds since the epoch). A line is written at once, so that whoever follows the
file sees whole lines; a killed run may leave half a line at the end, which readers pass over.
"""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

Event = dict[str, Any]


class EventLog:
    """Appends events to a file."""

    def __init__(self, path: Path) -> None:
        self._file: TextIO = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 - kept open for the run
        if self._file.tell() and path.read_bytes()[-1:] != b"\n":
            self._file.write("\n")  # end the half line that a killed run left, so that it spoils only itself

    def write(self, event: str, **fields: Any) -> None:
        """Append one event."""
        self._file.write(json.dumps({"event": event, "time": round(time.time(), 6), **fields}) + "\n")

    def beat(self) -> None:
        """Show that the server is alive where a while passes without an event: the file's time is its heartbeat."""
        os.utime(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read(path: Path) -> Iterator[Event]:
    """Yield the events of a file, without lines that are not whole."""
    if not path.exists():
        return
    with open(path, encoding="utf-8") as file:
        for line in file:
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                continue
