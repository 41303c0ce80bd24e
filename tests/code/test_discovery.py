"""Own code is found by reading it: what is packed, what is needed, what is at fault; nothing is run."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from draco.code.discovery import Need, discover, is_installed, missing
from draco.code.imports import Import, imports
from draco.errors import OwnCodeError


def write(root: Path, **files: str) -> None:
    """Write files named with `__` for `/` and without their ending."""
    for name, text in files.items():
        path = root / (name.replace("__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_imports_are_followed_through_files_packages_and_folders(tmp_path: Path) -> None:
    write(
        tmp_path,
        task="import torch\nimport helper, json\nfrom pkg import part, thing\nfrom space.inner import x\nimport draco",
        helper="def f():\n    import late\n",
        late="import importlib\nimportlib.import_module('named')",
        named="",
        pkg__init="",
        pkg__part="from .deep.leaf import y\nfrom . import other",
        pkg__other="",
        pkg__unused="import nowhere",
        pkg__deep__leaf="from ..up import z",
        pkg__up="",
        space__inner="x = 1",
        unused="",
    )
    (tmp_path / "pkg/init.py").rename(tmp_path / "pkg/__init__.py")
    found = discover(["task.py"], tmp_path)
    assert found.files == (
        "helper.py", "late.py", "named.py", "pkg/__init__.py", "pkg/deep/leaf.py", "pkg/other.py", "pkg/part.py",
        "pkg/up.py", "space/inner.py", "task.py",
    )  # fmt: skip
    assert found.needs == {"torch": Need("task.py", 1, "always")}


def test_a_file_in_a_folder_finds_its_neighbours_and_the_working_directorys_files(tmp_path: Path) -> None:
    write(tmp_path, rules__mine="import beside\nimport above\nimport both", rules__beside="", above="", both="")
    write(tmp_path, rules__both="import only_here", rules__only_here="")
    assert discover(["rules/mine.py"], tmp_path).files == (
        "above.py", "rules/beside.py", "rules/both.py", "rules/mine.py", "rules/only_here.py",
    )  # fmt: skip


def test_a_module_is_named_as_a_file_is(tmp_path: Path) -> None:
    write(tmp_path, nobody_elses__inner__task="from . import more", nobody_elses__inner__more="")
    assert discover(["nobody_elses.inner.task"], tmp_path).files == (
        "nobody_elses/inner/more.py",
        "nobody_elses/inner/task.py",
    )
    assert discover(["torch.nn"], tmp_path) == ((), {"torch": Need("the job", 0, "always")}, {})


def test_what_runs_never_reach_is_not_needed_and_what_is_guarded_is_not_needed_in_any_case(tmp_path: Path) -> None:
    write(
        tmp_path,
        task="from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import n1\nelse:\n    import a1\n"
        "try:\n    import m1\nexcept ImportError:\n    import m2\n"
        "try:\n    import a2\nexcept ValueError:\n    import m3\n"
        "def f():\n    import c1\n"
        "class C:\n    import a3\n"
        "if __name__ == '__main__':\n    import n2\n"
        "from contextlib import suppress\nwith suppress(ImportError):\n    import m4\n"
        "import c1.inner\n",
    )
    needs = {name: need.when for name, need in discover(["task.py"], tmp_path).needs.items()}
    always, maybe = dict.fromkeys(("a1", "a2", "a3", "c1"), "always"), dict.fromkeys(("m1", "m2", "m3", "m4"), "maybe")
    assert needs == {**always, **maybe}


def test_every_fault_is_named_with_its_file_and_line(tmp_path: Path) -> None:
    write(tmp_path, task="import pkg.gone\nfrom .lost import x\nimport broken", broken="x = (\n", pkg__a="")
    with pytest.raises(OwnCodeError) as caught:
        discover(["task.py", "absent.py", "../out.py", "/abs.py"], tmp_path)
    said = str(caught.value).splitlines()
    assert [line.split(": ")[0] for line in said] == [
        "absent.py", "../out.py", "/abs.py", "task.py, line 1", "task.py, line 2", "broken.py, line 1",
    ]  # fmt: skip
    assert "imports pkg.gone, and there is no such file" in said[3]


def test_a_package_that_is_not_installed_is_named_with_the_remedy() -> None:
    needs = {"timm": Need("a.py", 3, "always"), "rich": Need("a.py", 4, "always"), "x": Need("a.py", 5, "called")}
    assert missing(needs, ["timm", "x"]) == [
        "a.py, line 3: needs timm, which is neither a file of yours nor installed; install it by .venv/bin/pip install "
        "timm"
    ]
    (line,) = missing(needs, ["timm", "x"], "worker-02")
    assert line.startswith("worker-02: a.py, line 3: needs timm")
    assert "IMAGE=" in line
    assert is_installed("torch")
    assert not is_installed("no_such_package")


def test_a_file_named_as_a_module_of_pythons_gives_way_to_it(tmp_path: Path) -> None:
    write(tmp_path, task="import queue", queue="")
    found = discover(["task.py"], tmp_path)
    assert found.files == ("task.py",)
    assert found.shadowed == {"queue": Need("task.py", 1, "always")}


def test_a_file_of_keys_does_not_travel_even_if_it_is_imported(tmp_path: Path) -> None:
    write(tmp_path, task="import keys", keys="-----BEGIN RSA PRIVATE KEY-----")
    with pytest.raises(OwnCodeError, match=r"keys\.py: looks like a file of keys"):
        discover(["task.py"], tmp_path)


@pytest.mark.parametrize("text", ["\0", "(" * 100_000, "import", "x = '\\N{nope}'", b"\xff\xfe"])
def test_what_is_no_python_is_an_error_of_its_own(text: str | bytes) -> None:
    with pytest.raises(OwnCodeError, match=r"a\.py.*: is not Python"):
        imports(text if isinstance(text, bytes) else text.encode(), "a.py")


def test_imports_have_their_lines() -> None:
    assert imports(b"\nfrom .. import a as b, c\nimport x.y as z", "a.py") == [
        Import("", 2, ("a", "c"), 2, "always"), Import("x.y", 0, (), 3, "always"),
    ]  # fmt: skip


NAMES = ["alpha", "beta", "gamma", "delta", "epsilon"]
EDGES = st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(NAMES), st.integers(0, 4)), max_size=10)


@settings(max_examples=60)
@given(edges=EDGES, packages=st.sets(st.sampled_from(NAMES)))
def test_all_that_python_loads_is_found(
    tmp_path_factory: pytest.TempPathFactory, edges: list[tuple[str, str, int]], packages: set[str]
) -> None:
    """Files and packages that import each other in many ways; Python's own word for it is the modules reached."""
    root = tmp_path_factory.mktemp("own")
    path = {name: f"{name}/__init__.py" if name in packages else f"{name}.py" for name in NAMES}
    lines: dict[str, list[str]] = {name: [] for name in NAMES}
    for source, target, form in edges:
        forms = (
            f"import {target}", f"from {target} import __name__ as _n", f"import {target} as _m",
            f"class C:\n    import {target}", f"try:\n    import {target}\nexcept ImportError:\n    raise",
        )  # fmt: skip
        lines[source].append(forms[form])
    for name in NAMES:
        (root / path[name]).parent.mkdir(exist_ok=True)
        (root / path[name]).write_text("\n".join(lines[name]))
    reached, waiting = set[str](), ["alpha"]
    while waiting:
        if (name := waiting.pop()) not in reached:
            reached.add(name)
            waiting += [target for source, target, _ in edges if source == name]
    assert discover([path["alpha"]] if "alpha" not in packages else ["alpha"], root).files == tuple(
        sorted(path[name] for name in reached)
    )


def test_the_found_files_alone_can_be_imported(tmp_path: Path) -> None:
    """The copy is enough for Python itself."""
    write(
        tmp_path, task="from lib.a import f\nimport helper", lib__a="from .b import f", lib__b="def f(): ...", helper=""
    )
    copy = tmp_path / "copy"
    for file in discover(["task.py"], tmp_path).files:
        (copy / file).parent.mkdir(parents=True, exist_ok=True)
        (copy / file).write_bytes((tmp_path / file).read_bytes())
    made = subprocess.run([sys.executable, "-c", "import task; task.f()"], cwd=copy, capture_output=True, check=False)
    assert made.returncode == 0, made.stderr
