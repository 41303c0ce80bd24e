"""Processes with unlike kernels: which bits are equal and which not, what a sketch makes of it, and ranks over MPI.

The processes of kernel_bits.py are given the kernels of other processors by their environment. Each takes seconds to
import torch, so every test of one kind of kernels is here, and they are started once.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from kernel_bits import KERNELS, MODELS

from draco.job import Job, parse, to_yaml
from draco.launch.plan import plan
from draco.protocols.sketch import MARGIN, distances
from draco.runs import directory as run_directory
from draco.training import server
from draco.training.greeting import Greeting

PROGRAM = Path(__file__).with_name("kernel_bits.py")
ROUNDED = "float64_rounded"
LIMIT_S = 240


@pytest.fixture(scope="module")
def printed() -> Mapping[str, Any]:
    """Kernels -> what a process prints that has them."""
    found = {}
    for name, (threads, environment) in KERNELS.items():
        done = subprocess.run(
            [sys.executable, str(PROGRAM), str(threads)], capture_output=True, text=True, timeout=LIMIT_S,
            env={**os.environ, "OMP_NUM_THREADS": str(threads), **environment},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found[name] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("model", MODELS)
def test_unlike_kernels_leave_equal_bits(printed: Mapping[str, Any], model: str) -> None:
    """A tie would fail this for good on one kind of machine; the chance is below 1e-3 (docs/numerics.md)."""
    if len({said[model]["float32"] for said in printed.values()}) == 1:
        pytest.skip("all kernels leave the same float32 bits on this machine, so it shows nothing")
    assert len({said[model][ROUNDED] for said in printed.values()}) == 1


def test_the_kernels_are_unlike(printed: Mapping[str, Any]) -> None:
    own = printed["its own"]["capability"]
    if own == "DEFAULT":
        pytest.skip("torch knows no other kernels of this processor than the plainest")
    assert printed["sse"]["capability"] == "DEFAULT" != own


def test_the_vote_of_workers_with_unlike_kernels_is_within_a_tolerance(
    printed: Mapping[str, Any], make_job: Callable[..., Job]
) -> None:
    job = make_job("scheme.name=repetition", "scheme.adversaries=1", f"precision={ROUNDED}")
    said = [Greeting(each["platform"]) for each in printed.values()]
    if printed["its own"]["capability"] != "DEFAULT":
        assert server.choose_vote(job, said)[0] == "tolerance"
    assert server.choose_vote(job, said[:1] * 4)[0] == "exact"


def test_threads_and_libraries_leave_the_fingerprint_of_replays_and_instruction_sets_do_not(
    printed: Mapping[str, Any],
) -> None:
    own = printed["its own"]
    assert printed["two threads, no oneDNN"]["likeness"] == own["likeness"]
    if own["capability"] in ("AVX2", "AVX512"):
        assert printed["sse"]["likeness"] != own["likeness"]


def test_sketches_agree_within_the_tolerance_and_that_of_a_lie_of_five_tolerances_does_not(
    printed: Mapping[str, Any],
) -> None:
    (one, a, a_wrong), (other, b, b_wrong) = (printed[name]["sketches"] for name in ("sse", "two threads, no oneDNN"))
    assert one != other  # bits differ, or this test shows nothing
    found = distances([tuple(x) for x in (a, b, a_wrong, b_wrong)])
    within = 2e-6 * found[0, 0]
    assert found[0, 1] <= within / MARGIN  # with room to spare
    assert found[2, 3] <= within / MARGIN
    assert min(found[0, 2], found[0, 3], found[1, 2], found[1, 3]) > within


# Ranks over MPI

JOB = """
name: unlike
workers: 3
model: lenet
data: synthetic
batch_size: 9
steps: 2
scheme: {{name: repetition, adversaries: 1, vote: exact}}
optimizer: {{name: sgd, lr: 0.05}}
precision: {precision}
reply_timeout_s: 60
eval_every: 0
"""


def run_unlike(folder: Path, precision: str) -> tuple[Path, str]:
    """Run a job whose ranks 0 to 3 have four kinds of kernels; return its directory and what it says."""
    job = parse(JOB.format(precision=precision), "test")
    directory = run_directory.create(folder / "runs", job.name, to_yaml(job)).relative_to(folder)
    made = plan(job, directory)
    at = made.argv.index("-n")
    rank = made.argv[made.argv.index("none") + 1 :]
    where = made.argv[at + 2 : len(made.argv) - len(rank)]
    argv = [*made.argv[:at], *where]
    for _, environment in KERNELS.values():
        words = [f"{name}={value}" for name, value in environment.items()]
        argv += ["-n", "1", "env", *words, *rank, ":"]
    done = subprocess.run(
        argv[:-1], env={**os.environ, **dict(made.environment)}, cwd=folder, capture_output=True, text=True,
        timeout=LIMIT_S,
    )  # fmt: skip
    return folder / directory, done.stdout + done.stderr


@pytest.mark.long
def test_ranks_with_unlike_kernels_vote_on_bits_in_it_and_cannot_in_float32(tmp_path: Path, data_root: Path) -> None:
    (tmp_path / "data").symlink_to(data_root)
    rounded, said = run_unlike(tmp_path, ROUNDED)
    assert run_directory.read_status(rounded).state == "succeeded", said
    single, said = run_unlike(tmp_path, "float32")
    assert run_directory.read_status(single).state == "failed", said
    assert "do honest workers compute other bits" in said
