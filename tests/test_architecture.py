"""The layers of the design, kept by reading the imports.

__main__ -> cluster -> launch -> (a command line) -> rank -> server, worker, evaluate, report -> core
__main__ -> compare -> launch, report
"""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "draco"
CORE = {"job", "schemes", "aggregators", "attacks", "sampling", "shards", "errors"}
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
    return {name.split(".")[1] for name in imports(PACKAGE / module) if name.startswith("draco.")}


def part(module: Path) -> str:
    return module.parts[0].removesuffix(".py")


@pytest.mark.parametrize("module", [m for m in MODULES if part(m) in CORE], ids=str)
def test_the_core_imports_no_effects(module: Path) -> None:
    names = imports(PACKAGE / module)
    assert not {name.split(".")[0] for name in names} & IMPURE


@pytest.mark.parametrize("module", [m for m in MODULES if part(m) in CORE], ids=str)
def test_the_core_imports_only_the_core_and_its_tables(module: Path) -> None:
    assert siblings(module) <= CORE | {"models", "data"}  # job.check asks the tables which shapes go together


@pytest.mark.parametrize("module", [m for m in MODULES if part(m) == "launch"], ids=str)
def test_launch_meets_the_trainer_only_in_a_command_line(module: Path) -> None:
    assert siblings(module) <= {"launch", "job", "errors", "run_directory", "events"}


@pytest.mark.parametrize("module", [m for m in MODULES if part(m) == "cluster"], ids=str)
def test_the_operators_side_meets_a_run_only_through_the_head(module: Path) -> None:
    assert siblings(module) <= {"cluster", "launch", "job", "errors", "run_directory"}


@pytest.mark.parametrize("module", [m for m in MODULES if part(m) == "compare"], ids=str)
def test_a_comparison_meets_the_trainer_only_in_run_directories(module: Path) -> None:
    reads = {"events", "report", "run_directory"}
    sizes = {"data", "models"} if module.name == "capacity.py" else set()  # what a run will take, not the run
    assert siblings(module) <= {"compare", "launch", "job", "errors", *reads, *sizes}


@pytest.mark.parametrize("module", [m for m in MODULES if part(m) in ("launch", "cluster", "report")], ids=str)
def test_a_run_knows_of_no_comparison(module: Path) -> None:
    assert "compare" not in siblings(module)


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_only_the_transport_imports_mpi4py(module: Path) -> None:
    uses = any(name.split(".")[0] == "mpi4py" for name in imports(PACKAGE / module))
    assert not uses or part(module) == "transport" or module == Path("launch/round_trip.py")  # which checks MPI itself


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_only_the_vision_module_imports_torchvision(module: Path) -> None:
    assert module == Path("vision.py") or not any(n.split(".")[0] == "torchvision" for n in imports(PACKAGE / module))


@pytest.mark.parametrize("module", [m for m in MODULES if part(m) != "__main__"], ids=str)
def test_nothing_imports_the_command_line(module: Path) -> None:
    assert "__main__" not in siblings(module)


TRAINER = {"server", "worker", "evaluate", "report", "gradients"}


@pytest.mark.parametrize("module", [m for m in MODULES if part(m) in TRAINER], ids=str)
def test_the_trainer_knows_nothing_of_its_launcher(module: Path) -> None:
    assert not siblings(module) & {"launch", "cluster", "rank", "bench"}


def test_a_report_is_made_of_what_a_run_left_and_its_arrays_of_events_alone() -> None:
    modules = [m for m in MODULES if part(m) == "report"]
    assert {name for m in modules for name in siblings(m)} <= {"report", "run_directory", "errors"}
    assert not siblings(Path("report/series.py"))
    assert not {name.split(".")[0] for name in imports(PACKAGE / "report/series.py")} & (IMPURE | {"matplotlib"})


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_nothing_that_reads_a_message_unpickles(module: Path) -> None:
    assert not {name.split(".")[0] for name in imports(PACKAGE / module)} & {"pickle", "marshal", "shelve", "dill"}


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_every_module_says_what_it_is(module: Path) -> None:
    assert ast.get_docstring(ast.parse((PACKAGE / module).read_text()))


@pytest.mark.parametrize("module", [m for m in MODULES if part(m) != "bench"], ids=str)
def test_only_the_benchmark_meets_other_libraries_rules(module: Path) -> None:
    assert not {name.split(".")[0] for name in imports(PACKAGE / module)} & {"byzfl", "byzpy", "cloudpickle"}
    assert "bench" not in siblings(module) or module == Path("__main__.py")
