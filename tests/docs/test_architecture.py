"""The layers of the design, kept by reading the imports.

cli -> cluster -> launch -> (a command line) -> training -> job, data, models -> library
cli -> compare -> launch, report;    runs is what launch, training and report have in common
"""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "draco"
LIBRARY = {"schemes", "aggregators", "attacks", "optimizers", "sampling", "declaration", "given", "lazy", "errors"}
LIBRARY |= {"files", "own", "own_function", "plain", "rules", "metrics", "protocols", "replay"}
LAYERS = {  # a part of draco -> the others that it may import
    **dict.fromkeys(LIBRARY, LIBRARY),
    "job": {*LIBRARY, "models", "data"},
    "models": {"sampling", "errors", "lazy"},
    "data": {"sampling", "errors", "files", "lazy", "models"},  # models.vision, which imports torchvision for both
    "code": {"own", "job", "errors", "files"},
    "runs": {"code", "job", "errors", "files", "plain", "metrics"},
    "tasks": {*LIBRARY, "job", "data", "models"},
    "training": {*LIBRARY, "code", "job", "data", "models", "runs", "tasks"},
    # It meets the trainer in a command line and a run directory.
    "launch": {"schemes", "code", "job", "data", "errors", "files", "plain", "runs"},
    "cluster": {"launch", "code", "job", "errors", "files", "plain", "runs"},  # it meets a run only through the head
    "report": {"runs", "errors", "files", "plain", "metrics"},
    "compare": {"launch", "code", "job", *LIBRARY, "report", "runs", "data", "models", "tasks"},
    # Beside the command line: a simulated run takes place in the caller's process, so it imports the trainer, too.
    "experiment": {*LIBRARY, "code", "launch", "training", "report", "runs", "job", "tasks", "extras"},
    "extras": {"errors"},
    "__main__": {"cli"},
}
IMPURE = {"mpi4py", "subprocess", "logging", "time", "os", "pathlib", "random", "socket", "threading", "shutil"}
MODULES = sorted(p.relative_to(PACKAGE) for p in PACKAGE.rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Return the dotted names that a file imports, wherever in it, without those for type checking only."""
    found: set[str] = set()
    tree = ast.parse(path.read_text())
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def siblings(module: Path) -> set[str]:
    """Return the parts of draco that a module imports: `schemes`, `server`, ..."""
    return {name.split(".")[1] for name in imports(PACKAGE / module) if name.startswith("draco.")} - {"__version__"}


def part(module: Path) -> str:
    return module.parts[0].removesuffix(".py")


@pytest.mark.parametrize("module", [m for m in MODULES if part(m) in {*LIBRARY, "job"} - {"files", "own"}], ids=str)
def test_the_library_and_the_job_import_no_effects(module: Path) -> None:
    names = imports(PACKAGE / module)
    assert not {name.split(".")[0] for name in names} & IMPURE


@pytest.mark.parametrize("module", [m for m in MODULES if part(m) not in ("cli", "__init__")], ids=str)
def test_a_part_imports_only_the_layers_below_it(module: Path) -> None:
    assert siblings(module) - {part(module)} <= LAYERS[part(module)]


def test_no_two_parts_import_each_other() -> None:
    above = {name: {s for m in MODULES if part(m) == name for s in siblings(m)} - {name} for name in {*LAYERS, "cli"}}
    assert [(a, b) for a in above for b in above[a] if b in above and a in above[b]] == []


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_only_the_transport_imports_mpi4py(module: Path) -> None:
    if module.parts[:2] != ("training", "transport") and module != Path("launch/round_trip.py"):  # which checks MPI
        assert not any(name.split(".")[0] == "mpi4py" for name in imports(PACKAGE / module))


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_only_the_vision_module_imports_torchvision(module: Path) -> None:
    if module != Path("models/vision.py"):
        assert not any(name.split(".")[0] == "torchvision" for name in imports(PACKAGE / module))


def test_the_arrays_of_a_report_are_made_of_events_alone() -> None:
    assert siblings(Path("report/series.py")) == {"metrics"}
    assert not {name.split(".")[0] for name in imports(PACKAGE / "report/series.py")} & (IMPURE | {"matplotlib"})


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_nothing_that_reads_a_message_unpickles(module: Path) -> None:
    assert not {name.split(".")[0] for name in imports(PACKAGE / module)} & {"pickle", "marshal", "shelve", "dill"}


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_every_module_says_what_it_is(module: Path) -> None:
    assert ast.get_docstring(ast.parse((PACKAGE / module).read_text()))


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_the_package_meets_no_other_library_of_rules(module: Path) -> None:
    assert not {name.split(".")[0] for name in imports(PACKAGE / module)} & {"byzfl", "byzpy", "cloudpickle"}
