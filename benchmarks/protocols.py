"""Protocols under attack: how often a model is wrong or an honest worker expelled, and what steps cost.

`python -m benchmarks.protocols [runs]` simulates 100,000 runs over (protocol, n, s, attacker) on all cores, with
workers that are late, absent or without the last model, and prints one line for each protocol and size. Of `checked` it
has the forms in which not the server replays all: with drawn verifiers, and of a sample, whose false vectors are
counted.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from math import sqrt
from multiprocessing import get_context
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from benchmarks.protocol_attacks import ATTACKS
from benchmarks.protocol_runs import Run, simulate
from benchmarks.timing import Row
from draco.protocols.checked import checked
from draco.protocols.odds import failure_probability
from draco.protocols.reactive import reactive
from draco.protocols.rounds import Protocol
from draco.protocols.sampled import expected_false
from draco.protocols.verified import verified

SIZES = ((3, 1), (4, 1), (5, 2), (6, 2), (7, 2), (7, 3), (9, 2), (9, 4), (15, 2), (15, 5), (21, 3))
BOLD = ((3, 2), (4, 3), (5, 3), (7, 5))  # n <= 2s, of checked
SAMPLE = 0.3
LARGE = 10  # with more workers than this, a tenth of the runs
STEPS = 12  # of each of the many runs
LONG = 500  # steps of the runs whose costs are told


class Case(NamedTuple):
    """A protocol and its size."""

    verifiers: int | None  # None: reactive, or checked by sample
    n: int
    s: int
    checked: bool = False

    @property
    def name(self) -> str:
        """Return how a table calls it."""
        if self.verifiers is None:
            return f"checked, q={SAMPLE}" if self.checked else "reactive"
        return f"{'checked' if self.checked else 'verified'}, a={self.verifiers}"

    @property
    def bound(self) -> float:
        """Return the most that the probability of a wrong model may be, with workers away."""
        if self.verifiers is None:
            return float(self.checked)
        return failure_probability(self.n, self.s, self.verifiers, absent=0 if self.checked else self.s)

    @property
    def most_false(self) -> float:
        """Return the most false vectors that a run may use on the average, where some are expected."""
        return expected_false(self.s, SAMPLE) if self.checked and self.verifiers is None else 0.0

    def build(self) -> Protocol:
        """Return the protocol."""
        if self.checked:
            sample = SAMPLE if self.verifiers is None else None
            return checked(workers=self.n, adversaries=self.s, verifiers=self.verifiers, sample=sample)
        if self.verifiers is None:
            return reactive(workers=self.n, adversaries=self.s)
        return verified(workers=self.n, adversaries=self.s, verifiers=self.verifiers)


def cases() -> list[Case]:
    """Return the exact modes at all sizes, and one and two verifiers where they are fewer than s."""
    found = [Case(a, n, s) for n, s in SIZES for a in (None, s)]
    found += [Case(a, n, s) for a in (1, 2) for n, s in SIZES if a < s]
    found += [Case(s, n, s, checked=True) for n, s in SIZES + BOLD]
    found += [Case(a, n, s, checked=True) for a in (1, 2) for n, s in SIZES + BOLD if a < s]
    return found + [Case(None, n, s, checked=True) for n, s in SIZES + BOLD]


class Tally(NamedTuple):
    """What many runs of one case under one attack came to."""

    case: Case
    attack: str
    runs: int
    wrong: int
    honest_expelled: int
    false: int = 0  # vectors that were used


def tally(work: tuple[Case, str, int]) -> Tally:
    """Simulate so many runs of a case under an attack."""
    case, attack, number = work
    runs = [simulate(case.build, case.n, case.s, attack, seed * 1_000_003 + case.n, STEPS) for seed in range(number)]
    return Tally(
        case,
        attack,
        number,
        sum(run.wrong for run in runs),
        sum(run.honest_expelled for run in runs),
        sum(run.false for run in runs),
    )


def many(total: int, processes: int | None = None) -> list[Tally]:
    """Simulate at least `total` runs, spread evenly over attacks and over the smaller cases."""
    cells = [(case, attack, 1 if case.n > LARGE else 10) for case in cases() for attack in ATTACKS]
    share = -(-total // sum(weight for *_, weight in cells))
    with get_context("spawn").Pool(processes) as pool:
        return pool.map(tally, [(case, attack, weight * share) for case, attack, weight in cells], chunksize=1)


def costs(steps: int = LONG) -> Iterator[tuple[Case, str, Run, float]]:
    """Give case, attack, what a run with nobody away came to, and seconds a step."""
    for n, s in ((15, 2), (45, 5)):
        for case in (Case(None, n, s), Case(2, n, s)):
            for attack in ("honest", "always"):
                began = time.process_time()
                run = simulate(case.build, n, s, attack, seed=1, steps=steps, away=0)
                yield case, attack, run, (time.process_time() - began) / steps


def rows(quick: bool) -> Iterator[Row]:
    """Give the costs as rows of `draco bench`: gradients for one of plain SGD; seconds are those of the simulation."""
    steps = LONG // 20 if quick else LONG
    for case, attack, run, seconds in costs(steps):
        size = f"n={case.n} s={case.s}, {steps} steps"
        lied = attack == "always"
        what = f"{case.name}, {'all s lie' if lied else 'nobody lies'}"
        most = 1.05 if lied else case.build().copies(case.s)
        yield Row(f"gradients: {what}", size, seconds, "plain SGD", run.copies, None if quick and lied else most)
        yield Row(f"bytes up: {what}", size, seconds, "n vectors", run.uploads, 0.95)


def _wrong(tallies: list[Tally]) -> Table:
    table = Table(title="Simulated runs under attack", show_lines=False)
    for heading in (
        "protocol",
        "n",
        "s",
        "runs",
        "wrong",
        "worst attacker",
        "its share",
        "bound",
        "false",
        "at most",
        "honest expelled",
    ):
        table.add_column(heading, justify="left" if heading in ("protocol", "worst attacker") else "right")
    for case in cases():
        mine = [each for each in tallies if each.case == case]
        worst = max(mine, key=lambda each: each.wrong)
        share = worst.wrong / worst.runs
        table.add_row(
            case.name, str(case.n), str(case.s), str(sum(each.runs for each in mine)),
            str(sum(each.wrong for each in mine)), worst.attack if worst.wrong else "",
            f"{share:.3f} ± {sqrt(share * (1 - share) / worst.runs):.3f}" if worst.wrong else "",
            f"{case.bound:.3f}", *_false(case, mine), str(sum(each.honest_expelled for each in mine)),
        )  # fmt: skip
    return table


def _false(case: Case, mine: list[Tally]) -> tuple[str, str]:
    """Return the mean of false vectors that a run uses under the worst attacker, and its bound."""
    if not case.most_false:
        return "", ""
    return f"{max(each.false / each.runs for each in mine):.2f}", f"{case.most_false:.2f}"


def main(total: int) -> None:
    """Simulate, and print both tables."""
    console = Console(width=120)
    began = time.perf_counter()
    tallies = many(total)
    console.print(_wrong(tallies))
    exact = [each for each in tallies if each.case.bound == 0]
    others = [each for each in tallies if each.case.bound > 0 and not each.case.most_false]
    console.print(
        f"{sum(each.runs for each in tallies):,} runs of {STEPS} steps in {time.perf_counter() - began:.0f} s; wrong: "
        f"{sum(each.wrong for each in exact)} of {sum(each.runs for each in exact):,} exact ones, "
        f"{sum(each.wrong for each in others)} of {sum(each.runs for each in others):,} others; "
        f"honest workers expelled: {sum(each.honest_expelled for each in tallies)}"
    )
    table = Table(title=f"Costs of {LONG} steps with nobody away; bytes in n vectors a step")
    for heading in ("protocol", "size", "attack", "copies", "bytes up", "rounds", "undone", "wrong", "expelled"):
        table.add_column(heading, justify="left" if heading in ("protocol", "size", "attack") else "right")
    for case, attack, run, _ in costs():
        table.add_row(
            case.name, f"n={case.n} s={case.s}", attack, f"{run.copies:.3f}", f"{run.uploads:.3f}",
            f"{run.rounds:.3f}", str(run.undone), str(int(run.wrong)), str(run.liars_expelled),
        )  # fmt: skip
    console.print(table)


if __name__ == "__main__":
    main(int(sys.argv[1].replace(",", "")) if len(sys.argv) > 1 else 100_000)
