"""The Terraform roots are formatted and valid, pass the tests beside them, and open nothing to the world."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import terraform

INFRA = Path(__file__).parents[2] / "infra"
ROOTS = ("base", "cluster")
FILES = sorted(path for root in ROOTS for path in (INFRA / root).glob("*.tf"))

needs_terraform = pytest.mark.skipif(bool(terraform.why_not()), reason=str(terraform.why_not()))


def run(folder: Path, environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["terraform", *arguments, "-no-color"],
        cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module", params=ROOTS)
def root(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, dict[str, str]]]:
    """An initialised copy of a root, and the environment for Terraform in it."""
    folder = tmp_path_factory.mktemp("infra")
    environment = terraform.environment(folder)
    copy = folder / request.param
    shutil.copytree(INFRA / request.param, copy, ignore=shutil.ignore_patterns(".terraform", "*.tfstate*"))
    made = run(copy, environment, "init", "-backend=false", "-lockfile=readonly")
    if "Failed to query available provider packages" in made.stderr:
        pytest.skip("the AWS provider is neither in a mirror nor to be had from the registry")
    assert made.returncode == 0, made.stdout + made.stderr
    yield copy, environment
    shutil.rmtree(copy / ".terraform")  # the provider, where it is no link into a mirror, has 700 MB


@needs_terraform
def test_every_file_is_formatted(tmp_path: Path) -> None:
    result = run(INFRA, terraform.environment(tmp_path), "fmt", "-check", "-recursive")
    assert result.returncode == 0, f"terraform fmt would change {result.stdout}"


@needs_terraform
def test_a_root_is_valid_and_passes_its_tests(root: tuple[Path, dict[str, str]]) -> None:
    result = run(*root, "test")  # which validates it first
    assert result.returncode == 0, result.stdout + result.stderr


def blocks(kind: str) -> Iterator[tuple[str, str]]:
    """Yield name and text of every block of this kind in either root."""
    for path in FILES:
        for found in re.finditer(rf'^{kind} "([\w"\s]+)" {{\n(.*?)^}}\n', path.read_text(), re.MULTILINE | re.DOTALL):
            yield f"{path.parent.name}: {found[1]}".replace('"', ""), found[2]


def test_nothing_is_let_in_from_everywhere() -> None:
    """Whatever rule is added: addresses are let in by name of a group, or as the operator's own network."""
    allowed = {
        "base: aws_route internet": ["0.0.0.0/0"],
        "base: aws_vpc_security_group_egress_rule node": ["0.0.0.0/0"],
    }
    everywhere = {name: found for name, text in blocks("resource") if (found := re.findall(r"0\.0\.0\.0/0|::/0", text))}
    assert everywhere == allowed
    rules = {name: re.findall(r"cidr_ipv\d\s+= (.*)", text) for name, text in blocks("resource") if "ingress" in name}
    assert len(rules) == 5
    assert {name: found for name, found in rules.items() if found} == {
        "cluster: aws_vpc_security_group_ingress_rule ssh": ["var.ssh_cidr"]
    }
    inline = [name for name, text in blocks("resource") if re.search(r"^\s*(in|e)gress\b", text, re.MULTILINE)]
    assert inline == []


@pytest.mark.parametrize("kind", ["variable", "output"])
def test_every_variable_and_output_says_what_it_is(kind: str) -> None:
    found = list(blocks(kind))
    assert len(found) > 10
    assert [name for name, text in found if not re.search(r'^  description = "[A-Z].*[.)]"$', text, re.MULTILINE)] == []
    assert [
        name for name, text in found if kind == "variable" and not re.search(r"^  type +=", text, re.MULTILINE)
    ] == []


def test_the_readme_lists_every_variable_and_output() -> None:
    readme = (INFRA / "README.md").read_text()
    for kind in ("variable", "output"):
        for name, _ in blocks(kind):
            assert f"`{name.split()[-1]}`" in readme, name


def test_the_state_is_where_the_command_line_says() -> None:
    """A backend or an endpoint in the roots would stand in its way."""
    assert [path for path in FILES if re.search(r"\b(backend|endpoints)\b", path.read_text())] == []


def test_both_roots_lock_the_same_provider() -> None:
    locks = {(INFRA / root / ".terraform.lock.hcl").read_text() for root in ROOTS}
    assert len(locks) == 1
    assert 'version     = "5.100.0"' in locks.pop()
