"""The times of whole training steps over MPI: a coded step against a plain mean of as many samples per worker."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.memory import CHECKOUT
from benchmarks.timing import Row
from draco.data import prepare
from draco.job import Job, parse, to_yaml
from draco.launch.environment import launch_environment
from draco.launch.plan import plan
from draco.runs import events
from draco.runs.directory import create
from draco.training.build import Built
from draco.training.process import serve_all

# A small batch and a large model, so that decoding does not hide behind the gradients. Every worker computes 12
# samples in all three: partitions of 12 samples, alone, in a group's vote, and 3 partitions of 4 samples encoded.
WORKERS, SAMPLES = 9, 12
SCHEMES = {
    "uncoded": ("uncoded", WORKERS * SAMPLES),
    "repetition": ("{name: repetition, adversaries: 1}", WORKERS // 3 * SAMPLES),
    "cyclic": ("{name: cyclic, adversaries: 1}", WORKERS * SAMPLES // 3),
}
WARM_UP = 5  # steps
Event = dict[str, Any]


def rows(quick: bool) -> Iterator[Row]:
    """Yield the step of each scheme against the uncoded one, the schemes taking turns, and the cyclic step's parts."""
    steps, turns = (WARM_UP + 3, 1) if quick else (40, 3)
    of = partial(simulated_steps, warm_up=WARM_UP) if quick else steps_of
    taken: dict[str, list[Event]] = {name: [] for name in SCHEMES}
    times: dict[str, list[float]] = {name: [] for name in SCHEMES}
    with tempfile.TemporaryDirectory() as folder:
        prepare("synthetic", Path(folder))
        for _ in range(turns):
            for name in SCHEMES:
                scheme, batch_size = SCHEMES[name]
                job = f"model: fc, data: synthetic, steps: {steps}, scheme: {scheme}, batch_size: {batch_size}"
                found = of(Path(folder), name, job)
                taken[name] += found[1:]
                times[name] += lasted(found)
    size = f"fc n={WORKERS}, {SAMPLES} samples each"
    base = median(times["uncoded"])
    for name, seconds in times.items():
        target = None if name == "uncoded" else 1.1
        yield Row(f"training step, {name}", size, median(seconds), "uncoded step", median(seconds) / base, target)
    whole = median(times["cyclic"])
    for part in taken["cyclic"][0]["seconds"]:
        seconds_of_part = median(e["seconds"][part] for e in taken["cyclic"])
        yield Row(f"of which {part}", size, seconds_of_part, "cyclic step", seconds_of_part / whole, None)


def receive_rows(quick: bool) -> Iterator[Row]:
    """Yield receiving n * d floats against copying them."""
    for n, d in [(1, 40_000)] if quick else [(15, 2_000_000), (15, 8_000_000), (45, 1_000_000)]:
        any_job = (
            "{name: receive, workers: 1, model: lenet, data: synthetic, scheme: uncoded, batch_size: 45, steps: 1}"
        )
        made = plan(parse(any_job, "bench", [f"workers={n}"]), Path("unused"))
        head = made.argv[: made.argv.index("-m")]
        argv = [*head, "-m", "mpi4py", "-m", "benchmarks.receive", str(d), "3" if quick else "7"]
        figures = json.loads(run(argv, made.environment).splitlines()[-1])
        ratio = figures["received"] / figures["copied"]
        yield Row("receive over MPI", f"n={n} d={d:,}", figures["received"], "a copy of n*d floats", ratio, 1.3)


def steps_of(folder: Path, name: str, job: str, warm_up: int = WARM_UP) -> list[Event]:
    """Run the job with those keys over MPI and return its steps after the warm-up; `folder` has its data set."""
    parsed, directory = _made(folder, name, f"workers: {WORKERS}, {job}, launcher: mpi")
    made = plan(parsed, directory, python=sys.executable)
    run(made.argv, made.environment)
    return _steps(directory, warm_up)


def simulated_steps(folder: Path, name: str, job: str, *, warm_up: int, workers: int = WORKERS) -> list[Event]:
    """Return the same of a simulation in this process."""
    parsed, directory = _made(folder, name, f"workers: {workers}, {job}, launcher: simulate")
    serve_all(Built(parsed), directory)
    return _steps(directory, warm_up)


def _made(folder: Path, name: str, job: str) -> tuple[Job, Path]:
    parsed = parse(f"{{name: {name}, {job}, eval_every: 0}}", "bench", [f"data.root={folder}"])
    return parsed, create(folder / "runs", name, to_yaml(parsed))


def _steps(directory: Path, warm_up: int) -> list[Event]:
    return [event for event in events.read(directory / "events.jsonl") if event["event"] == "step"][warm_up:]


def lasted(found: list[Event]) -> list[float]:
    """Return the seconds from each step to the next."""
    return [b["time"] - a["time"] for a, b in pairwise(found)]


def run(argv: "tuple[str, ...] | list[str]", environment: tuple[tuple[str, str], ...]) -> str:
    """Run a command to its end and return what it printed; what it complained of goes to the terminal."""
    result = subprocess.run(
        argv,
        env=launch_environment(os.environ, {**CHECKOUT, **dict(environment)}),
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return result.stdout
