"""The example before and after: four lines, and the bits of plain training although a bit flips on the way."""

import difflib
import os
import random
import subprocess
import sys
from pathlib import Path

import torch

HERE = Path(__file__).parent
FOLDER = HERE.parents[1] / "examples"
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


def test_a_flipped_bit_is_found_named_and_repaired(tmp_path: Path) -> None:
    """Two ranks in a group of two compute what one rank computes without a guard and without a fault."""
    torchrun(1, BEFORE, *SMALL, tmp_path / "plain")
    rank, backward = random.randrange(2), random.randrange(1, 9)
    told = torchrun(2, HERE / "flipped.py", str(rank), str(backward), AFTER, *SMALL, tmp_path / "guarded")
    plain, guarded = torch.load(tmp_path / "plain"), torch.load(tmp_path / "guarded")
    assert [name for name in plain if not torch.equal(plain[name], guarded[name])] == []
    suspects = {line for line in told.splitlines() if "suspect" in line}
    assert len(suspects) == 1
    assert suspects.pop().startswith(f"rank {rank} is suspect: step {(backward + 1) // 2}, ")
