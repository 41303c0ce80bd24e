"""Notices: what each worker node says of its own end, as the cloud told it; the head fetches them over ssh.

On a node a notice is one small file of JSON, `{"kind": "interruption", "at": "2026-01-02T03:04:05Z"}`, written by
infra/cluster/files/notice.sh or by `make interrupt`. The head comes and reads it, because workers hold no key to the
head and share nothing that they can write with it; so a node can lie about itself, but about no other.
"""

import contextlib
import json
import os
import re
import selectors
import shlex
import subprocess
import time
from datetime import datetime
from typing import NamedTuple

from draco.launch.roster import Roster

PATH = "/run/draco/notice.json"
KINDS = ("interruption", "rebalance")
LONGEST = 1024  # bytes of a line; what is longer is no notice
AGAIN_S = 5.0  # from one start of a connection to the next, where it ended
# Taken from one node in one look, so that a flood costs next to nothing. The rest waits, and in the end the node.
_BYTES, _LINES = 16 * LONGEST, 16
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T([0-9]{2}:[0-9]{2}:[0-9]{2}Z)")

# One line every two seconds, empty without a notice. Printing also shows whether the head is still there: without it
# printf fails and nothing of this stays on the node.
_LOOP = f"while printf '%s\\n' \"$(head -c {LONGEST} {PATH} 2>/dev/null)\"; do sleep 2; done"


class Notice(NamedTuple):
    """What a node says of its end."""

    kind: str  # one of KINDS
    at: str  # UTC: when the node will go; of a rebalance recommendation, when it was given

    def sentence(self) -> str:
        """Return it in words.

        >>> Notice("interruption", "2026-01-02T03:04:05Z").sentence()
        'spot interruption at 03:04:05Z'
        """
        if self.kind == "rebalance":
            return "rebalance recommendation"
        found = _TIME.fullmatch(self.at)
        return f"spot interruption at {found[1] if found else self.at}"

    def text(self) -> str:
        """Return what the file holds."""
        return json.dumps(self._asdict())


def parse(line: bytes) -> Notice | None:
    """Return the notice in a line, or None where it holds something else."""
    try:
        given = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(given, dict):
        return None
    kind, at = given.get("kind"), given.get("at")
    if kind not in KINDS or not isinstance(at, str) or not _TIME.fullmatch(at):
        return None
    try:
        datetime.fromisoformat(at)  # no 40th of May: who reads it further on may rely on it
    except ValueError:
        return None
    return Notice(kind, at)


class Notices:
    """The notices of a cluster's worker nodes; one ssh connection to each, kept until `close`.

    What a node said holds while it cannot be heard, and until it says otherwise: a fresh node of that name has none.
    """

    def __init__(self, roster: Roster) -> None:
        self._selector = selectors.DefaultSelector()
        self._nodes = [_Node(roster, node.name, self._selector) for node in roster.nodes[1:]]

    def read(self) -> dict[str, Notice]:
        """Return the notices that stand, by node; never waits."""
        for key, _ in self._selector.select(timeout=0):
            key.data.take()
        for node in self._nodes:
            node.keep_up()
        return {node.name: node.notice for node in self._nodes if node.notice}

    def close(self) -> None:
        """End all connections; what runs on the nodes ends within two seconds of it."""
        for node in self._nodes:
            node.end()
        self._selector.close()


class _Node:
    """One worker node as it is heard."""

    def __init__(self, roster: Roster, name: str, selector: selectors.BaseSelector) -> None:
        self.name = name
        self.notice: Notice | None = None
        self._command = ["ssh", "-F", roster.ssh_config, name, "--", shlex.join(["sh", "-c", _LOOP])]
        self._selector = selector
        self._process: subprocess.Popen[bytes] | None = None
        self._part = b""  # of a line that is still coming
        self._begin()

    def take(self) -> None:
        """Read what came; the last whole line counts."""
        assert self._process
        assert self._process.stdout
        try:
            chunk = os.read(self._process.stdout.fileno(), _BYTES)
        except BlockingIOError:
            return
        if not chunk:
            self.end()
            return
        *lines, rest = (self._part + chunk).split(b"\n")
        for line in lines[-_LINES:]:
            self._hear(line)
        self._part = rest[: LONGEST + 1]  # of one that is too long enough to see that it is

    def keep_up(self) -> None:
        """Begin anew where the connection has ended."""
        if self._process is None and time.monotonic() - self._began >= AGAIN_S:
            self._begin()

    def end(self) -> None:
        """End the connection."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdout
        self._selector.unregister(process.stdout)
        process.stdout.close()
        process.kill()  # it has nothing to finish; the node's side notices
        process.wait()

    def _begin(self) -> None:
        self._began, self._part = time.monotonic(), b""
        with contextlib.suppress(OSError):  # no process just now: again in a while
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip
        if self._process:
            assert self._process.stdout
            os.set_blocking(self._process.stdout.fileno(), False)
            self._selector.register(self._process.stdout, selectors.EVENT_READ, self)

    def _hear(self, line: bytes) -> None:
        if not line.strip():
            self.notice = None
        elif len(line) <= LONGEST:
            self.notice = parse(line) or self.notice
