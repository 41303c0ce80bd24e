"""Text of workers, nodes, run directories and file names, wherever it is shown: it is shown, and never obeyed."""

import csv
import io
import json
import os
from pathlib import Path

import pytest
from hostile import HOSTILE, assert_page_shows_text, assert_shown_as_text
from recorded import EVALUATIONS, MACHINE, job, lines, start, step, timed, write_run

from draco.cli import console
from draco.cli.main import main
from draco.cli.screen import Screen
from draco.cluster import status as cluster_status
from draco.compare import table
from draco.launch import head
from draco.launch.progress import Progress
from draco.report import page, read
from draco.runs import directory as run_directory
from draco.runs import door, events
from draco.training import greeting
from draco.training.server import choose_vote

DRAWN = ["curves", *(f"{stem}-{at}" for stem in ("suspects", "seconds", "received") for at in (1, 2))]
TEXTS = pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)


def hostile_events(text: str) -> list[dict]:
    """Return a run's events with that text in every place where there may be one."""
    began = start(
        job(), summary=text, setting=text, vote="tolerance", vote_reason=text, data_summary=text,
        machine={**MACHINE, "cpu": text, text[:50]: text},
    )  # fmt: skip
    began["job"] = {**began["job"], "name": text}
    return timed([
        {"event": "refused_checkpoint", "file": text, "why": text}, {"event": "resume", "step": 0, "file": text}, began,
        step(1, refused={"2": text}, redrawn=[text]), step(2),
        {"event": "notice", "node": text, "kind": text, "at": text},
        {"event": "interruption", "cause": text, "nodes": {text: text}, "ranks": [1]},
        {"event": "relaunch", "launch": 2, "nodes": [text], "without": {text: text}, "warnings": [text]},
        {"event": "expelled", "rank": 3, "step": 2, "partition": 0, "claimed": text, "true": text},
        {"event": text, "text": text}, {"event": "end", "state": text, "step": 2, "message": text},
    ])  # fmt: skip


def write_hostile(folder: Path, *texts: str) -> Path:
    """Write a run whose events, state, job and log hold the texts, in a folder with as much of them as a name may."""
    name = os.fsdecode(b"".join(os.fsencode(text.replace("/", "|"))[: 160 // len(texts)] for text in texts))
    whole = " ".join(texts)
    run = write_run(folder, "".join(lines(hostile_events(text)) for text in texts), "failed", whole, name=name)
    (run / "job.yaml").write_bytes(os.fsencode(f"# {whole}\nname: small\n"))
    (run / "logs" / "output.log").write_bytes(os.fsencode("\n".join(texts)))
    assert len(events.found(run / "events.jsonl").records) == 11 * len(texts)
    return run


def test_the_table_of_texts_is_hostile() -> None:
    with pytest.raises(AssertionError):
        assert_shown_as_text("".join(HOSTILE.values()))
    with pytest.raises(AssertionError):
        assert_page_shows_text(HOSTILE["html"])


def test_every_command_shows_a_run_as_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    run = write_hostile(tmp_path / "runs", *HOSTILE.values())
    for arguments in (["report", "--runs", "runs"], ["logs", "--runs", "runs"]):
        assert main(arguments) == 0
    png = page.draw(page.gather([read(write_run(tmp_path / "plain", lines([start(job()), step(1)])))]))["curves"]
    monkeypatch.setattr(page, "draw", lambda runs: dict.fromkeys(DRAWN, png))  # names are in them once, above
    assert main(["report", "--markdown", "--html", "page", str(run), str(run)]) == 0
    assert main(["stop", "--runs", "runs"]) == 4
    assert main(["eval", str(run)]) == 3  # the job is none
    shown = capsys.readouterr()
    assert_shown_as_text(shown.out)
    assert_shown_as_text(shown.err)
    for folder in (run / "report", tmp_path / "page"):
        assert_page_shows_text((folder / "index.html").read_text())
    assert not list(tmp_path.rglob("pwned"))


@TEXTS
@pytest.mark.parametrize("terminal", [False, True])
def test_the_progress_line_shows_events_as_text(text: str, terminal: bool, tmp_path: Path) -> None:
    log, out = tmp_path / "events.jsonl", io.StringIO()
    log.touch()
    # Colours off: then no escape sequence is the display's own but those that redraw its line.
    screen = Screen(file=out, force_terminal=terminal, width=100, no_color=True, color_system=None)
    with Progress(log, screen, "starting") as progress:
        log.write_text(lines(hostile_events(text)))
        progress.update()
        progress.say(text)
        shown = out.getvalue()
    if not terminal:
        assert_shown_as_text(shown)
    assert "\x1b]" not in shown
    assert "\x1b[31m" not in shown
    assert "\x9b" not in shown
    assert "launch 2 on " in shown


@TEXTS
def test_the_status_and_an_operator_show_what_a_head_says_as_text(text: str, tmp_path: Path, capsys) -> None:
    hostile_run = write_hostile(tmp_path, text)
    found = json.loads(json.dumps(head.runs(hostile_run.parent)))
    console.results().print(cluster_status.run_line(found))
    event = door.heard(json.dumps({"event": "state", **run_directory.read_status(hostile_run)._asdict()}).encode())
    assert event is not None
    console.say(event["message"])
    nodes = [{"name": text, "state": text, "address": text, "image": text}]
    console.results().print(cluster_status.table({"nodes": nodes}))
    with console.messages().status(text) as spinner:
        spinner.update(text)
    shown = capsys.readouterr()
    assert_shown_as_text(shown.out)
    assert_shown_as_text(shown.err)


@TEXTS
def test_a_greeting_is_text(text: str, make_job) -> None:
    vote, why = choose_vote(
        make_job("scheme={name: repetition, adversaries: 1}", "workers=3"),
        [greeting.read(os.fsencode(text)), greeting.Greeting("another")],
    )
    assert vote == "tolerance"
    assert_shown_as_text(why)
    assert len(why) < 500


@TEXTS
def test_a_table_for_spreadsheets_holds_no_formula(text: str, tmp_path: Path) -> None:
    table.write_csv([{"cell": text, "reason": f"={text}", "lr": "-0.1", "top1": -0.5}], tmp_path / "x.csv")
    (row,) = csv.DictReader(io.StringIO((tmp_path / "x.csv").read_text()))
    assert row["reason"].startswith("'=")
    assert not row["cell"].startswith(("=", "+", "-", "@"))
    assert (row["lr"], row["top1"]) == ("-0.1", "-0.5")
    assert_shown_as_text("".join(row.values()))


def test_evaluations_are_those_of_the_file() -> None:
    assert [door.evaluation(json.dumps(each).encode()) for each in EVALUATIONS] == EVALUATIONS
