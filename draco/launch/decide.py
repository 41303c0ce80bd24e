"""The decision after a launch has ended: the run ends too, or is launched again. One pure function of what was seen.

A run is as many launches of mpirun as it takes. What ended one is the judge's to say (judge.py); whether there is
another, and on which nodes, is said here. Lost means that a node or a process went, which another launch can mend;
failed means that the job itself did, and would again.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from draco.job.sections import OnLossSection
from draco.runs.directory import State

WITHIN_S = 3600.0  # on_loss.per_hour counts what happened within it
# A launch that takes no step gains nothing, and what kept it from one is likely to be there next time; twice may be
# bad luck, such as a node that is lost while the ranks start.
FRUITLESS = 3


class Seen(NamedTuple):
    """Everything that a decision rests on."""

    state: State  # the verdict on the launch that has ended
    message: str
    on_loss: OnLossSection = OnLossSection()
    lost: Mapping[str, str] = {}  # nodes that went in this launch, each with the reason
    noticed: Mapping[str, str] = {}  # nodes that are about to go, as they said
    out: Mapping[str, str] = {}  # nodes that this launch was without already
    back: Sequence[str] = ()  # those of them that can take part again, for which this launch was stopped
    nodes: Sequence[str] | None = None  # every worker node of the cluster; None: one machine
    asked: bool = False  # the user asked for the end
    fruitless: int = 0  # launches in a row that took no step, this one included
    ages: Sequence[float] = ()  # seconds since each earlier interruption


class End(NamedTuple):
    """The run ends, in that state."""

    state: State
    message: str


class Relaunch(NamedTuple):
    """The run goes on from its newest checkpoint."""

    without: Mapping[str, str]  # nodes that are left out, each with the reason
    why: str
    counts: bool  # it was an interruption, of which on_loss.per_hour allows so many


Action = End | Relaunch


def decide(seen: Seen) -> Action:
    """Return what is to be done.

    In this order: a run that is over by itself, the user's request to stop, what no other launch can mend, and the
    limits that the job sets.
    """
    if seen.state in ("succeeded", "failed"):
        return End(seen.state, seen.message)
    if seen.asked:
        return End("interrupted", seen.message if seen.state == "interrupted" else f"asked to stop; {seen.message}")
    noticed = {node: why for node, why in seen.noticed.items() if node not in seen.out}
    if seen.state == "interrupted" and not noticed and not seen.back:
        return End(seen.state, seen.message)  # the file `stop` was put there by hand
    counts = seen.state == "lost" or bool(noticed)
    why = seen.message if seen.state == "lost" else _sentence(noticed) if noticed else f"{_words(seen.back)} back"
    without = {node: reason for node, reason in seen.out.items() if node not in seen.back} | noticed | dict(seen.lost)
    refused = _refused(seen, without, counts)
    if refused is None:
        return Relaunch(without, why, counts)
    return End("lost", f"{why}; {refused}" if refused else why)


def _refused(seen: Seen, without: Mapping[str, str], counts: bool) -> str | None:
    """Return why there is no other launch, empty where the job wants none after a loss; None: there may be one."""
    if counts and seen.on_loss.name == "fail":
        return ""
    if seen.nodes and not set(seen.nodes) - set(without):
        return "no worker node is left"
    if seen.fruitless >= FRUITLESS:
        return f"{seen.fruitless} launches in a row took no step"
    recent = sum(age < WITHIN_S for age in seen.ages) + 1
    if counts and recent > seen.on_loss.per_hour:
        return f"{recent} interruptions within an hour, and on_loss.per_hour allows {seen.on_loss.per_hour}"
    return None


def _sentence(noticed: Mapping[str, str]) -> str:
    return "; ".join(f"{node}: {why}" for node, why in noticed.items())


def _words(nodes: Sequence[str]) -> str:
    return f"{', '.join(nodes)} {'is' if len(nodes) == 1 else 'are'}"
