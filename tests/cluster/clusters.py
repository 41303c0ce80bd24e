"""A cluster for tests: brought up in a folder of its own and driven by the command line, as its users do."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from draco.cluster import state
from draco.cluster.backend import BACKENDS, Backend, Cluster

LIMIT_S = 150
NEWLINE = "\n"
JOB = """\
name: tiny-experiment
workers: {workers}
model: fc
data: synthetic
batch_size: 24
steps: {steps}
scheme: {{name: {scheme}, adversaries: {adversaries}}}
attack: {attack}
checkpoint_every: 2
checkpoint_keep: {{every: 0}}
eval_every: 0
reply_timeout_s: {timeout}
on_loss: {on_loss}
"""
# Waits in each step of a run that goes on while other things happen: at full speed it would take all cores.
PACE = """
import time

class Pace:
    def __init__(self, run, job):
        pass

    def step(self, event):
        time.sleep(0.1)

    def evaluation(self, step, metrics):
        pass

    def close(self):
        pass
"""

# Two checkpoints on the command line: their models have the same bits.
SAME_MODEL = """
import sys, torch
a, b = (torch.load(p, weights_only=True)["model"] for p in sys.argv[1:])
assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
"""


class Bench:
    """One cluster that is up, and what tests do with it."""

    def __init__(self, folder: Path, kind: str, name: str) -> None:
        self.folder, self.kind, self.name = folder, kind, name

    def draco(self, *arguments: str, limit_s: float = LIMIT_S, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run one command as the operator would."""
        return subprocess.run(
            [sys.executable, "-m", "draco", *arguments], cwd=self.folder, text=True, timeout=limit_s, check=False,
            stdin=subprocess.DEVNULL, capture_output=True, **options,
        )  # fmt: skip

    def up(self, *options: str) -> subprocess.CompletedProcess[str]:
        return self.draco("cluster", "up", "--cluster", self.kind, "--name", self.name, *options)

    @property
    def cluster(self) -> Cluster:
        cluster = state.load(self.name, self.folder / ".clusters")
        assert cluster
        return cluster

    @property
    def own(self) -> Path:
        return self.folder / ".clusters" / self.name

    @property
    def backend(self) -> Backend:
        return BACKENDS[self.kind]

    def on(self, node: str, *argv: str, limit_s: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a command on a node as the ranks' user."""
        command = self.backend.command(self.cluster, self.own, node, argv)
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=limit_s, check=False
        )

    def sh(self, node: str, line: str) -> str:
        """Run a shell line on a node that must succeed, and return its output."""
        made = self.on(node, "sh", "-c", line)
        assert made.returncode == 0, (node, line, made.stdout, made.stderr)
        return made.stdout

    def job(
        self,
        steps: int = 4,
        scheme: str = "repetition",
        workers: int = 3,
        timeout: float = 60,
        on_loss: str = "pack",
    ) -> Path:
        path = self.folder / "tiny.yaml"
        adversaries = 1 if workers > 2 else 0
        attack = "none" if workers < 3 else "reverse_gradient"
        path.write_text(JOB.format(**locals()))
        if steps >= 40:
            with path.open("a") as file:
                file.write("loggers: [pace.py:Pace]\n")
            (self.folder / "pace.py").write_text(PACE)
        return path

    def quickstart(self) -> Path:
        return Path(__file__).parents[2] / "jobs" / "quickstart.yaml"

    def status(self) -> dict[str, Any]:
        made = self.draco("cluster", "status", "--name", self.name, "--json")
        assert made.returncode == 0, made.stderr
        found: dict[str, Any] = json.loads(made.stdout)
        return found

    def run_state(self) -> dict[str, Any]:
        """Return what the newest run's state.json says, read on the head."""
        text = self.sh("head", "cat $(ls -td runs/*/ | head -1)state.json")
        found: dict[str, Any] = json.loads(text)
        return found

    def runs(self) -> list[str]:
        """Return the runs on the head, oldest first."""
        return self.sh("head", "ls -tr runs").split()

    def steps(self, run: str) -> int:
        return int(self.sh("head", f"cat runs/{run}/events.jsonl | grep -c bytes_received; true"))

    def events(self, *kinds: str) -> list[dict[str, Any]]:
        """Return the events of these kinds of the newest run."""
        text = self.sh("head", f"cat runs/{self.runs()[-1]}/events.jsonl")
        found = [json.loads(line) for line in text.splitlines() if line.startswith("{") and line.endswith("}")]
        return [event for event in found if event["event"] in kinds]

    def undisturbed(self, step: int) -> None:
        """Assert that the newest run's model at that step has the bits of a simulation that nothing disturbed."""
        run, python = f"runs/{self.runs()[-1]}", self.cluster.python
        options = f"--here --new --simulate --set steps={step} --set loggers=[] --runs runs/alone"
        whole = f"{python} -m draco train {run}/job.yaml {options}"
        files = f"{run}/checkpoints/step-{step:08d}.pt runs/alone/*/checkpoints/step-{step:08d}.pt"
        self.sh("head", f"{whole} && {python} -c '{SAME_MODEL}' {files} && rm -r runs/alone")

    @contextmanager
    def training(self, *options: str, steps: int = 100_000, **job: Any) -> Iterator[subprocess.Popen[str]]:
        """Start a long run in the foreground and yield once it has taken three steps."""
        with self._trained(
            self.job(steps=steps, **job),
            "--new",
            f"$(ls -t runs | grep -vxF '{NEWLINE.join(self.runs())}' | head -1)",
            3,
        ) as process:
            yield process

    @contextmanager
    def resumed(self) -> Iterator[subprocess.Popen[str]]:
        """Go on with the newest run and yield once it has taken two more steps."""
        newest = self.runs()[-1]
        with self._trained(self.folder / "tiny.yaml", "--resume", newest, self.steps(newest) + 2) as process:
            yield process

    @contextmanager
    def _trained(self, job: Path, option: str, run: str, step: int) -> Iterator[subprocess.Popen[str]]:
        process = subprocess.Popen(
            [sys.executable, "-m", "draco", "train", str(job), option], cwd=self.folder, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        try:
            counted = f"$(cat runs/{run}/events.jsonl 2>/dev/null | grep -c bytes_received)"
            waited = f"for i in $(seq 600); do [ {counted} -ge {step} ] && exit 0; sleep 0.2; done; exit 1"
            made = self.on("head", "sh", "-c", waited, limit_s=LIMIT_S)
            assert made.returncode == 0, (made, process.poll() is not None and process.communicate())
            assert process.poll() is None, process.communicate()
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.communicate()
            self.draco("stop", "--kill")


def ended(process: subprocess.Popen[str], limit_s: float) -> tuple[int, str]:
    """Wait for the end of a run and return its exit code and what it said."""
    try:
        _, errors = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(f"no end within {limit_s} s: {process.communicate()}") from None
    return process.returncode, errors


@contextmanager
def cluster(folder: Path, kind: str, workers: int, options: Sequence[str] = ()) -> Iterator[Bench]:
    """Bring a cluster up, yield it and take it down again."""
    bench = Bench(folder, kind, f"test{os.getpid()}")
    try:
        made = bench.up("--workers", str(workers), *options)
        assert made.returncode == 0, made.stderr
        yield bench
    finally:
        bench.draco("cluster", "down", "--name", bench.name)
        bench.draco("cluster", "purge", "--name", bench.name, "--yes")
