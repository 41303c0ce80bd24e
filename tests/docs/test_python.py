"""docs/python.md against the program: its blocks run in their order, its script over MPI, its columns are all."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from draco.experiment import columns

PAGE = (Path(__file__).parents[2] / "docs/python.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
SCRIPTS = [block for block in BLOCKS if "__main__" in block]


def test_the_cells_run_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    for number, block in enumerate(block for block in BLOCKS if block not in SCRIPTS):
        exec(compile(block, f"<ipython-input-{number}>", "exec"), names)
    assert len([*Path("runs").iterdir()]) == 2
    assert names["page"].is_file()
    assert names["run"].job.name == "slower"


@pytest.mark.usefixtures("forks")
def test_the_script_trains_over_mpi_and_prints_what_the_page_says(tmp_path: Path) -> None:
    (script,) = SCRIPTS
    (tmp_path / "my_task.py").write_text(script)
    made = subprocess.run(
        [sys.executable, "my_task.py"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120
    )
    assert made.returncode == 0, made.stderr
    assert made.stdout.strip() == re.search(r"It prints `([^`]+)`", PAGE)[1]


@pytest.mark.parametrize("table", [columns.EVENTS, columns.EVALUATIONS])
def test_the_page_has_every_column_in_its_words(table: dict[str, tuple[str, str]]) -> None:
    rows = "\n".join(f"| `{name}` | {text} |" for name, (_, text) in table.items())
    assert f"| column | is |\n|---|---|\n{rows}\n" in PAGE + "\n"
