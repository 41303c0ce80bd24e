"""The page: what it says, that it is whole in itself, and that what a run brings along stays text."""

import base64
import importlib.resources
import io
import json
import re
import tomllib
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from html_tree import Document
from matplotlib.colors import to_rgb
from matplotlib.image import imread, imsave
from recorded import EVALUATIONS, MACHINE, job, lines, start, step, timed, whole_run, write_run

from draco import report
from draco.cli.main import main
from draco.errors import MissingError
from draco.report import figures, page, series
from draco.runs import directory as run_directory

ROOT = Path(__file__).parents[2]
TEMPLATES = ROOT / "draco" / "report" / "templates"
HOSTILE = '"><script>alert(1)</script><img src=https://example.com/x onerror=alert(2)>&amp; $x_{$ 日本'


def told(number: int, **changes: Any) -> dict[str, Any]:
    return step(number, **{"byzantine": [2], "decoding_error": 0.5 * number, **changes})


def full_run() -> list[dict[str, Any]]:
    """A run with everything in it: all classes of workers, an interruption, and a second launch."""
    first = [
        start(job(), machine={**MACHINE, "torch": "2.12.0"}),
        told(1, loss=2.0),
        told(2, byzantine=[2, 3], loss=1.5),
    ]
    between = [
        {"event": "interruption", "cause": "worker-01: no answer", "nodes": {}, "ranks": [1]},
        {"event": "relaunch", "launch": 2, "nodes": None, "without": {}, "warnings": []},
        {"event": "resume", "step": 1, "file": "step-1.pt"},
    ]
    again = [told(2, suspects=[1], byzantine=[], loss=1.4), told(3, suspects=[], lost=[1], straggling=[3], loss=0.5)]
    end = {"event": "end", "state": "succeeded", "step": 3, "message": "", "caught": 1, "missed": 1}
    return timed([*first, *between, start(job(), machine=MACHINE), *again, {**end, "falsely_accused": 1}])


def blank() -> bytes:
    buffer = io.BytesIO()
    imsave(buffer, np.ones((1, 1, 3)), format="png")
    return buffer.getvalue()


def made(*runs: Path, folder: Path | None = None, painted: bool = False) -> tuple[Path, Document]:
    """Write a page; its figures are blank where a test is not about them, as painting takes most of the time."""
    paint = figures.encoded if painted else lambda figure, kind: blank()
    with mock.patch.object(figures, "encoded", paint):
        path = page.write([report.read(run) for run in runs], folder)
    return path, Document(path.read_text(encoding="utf-8"))


@pytest.fixture
def full(tmp_path: Path) -> Path:
    return write_run(tmp_path, lines(full_run()))


def alone(document: Document) -> None:
    """Check that the page is well-formed and loads nothing."""
    assert document.faults == []
    assert {tag for kind, tag, _ in document.tokens if kind == "start"} & {
        "script",
        "link",
        "iframe",
        "object",
    } == set()
    identities = [dict(more)["id"] for kind, _, more in document.tokens if kind == "start" and "id" in dict(more)]
    assert len(identities) == len(set(identities))
    for image in document.elements("img"):
        assert re.fullmatch(r"data:image/png;base64,[A-Za-z0-9+/]+=*", image["src"] or "")
        assert image["alt"]
    for _, _, attributes in document.tokens:
        for name, value in attributes:
            assert name in ("src", "href") or name not in ("srcset", "data", "action", "poster", "background", "style")
            assert not name.startswith("on")
            if name == "href":
                assert value in {f"#{identity}" for identity in identities}
    (style,) = [what for kind, what, _ in document.tokens if kind == "text" and ":root" in what]
    assert "url(" not in style
    assert "@import" not in style
    (policy,) = [m["content"] for m in document.elements("meta") if "http-equiv" in m]
    assert (policy or "").startswith("default-src 'none'; img-src data:;")


def test_the_page_of_a_run_holds_its_numbers_and_its_figures(full: Path) -> None:
    path, document = made(full)
    assert path == full / "report" / "index.html"
    alone(document)
    assert "The run took all its steps." in document.text
    assert "went on by itself after 1 interruptions: worker-01: no answer" in document.text
    assert ["accuracy", "90.00% of 1,000 test samples after step 3 (top-5 99.00%, loss 0.25)"] in document.rows("state")
    assert document.rows("worker") == [
        ["worker", "honest", "straggling", "lost", "caught", "falsely accused", "missed"],
        ["1", "1", "0", "1", "0", "1", "0"],
        ["2", "1", "0", "0", "1", "0", "1"],
        ["3", "2", "1", "0", "0", "0", "0"],
    ]
    assert document.rows("step") == [
        ["step", "seconds", "top-1", "top-5", "test loss"],
        ["1", "1.0", "20.00%", "50.00%", "2.2"],
        ["3", "8.0", "90.00%", "99.00%", "0.25"],
    ]
    assert document.rows("steps")[1:] == [["1", "1.0", "2"], ["2", "7.0", "1.4"], ["3", "8.0", "0.5"]]
    assert document.rows("part")[1] == ["compute", "100", "100", "100", "0.300", "58.8%"]
    assert document.rows("part")[-1] == ["step", "170", "170", "170", "0.510", "100.0%"]
    assert document.rows("seconds")[1:] == [
        ["3.0", "2", "interruption", "worker-01: no answer"],
        ["4.0", "2", "relaunch", "launch 2"],
        ["5.0", "1", "resume", "after step 1, from step-1.pt"],
        ["9.0", "3", "end", "succeeded"],
    ]
    origin = document.rows("first started")
    assert origin[0][1] == "2023-11-14 22:13:20 UTC"
    assert [origin[1], origin[-3], origin[-2]] == [["launches", "2"], ["torch", "2.13.0"], ["cpu", "A Processor"]]
    assert "Launches differ, the newest is shown: torch." in document.text
    assert "name: small" in document.text
    assert "largest 1.5" in document.text


def test_the_figures_are_files_too_and_the_same_run_gives_the_same_files(full: Path, tmp_path: Path) -> None:
    path, document = made(full, painted=True)
    names = ["curves", "suspects-1", "seconds-1", "received-1", "errors-1"]
    inside = [base64.b64decode((image["src"] or "").split(",")[1]) for image in document.elements("img")]
    assert inside == [(path.parent / f"{name}.png").read_bytes() for name in names]
    assert sorted(p.name for p in path.parent.iterdir()) == sorted(["index.html", *(f"{name}.png" for name in names)])
    for image, png in zip(document.elements("img"), inside, strict=True):
        height, width, _ = imread(io.BytesIO(png)).shape
        assert (image["width"], image["height"]) == (str(width), str(height))
    again, _ = made(full, folder=tmp_path / "again", painted=True)
    assert {p.name: p.read_bytes() for p in path.parent.iterdir()} == {
        p.name: p.read_bytes() for p in again.parent.iterdir()
    }


def test_several_runs_are_overlaid_and_each_has_its_part(full: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path, lines(timed(whole_run())), evaluations=[])
    path, document = made(full, other)
    alone(document)
    assert path.parent == tmp_path / f"report-{full.name}-{other.name}"
    assert [link["href"] for link in document.elements("a")] == ["#run-1", "#run-2"]
    assert [row[0] for row in document.rows("run")] == ["run", full.name, other.name]
    assert f"Not evaluated: {other.name}." in document.text
    assert "The events do not tell the server's machine and versions." in document.text
    assert "a suspect of such a step is only that" in document.text  # of the second, whose steps do not tell who lied
    assert len(document.elements("img")) == 1 + 4 + 3


def test_long_names_make_no_long_folder_and_other_runs_another(tmp_path: Path) -> None:
    runs = [tmp_path / ("a" * 40), tmp_path / ("b" * 40)]
    found = page.place(runs)
    assert found.parent == tmp_path
    assert re.fullmatch("report-[0-9a-f]{12}", found.name)
    assert page.place(runs) == found != page.place(runs[::-1])


def test_runs_of_one_name_are_told_apart() -> None:
    def summary(name: str, run: str) -> report.Summary:
        named = [start(job(name))]
        return report.summarise(Path(run), "succeeded", named, [])

    assert page.name([summary("a", "x/a-1"), summary("b", "x/b-1")]) == ["a", "b"]
    assert page.name([summary("a", "x/a-1"), summary("a", "x/a-2")]) == ["a-1", "a-2"]
    assert page.name([summary("a", "x/a-1"), summary("a", "y/a-1")]) == ["a-1 (1)", "a-1 (2)"]


@pytest.mark.parametrize(
    ("state", "message", "expected"),
    [
        ("failed", "step 4: worker 2 did not answer", "The run failed. step 4: worker 2 did not answer"),
        ("running", "", "The run had not ended when this page was made"),
        ("interrupted", "asked to stop", "it can be resumed. asked to stop"),
        ("lost", "worker-02 is lost", "because nodes or processes were lost; it can be resumed. worker-02 is lost"),
        ("pending", "", "The run has not begun, or waits to be started again."),
    ],
)
def test_the_page_says_of_a_run_that_is_not_whole_what_it_is(
    tmp_path: Path, state: run_directory.State, message: str, expected: str
) -> None:
    cut = lines(timed(whole_run()[:-1]))[:-9]
    _, document = made(write_run(tmp_path, cut, state, message, evaluations=[]))
    alone(document)
    warnings = [
        text
        for (_, tag, more), (_, text, _) in zip(document.words, document.words[1:], strict=False)
        if tag == "p" and dict(more).get("class") == "warn"
    ]
    assert any(expected in warning for warning in warnings)
    assert "events.jsonl: its last line is cut off, as by a killed run, and is left out" in warnings
    assert any("Not evaluated" in warning for warning in warnings)
    assert ["accuracy", "not evaluated"] in document.rows("state")


def test_steps_that_are_missing_are_counted(tmp_path: Path) -> None:
    broken = timed([start(job()), step(2), step(5)])
    _, document = made(write_run(tmp_path, lines(broken)))
    assert "3 of 5 steps are not on record." in document.text


def test_replies_that_were_refused_are_told_with_their_worker_and_reason(tmp_path: Path) -> None:
    why = ["it is too short", "it holds numbers that are not finite"]
    refused: list[dict[str, str]] = [{"10": why[0]}, {"10": why[0], "9": why[1]}, {}]
    events = [start(job(workers=12)), *(step(n, refused=who) for n, who in enumerate(refused, start=1))]
    _, document = made(write_run(tmp_path, lines(timed(events))))
    assert document.rows("refused worker")[1:] == [["9", "1", why[1]], ["10", "2", why[0]]]


def test_a_run_without_a_step_is_said_to_have_none_and_draws_nothing(tmp_path: Path) -> None:
    _, document = made(write_run(tmp_path, "", "failed", "no data", evaluations=[]))
    alone(document)
    assert "No step is on record, so there is nothing to draw." in document.text
    assert "No start is on record." in document.text
    assert document.elements("img") == []


def test_one_run_without_a_step_does_not_hide_the_other(full: Path, tmp_path: Path) -> None:
    _, document = made(write_run(tmp_path, "", "failed", "no data", evaluations=[]), full)
    alone(document)
    assert len(document.elements("img")) == 5
    assert "No step is on record, so there is nothing to draw." in document.text


def test_what_a_run_brings_along_stays_text(tmp_path: Path) -> None:
    events = full_run()
    events[0]["machine"] = events[6]["machine"] = {HOSTILE: HOSTILE}
    events[3]["cause"] = HOSTILE
    for event in events:
        if "job" in event:
            event["job"] = {**event["job"], "name": HOSTILE}
            event["summary"] = HOSTILE
    run = write_run(tmp_path, lines(events), "failed", HOSTILE, name="a<b>&'c'")
    (run / "job.yaml").write_text(HOSTILE)
    _, document = made(run, run)
    alone(document)
    assert document.text.count("<script>alert(1)</script>") > 8
    assert not [image for image in document.elements("img") if "onerror" in image]
    tags = {tag for kind, tag, _ in document.tokens if kind == "start"}
    assert "b" not in tags


def test_nothing_in_the_templates_or_their_values_goes_unescaped() -> None:
    ways = r"\|\s*safe\b|Markup|autoescape (false|off)|autoescape=False|__html__"
    for path in [*TEMPLATES.iterdir(), *TEMPLATES.parent.glob("*.py")]:
        assert not re.search(ways, path.read_text()), path
    for path in TEMPLATES.glob("*.j2"):  # quotes end an attribute, so every value in one has quotes around it
        assert not re.search(r"=\s*{{", path.read_text()), path


def test_an_installed_copy_holds_the_templates() -> None:
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["draco.report"]
    declared = {path for pattern in data for path in TEMPLATES.parent.glob(pattern)}
    assert declared == {*TEMPLATES.rglob("*")}
    installed = importlib.resources.files("draco.report") / "templates"
    assert {path.name for path in installed.iterdir()} == {path.name for path in declared}


def test_names_in_figures_are_neither_mathematics_nor_hidden_nor_endless() -> None:
    of = series.series(timed([start(job()), step(1), step(2)]), EVALUATIONS)
    names = ["_hidden", "$\\frac{", "日本", "x" * 200]
    figure = figures.curves([figures.Curves(name, of) for name in names])
    assert figures.encoded(figure, "png").startswith(b"\x89PNG")
    (legend,) = figure.legends
    shown = [text.get_text() for text in legend.get_texts()]
    assert shown[:3] == names[:3]
    assert len(shown[3]) == figures._LONG


def test_losses_that_span_decades_are_drawn_on_a_logarithmic_axis_and_others_are_not() -> None:
    for losses, scale in (([2.0, 0.001], "log"), ([2.0, 1.0], "linear"), ([2.0, 0.0], "linear")):
        of = series.series(timed([start(job()), *(step(n, loss) for n, loss in enumerate(losses, 1))]))
        assert figures.curves([figures.Curves("a", of)]).axes[0].get_yscale() == scale


def test_interruptions_stand_on_the_time_axis_at_their_time() -> None:
    of = series.series(full_run(), EVALUATIONS)
    figure = figures.curves([figures.Curves("a", of)])
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["a", "interruption", "resumed"]
    for axes in (figure.axes[1], figure.axes[3]):
        assert [list(line.get_xdata()) for line in axes.lines if len(set(line.get_xdata())) == 1] == [[3, 3], [5, 5]]


def test_a_few_slow_steps_do_not_press_the_others_flat_and_are_told(tmp_path: Path) -> None:
    events = [start(job()), step(1, seconds={"compute": 50.0}), *(step(n) for n in range(2, 30))]
    of = series.series(timed(events))
    assert figures.seconds(of).axes[0].get_ylim()[1] == pytest.approx(3 * 170)
    _, document = made(write_run(tmp_path, lines(timed(events))))
    assert "Higher than the figure: 1 columns, up to 50,000 ms." in document.text


def test_a_long_run_has_as_small_a_page_as_a_short_one(tmp_path: Path) -> None:
    byzantine = [[n % 3 + 1] for n in range(4000)]
    events = [start(job()), *(step(n, suspects=who, byzantine=who) for n, who in enumerate(byzantine, start=1))]
    path, document = made(write_run(tmp_path, lines(timed(events))))
    assert (
        "A column is 10 steps and shows the worst of them: missed, then falsely accused, then caught" in document.text
    )
    assert len(document.rows("steps")) == 51
    assert path.stat().st_size < 400_000


def test_a_folder_that_cannot_be_written_is_named(full: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MissingError, match=r"file: the report cannot be written there .*--html"):
        made(full, folder=tmp_path / "file")
    with mock.patch.object(figures, "encoded", return_value=blank()):
        assert main(["report", "--here", str(full), "--html", str(tmp_path / "file")]) == 3
    printed = capsys.readouterr()
    assert "3 of 3" in printed.out  # the numbers are there all the same
    assert len(printed.err.splitlines()) == 1


def test_the_command_prints_where_the_page_is(full: Path, tmp_path: Path, capsys) -> None:
    with mock.patch.object(figures, "encoded", return_value=blank()):
        assert main(["report", "--here", str(full), "--html", str(tmp_path / "there")]) == 0
        assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "there" / "index.html")
        assert main(["report", "--here", str(full), "--markdown"]) == 0
    printed = capsys.readouterr()
    assert printed.out.rstrip().splitlines()[0].startswith("| run |")
    assert "index.html" not in printed.out
    assert printed.err.strip() == str(full / "report" / "index.html")
    assert Path(printed.err.strip()).is_file()


def test_a_run_that_was_copied_from_elsewhere_is_read_like_any_other(full: Path, tmp_path: Path) -> None:
    status = json.loads((full / "state.json").read_text())
    (full / "state.json").write_text(json.dumps({**status, "host": "head", "pid": 1, "started": "17"}))
    (full / "launch").mkdir()
    (full / "launch" / "supervisor.json").write_text(json.dumps({"pid": 1, "started": "17", "events": 0}))
    _, document = made(full)
    assert "The run took all its steps." in document.text


def test_the_plot_names_the_state_of_runs_that_did_not_succeed(full: Path, tmp_path: Path) -> None:
    failed = write_run(tmp_path, lines(timed(whole_run())), "failed")
    page.plot([report.read(full), report.read(failed)], tmp_path / "curves.svg")
    assert f"<!-- {failed.name} (failed) -->" in (tmp_path / "curves.svg").read_text()


# How linear colours look to who cannot tell red from green, or blue from yellow, at all: Machado, Oliveira and
# Fernandes, A Physiologically-based Model for Simulation of Color Vision Deficiency, 2009.
BLIND = {
    "red": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "green": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "blue": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}


@pytest.mark.parametrize("kind", BLIND)
def test_the_classes_differ_for_readers_who_see_fewer_colours(kind: str) -> None:
    assert list(figures.COLOURS) == list(series.CLASSES)
    colours = np.array([to_rgb(colour) for colour in figures.COLOURS.values()])
    seen = np.clip(colours**2.2 @ np.array(BLIND[kind]).T, 0, 1) ** (1 / 2.2)
    apart = np.linalg.norm(seen[:, None] - seen[None], axis=2) + 9 * np.eye(len(seen))
    assert apart.min() > 0.15
