"""What only a real GPU can show: `make test-gpu`. Elsewhere these are skipped; DEVICE=cpu tries those of whole runs."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from draco.aggregators import AGGREGATORS, sorting
from draco.job import Job
from draco.runs import directory as run_directory
from draco.runs import events
from draco.schemes import build
from draco.training import checkpoint

DEVICE = os.environ.get("DEVICE", "cuda")
pytestmark = pytest.mark.gpu if DEVICE == "cuda" else []
JOB = """
name: ranks
workers: 3
device: {device}
model: lenet
data: synthetic
batch_size: 15
steps: 6
scheme: {{name: repetition, adversaries: 1, vote: exact}}
attack: {attack}
optimizer: {{name: sgd, lr: 0.05, momentum: 0.9}}
checkpoint_every: 1000
eval_every: 0
"""
LIAR = "{name: reverse_gradient, ranks: [2]}"


@pytest.fixture
def ranks(tmp_path: Path, data_root: Path) -> Callable[..., Path]:
    """Return `ranks(attack, *options) -> run`: three workers and a server, processes that share the GPU."""
    (tmp_path / "data").symlink_to(data_root)

    def run(attack: str, *options: str) -> Path:
        (tmp_path / "job.yaml").write_text(JOB.format(device=DEVICE, attack=attack))
        command = [sys.executable, "-m", "draco", "train", "job.yaml", *(f"--set={each}" for each in options)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stdout + done.stderr
        return run_directory.runs(tmp_path / "runs")[-1]

    return run


def model(run: Path) -> Tensor:
    path = checkpoint.newest(run / "checkpoints")
    assert path
    return torch.cat([value.flatten().cpu() for value in checkpoint.load(path)["model"].values()])


def test_processes_on_one_gpu_vote_on_bits_and_a_liar_changes_none(ranks: Callable[..., Path]) -> None:
    """Honest workers compute the same partition in two processes: the vote on bits fails where theirs are unlike."""
    attacked, free = ranks(LIAR), ranks("none")
    assert [e["suspects"] for e in events.read(attacked / "events.jsonl") if e["event"] == "step"] == [[2]] * 6
    assert torch.equal(model(attacked), model(free))


def test_bfloat16_on_the_wire_is_decoded_to_nearly_the_same_model(ranks: Callable[..., Path]) -> None:
    short, whole = (model(ranks(LIAR, f"wire.dtype={dtype}")).double() for dtype in ("bfloat16", "float32"))
    assert 0 < float((short - whole).norm() / whole.norm()) < 1e-2


def test_a_run_leaves_float32_products_as_they_are(make_job: Callable[..., Job], train) -> None:
    train(make_job(f"device={DEVICE}"))
    a, b = torch.randn(2, 512, 512, device=DEVICE)
    exact = a.double() @ b.double()
    assert float(((a @ b).double() - exact).norm() / exact.norm()) < 1e-5  # TF32: 5e-4


@pytest.fixture
def card() -> torch.device:
    if DEVICE != "cuda":
        pytest.skip("needs a GPU")
    torch.cuda.init()
    return torch.device("cuda", 0)


@pytest.mark.parametrize("name", ["median", "trimmed_mean", "meamed"])
def test_a_sorting_kernel_has_the_bits_of_blocks_and_of_the_cpu(card: torch.device, name: str) -> None:
    gradients = torch.randn(15, 1_000_003, device=card)[:, 2:]
    picking = {
        "median": sorting.middle(15, 7),
        "trimmed_mean": sorting.middle(15, 3),
        "meamed": sorting.near_median(15, 3),
    }[name]
    found = AGGREGATORS[name](gradients, f=3)
    assert torch.equal(found, sorting._in_blocks(gradients, list(range(15)), picking))
    assert torch.equal(found.cpu(), AGGREGATORS[name](gradients.cpu(), f=3))


def test_a_rule_takes_no_memory_beside_its_result(card: torch.device) -> None:
    gradients = torch.randn(15, 4_000_000, device=card)
    for name in ("median", "krum", "geometric_median", "sign_majority"):
        AGGREGATORS[name](gradients, f=3)  # compiles
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = AGGREGATORS[name](gradients, f=3)
        assert torch.cuda.max_memory_allocated() - before <= result.nbytes + (24 << 20), name
        del result


def test_a_matrix_of_more_than_2_to_the_31_numbers_is_read_to_its_end(card: torch.device) -> None:
    if torch.cuda.mem_get_info()[0] < 17 << 30:
        pytest.skip("needs 17 GiB")
    d = (1 << 30) + 77
    gradients = torch.ones(3, d, device=card)
    gradients[1, -5:] = 7
    gradients[2, -5:] = 5
    found = AGGREGATORS["median"](gradients, f=1)
    assert found[-6:].tolist() == [1, 5, 5, 5, 5, 5]
    assert found[:-5].min() == 1 == found[:-5].max()


@pytest.mark.parametrize("name", ["repetition", "cyclic"])
def test_decoders_find_the_same_liars_twice_with_the_same_bits(card: torch.device, name: str) -> None:
    scheme = build(name, workers=15, adversaries=3)
    gradients = torch.randn(scheme.assignment.shape[1], 300_001, device=card)
    replies = torch.stack([scheme.encode(row, gradients[list(scheme.partitions(row))]) for row in range(15)])
    replies[[1, 6, 12]] *= -5
    first, second = (scheme.decode(replies, seed=3) for _ in range(2))
    assert first.suspects == second.suspects == (1, 6, 12)
    assert torch.equal(first.gradients, second.gradients)
    torch.testing.assert_close(first.gradients.mean(0), gradients.mean(0), rtol=1e-3, atol=1e-4)
