"""events.jsonl: what happened in a run, one JSON object a line, by the server and, between its words, the supervisor.

Every event has `event` and `time` (seconds since the epoch). A line is appended in one write, so that the two do not
mix and whoever follows the file sees whole lines; a killed server may leave half a line at the end, which the next
writer ends and readers pass over.
"""

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from draco.run_directory import NO_SPACE

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


def append(path: Path, event: str, **fields: Any) -> None:
    """Append one event to a file that the server may be writing; a full disk loses the event, not its writer."""
    line = json.dumps({"event": event, "time": round(time.time(), 6), **fields}) + "\n"
    with open(path, "ab+", buffering=0) as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else f"\n{line}"
        try:
            file.write(line.encode())
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise


class Tail:
    """What is added to a file from now on, a call at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = path.stat().st_size if path.exists() else 0
        self._part = b""

    def read(self) -> list[Event]:
        """Return the events that were added since the last call."""
        if not self._path.exists():
            return []
        with open(self._path, "rb") as file:
            file.seek(self._position)
            new = file.read()
        self._position += len(new)
        *lines, self._part = (self._part + new).split(b"\n")
        found = []
        for line in lines:
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
        return found


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
