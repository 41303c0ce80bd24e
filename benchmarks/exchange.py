"""What a step's communication costs: the model to n workers and n replies back, against copying the same bytes.

The workers compute nothing, and wait between steps as they do while a server decodes (`receive.py`). The copy is one
process's, on one thread: a model of d floats into n buffers, and n frames of d floats into n others, 8 n d bytes in
all. So a step that copies each byte once, on one core, has the ratio 1.
"""

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.timing import Row
from draco.data import prepare
from draco.job import parse, to_yaml
from draco.launch.plan import plan
from draco.launch.planned import Plan
from draco.runs import events
from draco.runs.directory import create
from draco.training.build import Built
from draco.training.process import serve_all

ANY = "{name: exchange, model: lenet, data: synthetic, scheme: uncoded, batch_size: 45, steps: 1, workers: 1}"
LENET, LARGE = 431_080, 8_000_000  # parameters
# A worker that knows how long the server waits, and answers just before. There are 180 samples for each, so that a step
# takes well above 50 ms, and an allowance of 2 s is a small part of 200 steps.
ATTACKED = "{name: exchange, workers: 3, model: lenet, data: {name: synthetic, root: %s}, batch_size: 180, steps: %d, "
ATTACKED += "scheme: {name: repetition, adversaries: 1}, attack: %s, eval_every: 0, checkpoint_every: 0}"
SLOW = "{name: slow, delay: patience, ranks: [2]}"


def rows(quick: bool) -> Iterator[Row]:
    """Yield a step's communication against a copy, and steps with a slow worker against steps without."""
    sizes = [(1, 40_000)] if quick else [(n, d) for d in (LENET, LARGE) for n in (1, 9, 15)]
    for transport, most in (("mpi", 3.0), ("torch", 6.0)):
        for n, d in sizes:
            given = [f"workers={n}", f"transport={transport}"]
            made = plan(parse(ANY, "bench", given), Path("unused"))
            head = made.argv[: made.argv.index("-m")]
            argv = [*head, "-m", "mpi4py", "-m", "benchmarks.receive", str(d), "3" if quick else "25", str(d)]
            figures = json.loads(_printed(made._replace(argv=tuple(argv))).splitlines()[-1])
            ratio = figures["received"] / figures["copied"]
            what = f"n={n} d={d:,} by {transport}"
            yield Row("model out, replies in", what, figures["received"], "a copy of 2*n*d floats", ratio, most)
    steps = 8 if quick else 200
    lasted = {name: _lasted(steps, attack, quick) for name, attack in (("none", "none"), ("slow", SLOW))}
    ratio = lasted["slow"] / lasted["none"]
    yield Row("steps with a slow worker", f"lenet n=3, {steps} steps", lasted["slow"], "steps without", ratio, 1.3)


def _lasted(steps: int, attack: str, quick: bool) -> float:
    """Return the seconds from a run's start to its last step."""
    with tempfile.TemporaryDirectory() as folder:
        prepare("synthetic", Path(folder))
        job = parse(ATTACKED % (folder, steps, attack), "bench", ["launcher=simulate"] if quick else [])
        run = create(Path(folder) / "runs", job.name, to_yaml(job))
        if quick:
            serve_all(Built(job), run)
        else:
            _printed(plan(job, run))
        times = [event["time"] for event in events.read(run / "events.jsonl") if event["event"] in ("start", "step")]
    return float(times[-1] - times[0])


def _printed(made: Plan) -> str:
    """Run a planned launch to its end and return what it printed; what it complained of goes to the terminal."""
    environment = {**os.environ, **dict(made.environment)}
    return subprocess.run(made.argv, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
