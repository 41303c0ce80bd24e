"""draco.torch.Guard in real processes over gloo: what is found, named, repaired, and whose bits the model ends with."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
FOUR = [  # with redundancy 2: groups (0, 2) and (1, 3); rank 3 is faulty
    "nothing",
    "nothing_in_all_ways",
    "compiled",
    "gradient",
    "gradient_of_accumulated",
    "gradient_where_no_gradient_is_zeroed",
    "gradient_with_loss_outside",
    "activation",
    "lasting_gradient",
    "lasting_activation",
    "weight",
    "weight_in_momentum_of_sgd",
    "state",
    "not_a_number",
    "lie",
    "sampled",
    "tolerant",
    "own_not_a_number",
    "random_state",
]
THREE = ["inputs", "by_vote"]  # with redundancy 3


def played(world: int, folder: Path, names: list[str], seconds: float = 120) -> list[dict[str, Any]]:
    """Return what each rank has seen in each scenario."""
    command = [sys.executable, str(HERE / "trained.py"), str(world), str(folder), *names]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds, check=False)
    texts = [file.read_text() for file in sorted(folder.glob("*.txt"))]
    assert done.returncode == 0, done.stderr
    assert not texts, "\n".join(texts)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(world)]


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return played(4, tmp_path_factory.mktemp("four"), FOUR)


def agreed(ranks: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """Return what all ranks saw of a scenario, the same on each."""
    assert all(seen[name] == ranks[0][name] for seen in ranks), [seen[name] for seen in ranks]
    return ranks[0][name]


def test_without_a_fault_the_bits_are_those_of_plain_ddp_on_half_the_ranks(four: list[dict[str, Any]]) -> None:
    seen = agreed(four, "nothing")
    assert seen["equal"]
    assert seen["suspects"] == {}
    assert seen["counts"] == [6, 6, 0, 0]
