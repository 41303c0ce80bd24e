"""The section of the page on one run, as values for its template: who lied, where time went, machine and job."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from draco.plain import plain
from draco.report import figures
from draco.report.elements import Picture, Run, Table, number
from draco.report.series import CLASSES, HONEST, PARTS, SUSPECT, Floats, Record, Series, classes, means, tally
from draco.report.tables import failure
from draco.runs import expulsions
from draco.runs.expulsions import Expulsion

_STATES = {
    "pending": "The run has not begun, or waits to be started again.",
    "running": "The run had not ended when this page was made: it shows the steps up to then.",
    "interrupted": "The run was interrupted before its last step; it can be resumed.",
    "failed": "The run failed.",
    "lost": "The run ended because nodes or processes were lost; it can be resumed.",
    "succeeded": "The run took all its steps.",
    "early": "The run succeeded before its last step, as its stop_early says.",
}
_ROWS = 50  # of the table of copies; of a longer run their means
_WORST = ", then ".join(reversed(CLASSES))


def section(run: Run, at: int, pictures: Mapping[str, bytes]) -> dict[str, Any]:
    """Return what `run.html.j2` shows of the page's run number `at`, with its own of the page's figures."""
    summary, message = run.left.summary, run.left.message
    early = summary.state == "succeeded" and any(event["event"] == "stop_early" for event in run.left.events)
    state = _STATES.get("early" if early else summary.state, f"The state of the run is {summary.state}.")
    marks = [
        (number(mark.seconds, ",.1f"), str(mark.step), mark.kind.replace("_", " "), mark.about)
        for mark in run.series.marks
    ]
    return {
        "label": run.label,
        "anchor": f"run-{at}",
        "state": f"{state} {message}".strip(),
        "well": summary.state == "succeeded" and (early or not message),
        "notes": [note for note in summary.notes if note != message],
        "setting": summary.setting,
        "failure": failure(summary.failure_probability, summary.expected_false),
        "directory": plain(str(summary.run)),
        "steps": _steps(run, at, pictures) if len(run.series.steps) else None,
        "marks": Table(("seconds", "after step", "event", "about"), marks, ("event", "about")),
        "job": run.left.job,
        **_origin([event for event in run.left.events if event["event"] == "start"]),
    }


def expelled_from(run: Run) -> dict[int, int]:
    """Return the step of each proof by which a worker is expelled, by rank, of workers that the job has."""
    found = expulsions.expulsions(run.left.events)
    return {rank: proof.step for rank, proof in found.items() if rank <= run.series.workers}


def _steps(whole: Run, at: int, pictures: Mapping[str, bytes]) -> dict[str, Any]:
    run, expelled = whole.series, expelled_from(whole)
    missing, counts = int(run.steps[-1]) - len(run.steps), tally(run.records, run.workers)
    return {
        "missing": f"{missing:,} of {run.steps[-1]:,}" if missing else "",
        "untold": counts[:, SUSPECT].any(),
        **_suspects(run, counts, expelled, pictures[f"suspects-{at}"]),
        "proofs": _proofs(expulsions.expulsions(whole.left.events).values()),
        "refused": Table(("refused worker", "steps", "why"), _refused(run), ("why",)),
        **_time(run, pictures[f"seconds-{at}"]),
        "received": _received(run, pictures[f"received-{at}"]),
        "errors": _errors(run, pictures[f"errors-{at}"]) if f"errors-{at}" in pictures else None,
        **(_copies(run, pictures[f"copies-{at}"]) if f"copies-{at}" in pictures else {"copies": None}),
    }


def _suspects(run: Series, counts: NDArray[np.int64], expelled: Mapping[int, int], png: bytes) -> dict[str, Any]:
    out = {rank: _steps_out(run, rank, step) for rank, step in expelled.items()}
    for rank, steps in out.items():
        counts[rank - 1, HONEST] -= steps
    totals = dict(zip(CLASSES[1:], counts[:, 1:].sum(0).tolist(), strict=True))
    shown = [kind for kind in CLASSES[1:] if totals[kind]]
    into = run.bins(figures.MOST)
    caption = "What each worker was at each step."
    if into.size > 1:
        caption += f" A column is {into.size} steps and shows the worst of them: {_WORST}."
    if any(mark.kind in ("interruption", "resume") for mark in run.marks):
        caption += " Triangles above mark interruptions (down) and resumptions (up)."
    said = ", ".join(f"{kind} {totals[kind]:,}" for kind in shown)
    if expelled:
        caption += " A line begins with a cross at the step of the proof by which its worker is expelled."
        said += f". Expelled: {', '.join(f'worker {rank} by step {step}' for rank, step in expelled.items())}"
    alternative = f"Heat map: workers 1 to {run.workers} by steps {run.steps[0]} to {run.steps[-1]}. {said}."
    rows: list[tuple[str, ...]] = [
        (str(rank), *(f"{row[CLASSES.index(kind)]:,}" for kind in shown)) for rank, row in enumerate(counts, start=1)
    ]
    if out:
        rows = [(*row, f"{out.get(rank, 0):,}") for rank, row in enumerate(rows, start=1)]
        shown = [*shown, "expelled"]
    return {"suspects": Picture(png, alternative, caption), "classes": Table(("worker", *shown), rows)}


def _steps_out(run: Series, rank: int, step: int) -> int:
    """Return how many steps after the one of its proof an expelled worker took no part in, as nobody asked it."""
    return sum(record["step"] > step and rank not in classes(record) for record in run.records)


def _proofs(expelled: Iterable[Expulsion]) -> Table:
    """Return by what each expelled worker was proven to lie."""
    rows = [
        (str(e.rank), str(e.step), str(e.partition), expulsions.shortened(e.claimed), expulsions.shortened(e.true))
        for e in expelled
    ]
    return Table(("expelled worker", "step", "partition", "it claimed", "true was"), rows, ("it claimed", "true was"))


def _copies(run: Series, png: bytes) -> dict[str, Any]:
    """Return what redundancy cost: the copies of each partition by step, in at most `_ROWS` rows."""
    known = run.copies[~np.isnan(run.copies)]
    undone = sum(mark.kind == "undone" for mark in run.marks)
    said = f"mean {known.mean():.3f}, most {known.max():.3f}, last {known[-1]:.3f}; {undone:,} steps undone"
    into = run.bins(_ROWS)
    columns = [means(values, run.steps, into).tolist() for values in (run.copies, run.redundancy)]
    rows = [
        (str(into.first + at * into.size), *(number(value, ".3f") for value in values))
        for at, values in enumerate(zip(*columns, strict=True))
    ]
    caption = f"How many workers computed each partition: {said}. Dashed: at the next step, if nobody lies."
    return {
        "copies": Picture(png, f"Copies per partition by step: {said}.", caption),
        "price": Table(("from step", "copies", "at the next step"), rows),
    }


def _refused(run: Series) -> list[tuple[str, ...]]:
    """Return whose replies broke the protocol. Such a worker is a suspect, and caught only if it is Byzantine."""
    times = Counter((int(rank), why) for record in run.records for rank, why in (record.get("refused") or {}).items())
    return [(str(rank), f"{count:,}", why) for (rank, why), count in sorted(times.items())]


def _time(run: Series, png: bytes) -> dict[str, Any]:
    whole = run.parts.sum(1)
    said = ", ".join(f"{part} {1e3 * median(run.parts[:, at].tolist()):.3g}" for at, part in enumerate(PARTS))
    into = run.bins(figures.MOST)
    heights = np.nan_to_num(means(1e3 * whole, run.steps, into))
    beyond = int((heights > figures.time_limit(heights)).sum())
    caption = "Parts of each step."
    if into.size > 1:
        caption += f" A column is the mean of {into.size} steps."
    if beyond:
        caption += f" Higher than the figure: {beyond} columns, up to {heights.max():,.0f} ms."
    columns = [*((part, run.parts[:, at]) for at, part in enumerate(PARTS)), ("step", whole)]
    rows = [(name, *_spread(seconds, float(whole.sum()))) for name, seconds in columns]
    return {
        "seconds": Picture(png, f"Stacked milliseconds of a step's parts by step; medians: {said}.", caption),
        "parts": Table(("part", "median ms", "least ms", "most ms", "sum, s", "share"), rows, ("part",)),
    }


def _spread(seconds: Floats, whole: float) -> tuple[str, ...]:
    """Return the median, the least and the most milliseconds, the seconds in all, and their share of the whole."""
    least, middle, most = (1e3 * value for value in (seconds.min(), median(seconds.tolist()), seconds.max()))
    share = f"{seconds.sum() / whole:.1%}" if whole else "-"
    return (*(f"{value:.3g}" for value in (middle, least, most)), f"{seconds.sum():,.3f}", share)


def _received(run: Series, png: bytes) -> Picture:
    known = run.received[~np.isnan(run.received)] / 1e6
    said = "unknown"
    if len(known):
        said = f"least {known.min():,.2f}, most {known.max():,.2f}, in all {known.sum():,.1f} MB"
    return Picture(png, f"Megabytes received by step: {said}.", f"Bytes of the replies of each step: {said}.")


def _errors(run: Series, png: bytes) -> Picture:
    known = run.errors[~np.isnan(run.errors)]
    said = f"median {np.median(known):.3g}, largest {known.max():.3g}"
    return Picture(png, f"Decoding error by step: {said}.", f"As the decoder reports it at each step: {said}.")


def _origin(starts: Sequence[Record]) -> dict[str, Any]:
    """Return what the run was made from: facts of its launches, and in what their machines and versions differ."""
    machines = [start["machine"] for start in starts if isinstance(start.get("machine"), dict)]
    newest = machines[-1] if machines else {}
    differ = sorted({key for m in machines for key in {*m, *newest} if m.get(key) != newest.get(key)})
    facts = [*_launches(starts), *((str(key), str(value)) for key, value in newest.items())]
    return {"origin": facts, "machines": machines, "differ": differ}


def _launches(starts: Sequence[Record]) -> Iterator[tuple[str, str]]:
    if not starts:
        return
    if isinstance(starts[0].get("time"), int | float):
        yield "first started", f"{datetime.fromtimestamp(starts[0]['time'], UTC):%Y-%m-%d %H:%M:%S} UTC"
    yield "launches", str(len(starts))
    for key, word in (("summary", "scheme"), ("vote_reason", "vote"), ("elements", "elements of a step vector")):
        if key in starts[-1]:
            value = starts[-1][key]
            told = f"{starts[-1].get('vote')}: {value}" if key == "vote_reason" else value
            yield word, f"{told:,}" if isinstance(told, int) else str(told)
