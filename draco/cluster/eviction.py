"""The eviction of a worker node, as a cloud does it to a spot instance: a notice, a wait, the end.

Each kind of node says how it is evicted. Where no cloud does it, a file on the node is the notice and the node is
killed: `by_hand`.
"""

import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import NamedTuple

from draco.launch.notices import PATH, Notice

_Say = Callable[[str], None]


class Eviction(NamedTuple):
    """How one node is evicted."""

    notice_s: float  # between notice and end, as the kind has it; 0: no notice
    announce: Callable[[float], str]  # seconds until the end -> what the node was told, in words
    end: Callable[[float, _Say], None]  # seconds until the end, which it waits for or brings about; then returns
    stands: str  # what becomes of a node whose notice was given, if nobody waits for its end
    about: tuple[str, ...] = ()  # what the user should know before, such as what it costs
    question: str = ""  # to which the user must agree; empty: nothing to ask


def by_hand(node: str, notice_s: float, announce: Callable[[str], None], kill: Callable[[], None]) -> Eviction:
    """Return the eviction of a node of this machine: `announce` writes a notice on it, `kill` ends it."""

    def told(seconds: float) -> str:
        at = datetime.fromtimestamp(time.time() + seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        notice = Notice("interruption", at)
        announce(notice.text())
        return notice.sentence()

    def end(seconds: float, say: _Say) -> None:
        _count_down(node, seconds, say)
        kill()

    return Eviction(notice_s, told, end, "it is not killed")


def writing(notice: str) -> list[str]:
    """Return the command that puts a notice in its place, on the node and by root; the head never sees half of it."""
    script = f'mkdir -p {os.path.dirname(PATH)} && printf "%s\\n" "$1" > {PATH}.new && mv {PATH}.new {PATH}'
    return ["sh", "-c", f"umask 022 && {script}", "sh", notice]


def _count_down(node: str, seconds: float, say: _Say) -> None:
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        say(f"{node} goes in {left:.0f} s")
        time.sleep(min(left, 1.0))
