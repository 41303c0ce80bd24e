"""`python -m draco bench`: one table of ratios, against limits and against peers, taken in one run."""

import json
import platform
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from draco.bench import kernels, steps, wires
from draco.bench.timing import Row


def main(target: Path, *, quick: bool) -> None:
    """Measure everything, print the table and write the figures to `target` as JSON."""
    torch.set_num_threads(1)
    console = Console()
    with console.status("measuring") as status:
        rows = []
        for row in _all(quick):
            rows.append(row)
            status.update(f"measuring; last: {row.what} ({row.size})")
    console.print(_table(rows))
    machine = {"torch": torch.__version__, "processor": platform.processor() or platform.machine(), "threads": 1}
    figures = [{**row._asdict(), "verdict": row.verdict} for row in rows]
    target.write_text(json.dumps({"machine": machine, "rows": figures}, indent=1))
    console.print(f"figures: {target}")


def _all(quick: bool) -> Iterator[Row]:
    yield from kernels.rows(quick, repeats=1 if quick else 7)
    yield from wires.rows(repeats=1 if quick else 15)
    yield from steps.receive_rows(quick)
    yield from steps.rows(quick)


def _table(rows: list[Row]) -> Table:
    table = Table(title="Ratios of medians; variants take turns in one process on one thread")
    for heading in ("what", "size", "ms", "ratio", "to", "at most", ""):
        table.add_column(heading, justify="right" if heading in ("ms", "ratio", "at most") else "left")
    for row in rows:
        target = "" if row.target is None else f"{row.target:g}"
        table.add_row(
            row.what, row.size, f"{row.seconds * 1e3:.1f}", f"{row.ratio:.2f}", row.against, target, row.verdict
        )
    return table
