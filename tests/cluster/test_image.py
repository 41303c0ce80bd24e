"""The trainer image: its recipe, anywhere; itself, where an engine has one. DRACO_TEST_IMAGE names an image."""

import json
import os
import re
import shutil
import subprocess
import tempfile
import time
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import draco

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "images"
DOCKERFILE = (IMAGES / "Dockerfile").read_text()
LAST_STAGE = DOCKERFILE[DOCKERFILE.rindex("\nFROM ") :]
IMAGE = os.environ.get("DRACO_TEST_IMAGE", "draco:latest")
CONFINED = ("--cap-drop", "ALL", "--security-opt", "no-new-privileges")
READ_ONLY = ("--read-only", "--tmpfs", "/tmp")
SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/usr/bin")
SCRIPTS = sorted(IMAGES.glob("*.sh"))

JOB = """
name: in-the-image
workers: 2
launcher: simulate
model: lenet
data: synthetic
batch_size: 8
steps: 2
scheme: uncoded
checkpoint_every: 1
eval_every: 0
"""
RING = """
from mpi4py import MPI
ranks = MPI.COMM_WORLD
big = bytearray([ranks.rank]) * 5_000_000
got = ranks.sendrecv(big, dest=1 - ranks.rank, source=1 - ranks.rank)
print(ranks.rank, len(got), got[0], got[-1])
"""
VERSIONS = """
import json, platform
from importlib.metadata import distributions
print(json.dumps({d.name: d.version for d in distributions()} | {"python": platform.python_version()}))
"""


def test_the_base_is_pinned_by_date_and_digest() -> None:
    (base,) = re.findall(r"^ARG BASE=(.+)$", DOCKERFILE, re.MULTILINE)
    assert re.fullmatch(r"debian:bookworm-\d{8}-slim@sha256:[0-9a-f]{64}", base)


def test_every_stage_starts_from_the_base_or_from_another_stage() -> None:
    stages = re.findall(r"^FROM (\S+)(?: AS (\w+))?$", DOCKERFILE, re.MULTILINE)
    names = [name for _, name in stages]
    assert [source for source, _ in stages if source not in {"${BASE}", "${WHEELS}", *names}] == []


def test_the_image_runs_as_draco_under_tini() -> None:
    assert re.findall(r"^USER (\S+)$", LAST_STAGE, re.MULTILINE) == ["10001:10001"]
    assert 'ENTRYPOINT ["/usr/bin/tini", "--", "/usr/local/bin/draco-node"]' in LAST_STAGE


def test_no_key_is_copied_and_those_that_debian_makes_are_removed() -> None:
    copied = re.findall(r"^COPY (?:--from=\w+ )?(.+)$", DOCKERFILE, re.MULTILINE)
    assert [paths for paths in copied if re.search(r"key|\.ssh|\.pem|id_", paths)] == []
    assert "/etc/ssh/ssh_host_*" in LAST_STAGE


def test_what_the_dockerfile_copies_is_what_dockerignore_lets_through() -> None:
    copied = {p for paths in re.findall(r"^COPY (?!--)(.+) \S+$", DOCKERFILE, re.MULTILINE) for p in paths.split()}
    lines = (ROOT / ".dockerignore").read_text().split()
    assert "*" in lines
    assert copied == {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert [path for path in copied if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_the_scripts_are_ones_that_a_plain_shell_can_read(script: Path) -> None:
    assert subprocess.run(["sh", "-n", script], capture_output=True, check=False).stderr == b""
    assert os.access(script, os.X_OK)


def test_a_node_with_arguments_runs_them_instead() -> None:
    ran = subprocess.run([IMAGES / "node.sh", "sh", "-c", 'echo "$1"; exit 7', "-", "a b"], capture_output=True)
    assert (ran.returncode, ran.stdout) == (7, b"a b\n")


def test_building_without_docker_says_in_one_line_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "dirname").symlink_to(str(shutil.which("dirname")))
    built = subprocess.run(
        ["/bin/sh", IMAGES / "build.sh"], env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert built.returncode == 3
    assert re.fullmatch(r"image: .*install Docker.*\n", built.stderr)


@pytest.mark.skipif(SSHD is None, reason="no sshd on this machine")
def test_sshd_accepts_its_configuration() -> None:
    assert SSHD
    with tempfile.TemporaryDirectory() as name:
        key, config = Path(name, "key"), Path(name, "config")
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
        text = (IMAGES / "sshd_config").read_text()
        config.write_text(text.replace("/etc/draco/ssh_host_ed25519_key", str(key)))
        other = 65534 if os.geteuid() == 0 else None  # root's sshd wants a folder below /run even for a test
        if other:
            for path in (Path(name), key, config):
                os.chown(path, other, other)
        tested = subprocess.run([SSHD, "-t", "-f", config], capture_output=True, text=True, user=other, check=False)
    assert (tested.returncode, tested.stderr) == (0, "")


def engine(*argv: str, stdin: str = "", limit_s: float = 200) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["docker", *argv], input=stdin, capture_output=True, text=True, check=False, timeout=limit_s)


@cache
def lacking() -> str:
    """Say why the tests of the image cannot run here, or nothing."""
    if not shutil.which("docker"):
        return "there is no command docker"
    if engine("info").returncode:
        return "no Docker Engine answers"
    if engine("image", "inspect", IMAGE).returncode:
        return f"{IMAGE}: there is no such image: make image"
    return ""


@pytest.fixture
def image() -> str:
    if reason := lacking():
        pytest.skip(reason)
    return IMAGE


def inside(image: str, *argv: str, options: tuple[str, ...] = (), stdin: str = "") -> str:
    """Return what a command prints in a container that may do as little as one of a cluster."""
    ran = engine("run", "--rm", "-i", *CONFINED, *options, image, *argv, stdin=stdin)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stderr == ""
    return ran.stdout


@pytest.fixture(scope="module")
def versions() -> dict[str, str]:
    if reason := lacking():
        pytest.skip(reason)
    found: dict[str, str] = json.loads(inside(IMAGE, "python", "-c", VERSIONS))
    return {canonical(name): version.split("+")[0] for name, version in found.items()}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pinned(lines: list[str]) -> dict[str, str]:
    pins = [re.match(r"([\w.-]+)==([^;\s]+)", line) for line in lines]
    return {canonical(pin[1]): pin[2] for pin in pins if pin}


def test_the_image_holds_the_versions_that_the_project_pins(versions: dict[str, str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    locked = pinned((ROOT / "constraints.txt").read_text().splitlines())
    extras = project["optional-dependencies"]
    asked = [canonical(re.split(r"[^\w.-]", line)[0]) for line in (*extras["train"], *extras["report"])]
    wanted = {name: locked[name] for name in [*asked, "numpy"] if name != "torchvision"}
    bootstrap = re.search(r'^TORCH, TORCHVISION = "(.+)", "(.+)"$', (ROOT / "bootstrap.py").read_text(), re.MULTILINE)
    assert bootstrap
    wanted |= {"torch": bootstrap[1], "torchvision": bootstrap[2], "draco": project["version"]}
    assert {name: versions.get(name) for name in wanted} == wanted
    assert {name: versions[name] for name in locked if name in versions} == {
        name: version for name, version in locked.items() if name in versions
    }
    assert versions["python"].startswith("3.11.")


def test_the_image_holds_dracos_own_files_and_not_what_was_built_before_them(image: str) -> None:
    said = inside(image, "python", "-c", "import draco; print(draco.__version__, len(draco.__doc__))")
    assert said == f"{draco.__version__} {len(draco.__doc__)}\n"


def test_the_image_has_no_tools_that_only_building_and_testing_need(image: str, versions: dict[str, str]) -> None:
    unwanted = {"pip", "uv", "cython", "setuptools", "pytest", "mypy", "ruff", "ansible"}
    assert unwanted & versions.keys() == set()
    found = inside(image, "sh", "-c", "for tool in gcc cc make pip uv curl; do command -v $tool; done; true")
    assert found == ""


def test_its_bill_of_materials_lists_all_that_is_installed(image: str, versions: dict[str, str]) -> None:
    bill = json.loads(inside(image, "cat", "/opt/draco/sbom.cdx.json"))
    assert bill["bomFormat"] == "CycloneDX"
    listed = {canonical(c["name"]): c["version"].split("+")[0] for c in bill["components"]}
    assert {"torch", "mpi4py", "openmpi"} <= listed.keys()
    assert listed | {name: versions[name] for name in ("draco", "python")} == versions


def test_its_user_owns_the_runs_and_nothing_of_the_program(image: str) -> None:
    script = (
        "id -u; id -g; pwd; touch runs/x data/x /etc/draco/x && echo mine; touch /opt/draco/x 2> /dev/null || echo not"
    )
    assert inside(image, "sh", "-c", script).split() == ["10001", "10001", "/srv/draco", "mine", "not"]


def test_no_private_key_is_in_the_image(image: str) -> None:
    script = (
        "find / -xdev -name 'ssh_host_*_key*'; find / -xdev -type f -size -64k -print0 |"
        " xargs -0 grep -lE -e '^-----BEGIN ([A-Z]+ )*PRIVATE KEY' || true"
    )
    searched = engine("run", "--rm", "--user", "0", "--entrypoint", "sh", image, "-c", script)
    assert (searched.returncode, searched.stdout) == (0, ""), searched.stderr


def test_two_ranks_exchange_messages_without_capabilities_and_without_complaints(image: str) -> None:
    argv = ("mpirun", "-n", "2", "--map-by", ":OVERSUBSCRIBE", "--bind-to", "none", "python", "-c", RING)
    printed = inside(image, *argv, options=READ_ONLY)
    assert sorted(printed.splitlines()) == ["0 5000000 1 1", "1 5000000 0 0"]


def test_a_job_trains_and_is_evaluated_in_a_container_that_is_read_only(image: str) -> None:
    script = "cat > /tmp/job.yaml && draco train /tmp/job.yaml && draco eval && cat runs/*/state.json"
    volumes = ("-v", "/srv/draco/data", "-v", "/srv/draco/runs")
    argv = ("run", "--rm", "-i", *CONFINED, *READ_ONLY, *volumes, image, "sh", "-c", script)
    ran = engine(*argv, stdin=JOB)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "accuracy" in ran.stdout
    assert "succeeded" in ran.stdout[ran.stdout.rindex("{") :]


@pytest.fixture
def node(image: str) -> Iterator[str]:
    started = engine("run", "-d", *CONFINED, *READ_ONLY, "-v", "/etc/draco", "--health-interval", "1s", image)
    assert started.returncode == 0, started.stderr
    yield started.stdout.strip()
    engine("rm", "-f", "-v", started.stdout.strip())


def health(node: str) -> str:
    return engine("inspect", "--format", "{{.State.Health.Status}}", node).stdout.strip()


def test_a_node_makes_its_own_host_key_and_becomes_healthy(node: str) -> None:
    deadline = time.monotonic() + 60
    while health(node) != "healthy" and time.monotonic() < deadline:
        time.sleep(0.2)
    assert health(node) == "healthy", engine("logs", node).stderr
    key = engine("exec", node, "stat", "-c", "%u %a", "/etc/draco/ssh_host_ed25519_key")
    assert key.stdout == "10001 600\n"
    assert engine("exec", node, "cat", "/proc/1/comm").stdout == "tini\n"
