"""The door for records: what a line of events.jsonl and evaluations.jsonl, and state.json, must hold to be understood.

One table from the kind of an event to its fields, with their types and bounds. All who read a run's records read them
through here: nothing further on meets a field of another type, a number that no run can have, or text that a terminal
would obey (draco/plain.py). What the table does not have passes, for a later version may write it.
Required is only what gives an event its place; what an older version left out is unknown, and shown as such.
"""

import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from draco import metrics
from draco.plain import plain, value

Event = dict[str, Any]

_MOST = 10**15  # of steps and bytes: exact as a float, far above any run
Number = Annotated[float, Field(ge=-1e39, le=1e39, allow_inf_nan=False)]  # a float32, and as an axis of a figure
Count = Annotated[int, Field(ge=0, le=_MOST)]
Rank = Annotated[int, Field(ge=1, le=4096)]  # as many workers as a job may have
Ranks = list[Rank] | None
Seconds = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Time = Annotated[float, Field(ge=0, lt=253_402_300_800, allow_inf_nan=False)]  # before the year 10000
RankText = Annotated[str, Field(pattern="^[0-9]{1,4}$")]


def _maybe() -> Any:
    """Return the default of a field that need not be there."""
    return Field(default=None)


class _Record(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class _Job(_Record):
    name: str = _maybe()
    workers: Rank = _maybe()


class _Event(_Record):
    event: str
    time: Time


class _Start(_Event):
    steps: Count = _maybe()
    summary: str = _maybe()
    setting: str = _maybe()
    elements: Count = _maybe()
    job: _Job = _maybe()
    machine: dict[str, str | int | float] | None = _maybe()
    vote: str = _maybe()
    vote_reason: str = _maybe()
    server_device: str = _maybe()  # `cpu`, or the name of its GPU
    weights: str = _maybe()  # SHA-256 of the file of initial weights
    failure_probability: Share | None = _maybe()  # that a step of the whole run stays false
    expected_false: Annotated[Number, Field(ge=0)] | None = _maybe()  # false vectors of the whole run, on the average


class _Proof(_Record):
    step: Count
    partition: Count
    claimed: str
    true: str


class _Step(_Event):
    step: Count
    loss: Number = _maybe()
    seconds: dict[str, Seconds] = _maybe()
    suspects: list[Rank] = _maybe()
    bytes_received: Count = _maybe()
    lr: Number = _maybe()
    gradient_norm: Annotated[float, Field(ge=0, allow_inf_nan=False)] = _maybe()  # in float64: beyond a float32
    byzantine: Ranks = _maybe()
    liars: Ranks = _maybe()  # older runs called the Byzantine workers so
    lost: Ranks = _maybe()
    straggling: Ranks = _maybe()
    refused: dict[RankText, str] | None = _maybe()
    waited: dict[RankText, Seconds] | None = _maybe()
    redrawn: list[str] = _maybe()
    decoding_error: Number | None = _maybe()
    copies: Annotated[Number, Field(ge=0)] | None = _maybe()  # pairs computed / pairs
    redundancy: Count | None = _maybe()  # copies of each pair at the next step, if nobody lies
    standing: Count | None = _maybe()  # workers that are not expelled
    rounds: Count | None = _maybe()
    expelled: dict[RankText, _Proof] | None = _maybe()


class _Expelled(_Event, _Proof):
    rank: Rank


class _Watched(_Event):
    step: Count
    rank: Rank


class _Undone(_Event):
    step: Count
    partitions: list[Count] = _maybe()
    workers: Ranks = _maybe()


class _File(_Event):  # checkpoint, resume
    step: Count
    file: str = _maybe()
    server_device: str = _maybe()  # of resume, with the next: another kind of device than before
    before_on: str = _maybe()
    expelled: dict[RankText, _Proof] | None = _maybe()  # of resume: who is out


class _RefusedCheckpoint(_Event):
    file: str = _maybe()
    why: str = _maybe()


class _Checked(_Event):
    warnings: list[str] = _maybe()
    sees: str = _maybe()


class _Doubt(_Event):
    sentences: list[str] = _maybe()


class _Notice(_Event):
    node: str
    kind: str
    at: str


class _Interruption(_Event):
    cause: str
    nodes: dict[str, str] = _maybe()
    ranks: list[Rank | Literal[0]] = _maybe()


class _Relaunch(_Event):
    launch: Count = _maybe()
    nodes: list[str] | None = _maybe()
    without: dict[str, str] = _maybe()
    warnings: list[str] = _maybe()


class _End(_Event):
    state: str = _maybe()
    step: Count = _maybe()
    message: str = _maybe()
    caught: Count = _maybe()
    missed: Count = _maybe()
    falsely_accused: Count = _maybe()


class _Stopped(_Event):  # stop_early
    step: Count
    metric: str
    best: Number | None = _maybe()
    best_step: Count | None = _maybe()


class _Logger(_Event):
    name: str
    step: Count
    why: str


class _Evaluation(_Record):
    step: Count
    top1: Share = _maybe()
    top5: Share = _maybe()
    loss: float  # of a model that has diverged it may be anything
    samples: Count
    time: Time = _maybe()
    by: str = _maybe()


class _State(_Record):
    state: Literal["pending", "running", "interrupted", "succeeded", "failed", "lost"]
    step: Count
    message: str
    pid: Annotated[int, Field(ge=0, lt=2**31)]
    host: str
    updated: Time
    started: str = _maybe()  # not before processes were dated


_EVENTS: Mapping[str, type[_Record]] = {
    "start": _Start, "step": _Step, "checkpoint": _File, "resume": _File, "refused_checkpoint": _RefusedCheckpoint,
    "checked": _Checked, "doubt": _Doubt, "notice": _Notice, "interruption": _Interruption, "relaunch": _Relaunch,
    "stop_early": _Stopped, "logger": _Logger, "expelled": _Expelled, "undone": _Undone, "end": _End,
    "watched": _Watched,
}  # fmt: skip


def event(line: bytes) -> Event:
    """Return the event in a line.

    Raises:
        ValueError: why it is none, in a few words.
    """
    found = _object(line)
    kind = found.get("event")
    return _checked(found, _EVENTS.get(kind, _Event) if isinstance(kind, str) else _Event)


def evaluation(line: bytes) -> Event:
    """Return the evaluation in a line: besides what the table says, any number in it is a metric by its name.

    Raises:
        ValueError: why it is none, in a few words.
    """
    found = _checked(_object(line), _Evaluation)
    for name, number in metrics.among(found):
        if metrics.LARGEST < abs(number) < math.inf:  # a whole number may be too large for a float
            raise ValueError(plain(f"{name}: is beyond {metrics.LARGEST:.0e}", 200))
    if why := metrics.fault(metrics.recorded(found)):
        raise ValueError(plain(why, 200))
    return found


def state(text: bytes | str) -> Event:
    """Return what a state.json says, without fields that this version does not know; raises as `event` does."""
    found = _checked(_object(text), _State)
    return {key: found[key] for key in _State.model_fields if key in found}


def heard(line: bytes) -> Event | None:
    """Return what a line of a head's stream says (launch/follow.py), or None where it is something else."""
    try:
        found = _object(line)
        kind = found.get("event")
        if kind == "alive":
            return {"event": "alive"}
        return {"event": "state", **state(line)} if kind == "state" else event(line)
    except ValueError:
        return None


def _object(line: bytes | str) -> Event:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError("it is no JSON") from None
    if not isinstance(found, dict):
        raise ValueError("it is no JSON object")
    return found


def _checked(found: Event, kind: type[_Record]) -> Event:
    try:
        kind.model_validate(found)
        cleaned: Event = value(found)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"][:3]))
        raise ValueError(plain(f"{place}: {first['msg'].lower()}", 200)) from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return cleaned
