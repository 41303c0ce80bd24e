"""The numbers of one run, from what it left in its directory.

`read` reads; `summarise` is pure, from records to a `Summary`. Times are medians over the steps, so the slow first step
and a pause of the machine do not count.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median
from typing import NamedTuple

from draco import metrics
from draco.errors import MissingError
from draco.plain import lines
from draco.report.series import PARTS, Record, taken
from draco.runs import directory as run_directory
from draco.runs import door
from draco.runs.alive import life
from draco.runs.events import found
from draco.runs.expulsions import Expulsion, expulsions

_CAUSES = 3  # of interruptions that are named, the commonest
# A worker is named that was late in this share of the steps and in so many, and either left out of that share or waited
# for in this share of all the time; so many at most.
_OFTEN, _LEAST, _LONG, _NAMED = 0.1, 3, 0.05, 3


@dataclass(frozen=True)
class Summary:
    """The numbers of one run. None: not known, or it never happened."""

    run: Path
    name: str
    state: str
    setting: str  # the job in words: scheme, aggregator, workers, attack
    step: int  # the last step that was taken
    steps: int | None  # the steps that were asked for
    loss: float | None  # training loss of the last step
    metrics: Mapping[str, float]  # of the newest evaluation, in the order in which they are shown; top1 as a fraction
    evaluated: tuple[int, int] | None  # (step, samples) of that evaluation
    caught: int | None  # lies, counted per worker and step
    missed: int | None
    falsely_accused: int | None
    seconds: Mapping[str, float]  # median seconds of each part of a step
    step_seconds: float | None  # median seconds of a step
    bytes_per_step: float | None  # median bytes received by the server in a step
    logging_seconds: float | None  # median seconds that the job's loggers took for a step
    notes: tuple[str, ...]  # what a reader should know before believing the rest
    # Of protocols of several rounds:
    expelled: Mapping[int, Expulsion] = field(default_factory=dict)  # by rank
    copies: float | None = None  # mean over the steps of pairs computed / pairs
    redundancy: float | None = None  # copies of each pair that are left, if nobody lies
    undone: int = 0  # steps
    failure_probability: float | None = None  # that a step of the whole run stays false
    expected_false: float | None = None  # false vectors of the whole run, on the average, at most


class Left(NamedTuple):
    """What a run left behind, and its numbers."""

    summary: Summary
    events: Sequence[Record]
    evaluations: Sequence[Record]
    message: str  # of its state, in one line; empty while all is well
    job: str  # job.yaml


def read_summary(run: Path) -> Summary:
    """Return the numbers of the run in that directory, finished or not; raises as `read` does."""
    return read(run).summary


def read(run: Path) -> Left:
    """Return what the run in that directory has left so far, finished or not.

    Raises:
        MissingError: it is not a run directory.
    """
    if not (run / "state.json").is_file():
        raise MissingError(f"{run}: not a run directory (it has no state.json); name one such as runs/quickstart-...")
    events, evaluations = found(run / "events.jsonl"), found(run / "evaluations.jsonl", door.evaluation)
    status = run_directory.read_status(run)
    odd = [*events.notes("events.jsonl"), *evaluations.notes("evaluations.jsonl")]
    notes = [*odd, *([status.message] if status.message else [])]
    alive = life(run)
    if status.goes_on and not alive.by:
        notes.append(alive.why or "its process is gone")
    job = run / "job.yaml"
    return Left(
        summarise(run, status.state, events.records, evaluations.records, notes),
        events.records, evaluations.records, status.message,
        lines(job.read_text(encoding="utf-8", errors="replace")) if job.is_file() else "",
    )  # fmt: skip


def summarise(
    run: Path, state: str, events: Sequence[Record], evaluations: Sequence[Record], notes: Iterable[str] = ()
) -> Summary:
    """Return the numbers of one run. Of a step that a resumed run took twice only the second time counts."""
    start = next((e for e in reversed(events) if e["event"] == "start"), {})
    steps = taken(events)
    last: Record = steps[-1] if steps else {}
    # Counts belong to the steps before them: after a later step they are old.
    end = next((e for e in reversed(events) if e["event"] in ("end", "step")), {})
    resumed = [e["step"] for e in events if e["event"] == "resume"]
    said = [f"resumed after step {', '.join(map(str, resumed))}"] if resumed else []
    causes = Counter(e["cause"] for e in events if e["event"] == "interruption")
    if causes:
        most = [cause if times == 1 else f"{cause} ({times} times)" for cause, times in causes.most_common(_CAUSES)]
        said.append(f"went on by itself after {causes.total()} interruptions: {'; '.join(most)}")
    if redrawn := sum("redrawn" in step for step in steps):
        said.append(f"drew the rows of {redrawn} steps anew, whose replies could not be decoded")
    said += [
        f"{e['name']} was left out of the loggers after step {e['step']}: {e['why']}"
        for e in events
        if e["event"] == "logger"
    ]
    said += _late(steps)
    evaluation = max(evaluations, key=lambda e: int(e["step"]), default={})
    quality = metrics.recorded(evaluation)
    copies = [e["copies"] for e in steps if e.get("copies") is not None]
    times = [e["seconds"] for e in steps if "seconds" in e]
    sizes = [e["bytes_received"] for e in steps if "bytes_received" in e]
    return Summary(
        run=run,
        name=start.get("job", {}).get("name", run.name),
        state=state,
        setting=start.get("setting", "-"),
        step=last.get("step", 0),
        steps=start.get("steps"),
        loss=last.get("loss"),
        metrics={name: quality[name] for name in metrics.ordered(quality)},
        evaluated=(evaluation["step"], evaluation["samples"]) if evaluation else None,
        caught=end.get("caught"),
        missed=end.get("missed"),
        falsely_accused=end.get("falsely_accused"),
        seconds={part: median(time.get(part, 0.0) for time in times) for part in PARTS} if times else {},
        step_seconds=median(sum(time.get(part, 0.0) for part in PARTS) for time in times) if times else None,
        bytes_per_step=median(sizes) if sizes else None,
        logging_seconds=median(logged) if (logged := [t["log"] for t in times if "log" in t]) else None,
        notes=(*notes, *said),
        expelled=expulsions(events),
        copies=mean(copies) if copies else None,
        redundancy=last.get("redundancy"),
        undone=sum(e["event"] == "undone" for e in events),
        failure_probability=start.get("failure_probability"),
        expected_false=start.get("expected_false"),
    )


def _late(steps: Sequence[Record]) -> list[str]:
    """Return a sentence for each of the workers that were late in many steps, those first that were waited for most."""
    seconds: dict[int, float] = defaultdict(float)
    times: Counter[int] = Counter()
    out: Counter[int] = Counter()
    for step in steps:
        waited = {int(rank): float(spent) for rank, spent in (step.get("waited") or {}).items()}
        for rank, spent in waited.items():
            seconds[rank] += spent
        out.update(step.get("straggling") or ())
        times.update({*waited, *(step.get("straggling") or ())})
    least, long = max(_OFTEN * len(steps), _LEAST), _LONG * sum(sum(e.get("seconds", {}).values()) for e in steps)
    often = [rank for rank, late in times.items() if late >= least and (out[rank] >= least or seconds[rank] >= long)]
    often.sort(key=lambda rank: (-seconds[rank], rank))
    said = [
        f"rank {rank} was late in {times[rank]} of {len(steps)} steps, and waited for {seconds[rank]:.1f} s in all"
        for rank in often[:_NAMED]
    ]
    return said + ([f"{len(often) - _NAMED} more were late that often"] if len(often) > _NAMED else [])
