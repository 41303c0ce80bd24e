"""The report: what is made of a run's records, and how it is shown."""

import io
import re
from pathlib import Path

import pytest
from recorded import EVALUATIONS, SECONDS, lines, step, whole_run, write_run
from rich.console import Console

from draco import report
from draco.errors import MissingError


def shown(summaries: list[report.Summary], width: int = 240) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(report.table(summaries))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_whole_run_is_summarised_by_its_last_step_its_counts_and_its_medians() -> None:
    events = whole_run()
    events[1]["seconds"] = dict.fromkeys(SECONDS, 100.0)  # the first step is slow, and does not count
    got = report.summarise(Path("runs/small-1"), "succeeded", events, EVALUATIONS)

    assert (got.name, got.state, got.step, got.steps, got.loss) == ("small", "succeeded", 3, 3, 0.5)
    assert (got.caught, got.missed, got.falsely_accused) == (3, 1, 2)
    assert got.seconds == SECONDS
    assert got.step_seconds == pytest.approx(0.17)
    assert got.bytes_per_step == 3_000_000
    assert got.setting == "repetition s=1, 3 workers; constant"
    assert got.notes == ()


def test_the_evaluation_of_the_latest_step_counts_wherever_it_stands_in_the_file() -> None:
    got = report.summarise(Path("r"), "succeeded", whole_run(), EVALUATIONS)
    assert (got.metrics, got.evaluated) == ({"top1": 0.9, "top5": 0.99, "loss": 0.25}, (3, 1000))


def test_steps_that_a_resumed_run_took_twice_count_once_and_the_resumption_is_noted() -> None:
    events = whole_run()[:-1]
    slow = dict.fromkeys(SECONDS, 1.0)
    again = [{"event": "resume", "step": 1, "file": "x"}, step(2, 1.4, seconds=slow), step(3, 0.4, seconds=slow)]
    got = report.summarise(Path("r"), "succeeded", [*events, *again], [])
    assert got.loss == 0.4
    assert got.seconds["decode"] == 1.0  # the median of one quick and two slow steps
    assert got.notes == ("resumed after step 1",)


def test_steps_whose_rows_were_drawn_anew_are_noted() -> None:
    got = report.summarise(Path("r"), "running", [*whole_run()[:-1], step(4, redrawn=["rows 1, 2 lie"])], [])
    assert got.notes == ("drew the rows of 1 steps anew, whose replies could not be decoded",)


def test_workers_that_are_late_again_and_again_are_named_with_what_they_cost() -> None:
    late = [
        step(k, waited={"3": 0.5, "2": 1.0} if k % 2 else {}, straggling=[5] if k < 3 else []) for k in range(1, 21)
    ]
    got = report.summarise(Path("r"), "running", late, [])
    assert got.notes == (
        "rank 2 was late in 10 of 20 steps, and waited for 10.0 s in all",
        "rank 3 was late in 10 of 20 steps, and waited for 5.0 s in all",
    )
    little = [{**one, "waited": {"3": 0.001}} for one in late]  # as workers are that share cores
    assert report.summarise(Path("r"), "running", little, []).notes == ()
    many = [step(k, waited={str(rank): 1.0 * rank for rank in range(1, 6)}) for k in range(1, 4)]
    named = report.summarise(Path("r"), "running", many, []).notes
    assert [note.split(" was")[0] for note in named] == ["rank 5", "rank 4", "rank 3", "2 more were late that often"]


def test_counts_from_before_the_last_step_are_not_shown_as_if_they_covered_it() -> None:
    events = [*whole_run(), {"event": "resume", "step": 3, "file": "x"}, step(4)]
    got = report.summarise(Path("r"), "running", events, [])
    assert (got.caught, got.missed, got.falsely_accused) == (None, None, None)
    assert "- caught, - missed, - falsely accused" in shown([got])


def test_a_run_without_any_event_is_summarised_as_unknown_and_not_as_zero() -> None:
    got = report.summarise(Path("runs/x-1"), "pending", [], [])
    assert (got.name, got.step, got.steps, got.loss, got.metrics, got.step_seconds) == ("x-1", 0, None, None, {}, None)
    assert "not evaluated" in shown([got])


def test_a_cut_off_last_line_is_left_out_and_said(tmp_path: Path) -> None:
    text = lines(whole_run()[:-1])
    cut = text[: -len(lines([step(3, 0.5)])) // 2]
    got = report.read_summary(write_run(tmp_path, cut, "interrupted"))
    assert got.step == 2
    assert got.notes == ("events.jsonl: its last line is cut off, as by a killed run, and is left out",)
    assert "cut off" in shown([got])
    assert "cut off" in shown([got, got])
    assert "cut off" in report.markdown([got])


def test_unreadable_lines_in_the_middle_are_named(tmp_path: Path) -> None:
    first, *rest = whole_run()
    text = lines([first]) + '{"event": "st\n' + lines(rest) + "[1]\n" + lines(rest[-1:])
    got = report.read_summary(write_run(tmp_path, text))
    assert got.notes == ("events.jsonl: 2 lines of it were not understood and left out; first: line 2 (it is no JSON)",)
    assert got.step == 3


def test_bytes_that_are_not_text_do_not_stop_the_report(tmp_path: Path) -> None:
    run = write_run(tmp_path, "")
    (run / "events.jsonl").write_bytes(lines(whole_run()).encode() + b'\xff\xfe{"event"')
    assert report.read_summary(run).caught == 3


def test_a_failed_run_says_why(tmp_path: Path) -> None:
    got = report.read_summary(write_run(tmp_path, lines(whole_run()), "failed", "step 4: worker 2 did not answer"))
    assert "step 4: worker 2 did not answer" in shown([got])
    assert "small: failed" in shown([got])


def test_a_directory_that_is_no_run_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"nowhere: not a run directory \(it has no state.json\)"):
        report.read_summary(tmp_path / "nowhere")


def test_the_table_of_one_run_says_everything_that_the_issue_asks_for(tmp_path: Path) -> None:
    run = write_run(tmp_path, lines(whole_run()))
    text = shown([report.read_summary(run)])
    for expected in (
        "small: succeeded",
        "3 of 3",
        "90.00% of 1,000 test samples after step 3 (top-5 99.00%, loss 0.25)",
        "3 caught, 1 missed, 2 falsely accused",
        "compute 100, encode 10, communication 20, decode 30, aggregate 4, update 6",
        "170 ms, 5.88 steps/s",
        "3.00 MB per step",
        str(run),
    ):
        assert expected in text


def test_several_runs_are_shown_one_row_each_with_the_values_in_the_order_of_their_headers(tmp_path: Path) -> None:
    summaries = [report.read_summary(write_run(tmp_path / name, lines(whole_run()))) for name in ("a", "b")]
    (header, *rows) = re.split(r"\n[├┡]\S+", shown(summaries))
    assert len(rows) == 2
    expected = {
        "compute ms": "100", "encode ms": "10", "communication ms": "20",
        "decode ms": "30", "aggregate ms": "4", "update ms": "6",
        "caught": "3", "missed": "1", "accused": "2", "ms/step": "170", "MB/step": "3.00", "steps/s": "5.88",
        "steps": "3 of 3", "accuracy": "90.00%", "state": "succeeded", "setting": "repetition s=1, 3 workers; constant",
    }  # fmt: skip
    for row in rows:
        for title, above in zip(columns(header), columns(row), strict=True):
            assert all(expected[name] == value for name, value in zip(title, above, strict=True) if name != "run")


def columns(block: str) -> list[list[str]]:
    """Return the lines of each column of one row of a table."""
    grid = [re.split("[│┃]", line)[1:-1] for line in block.splitlines() if re.search("[│┃]", line)]
    return [[cell.strip() for cell in column if cell.strip()] for column in zip(*grid, strict=True)]


def test_a_comparison_fits_into_eighty_columns_without_breaking_a_number() -> None:
    name = "mnist-lenet-cyclic-reverse-gradient-20250101-010101"
    summary = report.summarise(Path(name), "succeeded", whole_run(), EVALUATIONS)
    text = shown([summary, summary], width=80)
    assert all(len(line) <= 80 for line in text.splitlines())
    assert all(
        re.search(rf"(?<!\S){value}(?!\S)", text) for value in ("170", "3.00", "5.88", "100", "communication ms")
    )


def test_the_markdown_table_has_a_cell_for_every_column_and_escapes_its_own_marks() -> None:
    summary = report.summarise(Path("runs/a|b"), "succeeded", whole_run(), EVALUATIONS)
    header, rule, row = report.markdown([summary]).splitlines()
    assert header.startswith("| run | setting | state | steps | accuracy | caught | missed | accused | ms/step |")
    assert "a\\|b" in row
    cells = row.replace("\\|", "").strip("| ").split(" | ")
    assert len(cells) == len(header.strip("| ").split(" | ")) == len(rule.strip("| ").split(" | "))
    assert "90.00%" in cells


def test_brackets_in_names_and_messages_are_shown_and_not_taken_for_markup() -> None:
    summary = report.summarise(Path("runs/[bold]x"), "failed", [], [], ["worker [red]2[/red]"])
    assert "[bold]x" in shown([summary])
    assert "worker [red]2[/red]" in shown([summary])
    assert "[bold]x" in shown([summary, summary])


def test_long_and_short_times_are_shown_in_milliseconds() -> None:
    quick = step(1, seconds={"decode": 0.000_123_4})
    slow = step(1, seconds={"compute": 12.345_6})
    assert "decode 0.123," in shown([report.summarise(Path("r"), "running", [quick], [])])
    assert "compute 12,346," in shown([report.summarise(Path("r"), "running", [slow], [])])


def test_interruptions_are_counted_and_the_commonest_causes_named(tmp_path: Path) -> None:
    causes = ["node a is lost", "rank 1 ended", "rank 1 ended", "x", "y"]
    events = [{"event": "interruption", "cause": cause} for cause in causes]
    found = report.summarise(tmp_path, "succeeded", events, [])
    assert "went on by itself after 5 interruptions: rank 1 ended (2 times); node a is lost; x" in found.notes
