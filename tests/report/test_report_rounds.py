"""What a user sees of steps in several rounds: proofs, expulsions, copies, steps undone; in report, line and status."""

import io
import json
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from recorded import MACHINE, job, lines, start, step, timed, whole_run, write_run
from rich.console import Console
from test_report_page import made

from draco import report
from draco.cluster import status
from draco.launch import head
from draco.launch.progress import Progress
from draco.report import figures, page, series
from draco.runs import door
from draco.runs.expulsions import Expulsion, expulsions
from draco.training import csv_files

TRUE, FALSE = "81bc" * 16, "3fa9" * 16
PROOF = {"step": 2, "partition": 4, "claimed": FALSE, "true": TRUE}


def taken(number: int, copies: float = 1.0, redundancy: int = 1, **more: Any) -> dict[str, Any]:
    """A step of a protocol, of three workers."""
    return step(number, copies=copies, redundancy=redundancy, standing=2, rounds=1, byzantine=[], suspects=[], **more)


def told() -> list[dict[str, Any]]:
    """A run of four steps: worker 3 lies at step 2, and is expelled; step 3 is undone."""
    return timed([
        start(job(), machine=MACHINE, failure_probability=3.8e-4), taken(1, 2.0, 2),
        {"event": "expelled", "rank": 3, **PROOF},
        step(2, copies=2.5, redundancy=1, standing=2, rounds=2, byzantine=[3], suspects=[3], expelled={"3": PROOF}),
        {"event": "undone", "step": 3, "partitions": [0, 5], "workers": [2]},
        taken(3), taken(4),
        {"event": "end", "state": "succeeded", "step": 4, "caught": 1, "missed": 0, "falsely_accused": 0},
    ])  # fmt: skip


def test_what_a_protocol_writes_is_understood_and_a_proof_of_another_kind_is_not() -> None:
    for event in told():
        assert door.event(json.dumps(event).encode()) == event
    for wrong in ({"rank": 0}, {"claimed": 3}, {"partition": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            door.event(json.dumps({"event": "expelled", "time": 1, "rank": 3, **PROOF, **wrong}).encode())
    with pytest.raises(ValueError, match=r"expelled\.3\.true"):
        door.event(json.dumps({**taken(1), "time": 1, "expelled": {"3": {**PROOF, "true": None}}}).encode())


def test_a_worker_is_expelled_once_by_its_first_proof() -> None:
    later = {"event": "expelled", "rank": 3, **PROOF, "step": 9}
    assert expulsions([*told(), later]) == {3: Expulsion(3, 2, 4, FALSE, TRUE)}


def test_a_run_that_goes_back_forgets_the_proofs_of_steps_it_takes_again_but_for_those_it_has_kept() -> None:
    back = {"event": "resume", "step": 1, "file": "x"}
    assert expulsions([*told(), {**back, "step": 2}]) == expulsions(told())
    assert expulsions([*told(), back]) == {}
    assert expulsions([*told(), {**back, "expelled": {}, "step": 2}]) == {}
    kept = {"1": {**PROOF, "step": 1}}
    assert [*expulsions([*told(), {**back, "expelled": kept}])] == [1]


def test_the_summary_has_who_is_expelled_and_what_redundancy_cost() -> None:
    got = report.summarise(Path("r"), "succeeded", told(), [])
    assert [*got.expelled] == [3]
    assert (got.copies, got.redundancy, got.undone) == (1.625, 1, 1)
    facts = dict(report.tables.facts(got))
    assert facts["expelled"] == "3 (step 2)"
    assert facts["copies"] == "1.625 of each partition (mean), 1 at the next step; 1 steps undone"
    assert facts["certainty"] == "a step of the run stays false with a probability of 0.00038 at most"


def test_a_run_in_which_nobody_was_expelled_says_so_and_one_of_another_scheme_says_nothing() -> None:
    honest = report.summarise(Path("r"), "succeeded", [start(job(), failure_probability=0.0), taken(1)], [])
    facts = dict(report.tables.facts(honest))
    assert facts["expelled"] == "nobody"
    assert facts["certainty"].startswith("no step stays false")
    old = report.summarise(Path("r"), "succeeded", whole_run(), [])
    assert not {"expelled", "copies", "certainty"} & {what for what, _ in report.tables.facts(old)}
    assert "copies" not in report.markdown([old, old])


def test_runs_side_by_side_have_columns_of_it_where_one_of_them_tells() -> None:
    new, old = (report.summarise(Path("r"), "succeeded", events, []) for events in (told(), whole_run()))
    first, _, *rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in report.markdown([new, old]).splitlines()
    ]
    of = [dict(zip(first, row, strict=True)) for row in rows]
    assert [(row["expelled"], row["copies"]) for row in of] == [("3", "1.625"), ("-", "-")]
    console = Console(file=io.StringIO(), width=80)
    console.print(report.table([new, old]))
    assert isinstance(console.file, io.StringIO)
    assert "1.625" in console.file.getvalue()


def test_the_arrays_have_copies_and_marks() -> None:
    got = series.series(told())
    assert got.copies.tolist() == [2.0, 2.5, 1.0, 1.0]
    assert got.redundancy.tolist() == [2, 1, 1, 1]
    assert [(mark.kind, mark.step, mark.about) for mark in got.marks[:2]] == [
        ("expelled", 1, "worker 3 is proven to lie, by step 2, partition 4"),
        ("undone", 2, "step 3, for false vectors of partitions 0, 5"),
    ]
    assert np.isnan(series.series(timed(whole_run())).copies).all()


def test_the_map_has_a_line_from_the_step_of_the_proof_on() -> None:
    of = series.series(told())
    figure = figures.suspects(of, {3: 2})
    (line,) = figure.axes[0].lines
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([2, 4.5], [3, 3])
    assert line.get_marker() == "x"
    (legend,) = figure.legends
    assert legend.get_texts()[-1].get_text() == "expelled from there on"
    before = figures.suspects(of)
    assert not before.axes[0].lines
    assert "expelled from there on" not in [text.get_text() for text in before.legends[0].get_texts()]


def test_the_page_shows_proofs_copies_and_certainty(tmp_path: Path) -> None:
    _, document = made(write_run(tmp_path, lines(told())))
    assert ["3", "2", "4", "3fa93fa9...", "81bc81bc..."] in document.rows("expelled worker")
    assert TRUE not in document.text
    assert document.rows("worker")[1:] == [["1", "4", "0", "0"], ["2", "4", "0", "0"], ["3", "1", "1", "2"]]
    assert "Expelled: worker 3 by step 2." in " ".join(image["alt"] or "" for image in document.elements("img"))
    assert "mean 1.625, most 2.500, last 1.000; 1 steps undone" in document.text
    assert "stays false with a probability of 0.00038 at most" in document.text
    assert ["4", "1.000", "1.000"] in document.rows("from step")


def test_the_page_of_another_scheme_has_none_of_it(tmp_path: Path) -> None:
    run = write_run(tmp_path, lines(timed(whole_run())))
    with mock.patch.object(figures, "encoded", return_value=b""):
        assert not [stem for stem in page.draw(page.gather([report.read(run)])) if stem.startswith("copies")]
    _, document = made(run)
    assert "expelled" not in document.text
    assert "What redundancy cost" not in document.text


def followed(tmp_path: Path, *events: dict[str, Any]) -> list[str]:
    log, out = tmp_path / "events.jsonl", io.StringIO()
    log.write_text("")
    with Progress(log, Console(file=out, width=200), "starting") as progress:
        progress._said = -100.0  # so that the next step is told at once
        log.write_text(lines(events))
        progress.update()
    return out.getvalue().splitlines()[1:]


def test_an_expulsion_and_a_step_undone_are_told_at_once_as_lines_of_their_own(tmp_path: Path) -> None:
    said = followed(tmp_path, *told())
    assert "step 2: worker 3 is proven to lie and expelled (claimed 3fa93fa9..., true 81bc81bc...)" in said
    undone = "step 3: undone and taken again, as vectors of partitions 0, 5 were false (sent by 2)"
    assert undone in said
    assert sum("expelled (" in line for line in said) == 1


def test_a_proof_that_needs_no_truth_is_told_in_its_own_words(tmp_path: Path) -> None:
    proof = {**PROOF, "claimed": "its message has 3 bytes", "true": ""}
    said = followed(tmp_path, {"event": "expelled", "rank": 3, **proof})
    assert said == ["step 2: worker 3 is proven to lie and expelled (its message has 3 bytes)"]


def test_the_progress_line_has_copies_and_who_is_expelled_of_a_resumed_run_too(tmp_path: Path) -> None:
    (step_line,) = followed(tmp_path, taken(1, 2.04, 2))
    assert step_line.startswith("step 1/0  loss 1.0000  0.0 steps/s  suspects: none  copies 2.0")
    assert "expelled" not in step_line
    resumed = {"event": "resume", "step": 2, "file": "x", "expelled": {"7": PROOF, "3": PROOF}}
    said = followed(tmp_path, resumed, taken(3))
    assert said[1] == "expelled before: 3, 7"
    assert "  copies 1.0, expelled 3 7" in said[2]
    (old,) = followed(tmp_path, step(1))
    assert "copies" not in old


def test_the_status_has_both(tmp_path: Path) -> None:
    write_run(tmp_path, lines(told()))
    found = head.runs(tmp_path)
    assert (found["copies"], found["expelled"]) == (1.0, [3])
    assert "  copies 1.0, expelled 3" in status.run_line(found)


def test_the_csv_file_has_what_a_step_cost(tmp_path: Path) -> None:
    row = dict(zip(csv_files.HEADER, csv_files._row(told()[3]), strict=True))
    assert [row[name] for name in ("copies", "redundancy", "standing", "rounds", "expelled")] == [2.5, 1, 2, 2, "3"]
    old = dict(zip(csv_files.HEADER, csv_files._row(step(1)), strict=True))
    assert [old["copies"], old["expelled"]] == [None, ""]
