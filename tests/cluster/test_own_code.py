"""A job's own code on a cluster, from the operator's folder to the ranks. Needs Linux and root."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import faults
import pytest
from clusters import Bench, cluster, ended
from test_cluster import KILLED_S, why_not

pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(bool(why_not()), reason=why_not() or "-"),
    pytest.mark.timeout(400),
]

TASK = """
import torch
from lib.scale import SCALE
from draco.tasks import Task

class Line(Task):
    def __init__(self, hidden=4):
        self.hidden = hidden

    def model(self):
        return torch.nn.Sequential(torch.nn.Linear(4, self.hidden), torch.nn.Tanh(), torch.nn.Linear(self.hidden, 1))

    def samples(self, split):
        x = torch.randn(120, 4, generator=torch.Generator().manual_seed(1))
        return x, SCALE * x.sum(1, keepdim=True)

    def loss(self, model, batch):
        x, y = batch
        return ((model(x) - y) ** 2).mean(1)
"""
ATTACK = """
import torch

def opposite(reply: torch.Tensor, *, magnitude: float = 3.0) -> torch.Tensor:
    return reply * -magnitude
"""
JOB = """
name: own-code
workers: 3
task: {name: my_task.py:Line, options: {hidden: 3}}
batch_size: 24
steps: 80
scheme: {name: repetition, adversaries: 1}
attack: lib/attack.py:opposite
checkpoint_every: 2
eval_every: 0
"""


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with cluster(tmp_path_factory.mktemp("netns"), "netns", workers=2) as made:
        write(made.folder)
        yield made


def write(folder: Path) -> None:
    """Write the job and its code into an operator's folder."""
    (folder / "lib").mkdir()
    (folder / "my_task.py").write_text(TASK)
    (folder / "lib/attack.py").write_text(ATTACK)
    (folder / "lib/scale.py").write_text("SCALE = 1.0\n")
    (folder / "own.yaml").write_text(JOB)


def started(bench: Bench) -> subprocess.Popen[str]:
    """Start the job in the operator's folder and return once it has taken three steps."""
    process = subprocess.Popen(
        [sys.executable, "-m", "draco", "train", "own.yaml"], cwd=bench.folder, text=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    counted = "$(cat runs/*/events.jsonl 2>/dev/null | grep -c bytes_received)"
    waited = f"for i in $(seq 300); do [ {counted} -ge 3 ] && exit 0; sleep 0.2; done; exit 1"
    made = bench.on("head", "sh", "-c", waited, limit_s=90)
    assert made.returncode == 0, process.poll() is not None and process.communicate()
    return process


def test_a_run_keeps_the_code_it_was_made_with_whatever_happens_to_files_and_nodes(bench: Bench) -> None:
    """The files are edited while it runs, then a node is lost: the next launch loads the recorded code."""
    process = started(bench)
    try:
        (bench.folder / "lib/scale.py").write_text("SCALE = 2.0\n")
        faults.kill(bench.cluster, bench.own, "worker-02")
        code, said = ended(process, KILLED_S)
    finally:
        process.kill()
    assert code == 0, said
    assert len(bench.events("relaunch")) == 1
    (run,) = bench.runs()
    assert bench.sh("head", f"cat runs/{run}/code/lib/scale.py") == "SCALE = 1.0\n"
    bench.undisturbed(80)
    assert bench.up().returncode == 0
    evaluated = bench.draco("eval")
    assert evaluated.returncode == 0, evaluated.stderr
    assert "loss" in evaluated.stdout


def test_workers_read_the_code_where_they_cannot_write(bench: Bench) -> None:
    (digest,) = bench.sh("worker-01", "ls data/.code").split()
    assert bench.sh("worker-01", f"ls data/.code/{digest}").split() == ["lib", "my_task.py"]
    written = bench.on("worker-01", "sh", "-c", f"echo x >> data/.code/{digest}/my_task.py")
    assert "Read-only file system" in written.stderr
    assert bench.on("worker-01", "ls", "runs").returncode != 0


def test_a_package_that_the_nodes_lack_is_named_before_the_start(bench: Bench) -> None:
    task = bench.folder / "my_task.py"
    task.write_text(TASK.replace("import torch\n", "import torch, no_such_package\n", 1))
    before = bench.runs()
    made = bench.draco("train", "own.yaml", "--new")
    task.write_text(TASK)
    assert made.returncode == 6
    for node in ("head", "worker-01", "worker-02"):
        assert f"{node}: my_task.py, line 2: needs no_such_package" in made.stderr
    assert bench.runs() == before
