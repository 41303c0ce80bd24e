"""Records that are odd: whatever a file holds, readers pass over what they do not understand, say so, and go on."""

import contextlib
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recorded import EVALUATIONS, MACHINE, SECONDS, job, lines, start, step, timed, whole_run, write_run
from rich.console import Console

from draco import report
from draco.cli.main import main
from draco.compare import progress as compare_progress
from draco.errors import DracoError
from draco.launch import head
from draco.launch.progress import Progress
from draco.report import figures, overview, section, series
from draco.report.elements import Run
from draco.runs import directory as run_directory
from draco.runs import door, events
from draco.training import evaluate

RECORDED = timed([
    start(job(), machine=MACHINE), step(1, byzantine=[2], lost=[], straggling=[3]), step(2, decoding_error=1e-7),
    {"event": "checkpoint", "step": 2, "file": "x"}, {"event": "notice", "node": "b", "kind": "rebalance", "at": "now"},
    {"event": "interruption", "cause": "b is lost", "nodes": {"b": "gone"}, "ranks": [1]},
    {"event": "relaunch", "launch": 2, "nodes": ["c"], "without": {"b": "gone"}, "warnings": ["c is full"]},
    {"event": "refused_checkpoint", "file": "x", "why": "damaged"}, {"event": "resume", "step": 1, "file": "w"},
    start(job()), step(2), step(3, refused={"1": "it was late"}, redrawn=["1 or 2"]),
    {"event": "expelled", "rank": 3, "step": 2, "partition": 0, "claimed": "ab" * 32, "true": "cd" * 32},
    step(3, copies=2.5, redundancy=1, expelled={"3": {"step": 3, "partition": 0, "claimed": "", "true": ""}}),
    {"event": "undone", "step": 3, "partitions": [1], "workers": [2]}, {"event": "watched", "step": 3, "rank": 2},
    {"event": "logger", "name": "my.py:Mine", "step": 3, "why": "OSError: no"},
    {"event": "stop_early", "step": 3, "metric": "loss", "best": 0.5, "best_step": 1},
    {"event": "end", "state": "succeeded", "step": 3, "message": "", "caught": 2, "missed": 0, "falsely_accused": 0},
])  # fmt: skip
EVALUATED = [
    *EVALUATIONS, {"step": 2, "mae": 0.5, "loss": float("nan"), "samples": 7, "by": "training", "time": 3.0},
]  # fmt: skip
EXAMPLES = int(os.environ.get("ODD_EXAMPLES", "40"))
STATE = {"state": "failed", "step": 3, "message": "why", "pid": 1, "host": "h", "updated": 1.0, "started": "5"}
ODD: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    | st.sampled_from([10**30, -(10**30), 1e308, 2**63, "9" * 50, "[/]", [], {}, [[[]]], {"workers": 10**9}]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=5,
)  # fmt: skip


@st.composite
def mutated(draw: st.DrawFn, records: list[dict[str, Any]]) -> bytes:
    """Return the lines of records with fields changed, dropped and added, and lines cut, doubled and moved."""
    out = [json.dumps(each) for each in records]
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(out) - 1))
        match draw(st.sampled_from(["field", "field", "field", "drop", "add", "cut", "twice", "move", "junk"])):
            case "field" | "drop" | "add" as how:
                try:
                    event = json.loads(out[at])
                    if how == "add":
                        event[draw(st.text(max_size=5))] = draw(ODD)
                    else:
                        key = draw(st.sampled_from(sorted(event)))
                        if how == "drop":
                            del event[key]
                        elif isinstance(event[key], dict) and event[key] and draw(st.booleans()):
                            event[key][draw(st.sampled_from(sorted(event[key])))] = draw(ODD)
                        else:
                            event[key] = draw(ODD)
                    out[at] = json.dumps(event)
                except (ValueError, TypeError, AttributeError):  # spoilt by an earlier turn
                    continue
            case "cut":
                out[at] = out[at][: draw(st.integers(0, len(out[at])))]
            case "twice":
                out.insert(at, out[at])
            case "move":
                out.append(out.pop(at))
            case _:
                out.insert(at, draw(st.text(max_size=10)))
    return "\n".join(out).encode(errors="surrogatepass") + draw(st.sampled_from([b"\n", b"", b"\n\xff", b"["]))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("odd") / "runs", "")


@settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(mutated(RECORDED), mutated(EVALUATED), mutated([STATE]))
def test_nobody_who_reads_a_run_meets_more_than_an_error_with_a_sentence(
    run: Path, log: bytes, evaluations: bytes, state: bytes
) -> None:
    (run / "events.jsonl").write_bytes(log)
    (run / "evaluations.jsonl").write_bytes(evaluations)
    (run / "state.json").write_bytes(json.dumps(STATE).encode())
    left = report.read(run)
    Console(file=io.StringIO()).print(report.table([left.summary]))
    report.markdown([left.summary, left.summary])
    arrays = series.series(left.events, left.evaluations)
    shown = Run("x", left, arrays)
    drawn = ["suspects", "seconds", "received", *([] if np.isnan(arrays.errors).all() else ["errors"])]
    drawn += [] if np.isnan(arrays.copies).all() else ["copies"]
    pictures = {f"{stem}-1": b"" for stem in drawn}
    section.section(shown, 1, pictures)
    overview.curves([shown], b"")
    if len(arrays.steps):
        figures.suspects(arrays, section.expelled_from(shown))
    for metric in figures.drawn([arrays]):
        figures.encoded(figures.quality([figures.Curves("x", arrays)], metric), "svg")
    (run / "events.jsonl").write_bytes(b"")
    with Progress(run / "events.jsonl", Console(file=io.StringIO(), width=80), "starting") as progress:
        (run / "events.jsonl").write_bytes(log)
        progress.update()
    head.runs(run.parent)
    evaluate.done_steps(run)
    for line in log.split(b"\n"):
        door.heard(line)
    (run / "state.json").write_bytes(state)
    with contextlib.suppress(DracoError):
        run_directory.read_status(run)
        head.runs(run.parent)


def test_a_comparison_reads_odd_events_as_well(tmp_path: Path) -> None:
    cell = compare_progress.Cell("c", {}, job())
    run = write_run(tmp_path, "")
    run.rename(tmp_path / "c")
    text = lines([step(1)]) + '{"event": "step"}\n{"event": "step", "time": 1, "step": "x"}\nnull\n' + lines([step(2)])
    (tmp_path / "c" / "events.jsonl").write_text(lines([start(job())]) + text)
    pace = compare_progress.earlier_pace(cell, tmp_path)
    assert pace is not None
    assert pace.steps == 2


def test_what_is_not_understood_is_counted_and_the_first_is_named(tmp_path: Path, capsys) -> None:
    odd = '{"event": "step", "time": 1, "step": -2}\n{"event": "step", "time": NaN, "step": 2}\n[]\n'
    run = write_run(tmp_path, lines(whole_run()) + odd + '{"event": "from a later version", "time": 1}\n')
    (run / "evaluations.jsonl").write_text('{"step": 3}\n' + lines(EVALUATIONS))
    left = report.read(run)
    assert left.summary.notes == (
        "events.jsonl: 3 lines of it were not understood and left out; "
        "first: line 7 (step: input should be greater than or equal to 0)",
        "evaluations.jsonl: 1 line of it was not understood and left out; first: line 1 (loss: field required)",
    )
    assert (left.summary.step, left.summary.caught, left.summary.metrics["top1"]) == (3, 3, 0.9)
    assert main(["report", str(run), "--html", str(tmp_path / "page")]) == 0
    assert "3 lines of it were not understood" in " ".join(capsys.readouterr().out.split())
    assert "3 lines of it were not understood" in (tmp_path / "page" / "index.html").read_text()


def test_a_run_of_which_little_is_told_is_drawn_with_what_there_is(tmp_path: Path) -> None:
    told = timed(
        [{"event": "start"}, {"event": "step", "step": 1}, step(2, loss=3e38), {"event": "step", "step": 10**15}]
    )
    run = write_run(tmp_path, lines(told), evaluations=[])
    assert main(["report", str(run)]) == 0
    assert report.read(run).summary.seconds == SECONDS


def test_the_progress_counts_what_it_leaves_out(tmp_path: Path) -> None:
    log, out = tmp_path / "events.jsonl", io.StringIO()
    log.touch()
    with Progress(log, Console(file=out), "starting") as progress:
        log.write_text('null\n{"event": "step"}\n')
        progress.update()
        progress.update()
    assert out.getvalue().splitlines() == [
        "starting", "events.jsonl: 2 new lines of it were not understood and left out"
    ]  # fmt: skip


def test_what_the_server_writes_is_understood(tmp_path: Path) -> None:
    for event in RECORDED:
        assert door.event(json.dumps(event).encode()) == event
    log = events.EventLog(tmp_path / "events.jsonl")
    log.write("step", step=1, loss=float("nan"))
    log.close()
    assert events.found(tmp_path / "events.jsonl").odd == [(1, "loss: input should be a finite number")]
