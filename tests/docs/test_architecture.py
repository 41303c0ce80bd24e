"""The layers of the design, kept by reading the imports.

cli -> cluster -> launch -> (a command line) -> training -> job, data, models -> library
cli -> compare -> launch, report;    runs is what launch, training and report have in common
"""

import ast
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "draco"
LIBRARY = {"schemes", "aggregators", "attacks", "optimizers", "sampling", "declaration", "given", "lazy", "errors"}
LIBRARY |= {"fused", "files", "own", "own_function", "plain", "rules", "metrics", "protocols", "replay", "determinism"}
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
    "launch": {"schemes", "determinism", "code", "job", "data", "errors", "files", "plain", "runs"},
    "cluster": {"launch", "code", "job", "errors", "files", "plain", "runs"},  # it meets a run only through the head
    "report": {"runs", "errors", "files", "plain", "metrics"},
    "compare": {"launch", "code", "job", *LIBRARY, "report", "runs", "data", "models", "tasks"},
    # Beside the command line: a simulated run takes place in the caller's process, so it imports the trainer, too.
    "experiment": {*LIBRARY, "code", "launch", "training", "report", "runs", "job", "tasks", "extras"},
    # In somebody's own loop: no job, no run, no MPI.
    "torch": {"aggregators", "declaration", "determinism", "errors", "lazy"},
    "extras": {"errors"},
    "__main__": {"cli"},
}
IMPURE = {"mpi4py", "subprocess", "logging", "time", "os", "pathlib", "random", "socket", "threading", "shutil"}
MODULES = sorted(p.relative_to(PACKAGE) for p in PACKAGE.rglob("*.py"))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def imports(path: Path) -> set[str]:
    """Return the dotted names that a file imports, wherever in it, without those for type checking only."""
    found: set[str] = set()
    skipped = {
        id(inner)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree(path)):
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


def importing(*packages: str) -> set[Path]:
    """Return the modules that import one of these packages."""
    return {m for m in MODULES if {name.split(".")[0] for name in imports(PACKAGE / m)} & {*packages}}


def test_the_library_and_the_job_import_no_effects() -> None:
    reads_settings = {"files", "own", "determinism"}  # the last an environment variable that decides bits
    assert {m for m in importing(*IMPURE) if part(m) in {*LIBRARY, "job"} - reads_settings} == set()


@pytest.mark.parametrize("name", sorted({part(m) for m in MODULES} - {"cli", "__init__"}))
def test_a_part_imports_only_the_layers_below_it(name: str) -> None:
    found = {m: siblings(m) - {name} - LAYERS[name] for m in MODULES if part(m) == name}
    assert {m: above for m, above in found.items() if above} == {}


def test_no_two_parts_import_each_other() -> None:
    above = {name: {s for m in MODULES if part(m) == name for s in siblings(m)} - {name} for name in {*LAYERS, "cli"}}
    assert [(a, b) for a in above for b in above[a] if b in above and a in above[b]] == []


def test_only_the_transport_imports_mpi4py() -> None:
    found = importing("mpi4py")
    assert {m for m in found if m.parts[:2] != ("training", "transport")} == {Path("launch/round_trip.py")}


def test_only_the_vision_module_imports_torchvision() -> None:
    assert importing("torchvision") <= {Path("models/vision.py")}


def test_the_arrays_of_a_report_are_made_of_events_alone() -> None:
    assert siblings(Path("report/series.py")) == {"metrics"}
    assert not {name.split(".")[0] for name in imports(PACKAGE / "report/series.py")} & (IMPURE | {"matplotlib"})


def test_nothing_that_reads_a_message_unpickles() -> None:
    assert importing("pickle", "marshal", "shelve", "dill") == set()


def test_every_module_says_what_it_is() -> None:
    assert [m for m in MODULES if not ast.get_docstring(tree(PACKAGE / m))] == []


def test_the_package_meets_no_other_library_of_rules() -> None:
    assert importing("byzfl", "byzpy", "cloudpickle") == set()
