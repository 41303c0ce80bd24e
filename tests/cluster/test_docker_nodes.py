"""Containers as nodes: one small cluster for most tests, and what needs no engine. DRACO_TEST_IMAGE names an image."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import faults
import pytest

from draco.cluster import docker
from draco.cluster.backend import Cluster, Node, Request
from draco.cluster.engine import explained as engine_explained
from draco.errors import MissingError, RefusedError
from draco.launch.notices import PATH, Notice, parse

IMAGE = os.environ.get("DRACO_TEST_IMAGE", "draco:latest")
NAME = f"test-{os.getpid()}-{os.urandom(3).hex()}"
REQUEST = Request(NAME, workers=2, image=IMAGE)
PRETENDED = Cluster(
    NAME, "docker", (Node("head", "198.19.0.10"), Node("worker-01", "198.19.0.11")), "198.19.0.0/24", "node",
    docker.PYTHON, docker.USER, "2026-01-01T00:00:00+00:00", {"image": IMAGE, "image_id": "sha256:0", "cpus": 1.0},
)  # fmt: skip


def engine(*argv: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["docker", *argv], input=stdin, capture_output=True, check=False, timeout=60)


def lacking() -> str:
    """Say why the tests below cannot run here, or nothing."""
    try:
        if engine("info").returncode:
            return "no Docker Engine answers"
    except FileNotFoundError:
        return "there is no command docker"
    if engine("image", "inspect", IMAGE).returncode:
        return f"{IMAGE}: there is no such image: make image"
    return ""


def left(kind: str) -> list[str]:
    """Return what the engine has with this cluster's label."""
    listed = engine(
        kind, "ls", "-q", *(["-a"] if kind == "container" else []), "--filter", f"label=draco.cluster={NAME}"
    )
    return listed.stdout.decode().split()


def remove_everything() -> None:
    for kind in ("container", "network", "volume"):
        if found := left(kind):
            engine(kind, "rm", *(["-f", "-v"] if kind == "container" else []), *found)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cluster")


@pytest.fixture(scope="module")
def started(folder: Path) -> Iterator[Cluster]:
    if reason := lacking():
        pytest.skip(reason)
    try:
        yield docker.up(REQUEST, folder)
    finally:
        remove_everything()


@pytest.fixture
def cluster(started: Cluster, folder: Path) -> Cluster:
    """Return the cluster, repaired after the test before."""
    return docker.up(REQUEST, folder)


@pytest.fixture
def absent(folder: Path) -> Iterator[None]:
    """No cluster, before and after."""
    if reason := lacking():
        pytest.skip(reason)
    remove_everything()
    yield
    remove_everything()


def inside(cluster: Cluster, folder: Path, node: str, *argv: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        docker.command(cluster, folder, node, argv), input=b"", capture_output=True, check=False, timeout=60
    )


def identities() -> set[str]:
    return set(left("container"))


def reaches(cluster: Cluster, folder: Path, node: str, target: str) -> bool:
    """Say whether a node reaches another one's SSH server."""
    code = f"import socket; socket.create_connection(('{target}', 2222), timeout=2)"
    return inside(cluster, folder, node, docker.PYTHON, "-c", code).returncode == 0


# What needs no engine


def test_a_node_is_confined_and_found_by_its_labels() -> None:
    argv = docker._node_arguments(REQUEST, Node("worker-01", "198.19.0.11"), "sha256:0", 1.5)
    line = " ".join(argv)
    for part in (
        "--read-only",
        "--cap-drop ALL",
        "--security-opt no-new-privileges",
        "--tmpfs /tmp",
        "--pull never",
        "--restart no",
        "--ip 198.19.0.11",
        "--network-alias worker-01",
        "--hostname worker-01",
        "--cpus 1.50",
        f"--label draco.cluster={NAME}",
        "--label draco.node=worker-01",
        f"--name draco-{NAME}-worker-01",
    ):
        assert part in line  # fmt: skip
    assert argv[-1] == "sha256:0"
    assert "--memory" not in argv
    assert "--privileged" not in argv


def test_memory_is_limited_where_that_is_asked_for() -> None:
    argv = docker._node_arguments(REQUEST._replace(memory_mb=512), Node("head", "198.19.0.10"), "sha256:0", 1)
    assert argv[argv.index("--memory") + 1] == "512m"


def test_only_the_head_mounts_the_runs_and_writes_the_data() -> None:
    head, worker = (
        docker._node_arguments(REQUEST, node, "sha256:0", 1) for node in PRETENDED.nodes
    )  # fmt: skip
    assert f"draco-{NAME}-data:/srv/draco/data" in head
    assert f"draco-{NAME}-runs:/srv/draco/runs" in head
    assert f"draco-{NAME}-data:/srv/draco/data:ro" in worker
    assert not any("runs" in part for part in worker)


def test_a_command_runs_in_the_storage_with_or_without_a_terminal(tmp_path: Path) -> None:
    argv = docker.command(PRETENDED, tmp_path, "worker-01", ["ls", "-l"])
    assert argv == ["docker", "exec", "-i", "-w", "/srv/draco", f"draco-{NAME}-worker-01", "ls", "-l"]
    assert docker.command(PRETENDED, tmp_path, "head", ["sh"], terminal=True)[2] == "-it"


def test_ansible_is_told_the_container_and_a_writable_folder(tmp_path: Path) -> None:
    told = docker.connection(PRETENDED, tmp_path, "head")
    assert told["ansible_connection"] == "community.docker.docker"
    assert told["ansible_host"] == f"draco-{NAME}-head"
    assert told["ansible_remote_tmp"].startswith("/tmp/")
    assert "ansible_user" not in told


def test_the_occupancy_names_what_is_shared() -> None:
    assert docker.occupancy(4, 1.0, 2) == "4 nodes x 1 cpu on 2 cores"
    assert docker.occupancy(3, 1.5, 1) == "3 nodes x 1.5 cpus on 1 core"


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("Cannot connect to the Docker daemon at unix:///x. Is the docker daemon running?", "start it"),
        ("permission denied while trying to connect to the Docker daemon socket", "usermod"),
        (
            "WARNING: no swap limit\ndocker: Error response from daemon: No such x\n\nRun 'docker --help'",
            "y: No such x",
        ),
        ("", "y: failed and did not say why"),
    ],
    ids=["no engine", "no right", "one line of many", "silent"],
)
def test_an_engines_words_become_one_line(said: str, told: str) -> None:
    explained = engine_explained("y", said)
    assert told in explained
    assert "\n" not in explained


def test_without_a_client_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingError, match=r"apt-get install docker\.io"):
        docker.up(REQUEST, tmp_path)


def test_too_many_workers_are_refused_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="at most 200"):
        docker.up(REQUEST._replace(workers=201), tmp_path)


# What needs one


def test_a_second_up_changes_nothing(cluster: Cluster, folder: Path) -> None:
    before = identities()
    assert docker.up(REQUEST, folder) == cluster
    assert identities() == before
    assert len(before) == 3
    assert cluster.head.address.rsplit(".", 1)[0] + ".0/24" == cluster.subnet


def test_nodes_reach_each_other_by_name_and_address(cluster: Cluster, folder: Path) -> None:
    assert reaches(cluster, folder, "head", "worker-02")
    assert reaches(cluster, folder, "worker-01", cluster.head.address)


def test_a_command_keeps_its_exit_code_its_user_and_its_folder(cluster: Cluster, folder: Path) -> None:
    ran = inside(cluster, folder, "worker-01", "sh", "-c", "id -un; pwd; uname -n; exit 7")
    assert (ran.returncode, ran.stdout.split()) == (7, [b"draco", b"/srv/draco", b"worker-01"])


def test_a_worker_reads_the_data_and_cannot_write_it(cluster: Cluster, folder: Path) -> None:
    assert inside(cluster, folder, "head", "sh", "-c", "echo real > data/images").returncode == 0
    assert inside(cluster, folder, "worker-01", "cat", "data/images").stdout == b"real\n"
    refused = inside(cluster, folder, "worker-01", "sh", "-c", "echo lie > data/images")
    assert refused.returncode
    assert b"Read-only file system" in refused.stderr


def test_a_worker_sees_no_runs_and_cannot_make_any(cluster: Cluster, folder: Path) -> None:
    assert inside(cluster, folder, "head", "sh", "-c", "mkdir -p runs/a && touch runs/a/secret").returncode == 0
    assert inside(cluster, folder, "worker-01", "ls", "runs/a/secret").returncode
    assert b"Read-only file system" in inside(cluster, folder, "worker-01", "mkdir", "-p", "runs/a").stderr


def test_a_node_writes_nowhere_but_where_it_must(cluster: Cluster, folder: Path) -> None:
    writable = "for p in / /opt/draco /home/draco /srv/draco /tmp /etc/draco /dev/shm; do test -w $p && echo $p; done"
    ran = inside(cluster, folder, "worker-01", "sh", "-c", writable)
    assert ran.stdout.split() == [b"/tmp", b"/etc/draco", b"/dev/shm"]


def test_a_notice_is_there_to_be_read_until_the_node_is_a_fresh_one(cluster: Cluster, folder: Path) -> None:
    notice = Notice("interruption", "2026-01-02T03:04:05Z")
    docker.announce(cluster, folder, "worker-01", "something else")
    docker.announce(cluster, folder, "worker-01", notice.text())
    assert parse(inside(cluster, folder, "worker-01", "cat", PATH).stdout) == notice
    for change in (f"echo > {PATH}", f"rm {PATH}", f"echo > {PATH}.new"):  # whoever runs ranks there
        assert inside(cluster, folder, "worker-01", "sh", "-c", change).returncode != 0
    assert inside(cluster, folder, "worker-02", "ls", PATH).returncode != 0
    faults.kill(cluster, folder, "worker-01")
    docker.up(REQUEST, folder)
    assert inside(cluster, folder, "worker-01", "ls", PATH).returncode != 0


def test_a_paused_node_is_paused_until_it_is_resumed(cluster: Cluster, folder: Path) -> None:
    faults.pause(cluster, folder, "worker-01")
    assert docker.states(cluster, folder) == {"head": "running", "worker-01": "paused", "worker-02": "running"}
    for _ in range(2):
        faults.resume(cluster, folder, "worker-01")
    assert docker.states(cluster, folder)["worker-01"] == "running"


def test_a_cut_node_is_unreachable_and_lives_until_it_is_healed(cluster: Cluster, folder: Path) -> None:
    address = cluster.workers[0].address
    faults.cut(cluster, folder, "worker-01")
    assert docker.states(cluster, folder)["worker-01"] == "unreachable"
    assert not reaches(cluster, folder, "head", address)
    assert inside(cluster, folder, "worker-01", "true").returncode == 0
    for _ in range(2):
        faults.heal(cluster, folder, "worker-01")
    assert docker.states(cluster, folder)["worker-01"] == "running"
    assert any(reaches(cluster, folder, "head", address) for _ in range(10))  # its neighbours must notice first
    assert reaches(cluster, folder, "head", "worker-01")


def test_a_killed_node_comes_back_with_its_address_and_host_key(cluster: Cluster, folder: Path) -> None:
    before = identities()
    key = inside(cluster, folder, "worker-02", "cat", "/etc/draco/ssh_host_ed25519_key.pub").stdout
    faults.kill(cluster, folder, "worker-02")
    assert docker.states(cluster, folder)["worker-02"] == "stopped"
    assert docker.up(REQUEST, folder).nodes == cluster.nodes
    assert inside(cluster, folder, "worker-02", "cat", "/etc/draco/ssh_host_ed25519_key.pub").stdout == key != b""
    assert reaches(cluster, folder, "head", cluster.workers[1].address)
    assert identities() == before


def test_up_repairs_paused_cut_and_removed_nodes_at_once(cluster: Cluster, folder: Path) -> None:
    faults.pause(cluster, folder, "head")
    faults.cut(cluster, folder, "worker-01")
    faults.kill(cluster, folder, "worker-01")
    engine("rm", "-f", "-v", f"draco-{NAME}-worker-02")
    assert docker.states(cluster, folder) == {"head": "paused", "worker-01": "stopped", "worker-02": "missing"}
    assert docker.up(REQUEST, folder).nodes == cluster.nodes
    assert set(docker.states(cluster, folder).values()) == {"running"}
    assert all(reaches(cluster, folder, "head", node.address) for node in cluster.workers)


def test_the_runs_can_be_read_when_the_head_is_dead(cluster: Cluster, folder: Path) -> None:
    assert inside(cluster, folder, "head", "sh", "-c", "echo here > runs/note").returncode == 0
    faults.kill(cluster, folder, "head")
    argv = docker.storage_command(cluster, folder, ["sh", "-c", "cat runs/note; id -un; touch runs/mine; exit 5"])
    assert argv is not None
    ran = subprocess.run(argv, input=b"", capture_output=True, check=False, timeout=60)
    assert (ran.returncode, ran.stdout.split()) == (5, [b"here", b"draco"])


def test_every_node_runs_the_image_that_was_asked_for(cluster: Cluster, folder: Path) -> None:
    image = json.loads(engine("image", "inspect", IMAGE).stdout)[0]["Id"]
    assert docker.images(cluster, folder) == {node.name: image for node in cluster.nodes}
    assert cluster.details["image_id"] == image


def test_more_workers_are_added_and_fewer_are_refused(cluster: Cluster, folder: Path) -> None:
    before = identities()
    more = docker.up(REQUEST._replace(workers=3), folder)
    try:
        assert more.nodes[:3] == cluster.nodes
        assert before < identities()
        with pytest.raises(RefusedError, match=r"has 3 worker nodes, and WORKERS=2 is fewer; make cluster-down first"):
            docker.up(REQUEST, folder)
    finally:
        engine("rm", "-f", "-v", f"draco-{NAME}-worker-03")


def test_another_image_is_refused_while_nodes_run_with_the_old_one(cluster: Cluster, folder: Path) -> None:
    other = f"draco-{NAME}:other"
    empty = b"\0" * 10240  # an archive without a file
    assert engine("import", "-", other, stdin=empty).returncode == 0
    try:
        with pytest.raises(RefusedError, match=r"worker-01: runs with another image .* make cluster-down first"):
            docker.up(REQUEST._replace(image=other), folder)
        with pytest.raises(RefusedError, match="another memory"):
            docker.up(REQUEST._replace(memory_mb=64), folder)
    finally:
        engine("image", "rm", other)
    assert set(docker.states(cluster, folder).values()) == {"running"}


def test_an_image_that_is_not_there_says_how_to_make_it(cluster: Cluster, folder: Path) -> None:
    with pytest.raises(MissingError, match=r"draco-nowhere:1: there is no such image: make image"):
        docker.up(REQUEST._replace(image="draco-nowhere:1"), folder)


def test_faults_of_a_node_that_is_not_there_are_named(cluster: Cluster, folder: Path) -> None:
    with pytest.raises(MissingError, match=r"worker-09: docker kill: .*[Nn]o such container"):
        faults.kill(cluster, folder, "worker-09")


def test_down_leaves_the_storage_and_purge_takes_it(absent: None, folder: Path) -> None:
    cluster = docker.up(REQUEST, folder)
    assert inside(cluster, folder, "head", "touch", "runs/kept").returncode == 0
    mounts = [
        mount for container in json.loads(engine("inspect", *left("container")).stdout) for mount in container["Mounts"]
    ]
    keys = [mount["Name"] for mount in mounts if mount["Destination"] == "/etc/draco"]
    with pytest.raises(RefusedError, match="make cluster-down first"):
        docker.purge(NAME, folder)
    faults.pause(cluster, folder, "worker-01")
    faults.cut(cluster, folder, "worker-02")
    for _ in range(2):
        docker.down(cluster, folder)
        assert (left("container"), left("network")) == ([], [])
    assert set(left("volume")) == {f"draco-{NAME}-data", f"draco-{NAME}-runs"}
    assert len(keys) == 3
    assert not set(keys) & set(engine("volume", "ls", "-q").stdout.decode().split())
    assert set(docker.states(cluster, folder).values()) == {"missing"}

    again = docker.up(REQUEST, folder)
    assert inside(again, folder, "head", "ls", "runs").stdout == b"kept\n"
    docker.down(again, folder)
    for _ in range(2):
        docker.purge(NAME, folder)
        assert left("volume") == []
    assert docker.storage_command(cluster, folder, ["true"]) is None
