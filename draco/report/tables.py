"""Summaries as tables: for a terminal, as Markdown, and as the rows of cells that the page shows, too."""

import re
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

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
    for stack in _STACKS:
        rows.add_column(
            "\n".join(stack),
            justify="left" if stack[0] in WORDS else "right",
            overflow="fold",
            no_wrap=stack != _STACKS[0],
        )
    for summary in summaries:
        values = dict(zip(COLUMNS, cells(summary), strict=True))
        rows.add_row(*(Text("\n".join(values[header] for header in stack)) for stack in _STACKS))
    return rows


def markdown(summaries: Sequence[Summary]) -> str:
    """Return the runs as a Markdown table, one row each."""
    rule = [":--" if header in WORDS else "--:" for header in COLUMNS]
    lines = [COLUMNS, rule, *([_MARKS.sub(r"\\\g<0>", cell) for cell in cells(summary)] for summary in summaries)]
    grid = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([*grid, *("\n" + _MARKS.sub(r"\\\g<0>", note) for note in footnotes(summaries))])


_MARKS = re.compile(r"[\\`*<>|$~\[\]]")  # of Markdown, in text that is none; _ within words is none either
WORDS = ("run", "setting", "state")
_LIES = ("caught", "missed", "accused")
_TIMES = tuple(f"{part} ms" for part in PARTS)
COLUMNS = (*WORDS, "steps", "accuracy", *_LIES, "ms/step", *_TIMES, "MB/step", "steps/s")
# On a terminal several values stand below each other, so that a row fits into 80 columns.
_STACKS = (WORDS[:2], ("state", "steps", "accuracy"), _LIES, _TIMES[:3], _TIMES[3:], ("ms/step", "MB/step", "steps/s"))


def footnotes(summaries: Sequence[Summary]) -> list[str]:
    """Return what a reader should know before believing the rest, a line for each run of which there is such."""
    return [f"* {plain(s.run.name)}: {'; '.join(map(plain, s.notes))}" for s in summaries if s.notes]


def cells(s: Summary) -> list[str]:
    """Return one run's values, one for each of `COLUMNS`."""
    return [
        plain(s.run.name),
        s.setting,
        s.state + ("*" if s.notes else ""),
        _of(s.step, s.steps),
        _number(s.top1, ".2%"),
        _number(s.caught, ","),
        _number(s.missed, ","),
        _number(s.falsely_accused, ","),
        _milliseconds(s.step_seconds),
        *(_milliseconds(s.seconds.get(part)) for part in PARTS),
        _megabytes(s.bytes_per_step),
        _rate(s.step_seconds),
    ]


def facts(s: Summary) -> list[tuple[str, str]]:
    """Return (what, how much) for everything there is to say about one run."""
    accuracy = "not evaluated"
    if s.evaluated:
        accuracy = f"{_number(s.top1, '.2%')} of {s.evaluated[1]:,} test samples after step {s.evaluated[0]}"
        accuracy += f" (top-5 {_number(s.top5, '.2%')}, loss {_number(s.test_loss, '.4g')})"
    caught, missed, accused = (_number(value, ",") for value in (s.caught, s.missed, s.falsely_accused))
    return [
        ("setting", s.setting),
        ("steps", _of(s.step, s.steps)),
        ("accuracy", accuracy),
        ("training loss", _number(s.loss, ".4g")),
        ("lies", f"{caught} caught, {missed} missed, {accused} falsely accused"),
        ("step", f"{_milliseconds(s.step_seconds)} ms, {_rate(s.step_seconds)} steps/s (medians)"),
        ("of which ms", ", ".join(f"{part} {_milliseconds(s.seconds.get(part))}" for part in PARTS)),
        ("received", f"{_megabytes(s.bytes_per_step)} MB per step"),
        ("directory", plain(str(s.run))),
        *(("note", note) for note in s.notes),
    ]


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
