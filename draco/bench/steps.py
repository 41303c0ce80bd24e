"""Whole training steps over MPI: a coded step against a plain-mean step with the same samples per worker."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from draco import events
from draco.bench.timing import Row
from draco.job import parse
from draco.launch import plan
from draco.run_directory import create

# A small batch and a large model, so that decoding does not hide behind the gradients. Every worker computes 12
# samples in all three: partitions of 12 samples, alone, in a group's vote, and 3 partitions of 4 samples encoded.
WORKERS, SAMPLES = 9, 12
SCHEMES = {
    "uncoded": ("uncoded", WORKERS * SAMPLES),
    "repetition": ("{name: repetition, adversaries: 1}", WORKERS // 3 * SAMPLES),
    "cyclic": ("{name: cyclic, adversaries: 1}", WORKERS * SAMPLES // 3),
}
WARM_UP = 5  # steps


def rows(quick: bool) -> Iterator[Row]:
    """Yield the step of each scheme against the uncoded one; the schemes take turns."""
    steps, turns = (8, 1) if quick else (40, 3)
    taken: dict[str, list[float]] = {name: [] for name in SCHEMES}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(turns):
            for name in SCHEMES:
                taken[name] += _step_seconds(Path(folder), name, steps)
    base = median(taken["uncoded"])
    for name, seconds in taken.items():
        target = None if name == "uncoded" else 1.1
        size = f"fc n={WORKERS}, {SAMPLES} samples each"
        yield Row(f"training step, {name}", size, median(seconds), "uncoded step", median(seconds) / base, target)


def receive_rows(quick: bool) -> Iterator[Row]:
    """Yield receiving n * d floats against copying them."""
    for n, d in [(15, 40_000)] if quick else [(15, 2_000_000), (15, 8_000_000), (45, 1_000_000)]:
        any_job = (
            "{name: receive, workers: 1, model: lenet, data: synthetic, scheme: uncoded, batch_size: 45, steps: 1}"
        )
        job = parse(any_job, "bench", [f"workers={n}"])
        made = plan(job, Path("unused"))
        head = made.argv[: made.argv.index("-m")]
        argv = [*head, "-m", "mpi4py", "-m", "draco.bench.receive", str(d), "3" if quick else "7"]
        output = subprocess.run(
            argv, env={**os.environ, **dict(made.environment)}, check=True, capture_output=True
        ).stdout
        figures = json.loads(output.decode().splitlines()[-1])
        ratio = figures["received"] / figures["copied"]
        yield Row("receive over MPI", f"n={n} d={d:,}", figures["received"], "a copy of n*d floats", ratio, 1.3)


def _step_seconds(folder: Path, name: str, steps: int) -> list[float]:
    scheme, batch_size = SCHEMES[name]
    text = f"{{name: bench, workers: {WORKERS}, model: fc, data: {{name: synthetic, root: {folder}}}, steps: {steps}, "
    text += f"scheme: {scheme}, batch_size: {batch_size}, eval_every: 0, checkpoint_every: 1000}}"
    run = create(folder / "runs", name, text)
    from draco.data import prepare

    prepare("synthetic", folder)
    made = plan(parse(text, "bench"), run, sys.executable)
    subprocess.run(made.argv, env={**os.environ, **dict(made.environment)}, check=True, capture_output=True)
    times = [e["time"] for e in events.read(run / "events.jsonl") if e["event"] == "step"]
    return [b - a for a, b in zip(times[WARM_UP:], times[WARM_UP + 1 :], strict=False)]
