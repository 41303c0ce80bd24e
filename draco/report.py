"""The report: what happened in one run, or in several side by side, from what they left in their directories.

Reading is in `read_summary`; `summarise` is pure, from records to a `Summary`; `table` and `markdown` show the same
cells. Times are medians over the steps, so the slow first step and a pause of the machine do not count.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rich.table import Table
from rich.text import Text

from draco import run_directory
from draco.errors import MissingError

Record = Mapping[str, Any]
PARTS = ("compute", "encode", "communication", "decode", "aggregate", "update")
_CAUSES = 3  # of interruptions that are named, the commonest


@dataclass(frozen=True)
class Summary:
    """What one run comes to. None: not known, or it never happened."""

    run: Path
    name: str
    state: str
    setting: str  # scheme, aggregator and attack in words
    step: int  # the last step that was taken
    steps: int | None  # the steps that were asked for
    loss: float | None  # training loss of the last step
    top1: float | None  # of the newest evaluation, as fractions
    top5: float | None
    test_loss: float | None
    evaluated: tuple[int, int] | None  # (step, samples) of that evaluation
    caught: int | None  # lies, counted per worker and step
    missed: int | None
    falsely_accused: int | None
    seconds: Mapping[str, float]  # median seconds of each part of a step
    step_seconds: float | None  # median seconds of a step
    bytes_per_step: float | None  # median bytes received by the server in a step
    notes: tuple[str, ...]  # what a reader should know before believing the rest


def read_summary(run: Path) -> Summary:
    """Return what the run in that directory comes to, finished or not.

    Raises:
        MissingError: it is not a run directory.
    """
    if not (run / "state.json").is_file():
        raise MissingError(f"{run}: not a run directory (it has no state.json); name one such as runs/quickstart-...")
    events, damage = _read_lines(run / "events.jsonl")
    evaluations, more = _read_lines(run / "evaluations.jsonl")
    status = run_directory.read_status(run)
    notes = [*damage, *more, *([status.message] if status.message else [])]
    alone = run_directory.supervisor(run) is None
    if status.state in ("pending", "running") and alone and not run_directory.is_alive(status):
        notes.append("its process is gone")
    return summarise(run, status.state, events, evaluations, notes)


def _read_lines(path: Path) -> tuple[list[Record], list[str]]:
    """Return the whole lines of a JSON Lines file, and a sentence about those that are not."""
    lines = path.read_bytes().splitlines() if path.is_file() else []
    records: list[Record] = []
    bad: list[int] = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if isinstance(record, dict):
            records.append(record)
        elif line.strip():
            bad.append(number)
    if bad == [len(lines)]:
        return records, [f"{path.name}: its last line is cut off, as by a killed run, and is left out"]
    if bad:
        return records, [f"{path.name}: unreadable and left out: line {', '.join(map(str, bad))}"]
    return records, []


def summarise(
    run: Path, state: str, events: Sequence[Record], evaluations: Sequence[Record], notes: Iterable[str] = ()
) -> Summary:
    """Return what the records of one run come to. Steps that a resumed run took twice count once, the second time."""
    start = next((e for e in reversed(events) if e["event"] == "start"), {})
    steps = {e["step"]: e for e in events if e["event"] == "step"}
    last = steps[max(steps)] if steps else {}
    # Counts belong to the steps before them: after a later step they are old.
    end = next((e for e in reversed(events) if e["event"] in ("end", "step")), {})
    resumed = [e["step"] for e in events if e["event"] == "resume"]
    said = [f"resumed after step {', '.join(map(str, resumed))}"] if resumed else []
    causes = Counter(e["cause"] for e in events if e["event"] == "interruption")
    if causes:
        most = [cause if times == 1 else f"{cause} ({times} times)" for cause, times in causes.most_common(_CAUSES)]
        said.append(f"went on by itself after {causes.total()} interruptions: {'; '.join(most)}")
    evaluation = max(evaluations, key=lambda e: int(e["step"]), default={})
    times = [e["seconds"] for e in steps.values()]
    return Summary(
        run=run,
        name=start.get("job", {}).get("name", run.name),
        state=state,
        setting=_setting(start["job"]) if "job" in start else "-",
        step=max(steps, default=0),
        steps=start.get("steps"),
        loss=last.get("loss"),
        top1=evaluation.get("top1"),
        top5=evaluation.get("top5"),
        test_loss=evaluation.get("loss"),
        evaluated=(evaluation["step"], evaluation["samples"]) if evaluation else None,
        caught=end.get("caught"),
        missed=end.get("missed"),
        falsely_accused=end.get("falsely_accused"),
        seconds={part: median(time.get(part, 0.0) for time in times) for part in PARTS} if times else {},
        step_seconds=median(sum(time.get(part, 0.0) for part in PARTS) for time in times) if times else None,
        bytes_per_step=median(e["bytes_received"] for e in steps.values()) if steps else None,
        notes=(*notes, *said),
    )


def _setting(job: Mapping[str, Any]) -> str:
    """Say in words what a job sets against what, such as `cyclic s=1, 9 workers; reverse_gradient`."""
    scheme, attack, rule = job["scheme"], job["attack"]["name"], job["aggregator"]["name"]
    rule = "" if rule == "mean" and scheme["name"] != "uncoded" else f", {rule}"
    lies = "no attack" if attack == "none" else attack
    return f"{scheme['name']} s={scheme['adversaries']}{rule}, {job['workers']} workers; {lies}"


# --- rendering -------------------------------------------------------------------------------------------------------


def table(summaries: Sequence[Summary]) -> Table:
    """Return one run as a list of facts, or several runs as one row each."""
    if len(summaries) == 1:
        (summary,) = summaries
        whole = Table(title=Text(f"{summary.name}: {summary.state}"), show_header=False)
        for fact in _facts(summary):
            whole.add_row(*map(Text, fact))
        return whole
    rows = Table(show_lines=True, caption=Text("\n".join(_footnotes(summaries))), caption_justify="left")
    for stack in _STACKS:
        rows.add_column(
            "\n".join(stack),
            justify="left" if stack[0] in _WORDS else "right",
            overflow="fold",
            no_wrap=stack != _STACKS[0],
        )
    for summary in summaries:
        cells = dict(zip(_COLUMNS, _cells(summary), strict=True))
        rows.add_row(*(Text("\n".join(cells[header] for header in stack)) for stack in _STACKS))
    return rows


def markdown(summaries: Sequence[Summary]) -> str:
    """Return the runs as a Markdown table, one row each."""
    rule = [":--" if header in _WORDS else "--:" for header in _COLUMNS]
    lines = [_COLUMNS, rule, *map(_cells, summaries)]
    grid = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
    return "\n".join([*grid, *(f"\n{note.replace('*', chr(92) + '*', 1)}" for note in _footnotes(summaries))])


_WORDS = ("run", "setting", "state")
_LIES = ("caught", "missed", "accused")
_TIMES = tuple(f"{part} ms" for part in PARTS)
_COLUMNS = (*_WORDS, "steps", "accuracy", *_LIES, "ms/step", *_TIMES, "MB/step", "steps/s")
# On a terminal several values stand below each other, so that a row fits into 80 columns.
_STACKS = (_WORDS[:2], ("state", "steps", "accuracy"), _LIES, _TIMES[:3], _TIMES[3:], ("ms/step", "MB/step", "steps/s"))


def _footnotes(summaries: Sequence[Summary]) -> list[str]:
    return [f"* {s.run.name}: {'; '.join(s.notes)}" for s in summaries if s.notes]


def _cells(s: Summary) -> list[str]:
    return [
        s.run.name,
        s.setting,
        s.state + ("*" if s.notes else ""),
        _of(s.step, s.steps),
        _percent(s.top1),
        _whole(s.caught),
        _whole(s.missed),
        _whole(s.falsely_accused),
        _milliseconds(s.step_seconds),
        *(_milliseconds(s.seconds.get(part)) for part in PARTS),
        _megabytes(s.bytes_per_step),
        _rate(s.step_seconds),
    ]


def _facts(s: Summary) -> list[tuple[str, str]]:
    """Return (what, how much) for everything there is to say about one run."""
    step, samples = s.evaluated or (0, 0)
    accuracy = f"{_percent(s.top1)} of {samples:,} test samples after step {step}" if s.evaluated else "not evaluated"
    more = f"top-5 {_percent(s.top5)}, loss {_number(s.test_loss)}"
    split = ", ".join(f"{part} {_milliseconds(s.seconds.get(part))}" for part in PARTS)
    return [
        ("setting", s.setting),
        ("steps", _of(s.step, s.steps)),
        ("accuracy", f"{accuracy} ({more})" if s.evaluated else accuracy),
        ("training loss", _number(s.loss)),
        ("lies", f"{_whole(s.caught)} caught, {_whole(s.missed)} missed, {_whole(s.falsely_accused)} falsely accused"),
        ("step", f"{_milliseconds(s.step_seconds)} ms, {_rate(s.step_seconds)} steps/s (medians)"),
        ("of which ms", split),
        ("received", f"{_megabytes(s.bytes_per_step)} MB per step"),
        ("directory", str(s.run)),
        *(("note", note) for note in s.notes),
    ]


def _of(step: int, steps: int | None) -> str:
    return f"{step:,} of {steps:,}" if steps is not None else f"{step:,}"


def _whole(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value * 1e3:.3g}" if value < 1 else f"{value * 1e3:,.0f}"


def _megabytes(value: float | None) -> str:
    return "-" if value is None else f"{value / 1e6:,.2f}"


def _rate(step_seconds: float | None) -> str:
    return f"{1 / step_seconds:.3g}" if step_seconds else "-"
