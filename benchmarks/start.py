"""The time around the steps: until the first one, after the last one, and from the loss of a rank to the next step.

Each is a ratio to `python -c 'import torch'` on the same machine, taken in turn with it.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from benchmarks.timing import Row
from draco.runs import events
from draco.runs.directory import read_status, runs

JOB = "jobs/quickstart.yaml"
# Seconds on two cores, with ten ranks.
GOALS = {
    "command to first step": 4.0, "last step to prompt": 1.0, "relaunch to first new step": 4.0,
    "simulation, all but its step": 1.5, "whole quickstart": 22.0,
}  # fmt: skip
_LIMIT_S = 120.0


def rows(quick: bool) -> Iterator[Row]:
    """Yield each wait as a ratio to importing torch; `quick` has few workers and leaves out the whole quickstart."""
    taken: dict[str, list[float]] = {}
    workers = 3 if quick else 9
    for _ in range(1 if quick else 5):
        for name, once in _turn(f"workers={workers}").items():
            taken.setdefault(name, []).append(once)
    if not quick:
        with tempfile.TemporaryDirectory() as folder:
            began = time.time()
            _train(folder).communicate()
            taken["whole quickstart"] = [time.time() - began]
    torch_s = median(taken.pop("import torch"))
    yield Row("python -c 'import torch'", "one process", torch_s, "itself", 1.0, None)
    for name, seconds in taken.items():
        size = "one process" if name.startswith("simulation") else f"{workers + 1} ranks"
        yield Row(
            name, size, median(seconds), "import torch", median(seconds) / torch_s, round(GOALS[name] / torch_s, 2)
        )


def _turn(workers: str) -> dict[str, float]:
    """Return the seconds of everything that is short, once each; `workers` is the setting that says how many."""
    began = time.time()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    taken = {"import torch": time.time() - began}
    with tempfile.TemporaryDirectory() as folder:
        began = time.time()
        _train(folder, workers, "steps=3", "eval_every=0").communicate()
        times = _times(folder, "step")
        taken |= {"command to first step": times[0] - began, "last step to prompt": time.time() - times[-1]}
    with tempfile.TemporaryDirectory() as folder:
        taken["relaunch to first new step"] = _relaunch(folder, workers)
    with tempfile.TemporaryDirectory() as folder:
        began = time.time()
        _train(folder, workers, "steps=2", "eval_every=0", "launcher=simulate").communicate()
        first, second = _times(folder, "step")
        taken["simulation, all but its step"] = time.time() - began - 2 * (second - first)
    return taken


def _relaunch(folder: str, workers: str) -> float:
    """Kill a run's server and return the time from the record of the next launch to its first step."""
    process = _train(folder, workers, "steps=100000", "eval_every=0")
    try:
        _await(folder, "step", 1)
        os.kill(read_status(runs(Path(folder))[-1]).pid, signal.SIGKILL)
        again = _await(folder, "relaunch", 1)[-1]
        return next(t for t in _await(folder, "step", 1, after=again))
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate()


def _await(folder: str, event: str, count: int, after: float = 0.0) -> list[float]:
    """Return the times of so many events, as seconds after `after`, once they are there."""
    deadline = time.time() + _LIMIT_S
    while time.time() < deadline:
        found = [t - after for t in _times(folder, event) if t > after]
        if len(found) >= count:
            return found
        time.sleep(0.05)
    raise TimeoutError(f"no {event} within {_LIMIT_S:.0f} s in {folder}")


def _times(folder: str, event: str) -> list[float]:
    made = runs(Path(folder))
    return [e["time"] for e in events.read(made[-1] / "events.jsonl") if e["event"] == event] if made else []


def _train(folder: str, *settings: str) -> "subprocess.Popen[bytes]":
    argv = [sys.executable, "-m", "draco", "train", JOB, "--here", "--runs", folder]
    options = [word for setting in settings for word in ("--set", setting)]
    return subprocess.Popen([*argv, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
