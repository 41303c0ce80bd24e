"""The events of a run, events.jsonl: one JSON object a line, written by the server and by the supervisor.

Every event has `event` and `time` (seconds since the epoch). A line is appended in one write: the two do not
mix, and a reader sees whole lines. A killed server or a full disk may leave half a line. It is ended before the next
one is written. Readers pass over it, and over every line that is not what door.py asks of an event.
"""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from draco.files import write_all
from draco.runs import door
from draco.runs.door import Event


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

    def write(self, event: str, **fields: Any) -> Event:
        """Append one event, and return it as it stands there."""
        whole = {"event": event, "time": round(time.time(), 6), **fields}
        self._lines.append(whole)
        return whole

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
        self.odd = 0  # lines that were not understood

    def read(self) -> list[Event]:
        """Return the events that were added since the last call."""
        if not self._path.exists():
            return []
        with open(self._path, "rb") as file:
            file.seek(self._position)
            new = file.read()
        self._position += len(new)
        *lines, self._part = (self._part + new).split(b"\n")
        found = _understood(lines, door.event)
        self.odd += len(found.odd)
        return found.records


class Found(NamedTuple):
    """What the lines of a file hold."""

    records: list[Event]
    odd: list[tuple[int, str]]  # numbers of the lines that were not understood, and why
    cut: bool = False  # the last of them has no end

    def notes(self, name: str) -> list[str]:
        """Return what a reader should know of the lines left out, for a file of that name."""
        if not self.odd:
            return []
        if self.cut and len(self.odd) == 1:
            return [f"{name}: its last line is cut off, as by a killed run, and is left out"]
        (first, why), count = self.odd[0], len(self.odd)
        was = "line of it was" if count == 1 else "lines of it were"
        return [f"{name}: {count:,} {was} not understood and left out; first: line {first} ({why})"]


def read(path: Path) -> Iterator[Event]:
    """Yield the events of a file, without lines that are not understood."""
    yield from found(path).records


def evaluations(path: Path) -> Iterator[Event]:
    """Yield the evaluations of a file in the same way."""
    yield from found(path, door.evaluation).records


def found(path: Path, check: Callable[[bytes], Event] = door.event) -> Found:
    """Return what a file holds; nothing where it is not there. `check` is of draco/runs/door.py."""
    if not path.is_file():
        return Found([], [])
    *lines, rest = path.read_bytes().split(b"\n")
    whole = _understood([*lines, rest], check)
    return whole._replace(cut=bool(rest.strip()) and whole.odd[-1:] != [] and whole.odd[-1][0] == len(lines) + 1)


def _understood(lines: Iterable[bytes], check: Callable[[bytes], Event]) -> Found:
    whole = Found([], [])
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            whole.records.append(check(line))
        except ValueError as error:
            whole.odd.append((number, str(error)))
    return whole
