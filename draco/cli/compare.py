"""Comparisons: `draco compare` trains every cell of a grid of jobs that has no result yet, and tabulates all."""

import argparse
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from draco.cli import arguments, console
from draco.errors import ExitCode, JobError

if TYPE_CHECKING:
    from rich.console import Console

    from draco.compare.cells import Cell
    from draco.compare.grid import Grid
    from draco.compare.outcome import Outcome
    from draco.job import Job


class Options(NamedTuple):
    """What the user asked for beside the grid."""

    runs: Path
    processes: int | None
    dry_run: bool
    new: bool


def add(commands: Any) -> None:
    """Add `draco compare` to the parser."""
    parser = arguments.command(
        commands, "compare", compare_grid, "train every combination of some values of a job; tables and plots",
        "The same command again goes on with what is not finished. Ctrl-C stops every cell after its step.",
    )  # fmt: skip
    parser.add_argument(
        "grid", type=arguments.path, metavar="GRID", help="grid file, such as jobs/compare/robustness.yaml"
    )
    parser.add_argument("--processes", type=arguments.count, metavar="N", help="cells at a time (default: what fits)")
    arguments.add_runs(parser)
    parser.add_argument("--dry-run", action="store_true", help="list the cells, and run nothing")
    parser.add_argument("--new", action="store_true", help="run cells anew whose job has changed since they were run")


def compare_grid(args: argparse.Namespace) -> int:
    """Run `draco compare`."""
    from draco.launch import ready

    def prepare(cells: Sequence["Job"]) -> None:
        for job in {(job.data.name, job.data.root, job.device, job.server_device): job for job in cells}.values():
            ready.require_device(args.grid, job.device)
            ready.require_device(args.grid, job.server_device, "server_device")
            ready.prepare_data(job, said)

    said = console.messages()
    return compare(args.grid, Options(args.runs, args.processes, args.dry_run, args.new), said, prepare)


def read(path: Path) -> "tuple[Grid, list[Cell]]":
    """Return the grid in that file and its cells.

    Raises:
        JobError: everything that is wrong with the grid, or with any cell.
    """
    from draco.compare.cells import expand
    from draco.compare.grid import parse_grid
    from draco.launch import ready

    grid = parse_grid(_text(path, "a grid such as jobs/compare/robustness.yaml"), str(path))
    if isinstance(grid.base, str):
        base = _text(path.parent / grid.base, f"{path}: base must name a job file, from the grid's folder")
    else:
        base = json.dumps(grid.base, default=str)
    return grid, [cell._replace(job=ready.here(cell.job)) for cell in expand(grid, base, str(path))]


def _text(path: Path, what: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise JobError([f"{path}: cannot be read ({error}); name {what}"]) from error


def compare(path: Path, options: Options, said: "Console", prepare: "Callable[[Sequence[Job]], None]") -> int:
    """Run the cells of the grid that have no result yet and tabulate all; return the exit code.

    `prepare` sees to the data and the device of the jobs, before any of them starts.

    Raises:
        JobError: what is wrong with the grid or any cell; nothing was touched.
        RefusedError: earlier runs are in the way, or another comparison is at work.
    """
    from draco.compare import capacity
    from draco.compare.outcome import outcome
    from draco.compare.progress import Progress
    from draco.compare.run import alone, look, run
    from draco.files import replace
    from draco.launch import space

    grid, cells = read(path)
    root = options.runs / grid.name
    steps = {cell.name: capacity.steps(cell.job) for cell in cells}
    if options.dry_run:
        outcomes = {cell.name: outcome(root / cell.name) for cell in cells}
        processes = options.processes or capacity.processes([cell.job for cell in cells])
        _say_what(cells, steps, outcomes, root, processes, said)
        for cell in cells:
            what = outcomes[cell.name]
            done = "" if what.state == "missing" else f"  {what.state} at step {what.step}"
            console.say(f"{root / cell.name}{done}")
        return 0
    with alone(root):
        outcomes = look(cells, root, new=options.new)
        left = [cell for cell in cells if not outcomes[cell.name].is_result]
        processes = options.processes or capacity.processes([cell.job for cell in left or cells])
        _say_what(cells, steps, outcomes, root, processes, said)
        if left:
            said.print(space.require(root, [(cell.job, root / cell.name) for cell in left]), highlight=False)
        prepare([cell.job for cell in left])
        replace(root / "grid.yaml", path.read_bytes())
        progress = Progress(cells, steps, outcomes, root, processes, said)
        ended = run(cells, root, outcomes, processes, progress)
        tabulate(grid, cells, outcomes, root, processes, said)
    return _exit_code(outcomes, root, ended, said)


def _say_what(
    cells: "Sequence[Cell]",
    steps: Mapping[str, int],
    outcomes: "Mapping[str, Outcome]",
    root: Path,
    processes: int,
    said: "Console",
) -> None:
    """Say what there is to do and how long it will take, as far as that is known."""
    from draco.compare import capacity
    from draco.compare.progress import earlier_pace, in_words, seconds_left
    from draco.job import warnings

    left = [cell for cell in cells if not outcomes[cell.name].is_result]
    todo = [(cell.setting, steps[cell.name] - outcomes[cell.name].step) for cell in left]
    found = f", {len(cells) - len(left)} of them done" if len(left) < len(cells) else ""
    said.print(
        f"{root}: {len(cells)} cells{found}; {sum(n for _, n in todo):,} steps to take, {processes} cells at a time",
        highlight=False,
    )
    counts = Counter(warning for cell in left for warning in warnings(cell.job))
    for warning, count in counts.items():
        said.print(f"warning: {count} cells: {warning}", style="yellow", highlight=False)
    if not left:
        return
    paces = [pace for cell in cells if (pace := earlier_pace(cell, root))]
    if (seconds := seconds_left(todo, paces, processes)) is not None:
        said.print(f"about {in_words(seconds)}, by the cells that were run before", highlight=False)
    else:
        least = capacity.gradient_seconds([cell.job for cell in left]) / processes
        said.print(f"at least {in_words(least)}: the gradients alone, one of them timed now", highlight=False)


def tabulate(
    grid: "Grid",
    cells: "Sequence[Cell]",
    outcomes: "Mapping[str, Outcome]",
    root: Path,
    processes: int,
    said: "Console",
) -> None:
    """Write the tables and plots of what there is into the comparison's folder, and print the ranking.

    Raises:
        JobError: the metric that the grid names is one that no cell has.
    """
    from draco.compare import measure, plots, results, table
    from draco.files import replace

    found = results.read(cells, outcomes, root)
    try:
        by = measure.chosen(grid.metric, grid.mode, [result.evaluations for result in found])
    except ValueError as error:
        raise JobError([f"{root / 'grid.yaml'}: metric: cannot be ranked by: {error}"]) from error
    tidy, over = results.by_evaluation(found, by), results.over_seeds(found, by)
    table.write_csv(tidy, root / "evaluations.csv")
    table.write_csv(over, root / "summary.csv")
    parquet = table.write_parquet(tidy, root / "evaluations.parquet")
    ranking = results.rank(over, by)
    text = f"{table.markdown(ranking)}\n\n{table.caption(over, processes, by)}\n"
    replace(root / "summary.md", text.encode())
    files = [root / "evaluations.csv", root / "summary.csv", root / "summary.md", *plots.draw(found, ranking, root)]
    print(text)
    said.print("in " + " ".join(map(str, files)), highlight=False)
    note = "and evaluations.parquet" if parquet else "no Parquet, for pyarrow is not installed: the CSV holds the same"
    said.print(note, highlight=False)


def _exit_code(outcomes: "Mapping[str, Outcome]", root: Path, ended: bool, said: "Console") -> int:
    """Name the cells without a result and return what the command ends with."""
    for name, what in outcomes.items():
        if what.state in ("error", "lost"):
            said.print(f"{root / name}: {what.state}: {what.reason}; see {root / name / 'logs'}", highlight=False)
    if any(what.state == "error" for what in outcomes.values()):
        said.print("an error is a bug or a fault of this machine, no result; the same command tries again")
        return ExitCode.BUG
    unfinished = sum(not what.is_result for what in outcomes.values())
    if not unfinished:
        return 0
    said.print(f"{unfinished} of {len(outcomes)} cells are not finished; the same command goes on with them")
    return ExitCode.INTERRUPTED if ended else ExitCode.LOST
