"""Comparisons: cells run to results whatever else goes on, are gone on with, and are tabulated."""

import csv
import io
import json
import math
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
import torch
from rich.console import Console

from draco.cli import compare
from draco.compare import capacity, measure, plots, progress, results, table
from draco.compare import run as running
from draco.compare.cells import Cell
from draco.compare.measure import ACCURACY, LOSS
from draco.compare.outcome import Outcome, difference, outcome
from draco.errors import ExitCode, MissingError, RefusedError, TrainingError
from draco.job import parse, to_yaml
from draco.launch import fork_client, supervise
from draco.runs import directory as run_directory
from draco.runs.events import EventLog
from draco.training import checkpoint, process
from draco.training.build import Built

GRID = """
name: small
base: {workers: 3, model: lenet, data: {name: synthetic, root: %s}, batch_size: 6, steps: 2, scheme: uncoded,
       eval_every: 1, checkpoint_every: 1}
set: {scheme.adversaries: 1}
axes:
  aggregator: [mean, median]
  attack: [none, {name: constant, magnitude: 1.0e+30}]
only: [{aggregator: mean}]
"""
HONEST, ATTACKED = "mean-none", "mean-constant.magnitude1e+30"


class Ended:
    """What is left of a process that has ended."""

    def poll(self) -> int:
        return 0


def here(directory: Path, here: bool, forks: str | None) -> Ended:
    """Run a cell in this process instead of one of its own."""
    assert here
    del forks
    job = run_directory.read_job(directory)
    with open(directory / "logs" / "output.log", "a") as log:
        try:
            process.serve_all(Built(job), directory)
        except Exception:
            traceback.print_exc(file=log)
    return Ended()


@pytest.fixture
def grid(tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A grid file; cells run in this process, and nothing is drawn, which takes longer than they do."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plots, "draw", lambda *_: [])
    monkeypatch.setattr(supervise, "detach", here)
    monkeypatch.setenv(fork_client.NAME, "of a stand-in")
    monkeypatch.setattr(running, "_POLL_S", 0.01)
    path = tmp_path / "small.yaml"
    path.write_text(GRID % data_root)
    return path


def compared(grid: Path, runs: str = "runs", processes: int = 1, *, new: bool = False) -> tuple[int, str]:
    """Run a comparison and return its exit code and what it said."""
    console = Console(file=io.StringIO(), width=1000)
    options = compare.Options(Path(runs), processes, False, new)
    code = compare.compare(grid, options, console, lambda jobs: None)
    return code, console.file.getvalue()


def model(run: Path) -> torch.Tensor:
    path = checkpoint.newest(run / "checkpoints")
    assert path is not None
    return torch.cat([value.flatten().double() for value in checkpoint.load(path)["model"].values()])


def files(run: Path) -> dict[Path, tuple[int, bytes]]:
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in run.rglob("*") if path.is_file()}


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def stop_after(monkeypatch: pytest.MonkeyPatch, cells: int) -> None:
    """Let the user press Ctrl-C when so many cells have ended."""
    count = iter(range(1, 100))
    ended = progress.Progress.ended

    def and_stop(self: progress.Progress, name: str, what: Outcome) -> None:
        ended(self, name, what)
        if next(count) == cells:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(progress.Progress, "ended", and_stop)


@pytest.mark.long
def test_a_comparison_goes_on_where_it_was_ended_and_gives_the_same_bits_in_two_processes(
    grid: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        code, said = compared(grid)
    root = Path("runs/small")
    assert code == ExitCode.INTERRUPTED
    assert "1 of 2 cells are not finished; the same command goes on" in said
    before = files(root / HONEST)
    assert before
    assert not (root / ATTACKED).exists()
    assert "not finished" in (root / "summary.md").read_text()

    code, said = compared(grid)
    assert code == 0  # that a training diverges without a defence is a result
    assert "2 cells, 1 of them done; 2 steps to take" in said
    assert files(root / HONEST) == before
    assert outcome(root / ATTACKED).state == "failed"

    monkeypatch.undo()  # now in processes of their own, both at a time
    monkeypatch.chdir(grid.parent)
    assert compared(grid, "others", 2)[0] == 0
    for name in (HONEST, ATTACKED):
        assert torch.equal(model(root / name), model(Path("others/small", name)))
    columns = ("cell", "step", "top1", "test_loss", "training_loss", "state", "last_step", "reason", "missed")
    one, two = (rows(Path(runs, "small/evaluations.csv")) for runs in ("runs", "others"))
    assert [[row[c] for c in columns] for row in one] == [[row[c] for c in columns] for row in two]
    assert [(row["cell"], row["step"], row["state"]) for row in one] == [
        (HONEST, "1", "succeeded"), (HONEST, "2", "succeeded"), (ATTACKED, "1", "failed"),
    ]  # fmt: skip
    assert "| fails |" in (root / "summary.md").read_text()


def test_a_cell_that_was_stopped_within_goes_on_to_the_bits_of_one_that_was_not(
    grid: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid.write_text(
        grid.read_text().replace("only: [{aggregator: mean}]", "only: [{attack: none, aggregator: median}]")
    )
    assert compared(grid, "whole")[0] == 0
    from draco.training import evaluate

    append = evaluate.append

    def and_stop(run: Path, step: int, result: evaluate.Evaluation, by: str) -> None:
        append(run, step, result, by)
        if step == 1 and not (run / "stop").exists():
            os.kill(os.getpid(), signal.SIGTERM)
            run_directory.ask_to_stop(run)

    with monkeypatch.context() as patch:
        patch.setattr("draco.training.evaluate.append", and_stop)
        assert compared(grid)[0] == ExitCode.INTERRUPTED
    cell = Path("runs/small/median-none")
    assert outcome(cell)[:2] == ("interrupted", 1)
    assert compared(grid)[0] == 0
    assert torch.equal(model(cell), model(Path("whole/small/median-none")))


def test_a_bug_is_told_apart_from_a_result_and_tried_again(grid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object) -> None:
        raise TypeError("a bug of ours")

    with monkeypatch.context() as patch:
        patch.setattr("draco.training.server.Server.run_step", broken)
        code, said = compared(grid)
    assert code == ExitCode.BUG
    assert f"{HONEST}: error: a bug of ours" in said
    assert {row["state"] for row in rows(Path("runs/small/evaluations.csv"))} == {"error"}
    assert compared(grid)[0] == 0


def test_a_cell_whose_processes_were_killed_is_lost_and_run_again(grid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()

    def killed(directory: Path, here: bool, forks: str | None) -> Ended:
        del forks
        path = directory / "state.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"state": "running", "pid": gone.pid}))
        return Ended()

    with monkeypatch.context() as patch:
        patch.setattr(supervise, "detach", killed)
        code, said = compared(grid)
    assert code == ExitCode.LOST
    assert "2 of 2 cells are not finished" in said
    assert outcome(Path("runs/small", HONEST)).state == "lost"
    assert compared(grid)[0] == 0


def test_a_cell_that_another_process_still_runs_is_waited_for(grid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        compared(grid)
    cell = Path("runs/small", HONEST)
    before = files(cell)
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert other.stdin is not None
    (cell / "launch").mkdir(exist_ok=True)
    supervisor = cell / "launch" / "supervisor.json"
    supervisor.write_text(
        json.dumps({"pid": other.pid, "started": run_directory.process_start(other.pid), "events": 0})
    )
    state = json.loads((cell / "state.json").read_text())
    (cell / "state.json").write_text(json.dumps(state | {"state": "running", "pid": other.pid}))
    assert outcome(cell).state == "running"

    def ends(directory: Path, **options: Any) -> Ended:  # while the other cell is run
        (cell / "state.json").write_text(json.dumps(state))
        other.communicate(b"\n")
        return here(directory, **options)

    monkeypatch.setattr(supervise, "detach", ends)
    assert compared(grid, processes=2)[0] == 0
    assert outcome(cell).state == "succeeded"
    assert {path: files(cell)[path] for path in before if path.name != "state.json"} == {
        path: content for path, content in before.items() if path.name != "state.json"
    }


def test_a_changed_cell_is_refused_and_with_new_run_anew_beside_what_was(grid: Path) -> None:
    assert compared(grid)[0] == 0
    root = Path("runs/small")
    secret = (root / HONEST / "secret").read_bytes()
    old = model(root / HONEST)
    grid.write_text(grid.read_text().replace("scheme.adversaries: 1", "scheme.adversaries: 1, optimizer.lr: 0.05"))
    before = files(root)
    with pytest.raises(RefusedError, match=r"2 cells have changed[\s\S]*optimizer.lr was 0.01, is 0.05"):
        compared(grid)
    assert {path: content for path, content in files(root).items() if path.name != ".lock"} == {
        path: content for path, content in before.items() if path.name != ".lock"
    }
    assert compared(grid, new=True)[0] == 0
    assert not torch.equal(model(root / HONEST), old)
    (kept,) = (root / "replaced").glob(f"{HONEST}-*")
    assert torch.equal(model(kept), old)
    assert (kept / "secret").read_bytes() == secret == (root / HONEST / "secret").read_bytes()


def test_two_comparisons_do_not_meet_in_one_folder(grid: Path) -> None:
    with running.alone(Path("runs/small")), pytest.raises(RefusedError, match="another draco compare"):
        compared(grid)


def test_a_dry_run_lists_the_cells_and_writes_nothing(grid: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from draco.cli.main import main

    assert main(["compare", str(grid), "--dry-run", "--processes", "3"]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [f"runs/small/{HONEST}", f"runs/small/{ATTACKED}"]
    assert "2 cells; 4 steps to take, 3 cells at a time" in printed.err
    assert "at least" in printed.err
    assert not Path("runs").exists()


def test_a_fault_of_a_cell_ends_the_command_with_2_and_touches_nothing(grid: Path, capsys) -> None:
    from draco.cli.main import main

    grid.write_text(grid.read_text().replace("aggregator: [mean, median]", "aggregator: [mean, krum]").split("only")[0])
    assert main(["compare", str(grid)]) == 2
    assert "krum-none, krum-constant.magnitude1e+30: aggregator.name: krum with f = 1 needs" in capsys.readouterr().err
    assert not Path("runs").exists()


# --- what has become of a cell ---------------------------------------------------------------------------------------

JOB = (
    "{name: a, workers: 3, model: lenet, data: synthetic, batch_size: 6, steps: 4, launcher: simulate, "
    "scheme: {name: uncoded, adversaries: 1}}"
)
PARTS = results.PARTS


def hand_made(
    root: Path,
    name: str,
    top1: Sequence[float],
    state: run_directory.State = "succeeded",
    printed: str = "",
    metric: str = "top1",
    **levels: str,
) -> results.Result:
    """Return the result of a run directory written by hand: an evaluation at every second step."""
    job = parse(JOB, "", [f"{key}={value}" for key, value in levels.items()])
    run = root / name
    run.mkdir(parents=True)
    run_directory.furnish(run, to_yaml(job))
    log = EventLog(run / "events.jsonl")
    log.write("start", job=json.loads(job.model_dump_json()), steps=4, summary="")
    for step in range(1, 2 * len(top1) + 1):
        seconds = dict.fromkeys(PARTS, 0.01 * step)
        log.write("step", step=step, loss=1 / step, seconds=seconds, bytes_received=300)
    last = 2 * len(top1)
    log.write("end", state=state, step=last, message="", caught=1, missed=2, falsely_accused=3, suspicions={})
    log.close()
    lines = [
        {"step": 2 * i, "top5": 0.9, "loss": 0.5, "samples": 9, metric: value} for i, value in enumerate(top1, start=1)
    ]
    (run / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run / "logs" / "output.log").write_text(printed)
    run_directory.write_status(run, state, last, "why" if state == "failed" else "")
    cell = Cell(name, levels, job)
    return results.read([cell], {name: outcome(run)}, root)[0]


DIVERGED = (
    "Traceback (most recent call last):\n  File\ndraco.errors.TrainingError: step 3: the gradient is not finite\n"
)


@pytest.mark.parametrize(
    ("printed", "state"),
    [
        (DIVERGED, "failed"),
        ("draco.errors.DecodeError: rows [1] did not arrive\n", "failed"),
        (DIVERGED + "KeyError: 'x'\n", "error"),
        ("KeyError\n" + DIVERGED, "failed"),
        ("OSError: [Errno 28] No space left on device\n", "error"),
        ("draco.errors.MissingError: no data\n", "error"),
        ("", "error"),
    ],
)
def test_a_failure_is_a_result_where_training_itself_failed(tmp_path: Path, printed: str, state: str) -> None:
    assert hand_made(tmp_path, "a", [0.1], "failed", printed).outcome == Outcome(state, 2, "why")


def test_errors_are_printed_by_the_names_that_are_looked_for() -> None:
    for error in (TrainingError("x"), MissingError("x")):
        assert traceback.format_exception_only(error)[-1].startswith(f"draco.errors.{type(error).__name__}: x")


def test_a_difference_between_jobs_names_the_values(tmp_path: Path) -> None:
    hand_made(tmp_path, "a", [0.1])
    job = parse(JOB, "", ["seed=3", "scheme.adversaries=2"])
    assert difference(tmp_path / "a", parse(JOB, "")) == ""
    assert difference(tmp_path / "a", job) == "seed was 7, is 3; scheme.adversaries was 1, is 2"
    (tmp_path / "a" / "job.yaml").write_text("{}")
    assert "of no use now" in difference(tmp_path / "a", job)


# --- tables and plots ------------------------------------------------------------------------------------------------


@pytest.fixture
def found(tmp_path: Path) -> list[results.Result]:
    """Two settings under two attacks with two seeds, of which one fails once and one cell was never started."""
    made = [
        hand_made(
            tmp_path, f"median-{attack}-{seed}", [0.1 * int(seed), top1], aggregator="median", attack=attack, seed=seed
        )
        for attack, seed, top1 in (("none", "1", 0.7), ("none", "2", 0.8), ("random", "1", 0.5), ("random", "2", 0.3))
    ]
    made += [hand_made(tmp_path, f"mean-none-{s}", [0.2, 0.9], aggregator="mean", attack="none", seed=s) for s in "12"]
    failed = hand_made(
        tmp_path, "mean-random-1", [0.1], "failed", DIVERGED, aggregator="mean", attack="random", seed="1"
    )
    missing = failed.cell._replace(name="mean-random-2", levels=failed.cell.levels | {"seed": "2"})
    return [*made, failed, results.Result(missing, Outcome("missing"), None, (), {})]


def test_the_tidy_table_has_a_row_for_every_cell_and_evaluation(found: list[results.Result], tmp_path: Path) -> None:
    table.write_csv(results.by_evaluation(found, ACCURACY), tmp_path / "t.csv")
    written = rows(tmp_path / "t.csv")
    assert len(written) == 6 * 2 + 1 + 1
    first = written[0]
    assert first["cell"] == "median-none-1"
    assert (first["aggregator"], first["attack"], first["seed"]) == ("median", "none", "1")
    assert (first["step"], first["top1"], first["top5"], first["test_loss"]) == ("2", "0.1", "0.9", "0.5")
    assert (first["training_loss"], written[1]["training_loss"]) == ("0.5", "0.25")
    assert (first["state"], first["last_step"], first["steps"], first["accuracy"]) == ("succeeded", "4", "4", "0.7")
    assert (first["caught"], first["missed"], first["falsely_accused"]) == ("1", "2", "3")
    assert float(first["seconds_compute"]) == pytest.approx(0.025)  # the median of 0.01 to 0.04
    assert float(first["seconds_per_step"]) == pytest.approx(len(PARTS) * 0.025)
    assert float(first["bytes_per_step"]) == 300
    failed, missing = written[-2:]
    assert (failed["state"], failed["last_step"], failed["reason"], failed["accuracy"]) == ("failed", "2", "why", "")
    assert (missing["state"], missing["step"], missing["top1"]) == ("missing", "", "")


def test_means_over_seeds_and_the_worst_over_attacks(found: list[results.Result]) -> None:
    over = {(row["aggregator"], row["attack"]): row for row in results.over_seeds(found, ACCURACY)}
    assert over["median", "none"]["accuracy"] == pytest.approx(mean([0.7, 0.8]))
    assert over["median", "none"]["accuracy_std"] == pytest.approx(stdev([0.7, 0.8]))
    assert {over["median", attack]["worst"] for attack in ("none", "random")} == {mean([0.5, 0.3])}
    mixed = over["mean", "random"]
    assert (mixed["seeds"], mixed["failed"], mixed["unfinished"], mixed["succeeded"]) == (2, 1, 1, 0)
    assert mixed["accuracy"] is None
    assert over["mean", "none"]["worst"] is None


def test_settings_are_ranked_by_the_worst_attack_and_those_that_fail_come_last(found: list[results.Result]) -> None:
    over = results.over_seeds(found, ACCURACY)
    lines = table.markdown(results.rank(over[::-1], ACCURACY)).splitlines()
    assert lines[0] == "| setting | random | none | worst | ms/step | MB/step |"
    assert lines[2] == "| median | 40.0% ± 14.1 | 75.0% ± 7.1 | **40.0%** | 150 | 0.0 |"
    assert lines[3] == "| mean | fails (1 of 2) | 90.0% ± 0.0 | **fails** | 150 | 0.0 |"
    assert "over 2 seeds" in table.caption(over, 3, ACCURACY)
    assert "1 cells are not finished" in table.caption(over, 3, ACCURACY)


def test_a_curve_ends_where_a_seed_of_it_ends(found: list[results.Result]) -> None:
    by_name = {result.cell.name: result for result in found}
    points = plots.curve([by_name["median-none-1"], by_name["median-none-2"]], ACCURACY)
    assert points == [
        (2, pytest.approx(0.15), pytest.approx(stdev([0.1, 0.2]))),
        (4, pytest.approx(0.75), stdev([0.7, 0.8])),
    ]
    assert [step for step, *_ in plots.curve([by_name["mean-none-1"], by_name["mean-random-1"]], ACCURACY)] == [2]


def test_both_plots_are_drawn_as_pictures_and_as_drawings(found: list[results.Result], tmp_path: Path) -> None:
    ranking = results.rank(results.over_seeds(found, ACCURACY), ACCURACY)
    drawn = plots.draw(found, ranking, tmp_path)
    assert [path.name for path in drawn] == ["accuracy.png", "accuracy.svg", "final.png", "final.svg"]
    for path, start in zip(drawn, (b"\x89PNG", b"<?xml") * 2, strict=True):
        assert path.read_bytes().startswith(start)


def test_the_plots_show_what_was_found(found: list[results.Result]) -> None:
    ranking = results.rank(results.over_seeds(found, ACCURACY), ACCURACY)
    panels = [axes for axes in plots.curves(found, ranking).axes if axes.get_visible()]
    assert [axes.get_title() for axes in panels] == ["none", "random"]
    lines = {line.get_label(): line.get_ydata() for line in panels[0].get_lines()}
    assert {label: list(ys) for label, ys in lines.items()} == {
        "mean": pytest.approx([20, 90]), "median": pytest.approx([15, 75]),
    }  # fmt: skip
    assert [list(line.get_xdata()) for line in panels[1].get_lines() if line.get_marker() == "x"] == [[2]]
    squares = [text.get_text() for text in plots.heat_map(ranking).axes[0].texts]
    assert squares == ["75.0 ± 7.1", "40.0 ± 14.1", "40.0", "90.0 ± 0.0", "fails (1 of 2)", "fails"]


@pytest.mark.parametrize(("attacks", "shape"), [(1, (1, 1)), (3, (1, 3)), (4, (2, 2)), (5, (2, 3)), (7, (3, 3))])
def test_every_attack_has_a_panel_and_no_other_is_seen(attacks: int, shape: tuple[int, int]) -> None:
    names = [f"attack {i}" for i in range(attacks)]
    figure = plots.curves([], results.Ranking([], names, {}, ACCURACY))
    grid = figure.axes[0].get_subplotspec().get_gridspec()
    assert (grid.nrows, grid.ncols) == shape
    assert [axes.get_title() for axes in figure.axes if axes.get_visible()] == names


def test_parquet_holds_what_the_csv_holds_where_it_can_be_written(found: list[results.Result], tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    tidy = results.by_evaluation(found, ACCURACY)
    assert table.write_parquet(tidy, tmp_path / "t.parquet")
    assert parquet.read_table(tmp_path / "t.parquet").to_pylist() == tidy


@pytest.fixture
def regressions(tmp_path: Path) -> list[results.Result]:
    """Two settings of a task without top1: the second has the lower loss and the higher mae, and once diverged."""
    made = [
        hand_made(tmp_path, f"{rule}-{seed}", values, metric="loss", aggregator=rule, attack="none", seed=seed)
        for rule, seed, values in (("mean", "1", [4.0, 2.0]), ("mean", "2", [4.0, 3.0]), ("median", "1", [9.0, 1.0]))
    ]
    for result, mae in zip(made, (0.1, 0.3, math.inf), strict=True):
        for e in result.evaluations:
            del e["top5"]
            e["mae"] = mae
    return made


def test_cells_without_accuracy_are_ranked_by_the_least_of_the_worst_losses(
    regressions: list[results.Result], tmp_path: Path
) -> None:
    by = measure.chosen(None, None, [result.evaluations for result in regressions])
    assert by == LOSS
    over = results.over_seeds(regressions, by)
    assert [(row["final_loss"], row["worst"]) for row in over] == [(2.5, 2.5), (1.0, 1.0)]
    ranking = results.rank(over, by)
    assert table.markdown(ranking).splitlines()[2:] == [
        "| median | 1 | **1** | 150 | 0.0 |", "| mean | 2.5 ± 0.71 | **2.5** | 150 | 0.0 |",
    ]  # fmt: skip
    assert table.caption(over, 3, by).startswith("Test loss after the last step")
    assert "worst: the highest mean of the row" in table.caption(over, 3, by)
    assert [path.name for path in plots.draw(regressions, ranking, tmp_path)][:3:2] == ["test-loss.png", "final.png"]
    table.write_csv(results.by_evaluation(regressions, by), tmp_path / "t.csv")
    first = rows(tmp_path / "t.csv")[1]
    assert (first["step"], first["test_mae"], first["test_loss"], first["final_loss"]) == ("4", "0.1", "2.0", "2.0")
    assert not {"top1", "accuracy"} & {*first}


def test_a_grid_may_name_what_it_is_ranked_by_and_what_is_no_number_is_the_worst(
    regressions: list[results.Result],
) -> None:
    evaluated = [result.evaluations for result in regressions]
    by = measure.chosen("mae", "max", evaluated)
    assert results.rank(results.over_seeds(regressions, by), by).settings == ["median", "mean"]
    by = measure.chosen("mae", "min", evaluated)
    assert results.rank(results.over_seeds(regressions, by), by).settings == ["mean", "median"]
    regressions[1].evaluations[-1]["mae"] = math.nan
    assert [row["worst"] for row in results.over_seeds(regressions, by)] == pytest.approx(
        [math.nan, math.inf], nan_ok=True
    )
    with pytest.raises(ValueError, match="have no f1, they have mae, loss"):
        measure.chosen("f1", "max", evaluated)
    assert "nan" in table.markdown(results.rank(results.over_seeds(regressions, by), by))


# --- estimates and processes -----------------------------------------------------------------------------------------


def test_a_container_may_use_no_more_cores_than_its_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    share = tmp_path / "cpu.max"
    monkeypatch.setattr(capacity, "_SHARE", share)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    jobs = [parse(JOB, "", [f"seed={seed}"]) for seed in range(9)]
    monkeypatch.setattr(capacity, "_available_bytes", lambda: 10**12)
    assert capacity.processes(jobs) == 8
    for text, cores in (("max 100000", 8), ("350000 100000", 3), ("50000 100000", 1), ("1600000 100000", 8)):
        share.write_text(text + "\n")
        assert capacity.processes(jobs) == cores


def test_the_time_left_is_that_of_like_cells_divided_among_processes() -> None:
    paces = [progress.Pace("a", 10, 20.0), progress.Pace("a", 10, 40.0), progress.Pace("b", 20, 20.0)]
    left = [("a", 10), ("b", 10), ("c", 10)]
    assert progress.seconds_left(left, paces, 2) == pytest.approx((10 * 3 + 10 * 1 + 10 * 2) / 2)
    assert progress.seconds_left([("a", 10)], paces, 8) == pytest.approx(30)  # one cell is not divided
    assert progress.seconds_left(left, [], 2) is None


@pytest.mark.parametrize(
    ("cores", "free_gb", "threads", "count"), [(8, 100, 1, 4), (8, 1.2, 1, 2), (8, 100, 4, 2), (1, 0.1, 1, 1)]
)
def test_as_many_cells_at_a_time_as_cores_and_memory_hold(
    monkeypatch: pytest.MonkeyPatch, cores: int, free_gb: float, threads: int, count: int
) -> None:
    monkeypatch.setattr(capacity, "_SHARE", Path("/none"))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
    monkeypatch.setattr(capacity, "_available_bytes", lambda: int(free_gb * 1e9))
    jobs = [parse(JOB, "", [f"seed={seed}", f"threads={threads}"]) for seed in range(4)]
    assert capacity.processes(jobs) == count


def test_a_larger_model_needs_more_memory() -> None:
    small, large = (capacity.needed_bytes(parse(JOB, "", [f"workers={n}", "batch_size=15"])) for n in (3, 15))
    assert large - small == pytest.approx(3.5 * 12 * 4 * 431_080, rel=1e-3)
