"""The timeline of an interruption: the run's events, the notice and the node's end, in seconds."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

Event = Mapping[str, Any]
_ENDED = ("interrupted", "succeeded", "failed", "lost")
_ONCE = ("checkpoint", "step", "state")  # of which one is shown
_ON_FOR_S = 5.0  # a run that had left the node goes on, if it still takes steps this long after the node's end
_UNBROKEN_S = 30.0  # the same for a run that had not left it: it did not need the node
_WITHOUT = "without a step"


class Row(NamedTuple):
    """One line of the table."""

    seconds: float | None  # since the notice; of the last line: how many
    what: str
    about: str


def given(time: float, node: str, about: str) -> Event:
    """Return the first event of an interruption: what `node` was told."""
    return {"event": "given", "time": time, "node": node, "about": about}


def gone(time: float, node: str) -> Event:
    """Return the event of the node's end."""
    return {"event": "gone", "time": time, "node": node}


def looked(time: float) -> Event:
    """Return the event of the last look at the run."""
    return {"event": "looked", "time": time}


def timeline(events: Iterable[Event], since: float) -> list[Row]:
    """Return what happened from the notice at `since` to the first step after it, and how long there was no step.

    Args:
        events: the run's own, its verdict (`state`) if there is one, and those of this module, in any order.
        since: in seconds since the epoch, as events count.
    """
    ordered = _ordered(events)
    step = _recovery(ordered, since)
    until = max([step["time"], *(e["time"] for e in ordered if e["event"] == "gone")]) if step else float("inf")
    shown = [e for e in ordered if since <= e["time"] <= until and e["event"] in _SAID and e["event"] not in _ONCE]
    shown += [e for e in (_checkpoint(ordered, since), step, _verdict(ordered)) if e]
    rows = [Row(e["time"] - since, _SAID[e["event"]], _about(e)) for e in sorted(shown, key=lambda e: float(e["time"]))]
    return [*rows, _without_steps(ordered, since, step)]


def settled(events: Iterable[Event], since: float) -> bool:
    """Say whether nothing more will happen: the run took steps again, never stopped, or has ended."""
    ordered = _ordered(events)
    went = next((e["time"] for e in ordered if e["event"] == "gone"), None)
    if _verdict(ordered):
        return True
    if went is None:
        return False
    newest = max((e["time"] for e in ordered if e["event"] == "step"), default=0.0)
    breaks = [e["time"] for e in _interruptions(ordered, since)]
    if not breaks:
        return bool(newest >= went + _UNBROKEN_S)
    return _recovery(ordered, since) is not None and bool(breaks[-1] >= went or newest >= went + _ON_FOR_S)


def recovered(events: Iterable[Event], since: float) -> bool:
    """Say whether the run outlived the node: it took steps after it, or was done."""
    ordered = _ordered(events)
    verdict = _verdict(ordered)
    return verdict["state"] == "succeeded" if verdict else settled(ordered, since)


# --- Which events are shown, and in which words ----------------------------------------------------------------------

_SAID = {
    "given": "notice", "notice": "the head knows", "checkpoint": "checkpoint", "gone": "node gone",
    "interruption": "interruption", "relaunch": "relaunch", "resume": "resume", "step": "first step",
    "state": "end of the run",
}  # fmt: skip


def _about(event: Event) -> str:
    """Return the description of an event; values that it lacks are left out."""
    kind = event["event"]
    if kind in ("given", "interruption"):
        return str(event.get("about") or event.get("cause") or "")
    if kind == "notice":
        return f"{event.get('node', '')}: {event.get('kind', '')}"
    if kind == "relaunch":
        without = ", ".join(event.get("without", ()))
        return f"launch {event.get('launch', '?')}" + (f", without {without}" if without else "")
    if kind == "state":
        return f"{event['state']} at step {event.get('step')}" + (f": {event['message']}" if event["message"] else "")
    return str(event["node"]) if kind == "gone" else f"step {event.get('step')}"


def _ordered(events: Iterable[Event]) -> list[Event]:
    """Return the events by time; the time of a verdict is when it was written."""
    timed = [{**e, "time": e["updated"]} if e["event"] == "state" and "updated" in e else e for e in events]
    return sorted((e for e in timed if isinstance(e.get("time"), int | float)), key=lambda e: float(e["time"]))


def _verdict(ordered: Sequence[Event]) -> Event | None:
    """Return the verdict of a run that has ended."""
    return next((e for e in reversed(ordered) if e["event"] == "state" and e["state"] in _ENDED), None)


def _interruptions(ordered: Sequence[Event], since: float) -> list[Event]:
    return [e for e in ordered if e["event"] == "interruption" and e["time"] >= since]


def _recovery(ordered: Sequence[Event], since: float) -> Event | None:
    """Return the first step after the last interruption, or None."""
    breaks = _interruptions(ordered, since)
    return _next_step(ordered, breaks[-1]["time"]) if breaks else None


def _next_step(ordered: Sequence[Event], after: float) -> Event | None:
    """Return the first step of the launch after an interruption; the old launch may write its last step late."""
    begun = False
    for event in ordered:
        if event["time"] >= after:
            begun = begun or event["event"] in ("relaunch", "resume")
            if begun and event["event"] == "step":
                return event
    return None


def _checkpoint(ordered: Sequence[Event], since: float) -> Event | None:
    """Return the last checkpoint before the interruption; it may be older than the notice."""
    ends = [e["time"] for e in ordered if e["time"] >= since and e["event"] in ("interruption", "gone", "state")]
    found = [e for e in ordered if e["event"] == "checkpoint" and e["time"] <= min(ends, default=float("inf"))]
    return found[-1] if found else None


def _without_steps(ordered: Sequence[Event], since: float, step: Event | None) -> Row:
    """Return how long no step was taken, and how many steps were taken again."""
    breaks = _interruptions(ordered, since)
    if step is None or not breaks:
        return _until_now(ordered, broken=bool(breaks))
    lost = sum(until - at for at, until in {_gap(ordered, each["time"]) for each in breaks})
    done = max((e["step"] for e in ordered if e["event"] == "step" and e["time"] < step["time"]), default=0)
    again = done - step["step"] + 1
    return Row(lost, _WITHOUT, f"{again} {'step' if again == 1 else 'steps'} taken again" if done and again > 0 else "")


def _until_now(ordered: Sequence[Event], *, broken: bool) -> Row:
    """Return the same for a run that has not come back, or never stopped."""
    verdict = _verdict(ordered)
    if verdict and verdict["state"] == "succeeded":
        return Row(0.0, _WITHOUT, "the run was done")
    steps = [e for e in ordered if e["event"] == "step"]
    went = next((e["time"] for e in ordered if e["event"] == "gone"), float("inf"))
    if not steps:
        return Row(None, _WITHOUT, "there never was one")
    quiet = ordered[-1]["time"] - steps[-1]["time"]
    if not broken and steps[-1]["time"] > went and quiet < _ON_FOR_S:
        return Row(0.0, _WITHOUT, "the run went on: it did not need the node")
    return Row(quiet, _WITHOUT, f"until now; the last was step {steps[-1]['step']}")


def _gap(ordered: Sequence[Event], broke: float) -> tuple[float, float]:
    """Return the times of the last step before an interruption and of the first after it."""
    before = [e["time"] for e in ordered if e["event"] == "step" and e["time"] < broke]
    after = _next_step(ordered, broke)
    return (before[-1] if before else broke), (after["time"] if after else broke)
