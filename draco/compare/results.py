"""The results of the cells: one row per cell and evaluation, one per combination over the seeds, one per setting.

Pure but for `read`. A training that failed has no final value, and nothing takes its place. A setting that fails
under one attack has no worst value and ranks last.
"""

from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from draco import metrics
from draco.compare.cells import SEED, Cell
from draco.compare.measure import Measure, value
from draco.compare.outcome import Outcome
from draco.report import Summary, read_summary
from draco.report.series import PARTS
from draco.runs import events

Row = dict[str, Any]


class Result(NamedTuple):
    """One cell and what it left in its directory."""

    cell: Cell
    outcome: Outcome
    summary: Summary | None  # None: it was never started
    evaluations: Sequence[Mapping[str, Any]]  # by step, increasing
    losses: Mapping[int, float]  # training loss of each step

    def final(self, measure: Measure) -> float | None:
        """Return the measure after the last step; None where that was not reached."""
        done = self.outcome.state == "succeeded" and self.evaluations
        return value(self.evaluations[-1], measure.metric) if done else None


def read(cells: Sequence[Cell], outcomes: Mapping[str, Outcome], root: Path) -> list[Result]:
    """Return what every cell came to so far, from its directory."""
    return [_read(cell, outcomes[cell.name], root / cell.name) for cell in cells]


def _read(cell: Cell, what: Outcome, run: Path) -> Result:
    if what.state == "missing":
        return Result(cell, what, None, (), {})
    # A resumed run repeats steps: the later line counts.
    by_step = {e["step"]: e for e in events.evaluations(run / "evaluations.jsonl")}
    losses = {e["step"]: e["loss"] for e in events.read(run / "events.jsonl") if e["event"] == "step" and "loss" in e}
    return Result(cell, what, read_summary(run), [by_step[step] for step in sorted(by_step)], losses)


def by_evaluation(results: Sequence[Result], measure: Measure) -> list[Row]:
    """Return the tidy table: a row for each cell and evaluation; a cell that was never evaluated has one all the same.

    Columns that say something of the whole cell (from `state` on) are the same in all its rows. Times are medians over
    the cell's steps, in seconds.
    """
    rows = []
    found = metrics.ordered(name for result in results for e in result.evaluations for name in metrics.recorded(e))
    names = found or metrics.ordered(metrics.MODES)
    for result in results:
        whole = _whole(result, measure)
        for e in result.evaluations or [{}]:
            step = e.get("step")
            rows.append(
                {
                    "cell": result.cell.name, **result.cell.levels, SEED: result.cell.job.seed,
                    "step": step, **{_column(name): e.get(name) for name in names},
                    "training_loss": result.losses.get(step) if step else None, **whole,
                }
            )  # fmt: skip
    return rows


def _column(metric: str) -> str:
    return metric if metric in ("top1", "top5") else f"test_{metric}"


def _whole(result: Result, measure: Measure) -> Row:
    s = result.summary
    return {
        "state": result.outcome.state,
        "last_step": s.step if s else 0,
        "steps": s.steps if s else None,
        "reason": result.outcome.reason,
        measure.column: result.final(measure),
        "caught": s.caught if s else None,
        "missed": s.missed if s else None,
        "falsely_accused": s.falsely_accused if s else None,
        "seconds_per_step": s.step_seconds if s else None,
        **{f"seconds_{part}": s.seconds.get(part) if s else None for part in PARTS},
        "bytes_per_step": s.bytes_per_step if s else None,
        "copies": s.copies if s else None,
        "expelled": len(s.expelled) if s and s.copies is not None else None,
    }


def over_seeds(results: Sequence[Result], measure: Measure) -> list[Row]:
    """Return a row for each combination of the axes but the seed, with means over the seeds.

    `accuracy`, or `final_loss` and the like, is the mean over the seeds that have ended, and with `_std` their standard
    deviation (n - 1); None where the training of a seed failed. `worst` is the worst of the row's setting over all
    attacks, None where an attack has none.
    """
    groups: dict[tuple[tuple[str, str], ...], list[Result]] = {}
    for result in results:
        combination = tuple((axis, level) for axis, level in result.cell.levels.items() if axis != SEED)
        groups.setdefault(combination, []).append(result)
    rows = [{**dict(combination), **_over(group, measure)} for combination, group in groups.items()]
    for row in rows:
        finals = [other[measure.column] for other in rows if other["setting"] == row["setting"]]
        row["worst"] = None if None in finals else measure.worst(finals)
    return rows


_AVERAGED = ("caught", "missed", "falsely_accused", "step_seconds", "bytes_per_step", "copies")


def _over(group: Sequence[Result], measure: Measure) -> Row:
    """Return what is said of one combination, whose cells differ in their seed only."""
    done = [final for result in group if (final := result.final(measure)) is not None]
    failed = sum(result.outcome.state == "failed" for result in group)
    summaries = [result.summary for result in group if result.outcome.is_result and result.summary]
    return {
        "setting": group[0].cell.setting,
        "attacked_by": group[0].cell.attack,
        "seeds": len(group),
        "succeeded": len(done),
        "failed": failed,
        "unfinished": sum(not result.outcome.is_result for result in group),
        measure.column: mean(done) if done and not failed else None,
        f"{measure.column}_std": stdev(done) if len(done) > 1 and not failed and all(map(isfinite, done)) else None,
        **{f"{name}_mean": _mean([getattr(s, name) for s in summaries]) for name in _AVERAGED},
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return mean(known) if known else None


class Ranking(NamedTuple):
    """Settings against attacks, the setting whose worst is the best first, those without one last."""

    settings: Sequence[str]
    attacks: Sequence[str]
    rows: Mapping[tuple[str, str], Row]  # (setting, attack) -> a row of `over_seeds`; not all combinations are cells
    measure: Measure


def rank(rows: Sequence[Row], measure: Measure) -> Ranking:
    """Return the rows of `over_seeds` as a ranking."""
    worst = {row["setting"]: row["worst"] for row in rows}
    known = {setting: worst[setting] is not None for setting in worst}
    order = {setting: (known[setting], measure.merit(worst[setting]) if known[setting] else 0.0) for setting in worst}
    settings = sorted(worst, key=lambda setting: order[setting], reverse=True)
    attacks = list(dict.fromkeys(row["attacked_by"] for row in rows))
    return Ranking(settings, attacks, {(row["setting"], row["attacked_by"]): row for row in rows}, measure)
