"""docs/train-your-own.md, done: its files and its commands in a copy of the repository, with what they promise."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkout import make
from conftest import Trained, copied

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/train-your-own.md").read_text()
FILES = dict(re.findall(r"A file `([\w.]+)`:\n\n```\w+\n(.*?)```", PAGE, re.DOTALL))
COMMANDS = re.findall(r"^    make (.*)$", PAGE, re.MULTILINE)
pytestmark = pytest.mark.usefixtures("forks")  # the copy's code is this checkout's


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = copied(tmp_path_factory.mktemp("own"))
    for name, text in FILES.items():
        (made / name).write_text(text)
    return made


@pytest.fixture(scope="module")
def trained(folder: Path) -> Callable[[str], Trained]:
    """Return what a command of make trained; each is run once."""
    done: dict[str, Trained] = {}

    def train(command: str) -> Trained:
        if command not in done:
            result = make(folder, *shlex.split(command), "LOCAL=1", "NEW=1")
            assert result.returncode == 0, result.stdout + result.stderr
            (run,) = {*(folder / "runs").glob("my-regression-*")} - {one.run for one in done.values()}
            done[command] = Trained(run)
        return done[command]

    return train


def evaluation(trained: Trained) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((trained.run / "evaluations.jsonl").read_text().splitlines()[-1])
    return found


def test_the_page_has_three_files_and_three_commands() -> None:
    assert [*FILES] == ["loop.py", "my_task.py", "my.yaml"]
    assert len(COMMANDS) == 3


def test_the_loop_prints_what_the_page_says(folder: Path) -> None:
    (said,) = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)
    assert "`.venv/bin/python loop.py` prints" in PAGE
    command = [sys.executable, "-X", "utf8", "loop.py"]
    assert subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout == said


def test_the_coded_run_is_as_good_as_the_loop_and_the_mean_is_not(trained: Callable[[str], Trained]) -> None:
    coded, mean, _ = (command for command in COMMANDS)
    assert f"{evaluation(trained(coded))['r2']:.1f}" == "0.5"
    assert evaluation(trained(mean))["r2"] < -1


def test_over_mpi_it_is_the_simulated_model_and_the_attack_free_one(trained: Callable[[str], Trained]) -> None:
    simulated, _, over_mpi = COMMANDS
    free = trained(f'{simulated} SET="attack=none"')
    assert 'SET="attack=none"' in PAGE
    assert trained(over_mpi).model.equal(trained(simulated).model)
    assert free.model.equal(trained(simulated).model)
