"""The step of plain PyTorch, what a user would do without Draco, beside steps over MPI with the same global batch.

Plain PyTorch is one process with all cores: sample, forward, backward, SGD. Draco's nine workers and server share those
cores. The uncoded step computes as many samples as the plain one, in nine parts; `cyclic` computes them 2s + 1 = 3
times. So three times the uncoded compute is the price of the code, and what is beyond it that of the implementation.

Of all steps of a kind the fastest counts, which other work on the machine disturbed the least.
"""

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from benchmarks.steps import WORKERS, Event, lasted, run, simulated_steps, steps_of
from benchmarks.timing import Row
from draco import data

SCHEMES = {"uncoded": "uncoded", "cyclic": "{name: cyclic, adversaries: 1}"}


class Case(NamedTuple):
    """One model with its data set and the size of the global batch."""

    model: str
    data: str
    batch_size: int
    steps: int  # after those of the warm-up
    warm_up: int


CASES = (
    Case("lenet", "synthetic", 180, 30, 5),
    Case("fc", "synthetic", 180, 30, 5),
    Case("resnet18", "synthetic_rgb", 36, 3, 1),
)
QUICK = (Case("lenet", "synthetic", 18, 3, 1),)


def rows(quick: bool) -> Iterator[Row]:
    """Yield for each model the plain step, each scheme's step as a ratio to it, and the parts of these steps."""
    for case in QUICK if quick else CASES:
        yield from _rows(case, turns=1 if quick else 2, of=simulated_steps if quick else steps_of)


def _rows(case: Case, turns: int, of: Callable[..., list[Event]]) -> Iterator[Row]:
    plain: list[float] = []
    steps: dict[str, list[tuple[float, Event]]] = {name: [] for name in SCHEMES}
    with tempfile.TemporaryDirectory() as folder:
        data.prepare(case.data, Path(folder))
        for _ in range(turns):
            plain += torch_steps(case, folder)
            for name, scheme in SCHEMES.items():
                job = f"model: {case.model}, data: {case.data}, batch_size: {case.batch_size}, scheme: {scheme},"
                job += f" optimizer: {{lr: 0.01}}, steps: {case.warm_up + case.steps + 1}"
                found = of(Path(folder), name, job, warm_up=case.warm_up)
                steps[name] += zip(lasted(found), found[1:], strict=True)
    size, base = f"{case.model} n={WORKERS} B={case.batch_size}", min(plain)
    yield Row("plain PyTorch step, all cores", size, base, "itself", 1.0, None)
    for name, pairs in steps.items():
        taken, event = min(pairs, key=lambda each: each[0])
        yield Row(f"training step, {name}", size, taken, "plain PyTorch", taken / base, None)
        for part, seconds in event["seconds"].items():
            yield Row(f"of which {part}", size, seconds, "plain PyTorch", seconds / base, None)


def torch_steps(case: Case, folder: str) -> list[float]:
    """Return the seconds of each step of plain PyTorch on all cores, after the warm-up; `folder` has the data set."""
    argv = [sys.executable, "-m", "benchmarks.plain_torch", case.model, case.data, str(case.batch_size)]
    cores = str(len(os.sched_getaffinity(0)))
    environment = (("OMP_NUM_THREADS", cores), ("MKL_NUM_THREADS", cores))
    taken: list[float] = json.loads(run([*argv, str(case.warm_up + case.steps), folder], environment))
    return taken[case.warm_up :]
