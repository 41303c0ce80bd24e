"""The wheel, installed where nothing is but torch, numpy and what those need: no pydantic, rich, mpi4py or scipy.

Nothing is downloaded. The packages that are there are links to those of the environment that runs the tests, chosen by
what torch and numpy themselves require; pip looks into no index, so it fails where the wheel's core needs more.
"""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PIP_", "DRACO"))}
OPTIONAL = ("blosc2", "matplotlib", "mpi4py", "pydantic", "rich", "ruamel", "scipy", "torchvision")


def needed(*names: str) -> dict[str, Distribution]:
    """Return the packages of these names, and those that they require."""
    found: dict[str, Distribution] = {}
    todo = [*names]
    while todo:
        if (name := canonicalize_name(todo.pop())) not in found:
            found[name] = distribution(name)
            wanted = [Requirement(line) for line in found[name].requires or ()]
            todo += [each.name for each in wanted if each.marker is None or each.marker.evaluate({"extra": ""})]
    return found


def run(*words: str | Path, folder: Path, code: int = 0) -> str:
    """Run a command without this Python's variables; return what it says."""
    done = subprocess.run(
        words, cwd=folder, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120
    )
    assert done.returncode == code, done.stdout
    return done.stdout


def pip(python: Path, *words: str | Path, folder: Path, code: int = 0) -> str:
    """Run this environment's pip for another one, which has none, without any index."""
    here = (sys.executable, "-m", "pip", "--python", python, "--isolated", "--disable-pip-version-check")
    return run(*here, *words, folder=folder, code=code)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a copy of the sources, as building leaves folders behind."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    shutil.copytree(ROOT / "draco", source / "draco", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    alone = ("--no-deps", "--no-build-isolation", "--no-index", "--no-cache-dir")
    pip(Path(sys.executable), "wheel", *alone, "-w", folder, source, folder=folder)
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def python(wheel: Path) -> Path:
    """The Python of a new environment with torch, numpy and the wheel."""
    folder = wheel.parent / "environment"
    run(sys.executable, "-m", "venv", "--without-pip", folder, folder=wheel.parent)
    (packages,) = folder.glob("lib/python*/site-packages")
    for package in needed("torch", "numpy").values():
        for top in {file.parts[0] for file in package.files or ()} - {"..", "__pycache__"}:
            if not (packages / top).exists():
                (packages / top).symlink_to(Path(str(package.locate_file(top))))
    pip(folder / "bin/python", "install", "--no-index", "--no-cache-dir", wheel, folder=folder)
    return folder / "bin/python"


def test_the_wheel_holds_every_module_and_file_of_the_package(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("draco/")}
    kept = [path for path in (ROOT / "draco").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert names == {str(path.relative_to(ROOT)) for path in kept}
    assert {"draco/py.typed", "draco/report/templates/page.html.j2"} <= names


def test_its_core_needs_torch_and_numpy_alone(python: Path) -> None:
    """pip has installed it without an index; nothing optional is there, so that what follows is honest."""
    code = f"from importlib.util import find_spec; print([name for name in {OPTIONAL} if find_spec(name)])"
    assert run(python, "-c", code, folder=python.parent) == "[]\n"
    assert "No broken requirements" in pip(python, "check", folder=python.parent)
    core = [Requirement(line) for line in distribution_of(python) if "extra" not in line]
    assert sorted(each.name for each in core) == ["numpy", "torch"]
    assert all({each.operator for each in one.specifier} == {">="} for one in core)


def distribution_of(python: Path) -> list[str]:
    code = "from importlib.metadata import requires; print(*requires('draco'), sep='\\n')"
    return run(python, "-c", code, folder=python.parent).splitlines()


def test_an_extra_asks_for_more(python: Path) -> None:
    optional = [line for line in distribution_of(python) if "extra" in line]
    for extra, first in (("train", "pydantic"), ("report", "matplotlib"), ("cluster", "boto3")):
        assert any(line.startswith(first) and f'extra == "{extra}"' in line for line in optional)
    said = pip(python, "install", "--no-index", "--dry-run", "draco[train]", folder=python.parent, code=1)
    assert 'extra == "train" (from draco[train])' in said  # of the copy that is there, and not of another draco


def test_the_snippets_of_the_library_page_run_there(python: Path, tmp_path: Path) -> None:
    page = (ROOT / "docs/library.md").read_text().partition("**Runs.**")[0]
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) > 8
    assert all(len(block.splitlines()) <= 9 for block in blocks)
    blocks.append('import pydoc\nassert "class Krum(" in pydoc.plain(pydoc.render_doc(draco))\n')
    blocks.append("try: draco.run({})\nexcept draco.DracoError as error: print(error)\n")
    (tmp_path / "snippets.py").write_text("\n".join(blocks))
    said = run(python, "snippets.py", folder=tmp_path)
    assert "cyclic: rows [4] are missing" in said
    assert re.search(r"^draco\.run: \w+ is not installed; pip install 'draco\[train\]'", said, re.MULTILINE)


def test_its_command_says_which_extra_is_missing(python: Path, tmp_path: Path) -> None:
    draco = python.parent / "draco"
    assert "exit codes:" in run(draco, "--help", folder=tmp_path)
    assert run(draco, "--version", folder=tmp_path).startswith("draco ")
    (tmp_path / "job.yaml").write_text("name: x\n")
    for words, package in (
        (("train", "job.yaml"), "pydantic"),
        (("validate", "job.yaml"), "pydantic"),
        (("report",), "pydantic"),
        (("cluster", "status"), "rich"),
    ):
        said = run(draco, *words, folder=tmp_path, code=3)
        assert said.startswith(f"draco {words[0]}: {package} is not installed; pip install 'draco[train]'"), said
    assert [path.name for path in tmp_path.iterdir()] == ["job.yaml"]


def test_type_checkers_see_the_names_in_an_installed_copy(python: Path, tmp_path: Path) -> None:
    """With --strict; torch itself is checked as a few lines, as reading all of it takes most of a minute."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/__init__.pyi").write_text(
        "from torch import nn as nn\nclass Tensor: ...\nclass Generator: ...\nclass dtype: ...\n"
        "def randn(*size: int) -> Tensor: ...\n"
    )
    (tmp_path / "torch/nn.pyi").write_text("class Module: ...\n")
    (tmp_path / "program.py").write_text(PROGRAM)
    words = ("-m", "mypy", "--strict", "--config-file=", "--cache-dir=cache", "--python-executable", python)
    said = run(sys.executable, *words, "program.py", folder=tmp_path, code=1)
    faults = re.findall(r"^program\.py:(\d+): error: (.*)$", said, re.MULTILINE)
    assert [(PROGRAM.splitlines()[int(line) - 1], words) for line, words in faults] == [
        ("draco.Krum(g=1)", 'Unexpected keyword argument "g" for "Krum"  [call-arg]'),
        ("draco.Krom", 'Module has no attribute "Krom"  [attr-defined]'),
        (
            'wrong: list[float] = draco.aggregate(x, "krum")',
            'Incompatible types in assignment (expression has type "Tensor", variable has type "list[float]")'
            "  [assignment]",
        ),
    ]


PROGRAM = """\
import numpy as np
import numpy.typing as npt
import torch

import draco

x = torch.randn(9, 4)
by_name: torch.Tensor = draco.aggregate(x, "krum", f=2, pre=["nnm"], neighbours=3)
by_object: torch.Tensor = draco.Krum(f=2, neighbours=3)([x, x])
array: npt.NDArray[np.float64] = draco.MultiKrum(2)(np.zeros((9, 4)))
numbers: list[float] = draco.Median()([[1.0, 2.0], [3.0, 4.0]])
mixed: list[list[float]] = draco.NNM(f=2)([[1.0, 2.0], [3.0, 4.0]])
scheme: draco.Scheme = draco.build_scheme("cyclic", workers=9, adversaries=1)
reply: torch.Tensor = scheme.encode(0, [x, x, x])
try:
    suspects: tuple[int, ...] = scheme.decode([reply, None], arrived=[True, False]).suspects
except draco.DecodeError as error:
    failed: draco.DracoError = error


class Digits(draco.Task):
    def model(self) -> torch.nn.Module:
        return torch.nn.Module()


draco.Krum(g=1)
draco.Krom
wrong: list[float] = draco.aggregate(x, "krum")
"""
