"""The tables: the tidy one and the one over seeds as CSV (the former as Parquet too), the ranking as Markdown."""

import csv
import io
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from draco.compare.measure import Measure
from draco.compare.results import Ranking, Row
from draco.files import replace
from draco.plain import plain

_NUMBER = re.compile(r"[-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?")
FAILS, UNFINISHED, NO_CELL = "fails", "not finished", ""


def write_csv(rows: Sequence[Row], target: Path) -> None:
    """Write rows that have the same keys, one line each; None is an empty field."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _field(value) for key, value in row.items()} for row in rows)
    replace(target, out.getvalue().encode())


def _field(value: Any) -> Any:
    """Return a value as a spreadsheet takes it for what it is: text that begins as a formula does gets a ' before."""
    if not isinstance(value, str):
        return value
    text = plain(value)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") and not _NUMBER.fullmatch(text) else text


def write_parquet(rows: Sequence[Row], target: Path) -> bool:
    """Write the rows as Parquet where pyarrow is installed; return whether it is."""
    if find_spec("pyarrow") is None:
        return False
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(list(rows)), target)
    return True


def markdown(ranking: Ranking) -> str:
    """Return the ranking as a Markdown table: the measure after the last step, and what a step takes."""
    header = ["setting", *ranking.attacks, "worst", "ms/step", "MB/step"]
    lines = [header, [":--", *["--:"] * (len(header) - 1)]]
    for setting in ranking.settings:
        rows = [ranking.rows[setting, attack] for attack in ranking.attacks if (setting, attack) in ranking.rows]
        finals = [in_words(ranking.rows.get((setting, attack)), ranking.measure) for attack in ranking.attacks]
        lines.append(
            [
                setting, *finals,
                f"**{worst_in_words(rows, ranking.measure)}**",
                _median(rows, "step_seconds_mean", 1e3, ".0f"), _median(rows, "bytes_per_step_mean", 1e-6, ".1f"),
            ]
        )  # fmt: skip
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def in_words(row: Row | None, measure: Measure) -> str:
    """Return what a combination came to: its measure, or why it has none."""
    if row is None:
        return NO_CELL
    if row["failed"]:
        return FAILS if row["failed"] == row["seeds"] else f"{FAILS} ({row['failed']} of {row['seeds']})"
    if row[measure.column] is None:
        return UNFINISHED
    return measure.text(row[measure.column], row[f"{measure.column}_std"]) + ("*" if row["unfinished"] else "")


def worst_in_words(rows: Sequence[Row], measure: Measure) -> str:
    """Return the worst of a setting, of which these are all rows, or why there is none."""
    if any(row["failed"] for row in rows):
        return FAILS
    return UNFINISHED if rows[0]["worst"] is None else measure.text(rows[0]["worst"])


def _median(rows: Sequence[Row], key: str, scale: float, form: str) -> str:
    """Return the median over a setting's attacks."""
    known = sorted(row[key] for row in rows if row[key] is not None)
    return format(known[len(known) // 2] * scale, form) if known else "-"


def caption(rows: Sequence[Row], processes: int, measure: Measure) -> str:
    """Return what has to be said below the ranking."""
    seeds = sorted({row["seeds"] for row in rows})
    what = "Test accuracy" if measure.is_accuracy else f"Test {measure.metric}"
    lowest = "lowest" if measure.mode == "max" else "highest"
    said = [
        f"{what} after the last step, mean ± standard deviation over {' or '.join(map(str, seeds))} "
        f"{'seed' if seeds == [1] else 'seeds'}; worst: the {lowest} mean of the row. {FAILS}: the training ended "
        "before its last step, for its gradient was not finite or could not be decoded. "
        f"Times with {processes} at a time."
    ]
    if any(row["unfinished"] for row in rows):
        said.append(f"{sum(row['unfinished'] for row in rows)} cells are not finished; *: some of its seeds.")
    return " ".join(said)
