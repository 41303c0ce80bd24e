"""The front door: what `import draco` costs, which names are public, and what each says of itself."""

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import draco

INIT = Path(draco.__file__)
PAGE = (INIT.parents[1] / "docs/library.md").read_text()
RULES = [
    name
    for name in draco.__all__
    if isinstance(getattr(draco, name), type) and hasattr(getattr(draco, name), "declaration")
]


def said(code: str) -> str:
    """Return what a fresh Python prints."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_importing_draco_loads_next_to_nothing() -> None:
    """Counted, as times differ: it is one module, whereas numpy is about a hundred and torch a thousand."""
    code = "import sys; before = set(sys.modules); import draco; print(*sorted(set(sys.modules) - before))"
    assert said(code).split() == ["draco"]


def test_the_first_use_of_a_name_loads_its_home_and_not_torch() -> None:
    code = (
        "import sys, draco; draco.DracoError; assert 'numpy' not in sys.modules; draco.Krum(f=2); draco.Scheme;"
        "draco.Task; print('torch._C' in sys.modules, 'pydantic' in sys.modules, 'Krum' in vars(draco))"
    )
    assert said(code).split() == ["False", "False", "True"]


def test_dir_help_and_star_show_what_is_public() -> None:
    assert [name for name in dir(draco) if not name.startswith("_")] == sorted(draco.__all__)
    assert draco.__all__ == sorted(draco.__all__, key=lambda name: (name.lower() == name, not name.isupper(), name))
    helped = said("import draco; help(draco)")
    for name in draco.__all__:
        assert re.search(rf"^    (class )?{name}\b", helped, re.MULTILINE), name
    assert said("from draco import *; print(Krum(f=2), aggregate.__name__)").split() == ["Krum(f=2)", "aggregate"]


def test_editors_are_told_of_the_names_that_run() -> None:
    told = [
        alias.name
        for node in ast.walk(ast.parse(INIT.read_text()))
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for imported in node.body
        if isinstance(imported, ast.ImportFrom)
        for alias in imported.names
    ]
    assert sorted(told) == sorted(draco.__all__)
    assert (INIT.parent / "py.typed").exists()


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'draco' has no attribute 'Krom'"):
        draco.Krom  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'Krom' from 'draco'"):
        exec("from draco import Krom")
    assert not hasattr(draco, "_HOME")


@pytest.mark.parametrize("name", draco.__all__)
def test_every_public_name_has_a_docstring_and_so_have_its_methods(name: str) -> None:
    found = getattr(draco, name)
    assert inspect.getdoc(found)
    for word, method in inspect.getmembers(found, inspect.isfunction) if isinstance(found, type) else []:
        if not word.startswith("_") or word == "__call__":
            assert inspect.getdoc(method), word
    assert all(len(line) <= 120 for line in found.__doc__.splitlines())


@pytest.mark.parametrize("name", [*RULES, "aggregate", "build_scheme"])
def test_what_computes_says_its_shapes_errors_and_source(name: str) -> None:
    text = inspect.getdoc(getattr(draco, name)) or ""
    assert re.search(r"\([nm], ?[dk]\)|n workers", text)
    assert "Raises:" in text
    assert "ValueError" in text
    assert re.search(r"arXiv:\d{4}\.\d{5}|docs/library.md", text) or name == "Mean"


def test_the_library_page_shows_every_name() -> None:
    page = PAGE.partition("## Coming from byzfl")[0]
    assert [name for name in draco.__all__ if not re.search(rf"`{name}`|\bdraco\.{name}\b", page)] == []


def test_the_runs_of_the_library_page_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The snippets before them run where the extra `train` is missing: tests/library/test_wheel.py."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    (task,) = [block for block in blocks if "class Line" in block]
    names: dict[str, Any] = {"__name__": "__main__", "draco": draco, "torch": torch}
    for number, block in enumerate((task, blocks[blocks.index(task) + 1])):
        exec(compile(block, f"<ipython-input-{number}>", "exec"), names)
    assert names["run"].status.state == "succeeded"
    assert len(names["losses"]) == 20
    assert isinstance(names["model"], torch.nn.Linear)


def test_the_version_is_that_of_the_project() -> None:
    project = (INIT.parents[1] / "pyproject.toml").read_text()
    assert f'version = "{draco.__version__}"' in project
