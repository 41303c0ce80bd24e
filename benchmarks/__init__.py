"""`python -m draco bench`: tables of ratios, against limits and against peers, taken in one run."""

import json
import platform
import sys
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import (
    exchange,
    gpu,
    guard,
    kernels,
    plain,
    protocol_steps,
    protocols,
    rules,
    simulated,
    start,
    steps,
    wires,
)
from benchmarks.timing import Row

SECTIONS: tuple[str, ...] = ("kernels", "aggregators", "wires", "receive", "exchange", "steps", "replay")
SECTIONS += ("protocols", "attackers", "simulated", "plain", "start", "guard", "gpu")


def main(target: Path, *, quick: bool, only: Collection[str] = SECTIONS) -> None:
    """Measure the sections in `only`, print the tables and write the figures to `target` as JSON."""
    torch.set_num_threads(1)
    console = Console() if sys.stdout.isatty() else Console(width=120)  # a file has room for the columns
    rows: list[Row] = []
    duels: list[rules.Figure] = []
    on_gpu: list[gpu.Figure] = []
    with console.status("measuring") as status:
        for row in _all(quick, only):
            if isinstance(row, rules.Figure):
                duels.append(row)
            elif isinstance(row, gpu.Figure):
                on_gpu.append(row)
            else:
                rows.append(row)
            status.update(f"measuring; last: {row.what} ({row.size})")
            if isinstance(row, Row) and not console.is_terminal:  # where the line above is not seen
                print(f"{row.what} ({row.size}): {row.ratio:.2f} of {row.against}", file=sys.stderr, flush=True)
    if rows:
        console.print(_table(rows))
    for table in rules.tables(duels):
        console.print(table)
    if on_gpu:
        console.print(gpu.table(on_gpu))
    machine = {"torch": torch.__version__, "processor": platform.processor() or platform.machine(), "threads": 1}
    written = {
        "machine": machine,
        "rows": [{**row._asdict(), "verdict": row.verdict} for row in rows],
        "aggregators": [{**duel._asdict(), "verdict": duel.verdict} for duel in duels],
        "gpu": [{**line._asdict(), "part": line.part, "verdict": line.verdict} for line in on_gpu],
    }
    target.write_text(json.dumps(written, indent=1))
    console.print(f"figures: {target}")


def _all(quick: bool, only: Collection[str]) -> "Iterator[Row | rules.Figure | gpu.Figure]":
    sections: dict[str, Callable[[], Iterator[Row | rules.Figure | gpu.Figure]]] = {
        "kernels": lambda: kernels.rows(quick, repeats=1 if quick else 7),
        "aggregators": lambda: rules.figures(quick),
        "wires": lambda: wires.rows(repeats=1 if quick else 15),
        "receive": lambda: steps.receive_rows(quick),
        "exchange": lambda: exchange.rows(quick),
        "steps": lambda: steps.rows(quick),
        "replay": lambda: _replay(quick),
        "attackers": lambda: protocols.rows(quick),
        "simulated": lambda: simulated.rows(quick),
        "plain": lambda: plain.rows(quick),
        "protocols": lambda: protocol_steps.rows(quick),
        "start": lambda: start.rows(quick),
        "guard": lambda: guard.rows(quick),
        "gpu": lambda: gpu.figures(quick),
    }
    for name in SECTIONS:
        if name in only:
            yield from sections[name]()


def _replay(quick: bool) -> Iterator[Row]:
    from benchmarks import replay  # only here, as it is a command as well

    yield from replay.rows(quick)


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
