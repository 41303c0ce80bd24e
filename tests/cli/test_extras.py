"""Packages that are optional: which extra has one that is missing, and that all of them are pinned for ourselves."""

import re
import sys
import tomllib
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import draco
from draco import extras
from draco.errors import MissingError

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXACT = ("dev",)  # which nobody installs beside packages of their own
OPTIONAL: dict[str, list[str]] = PROJECT["optional-dependencies"]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What pip would have recorded of pyproject.toml."""
    lines = [f'{line.partition(";")[0]}; extra == "{extra}"' for extra, asked in OPTIONAL.items() for line in asked]
    monkeypatch.setattr(extras, "requires", lambda name: [*PROJECT["dependencies"], *lines])


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("module", "extra"),
    [("pydantic", "train"), ("ruamel.yaml", "train"), ("mpi4py.MPI", "train"), ("jinja2", "report"),
     ("boto3", "cluster"), ("tensorboard", "tensorboard"), ("pyarrow", "dev")],
)  # fmt: skip
def test_a_missing_package_is_named_with_its_extra(module: str, extra: str) -> None:
    said = str(extras.missing(ModuleNotFoundError(f"No module named {module!r}", name=module)))
    assert (
        said
        == f"{module.partition('.')[0]} is not installed; pip install 'draco[{extra}]', or in a checkout: make setup"
    )


@pytest.mark.usefixtures("installed")
def test_a_public_name_whose_packages_are_missing_is_there_and_says_so_when_it_is_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(vars(draco), "Task", raising=False)
    monkeypatch.setitem(sys.modules, "draco.tasks", None)  # type: ignore[arg-type] # so Python says that it is not there
    with pytest.raises(ModuleNotFoundError, match=r"draco\.tasks"):  # a bug, and no extra's
        draco.Task()
    monkeypatch.setattr(extras, "requires", lambda name: ['draco>=0; extra == "train"'])
    found = draco.Task
    assert (found.__name__, found.__doc__) == ("Task", f"Not here: {extras.Missing('draco', 'train')}.")
    with pytest.raises(MissingError, match=r"^draco.Task: draco is not installed; pip install 'draco\[train\]'"):
        found()
    assert "Task" not in vars(draco)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("module", ["draco.nothing", "torch", "nobody", None])
def test_what_no_extra_has_is_a_bug(module: str | None) -> None:
    assert extras.missing(ModuleNotFoundError("No module", name=module)) is None


def test_a_folder_of_sources_has_no_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    def requires(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(extras, "requires", requires)
    assert extras.missing(ModuleNotFoundError("No module", name="pydantic")) is None


def test_a_library_asks_for_ranges_and_our_own_environments_are_exact() -> None:
    locked = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    pins = {canonicalize_name(name): version for name, version in locked.items()}
    bootstrap = (ROOT / "bootstrap.py").read_text()
    pins["torch"], pins["torchvision"] = re.findall(r'^TORCH, TORCHVISION = "(.+)", "(.+)"$', bootstrap, re.MULTILINE)[
        0
    ]
    asked = {"core": PROJECT["dependencies"], **OPTIONAL}
    for extra, lines in asked.items():
        for wanted in map(Requirement, lines):
            kinds = {each.operator for each in wanted.specifier}
            assert kinds == ({"=="} if extra in EXACT else {">="}), wanted
            if extra not in EXACT:
                assert wanted.specifier.contains(pins[canonicalize_name(wanted.name)]), wanted


def test_setup_installs_what_training_and_reports_need() -> None:
    assert re.search(r'^ALWAYS = \("train", "report"\)', (ROOT / "bootstrap.py").read_text(), re.MULTILINE)
    assert {"train", "report"} <= OPTIONAL.keys()
