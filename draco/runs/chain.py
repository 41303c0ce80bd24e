"""The chain of digests in a run directory, chain.jsonl: what each step did to the model, so that others can check it.

Each line is a JSON object that ends with `prev`, the SHA-256 of the line before without its line feed. So whoever has
the digest of the last line, the *head*, knows whether any line was changed, moved, added or removed. docs/verify.md
has the format for programs other than this one. Lines are of three kinds:

    launch       a server begins at a step: its job, and the digest of the model that it begins with
    step         digests of the model before and after it, and where they are known of what led from one to the other
    checkpoint   the digest of the file that was saved after the step of the line before
"""

import hashlib
import itertools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from draco.files import write_all

NAME = "chain.jsonl"
VERSION = 1
NOTHING = "0" * 64  # what the first line names as the digest of the line before

Line = dict[str, Any]


class Chain(NamedTuple):
    """The lines of a chain up to the first that is at fault."""

    launches: list[Line]
    steps: dict[int, Line]
    checkpoints: dict[int, str]  # step -> SHA-256 of its file
    head: str  # digest of the last line
    fault: str  # what is wrong with the line after, and where; empty: every line is right
    torn: bool  # the file ends in the middle of a line, as after a killed server
    ends: list[tuple[int, int, str]]  # of each line: the step that it is of, where it ends in the file, its digest

    @property
    def last(self) -> int | None:
        """The last step that is recorded, or with which a launch began; None: there is no line."""
        return self.ends[-1][0] if self.ends else None

    @property
    def gaps(self) -> list[tuple[int, int]]:
        """The first and last step of each stretch of steps of which nothing is recorded."""
        known = sorted({0, *self.steps, *(launch["step"] for launch in self.launches)})
        return [(a + 1, b) for a, b in itertools.pairwise(known) if b not in self.steps]

    def model(self, step: int) -> str | None:
        """Return the digest of the model after a step; None where it is not recorded."""
        if step in self.steps:
            return str(self.steps[step]["after"])
        return next((str(launch["model"]) for launch in self.launches if launch["step"] == step), None)


def digest(*parts: Any) -> str:
    """Return the SHA-256 of bytes, or of arrays of numbers as they lie in memory, one behind the other."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part)
    return found.hexdigest()


class Writer:
    """Appends lines to a chain."""

    def __init__(self, path: Path, head: str = NOTHING) -> None:
        """`head` is the digest of the last line that is there."""
        self._path, self.head = path, head
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)

    def append(self, values: Mapping[str, Any]) -> None:
        """Append a line of these values."""
        line = json.dumps({**values, "prev": self.head}).encode()
        try:
            write_all(self._descriptor, line + b"\n")
        except OSError as error:
            error.filename = str(self._path)  # which a failed write does not tell
            raise
        self.head = digest(line)

    def sync(self) -> None:
        """Bring what was written to the disk."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


def resumed(path: Path, step: int) -> tuple[Writer, str]:
    """Return what goes on with a chain after a step; a chain with a fault before it is set aside, and why is returned.

    Lines of later steps are cut off: these steps will be taken again.
    """
    if not path.exists():
        return Writer(path), ""
    found = read(path)
    if found.fault and (found.last is None or found.last < step):
        aside = path.with_name(f"{NAME}.refused-{len(list(path.parent.glob(f'{NAME}.refused-*'))) + 1}")
        path.rename(aside)
        return Writer(path), f"{found.fault}; it is now {aside.name}"
    return Writer(path, _cut(path, found, step)), ""


def _cut(path: Path, found: Chain, step: int) -> str:
    """Cut a chain's file behind the last line that is not of a later step; return that line's digest."""
    end, head = 0, NOTHING
    for of, stop, line in found.ends:
        if of > step:
            break
        end, head = stop, line
    os.truncate(path, end)
    return head


def read(path: Path) -> Chain:
    """Return the lines of a chain, checked: each in its format, and the digest of the one before in it."""
    chain, end = Chain([], {}, {}, NOTHING, "", False, []), 0
    *lines, rest = path.read_bytes().split(b"\n")
    for number, text in enumerate(lines, start=1):
        try:
            line = _line(text)
            _follow(chain, line)
        except ValueError as error:
            return chain._replace(fault=f"line {number} of {path.name}: {error}")
        end += len(text) + 1
        chain = chain._replace(head=digest(text))
        chain.ends.append((line["step"], end, chain.head))
    return chain._replace(torn=bool(rest))


def _line(text: bytes) -> Line:
    """Return a line whose format is right.

    Raises:
        ValueError: what is not.
    """
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("is no JSON") from None
    if not isinstance(line, dict) or line.get("line") not in ("launch", "step", "checkpoint"):
        raise ValueError("is none of launch, step and checkpoint")
    if type(line.get("step")) is not int or line["step"] < 0:
        raise ValueError("names no step")
    needed = {"launch": ("model",), "step": ("before", "after"), "checkpoint": ("sha256",)}[line["line"]]
    digests = [line.get(key) for key in (*needed, "prev")]
    digests += [line["vector"]] if "vector" in line else []
    if line["line"] == "launch":
        counts = [line.get(key) for key in ("chain", "parameters", "statistics", "partitions")]
        if any(type(count) is not int or count < 0 for count in counts):
            raise ValueError("lacks a number that a launch has")
        if line["chain"] != VERSION:
            raise ValueError(f"is of version {line['chain']} of the format, this program reads {VERSION}")
        if not _texts(line.get("platforms")):
            raise ValueError("lacks the platforms of a launch")
    each = line.get("partitions", []) if line["line"] == "step" else []
    absent = line.get("absent", [])
    if not isinstance(each, list) or not isinstance(absent, list) or any(type(row) is not int for row in absent):
        raise ValueError("holds something else than lists of digests and of rows")
    if not all(map(_is_digest, [*digests, *(one for one in each if one is not None)])):
        raise ValueError("holds something that is no SHA-256")
    return line


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")


def _follow(chain: Chain, line: Line) -> None:
    """Add a line to a chain, whose lists and tables are changed.

    Raises:
        ValueError: it does not follow from the lines before.
    """
    step, last = line["step"], chain.last
    if line["prev"] != chain.head:
        raise ValueError("does not follow: its prev is not the digest of the line before")
    if line["line"] == "launch":
        if last is not None and (step < last or (step == last and line["model"] != chain.model(last))):
            raise ValueError(f"a launch at step {step} with another model than the line before left")
        chain.launches.append(line)
    elif last is None:
        raise ValueError("comes before any launch")
    elif line["line"] == "checkpoint":
        if step != last:
            raise ValueError(f"a checkpoint of step {step} after step {last}")
        chain.checkpoints[step] = line["sha256"]
    else:
        if step != last + 1:
            raise ValueError(f"step {step} after step {last}")
        if not chain.launches[-1]["statistics"] and line["before"] != chain.model(last):
            raise ValueError(f"step {step} begins with another model than step {last} left")
        chain.steps[step] = line
