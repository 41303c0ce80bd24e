"""The events of a run, events.jsonl: one JSON object a line, written by the server and by the supervisor.

Every event has `event` and `time` (seconds since the epoch). A line is appended in one write: the two do not
mix, and a reader sees whole lines. A killed server or a full disk may leave half a line. It is ended before the next
one is written, and readers pass over it.
"""

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from draco.files import write_all

Event = dict[str, Any]


class Lines:
    """Appends JSON objects to a file, one a line, nothing kept back: what is not in the file was not written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        size = os.fstat(self._descriptor).st_size
        self._torn = size > 0 and os.pread(self._descriptor, 1, size - 1) != b"\n"  # spoils only itself

    def append(self, values: Mapping[str, Any]) -> None:
        """Append one line."""
        line = ("\n" if self._torn else "") + json.dumps(values) + "\n"
        self._torn = True
        try:
            write_all(self._descriptor, line.encode())
        except OSError as error:
            error.filename = str(self._path)  # which a failed write does not tell
            raise
        self._torn = False

    def beat(self) -> None:
        """Make the file new without another line."""
        os.utime(self._descriptor)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


class EventLog:
    """Appends events to a file."""

    def __init__(self, path: Path) -> None:
        self._lines = Lines(path)

    def write(self, event: str, **fields: Any) -> None:
        """Append one event."""
        self._lines.append({"event": event, "time": round(time.time(), 6), **fields})

    def beat(self) -> None:
        """Show that the server is alive where a while passes without an event: the file's time is its heartbeat."""
        self._lines.beat()

    def close(self) -> None:
        """Close the file."""
        self._lines.close()


def append(path: Path, event: str, **fields: Any) -> None:
    """Append one event to a file that the server may be writing; a full disk loses the event, not its writer."""
    with contextlib.suppress(OSError):
        log = EventLog(path)
        with contextlib.closing(log):
            log.write(event, **fields)


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
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict):
                yield event
