"""Summaries as tables: for a terminal, as Markdown, and as the rows of cells that the page shows, too."""

import re
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from draco import metrics
from draco.plain import plain
from draco.report.series import PARTS
from draco.report.summary import Summary


def table(summaries: Sequence[Summary]) -> Table:
    """Return one run as a list of facts, or several runs as one row each."""
    if len(summaries) == 1:
        (summary,) = summaries
        whole = Table(title=Text(f"{summary.name}: {summary.state}"), show_header=False)
        for fact in facts(summary):
            whole.add_row(*map(Text, fact))
        return whole
    rows = Table(show_lines=True, caption=Text("\n".join(footnotes(summaries))), caption_justify="left")
    stacks, headers, shown = _stacks(summaries), columns(summaries), quality(summaries)
    several = rounds(summaries)
    for stack in stacks:
        rows.add_column(
            "\n".join(stack),
            justify="left" if stack[0] in WORDS else "right",
            overflow="fold",
            no_wrap=stack != stacks[0],
        )
    for summary in summaries:
        values = dict(zip(headers, cells(summary, shown, several), strict=True))
        rows.add_row(*(Text("\n".join(values[header] for header in stack)) for stack in stacks))
    return rows


def markdown(summaries: Sequence[Summary]) -> str:
    """Return the runs as a Markdown table, one row each."""
    headers, shown, several = columns(summaries), quality(summaries), rounds(summaries)
    rule = [":--" if header in WORDS else "--:" for header in headers]
    lines = [headers, rule, *([_MARKS.sub(r"\\\g<0>", cell) for cell in cells(s, shown, several)] for s in summaries)]
    grid = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([*grid, *("\n" + _MARKS.sub(r"\\\g<0>", note) for note in footnotes(summaries))])


_MARKS = re.compile(r"[\\`*<>|$~\[\]]")  # of Markdown, in text that is none; _ within words is none either
WORDS = ("run", "setting", "state")
_LIES = ("caught", "missed", "accused")
_PRICE = ("expelled", "copies")
_TIMES = tuple(f"{part} ms" for part in PARTS)
_RATES = ("ms/step", "MB/step", "steps/s")
_MOST = 3  # metrics of a task's own that have a column


def quality(summaries: Sequence[Summary]) -> list[str]:
    """Return the metrics that have a column: accuracy, those of other tasks, and their loss."""
    found = metrics.ordered(name for s in summaries for name in s.metrics)
    own = [name for name in found if name not in metrics.MODES]
    others = any(s.metrics and "top1" not in s.metrics for s in summaries)
    accuracy = "top1" in found or not others
    return [*(["top1"] if accuracy else []), *own[:_MOST], *(["loss"] if others else [])]


def columns(summaries: Sequence[Summary]) -> list[str]:
    """Return the headers of a table of these runs."""
    several = _PRICE if rounds(summaries) else ()
    return [
        *WORDS, "steps", *map(_name, quality(summaries)), *_LIES, *several, "ms/step", *_TIMES, "MB/step", "steps/s"
    ]  # fmt: skip


def rounds(summaries: Sequence[Summary]) -> bool:
    """Return whether any of these runs tells of copies and expulsions, which get columns then."""
    return any(s.copies is not None or s.expelled for s in summaries)


def _stacks(summaries: Sequence[Summary]) -> list[tuple[str, ...]]:
    """Return which values stand below each other on a terminal, so that a row fits into 80 columns."""
    found = tuple(map(_name, quality(summaries)))
    several = _PRICE if rounds(summaries) else ()
    return [WORDS[:2], ("state", "steps", *found), (*_LIES, *several), _TIMES[:3], _TIMES[3:], _RATES]


def _name(metric: str) -> str:
    return "accuracy" if metric == "top1" else f"test {metric}"


def footnotes(summaries: Sequence[Summary]) -> list[str]:
    """Return what a reader should know before believing the rest, a line for each run of which there is such."""
    return [f"* {plain(s.run.name)}: {'; '.join(map(plain, s.notes))}" for s in summaries if s.notes]


def cells(s: Summary, shown: Sequence[str], several: bool = False) -> list[str]:
    """Return one run's values, one for each of `columns`; `shown` are the metrics among them, `several`: `rounds`."""
    return [
        plain(s.run.name),
        s.setting,
        s.state + ("*" if s.notes else ""),
        _of(s.step, s.steps),
        *(metrics.shown(name, s.metrics[name]) if name in s.metrics else "-" for name in shown),
        _number(s.caught, ","),
        _number(s.missed, ","),
        _number(s.falsely_accused, ","),
        *((" ".join(map(str, s.expelled)) or "-", _number(s.copies, ".3f")) if several else ()),
        _milliseconds(s.step_seconds),
        *(_milliseconds(s.seconds.get(part)) for part in PARTS),
        _megabytes(s.bytes_per_step),
        _rate(s.step_seconds),
    ]


def facts(s: Summary) -> list[tuple[str, str]]:
    """Return (what, how much) for everything there is to say about one run."""
    caught, missed, accused = (_number(value, ",") for value in (s.caught, s.missed, s.falsely_accused))
    return [
        ("setting", s.setting),
        ("steps", _of(s.step, s.steps)),
        _evaluation(s),
        ("training loss", _number(s.loss, ".4g")),
        ("lies", f"{caught} caught, {missed} missed, {accused} falsely accused"),
        *_protocol(s),
        ("step", f"{_milliseconds(s.step_seconds)} ms, {_rate(s.step_seconds)} steps/s (medians)"),
        ("of which ms", ", ".join(f"{part} {_milliseconds(s.seconds.get(part))}" for part in PARTS)),
        ("received", f"{_megabytes(s.bytes_per_step)} MB per step"),
        *([("loggers", f"{_milliseconds(s.logging_seconds)} ms after a step")] if s.logging_seconds else []),
        ("directory", plain(str(s.run))),
        *(("note", note) for note in s.notes),
    ]


def _protocol(s: Summary) -> list[tuple[str, str]]:
    """Return what a protocol of several rounds came to: who is expelled, and what redundancy cost."""
    told = []
    if s.copies is not None or s.expelled:
        told.append(("expelled", ", ".join(f"{rank} (step {e.step})" for rank, e in s.expelled.items()) or "nobody"))
    if s.copies is not None:
        now = "" if s.redundancy is None else f", {s.redundancy:g} at the next step"
        undone = f"; {s.undone:,} steps undone" if s.undone else ""
        told.append(("copies", f"{s.copies:.3f} of each partition (mean){now}{undone}"))
    if said := failure(s.failure_probability, s.expected_false):
        told.append(("certainty", said))
    return told


def failure(probability: float | None, expected: float | None = None) -> str:
    """Say how likely it is that a step of a whole run stays false; nothing where the run does not tell.

    `expected`: of false vectors that are used in the whole run, on the average.
    """
    if expected is not None:
        return f"not exact: {expected:.3g} false vectors at most are used in the whole run on the average"
    if probability is None:
        return ""
    if not probability:
        return "no step stays false: a partition has as many verifiers as workers may lie"
    return f"a step of the run stays false with a probability of {probability:.2g} at most"


def _evaluation(s: Summary) -> tuple[str, str]:
    """Return what the newest evaluation says: accuracy first where there is one, else all metrics alike."""
    if not s.evaluated:
        return "accuracy", "not evaluated"
    where = f"of {s.evaluated[1]:,} test samples after step {s.evaluated[0]}"
    first, *others = s.metrics
    if first == "top1":
        more = ", ".join(f"{metrics.label(name)} {metrics.shown(name, s.metrics[name])}" for name in others)
        return "accuracy", f"{metrics.shown(first, s.metrics[first])} {where} ({more})"
    said = ", ".join(f"{metrics.label(name)} {metrics.shown(name, value)}" for name, value in s.metrics.items())
    return "evaluation", f"{said} {where}"


def _of(step: int, steps: int | None) -> str:
    return f"{step:,} of {steps:,}" if steps is not None else f"{step:,}"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value * 1e3:.3g}" if value < 1 else f"{value * 1e3:,.0f}"


def _megabytes(value: float | None) -> str:
    return "-" if value is None else f"{value / 1e6:,.2f}"


def _rate(step_seconds: float | None) -> str:
    return f"{1 / step_seconds:.3g}" if step_seconds else "-"
