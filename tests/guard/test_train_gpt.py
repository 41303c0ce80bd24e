"""The example before and after: four lines, and the bits of plain training although a bit flips on the way."""

import difflib
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "examples"
BEFORE, AFTER = FOLDER / "train_gpt.py", FOLDER / "train_gpt_guarded.py"
SMALL = ("--steps", "4", "--batch", "2", "--length", "16", "--layers", "1", "--width", "16", "--out")


def torchrun(ranks: int, *command: str | Path) -> str:
    """Return what the ranks wrote to stderr."""
    made = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", *command],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    return made.stderr


def test_the_guard_is_four_lines() -> None:
    lines = difflib.ndiff(BEFORE.read_text().splitlines(), AFTER.read_text().splitlines())
    added = [line[2:].strip() for line in lines if line.startswith("+ ") and line[2:].strip()]
    assert len(added) == 4
    assert added[0] == "import draco.torch"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The weights of two ranks without a guard and without a fault."""
    weights = tmp_path_factory.mktemp("plain") / "weights.pt"
    torchrun(2, BEFORE, *SMALL, weights)
    found: dict[str, torch.Tensor] = torch.load(weights)
    return found


def test_a_flipped_bit_is_found_named_and_repaired(plain: dict[str, torch.Tensor], tmp_path: Path) -> None:
    """Four ranks in groups of two see what two ranks see without a guard."""
    rank, backward = random.randrange(4), random.randrange(1, 9)
    told = torchrun(4, Path(__file__).parent / "flipped.py", str(rank), str(backward), AFTER, *SMALL, tmp_path / "out")
    repaired = torch.load(tmp_path / "out")
    assert [name for name in plain if not torch.equal(plain[name], repaired[name])] == []
    step = (backward + 1) // 2
    (line,) = {line.partition("draco")[2] for line in told.splitlines() if "suspect" in line}
    assert f"step {step}" in line
    assert f"rank {rank}" in line
