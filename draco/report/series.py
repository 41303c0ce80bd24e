"""Arrays for a report's figures, from the events of one run: pure, without files, clock or drawing.

Shapes: t steps that were taken, n workers, b bins of consecutive steps.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from draco import metrics

Record = Mapping[str, Any]
Floats = NDArray[np.float64]
PARTS = ("compute", "encode", "communication", "decode", "aggregate", "update")

# What a worker was at a step, the worst last: where several steps share a place in a picture, the worst is shown.
CLASSES = ("no record", "honest", "straggling", "lost", "suspect", "caught", "falsely accused", "missed")
NO_RECORD, HONEST, STRAGGLING, LOST, SUSPECT, CAUGHT, ACCUSED, MISSED = range(len(CLASSES))
_BEGINS = ("refused_checkpoint", "resume", "start")  # what a launch writes before its first step, in this order
_MARKED = (
    "notice", "interruption", "relaunch", "refused_checkpoint", "resume", "logger", "expelled", "undone", "watched",
    "stop_early", "end",
)  # fmt: skip


class Mark(NamedTuple):
    """Something that happened to a run between two of its steps."""

    kind: str  # the event
    seconds: float  # on the run's own clock, see `elapsed`; NaN where the event has no time
    step: int  # the newest step before it; of a resumption the one that it goes on after
    about: str


class Bins(NamedTuple):
    """Equal ranges of consecutive steps; the last may reach beyond the last step."""

    first: int  # the first step
    last: int
    size: int  # steps in a bin
    number: int  # b

    @property
    def edges(self) -> Floats:
        """(b + 1,): the bins' borders, half a step before their first steps."""
        return self.first - 0.5 + self.size * np.arange(self.number + 1, dtype=np.float64)

    def of(self, steps: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the bin of each step, (t,) -> (t,)."""
        return (steps - self.first) // self.size


@dataclass(frozen=True)
class Series:
    """One run as arrays; NaN where something was not told. A step that was taken twice is there once."""

    steps: NDArray[np.int64]  # (t,) increasing
    seconds: Floats  # (t,) when each was done, on the run's own clock
    loss: Floats  # (t,)
    parts: Floats  # (t, len(PARTS)) seconds
    received: Floats  # (t,) bytes
    errors: Floats  # (t,) decoding errors
    copies: Floats  # (t,) pairs computed / pairs, of protocols of several rounds
    redundancy: Floats  # (t,) copies of each pair at the next step, if nobody lies
    evaluations: Floats  # (e, 2 + metrics): step, seconds, and each metric; NaN where one was not evaluated
    metrics: tuple[str, ...]  # the names of these columns
    marks: tuple[Mark, ...]
    records: tuple[Record, ...]  # (t,) the events themselves
    workers: int

    def bins(self, most: int) -> Bins:
        """Divide the run's steps, of which there is one at least, as `bins` does."""
        return bins(int(self.steps[0]), int(self.steps[-1]), most)

    def metric(self, name: str) -> Floats:
        """Return a metric at each evaluation, (e,); NaN where it was not evaluated."""
        if name not in self.metrics:
            return np.full(len(self.evaluations), np.nan)
        return self.evaluations[:, 2 + self.metrics.index(name)]


def taken(events: Iterable[Record]) -> list[Record]:
    """Return the steps' events in increasing order.

    A run that goes back takes steps again: the second time counts, and of the first time nothing from there on.
    """
    kept: list[Record] = []
    for event in events:
        if event.get("event") == "step":
            while kept and kept[-1]["step"] >= event["step"]:
                kept.pop()
            kept.append(event)
    return kept


def elapsed(events: Sequence[Record]) -> Floats:
    """Return the seconds of each event on the run's own clock, which starts with the first event: (events,).

    The clock stands still from the last event of a launch to the first of the next: how long a user left a run alone is
    no property of the run. It goes on where the supervisor started the launch (`relaunch`). It never goes back, though
    the machine's clock may.
    """
    found = np.full(len(events), np.nan)
    now, before, kind, relaunched = 0.0, None, "", False
    for index, event in enumerate(events):
        time = event.get("time")
        if not isinstance(time, int | float):
            continue
        begins = event["event"] in _BEGINS and (kind not in _BEGINS or kind == "start")
        if before is not None and not (begins and not relaunched):
            now += max(time - before, 0.0)
        relaunched = event["event"] == "relaunch" or (relaunched and not begins)
        before, kind = float(time), str(event["event"])
        found[index] = now
    return found


def series(events: Sequence[Record], evaluations: Iterable[Record] = ()) -> Series:
    """Return one run's arrays, from its events and evaluations in the order in which they were written."""
    seconds = elapsed(events)
    at = {id(event): float(second) for event, second in zip(events, seconds, strict=True)}
    kept = taken(events)
    steps = np.array([e["step"] for e in kept], np.int64)
    when = np.array([at[id(e)] for e in kept])
    by_step = {step: metrics.recorded(e) for step, e in sorted({e["step"]: e for e in evaluations}.items())}
    names = metrics.ordered(name for each in by_step.values() for name in each)
    # A model is as old as its step, whenever it was evaluated.
    rows = [
        [
            step, at[id(own)] if (own := _step(kept, steps, step)) else np.nan,
            *(each.get(name, np.nan) for name in names),
        ]
        for step, each in by_step.items()
    ]  # fmt: skip
    return Series(
        steps=steps,
        seconds=when,
        loss=_floats(e.get("loss") for e in kept),
        parts=np.array([[e.get("seconds", {}).get(part, 0.0) for part in PARTS] for e in kept]).reshape(-1, len(PARTS)),
        received=_floats(e.get("bytes_received") for e in kept),
        errors=_floats(e.get("decoding_error") for e in kept),
        copies=_floats(e.get("copies") for e in kept),
        redundancy=_floats(e.get("redundancy") for e in kept),
        evaluations=np.array(rows, np.float64).reshape(-1, 2 + len(names)),
        metrics=tuple(names),
        marks=tuple(_marks(events, seconds)),
        records=tuple(kept),
        workers=_workers(events, kept),
    )


def _step(kept: Sequence[Record], steps: NDArray[np.int64], step: int) -> Record | None:
    index = int(np.searchsorted(steps, step))
    return kept[index] if index < len(kept) and kept[index]["step"] == step else None


def _floats(values: Iterable[Any]) -> Floats:
    return np.array([value if isinstance(value, int | float) else np.nan for value in values], np.float64)


def _workers(events: Iterable[Record], kept: Iterable[Record]) -> int:
    """Return n, as the job says; without a start on record, the highest rank that the steps name."""
    said = [e["job"]["workers"] for e in events if e["event"] == "start" and "workers" in e.get("job", {})]
    if said:
        return int(said[-1])
    keys = ("suspects", "byzantine", "liars", "lost", "straggling")
    return max((rank for e in kept for key in keys for rank in e.get(key) or ()), default=0)


def _marks(events: Iterable[Record], seconds: Floats) -> Iterator[Mark]:
    step = 0
    for event, second in zip(events, seconds, strict=True):
        kind = event["event"]
        if kind == "step" or (kind == "resume" and "step" in event):
            step = event["step"]
        if kind in _MARKED:
            yield Mark(kind, float(second), step, _about(event))


def _about(event: Record) -> str:
    """Say the rest of an event that is marked."""
    kind = event["event"]
    if kind == "notice":
        return f"{event.get('node', '?')}: {event.get('kind', '?')}"
    if kind == "interruption":
        return str(event.get("cause", ""))
    if kind == "relaunch":
        without = ", ".join(event.get("without") or ())
        return f"launch {event.get('launch', '?')}" + (f" without {without}" if without else "")
    if kind == "refused_checkpoint":
        return f"{event.get('file', '?')}: {event.get('why', '')}"
    if kind == "resume":
        return f"after step {event.get('step', '?')}, from {event.get('file', '?')}"
    if kind == "logger":
        return f"{event['name']} is left out: {event['why']}"
    if kind == "expelled":
        return f"worker {event['rank']} is proven to lie, by step {event['step']}, partition {event['partition']}"
    if kind == "undone":
        partitions = ", ".join(map(str, event.get("partitions") or ()))
        return f"step {event['step']}, for false vectors of partitions {partitions or '?'}"
    if kind == "watched":
        return f"worker {event['rank']} did not open its commitment at step {event['step']}"
    if kind == "stop_early":
        return f"{event['metric']} was best at step {event.get('best_step', '?')}"
    return ": ".join(str(event[key]) for key in ("state", "message") if event.get(key))


# --- bins: long runs in few columns -----------------------------------------------------------------------------------


def bins(first: int, last: int, most: int) -> Bins:
    """Divide the steps first..last into at most `most` bins of one size, the smallest that does."""
    span = last - first + 1
    size = -(-span // most)
    return Bins(first, last, size, -(-span // size))


def heat(records: Iterable[Record], workers: int, into: Bins) -> NDArray[np.int8]:
    """Return the worst class (see CLASSES) of each worker in each bin, (n, b).

    The events say who lied. Where they do not, a suspect is only a suspect.
    """
    grid = [[NO_RECORD] * into.number for _ in range(workers)]  # for single values quicker than an array
    present = set()
    for record in records:
        column = (record["step"] - into.first) // into.size
        present.add(column)
        for rank, kind in classes(record).items():
            if 1 <= rank <= workers:
                grid[rank - 1][column] = max(grid[rank - 1][column], kind)
    found = np.array(grid, np.int8).reshape(workers, into.number)
    found[:, sorted(present)] = np.maximum(found[:, sorted(present)], HONEST)
    return found


def classes(record: Record) -> dict[int, int]:
    """Return the class of each worker at one step, by rank; workers left out were honest."""
    found = dict.fromkeys(record.get("straggling") or (), STRAGGLING) | dict.fromkeys(record.get("lost") or (), LOST)
    suspects = set(record.get("suspects") or ())
    told = record.get("byzantine", record.get("liars"))  # older runs called them liars
    if told is None:
        return found | dict.fromkeys(suspects, SUSPECT)
    byzantine = set(told)
    found |= dict.fromkeys(suspects & byzantine, CAUGHT) | dict.fromkeys(suspects - byzantine, ACCUSED)
    return found | dict.fromkeys(byzantine - suspects, MISSED)


def tally(records: Sequence[Record], workers: int) -> NDArray[np.int64]:
    """Return at how many steps each worker was of each class, (n, len(CLASSES))."""
    counts = np.zeros((workers, len(CLASSES)), np.int64)
    counts[:, HONEST] = len(records)
    for record in records:
        for rank, kind in classes(record).items():
            if 1 <= rank <= workers:
                counts[rank - 1, HONEST] -= 1
                counts[rank - 1, kind] += 1
    return counts


def means(values: Floats, steps: NDArray[np.int64], into: Bins) -> Floats:
    """Return the mean of each bin's values, (t,) -> (b,), of those that are known; NaN where none is."""
    known = ~np.isnan(values)
    at = into.of(steps[known])
    counts = np.bincount(at, minlength=into.number)
    sums = np.bincount(at, values[known], minlength=into.number)
    found: Floats = np.divide(sums, counts, out=np.full(into.number, np.nan), where=counts > 0)
    return found


def maxima(values: Floats, steps: NDArray[np.int64], into: Bins) -> Floats:
    """Return the largest of each bin's values, (t,) -> (b,), of those that are known; NaN where none is."""
    found = np.full(into.number, np.nan)
    np.fmax.at(found, into.of(steps), values)
    return found
