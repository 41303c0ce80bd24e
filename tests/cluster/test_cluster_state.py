"""The state that is kept of a cluster, what Ansible is told and says of it, and how machines are reached by ssh."""

import inspect
import ipaddress
import json
import os
import shlex
import stat
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from draco.cluster import configure, docker, lifecycle, netns, ssh, state
from draco.cluster import engine as docker_engine
from draco.cluster.backend import KINDS, Backend, Cluster, Node, Paid, Request, State, named, names
from draco.cluster.inventory import inventory
from draco.errors import MissingError, NotConfiguredError, RefusedError
from draco.runs import directory as run_directory


def cluster(name: str = "dev", backend: str = "netns", workers: int = 2) -> Cluster:
    nodes = tuple(Node(node, f"10.0.0.{10 + i}") for i, node in enumerate(names(workers)))
    return Cluster(
        name, backend, nodes, "10.0.0.0/24", "host", "/opt/python", "root", "2026-01-01T00:00:00+00:00",
        {"bridge": "br0", "cpus": 1.5},
    )  # fmt: skip


# State


def test_a_cluster_is_loaded_as_it_was_saved_until_it_is_forgotten(tmp_path: Path) -> None:
    assert state.load("dev", tmp_path) is None
    state.save(cluster(), tmp_path)
    assert state.load("dev", tmp_path) == cluster()
    assert state.names(tmp_path) == ["dev"]
    (state.folder("dev", tmp_path) / "key").write_text("secret")
    state.forget("dev", tmp_path)
    assert state.load("dev", tmp_path) is None
    assert list(tmp_path.iterdir()) == []
    state.forget("dev", tmp_path)  # nothing is left to forget


def test_of_which_kinds_a_cluster_was_is_known_until_nothing_is_left_of_any(tmp_path: Path) -> None:
    root = tmp_path / "kept"
    assert state.kinds("dev", root) == []
    state.note_kinds("dev", ["docker", "netns"], root)
    state.note_kinds("other", ["ssh"], root)
    assert (state.kinds("dev", root), state.kinds("other", root)) == (["docker", "netns"], ["ssh"])
    state.save(cluster(), root)
    state.forget("dev", root)  # its nodes; its storage is there
    assert state.kinds("dev", root) == ["docker", "netns"]
    assert state.names(root) == []
    state.note_kinds("dev", [], root)
    assert state.kinds("dev", root) == []
    assert [path.name for path in root.iterdir()] == ["other.kinds"]


def test_a_clusters_folder_is_its_owners_alone(tmp_path: Path) -> None:
    state.save(cluster(), tmp_path / "kept")
    assert stat.S_IMODE((tmp_path / "kept" / "dev").stat().st_mode) == 0o700


def test_a_folder_without_a_cluster_is_none_that_is_up(tmp_path: Path) -> None:
    state.folder("half", tmp_path)
    state.save(cluster("b"), tmp_path)
    state.save(cluster("a"), tmp_path)
    assert state.names(tmp_path) == ["a", "b"]
    assert state.names(tmp_path / "nowhere") == []


def test_the_only_cluster_need_not_be_named(tmp_path: Path) -> None:
    state.save(cluster("a"), tmp_path)
    assert state.chosen(None, tmp_path).name == state.chosen("a", tmp_path).name == "a"


def test_a_cluster_that_is_not_up_is_missed_by_name(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"^no cluster is up; make cluster-up starts one$"):
        state.chosen(None, tmp_path)
    with pytest.raises(MissingError, match=r"^no cluster b is up; make cluster-up starts one$"):
        state.chosen("b", tmp_path)
    state.save(cluster("a"), tmp_path)
    with pytest.raises(MissingError, match=r"^no cluster b is up; up are: a; make cluster-up starts one$"):
        state.chosen("b", tmp_path)


def test_several_clusters_have_to_be_told_apart(tmp_path: Path) -> None:
    state.save(cluster("b"), tmp_path)
    state.save(cluster("a"), tmp_path)
    with pytest.raises(RefusedError, match="clusters a, b are up: say which by NAME=a"):
        state.chosen(None, tmp_path)
    assert state.chosen("b", tmp_path) == cluster("b")


@pytest.mark.parametrize("name", ["..", "../jobs", "", "a/b", "."])
def test_a_name_stays_within_the_folder_of_clusters(tmp_path: Path, name: str) -> None:
    root = tmp_path / "project" / ".clusters"
    for folder in (root, root / "a/b", root.parent / "jobs", root.parent):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "precious").write_text("")
    before = sorted(tmp_path.rglob("*"))
    for does in (state.forget, state.kinds, lambda name, root: state.note_kinds(name, ["netns"], root)):
        with pytest.raises((RefusedError, MissingError)):
            does(name, root)
    assert sorted(tmp_path.rglob("*")) == before
    assert len(list(tmp_path.rglob("precious"))) == 4


# The inventory


def connections(of: Cluster) -> dict[str, dict[str, Any]]:
    return {node.name: {"ansible_host": f"at-{node.name}"} for node in of.nodes}


def test_an_inventory_has_a_head_workers_in_rank_order_and_what_they_share() -> None:
    given = cluster(workers=3)
    made = inventory(given, connections(given))["all"]
    head, workers = (made["children"][group]["hosts"] for group in ("head", "workers"))
    assert head == {"head": {"ansible_host": "at-head", "draco_address": "10.0.0.10"}}
    assert list(workers) == ["worker-01", "worker-02", "worker-03"]
    assert workers["worker-02"] == {"ansible_host": "at-worker-02", "draco_address": "10.0.0.12"}
    assert made["vars"] == {
        "draco_cluster": "dev", "draco_subnet": "10.0.0.0/24", "draco_runtime": "host", "draco_python": "/opt/python",
        "draco_user": "root", "draco_ssh_port": 2222, "storage_kind": "given",
    }  # fmt: skip


def test_storage_of_somebodys_own_machines_is_on_their_own_disks() -> None:
    given = cluster(backend="ssh")
    assert inventory(given, connections(given))["all"]["vars"]["storage_kind"] == "local"


def test_rank_order_survives_the_way_to_ansible_and_back(tmp_path: Path) -> None:
    given = cluster(workers=2)._replace(
        nodes=(Node("head", "10.0.0.1"), Node("zeta", "10.0.0.2"), Node("alpha", "10.0.0.3"))
    )
    path = tmp_path / "inventory.yml"
    configure.write_inventory(inventory(given, connections(given)), path)
    text = path.read_text()
    assert text.index("zeta:") < text.index("alpha:")
    from ruamel.yaml import YAML

    assert YAML(typ="safe", pure=True).load(text) == inventory(given, connections(given))


# What Ansible says. The lines are those of ansible-core 2.19 with results as JSON.

FAILED_ASSERT = r"""
TASK [Ignored one] *************************************************************
ok: [a]

TASK [trust : Say a thing with ümlauts] ****************************************
[ERROR]: Task failed: Action failed: grün: it's "off"; C:\temp
second line
Origin: /x/p.yml:9:7

fatal: [a]: FAILED! => {"assertion": false, "changed": false, "evaluated_to": false, "msg": "grün: it's \"off\"; C:\\temp\nsecond line"}
"""  # noqa: E501
FAILED_RAW = r"""
TASK [Run something] ***********************************************************
fatal: [b]: FAILED! => {"changed": true, "msg": "non-zero return code", "rc": 3, "stderr": "why\n", "stderr_lines": ["why"], "stdout": "out\n", "stdout_lines": ["out"]}
"""  # noqa: E501
FAILED_LOOP = r"""
RUNNING HANDLER [node_agent : Reload MPI's sshd] *******************************
failed: [c] (item=x) => {"ansible_loop_var": "item", "changed": false, "item": "x", "module_stderr": "no", "msg": "it has no python", "rc": 127}
failed: [c] (item=y) => {"ansible_loop_var": "item", "changed": false, "item": "y", "msg": "nor here", "rc": 127}
"""  # noqa: E501
UNREACHABLE = r"""
TASK [Reach] *******************************************************************
fatal: [e]: UNREACHABLE! => {"changed": false, "msg": "Task failed: Failed to connect to the host via ssh: ssh: connect to host 10.0.0.9 port 22: Connection refused", "unreachable": true}
"""  # noqa: E501
IGNORED = r"""
TASK [Ignored one] *************************************************************
fatal: [a]: FAILED! => {"changed": false, "msg": "never mind"}
...ignoring

TASK [The one] *****************************************************************
fatal: [b]: FAILED! => {"changed": false, "msg": "this one"}
"""
RECAP = """
PLAY RECAP *********************************************************************
head                       : ok=18   changed=2    unreachable=0    failed=0    skipped=5    rescued=0    ignored=0   
worker-01                  : ok=12   changed=11   unreachable=0    failed=0    skipped=5    rescued=0    ignored=0   
"""  # noqa: W291


@pytest.mark.parametrize(
    ("said", "faults"),
    [
        (
            FAILED_ASSERT,
            [r"""a: trust : Say a thing with ümlauts: grün: it's "off"; C:\temp second line"""],
        ),
        (
            FAILED_LOOP,
            [
                "c: node_agent : Reload MPI's sshd: it has no python",
                "c: node_agent : Reload MPI's sshd: nor here",
            ],
        ),
        (
            UNREACHABLE,
            [
                "e: Reach: Task failed: Failed to connect to the host via ssh: ssh: connect to host 10.0.0.9 port 22: "
                "Connection refused"
            ],
        ),
        (IGNORED, ["b: The one: this one"]),
        ("\nERROR! the playbook could not be found\n", ["ERROR! the playbook could not be found"]),
    ],
    ids=["assertion", "loop", "unreachable", "ignored", "no task at all"],
)
def test_a_failed_play_is_told_as_node_task_and_reason(said: str, faults: list[str]) -> None:
    assert configure._faults(said.strip().splitlines()) == "\n".join(faults)


def test_a_failed_command_is_told_with_what_it_printed() -> None:
    told = configure._faults(FAILED_RAW.strip().splitlines())
    assert told.startswith("b: Run something: ")
    assert "why" in told


def test_a_failure_that_is_no_json_is_told_in_part() -> None:
    told = configure._faults(["TASK [x] ***", "fatal: [a]: FAILED! => " + "y" * 1000])
    assert told == f"a: x: {'y' * 300}"


class Ansible:
    """A stand-in that prints what it is told to and notes how it was called."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        monkeypatch.setattr(configure, "_tool", lambda name: folder / name)

    def says(self, text: str, code: int = 0) -> None:
        (self.folder / "said").write_text(text)
        tool = self.folder / "ansible-playbook"
        tool.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {self.folder}/called\ncat {self.folder}/said\nexit {code}\n')
        tool.chmod(0o755)

    def play(self, **variables: str) -> tuple[int, list[str]]:
        told: list[str] = []
        changed = configure.play(
            "site.yml", self.folder / "inventory.yml", self.folder / "log", told.append, variables
        )  # fmt: skip
        return changed, told


@pytest.fixture
def ansible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ansible:
    return Ansible(tmp_path, monkeypatch)


def test_a_play_tells_its_tasks_counts_its_changes_and_keeps_a_log(ansible: Ansible) -> None:
    ansible.says("TASK [base : Look] ****\nok: [head]\nRUNNING HANDLER [Reload] ****\n" + RECAP)
    variables = {"image_name": "draco:x", "image_archive": '/it\'s a=b/ "c".tar', "image_id": "0123"}
    assert ansible.play(**variables) == (13, ["base : Look", "Reload"])
    called = (ansible.folder / "called").read_text().splitlines()
    assert called.count("--extra-vars") == 1
    assert json.loads(called[called.index("--extra-vars") + 1]) == variables
    assert called[called.index("--inventory") + 1].endswith("inventory.yml")
    assert "ok: [head]" in (ansible.folder / "log").read_text()


def test_a_failed_play_is_an_error_with_the_way_to_its_log(ansible: Ansible) -> None:
    ansible.says(FAILED_LOOP + RECAP, code=2)
    with pytest.raises(NotConfiguredError, match=r"it has no python\n.*\nall of it: .*/log; make cluster-up again is"):
        ansible.play()


def test_without_ansible_the_error_says_what_to_install(ansible: Ansible) -> None:
    with pytest.raises(MissingError, match="make setup EXTRAS=cluster"):
        configure.require()
    ansible.says("")
    configure.require()


def test_an_installed_copy_has_no_playbooks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(configure, "PLAYS", tmp_path / "ansible")
    with pytest.raises(MissingError, match="draco cluster: the playbooks are in the repository: run it in a checkout"):
        configure.require()


# ssh


def test_an_ssh_config_holds_every_host_and_demands_known_keys(tmp_path: Path) -> None:
    path = ssh.write_config(tmp_path, {"head": {"User": "me", "HostName": "a"}, "worker-01": {"HostName": "b"}})
    assert path == tmp_path / "ssh_config"
    text = path.read_text()
    assert text.startswith("Host head\n  User me\n  HostName a\n\nHost worker-01\n  HostName b\n\nHost *\n")
    for line in ("BatchMode yes", "StrictHostKeyChecking yes", "PasswordAuthentication no", "ForwardAgent no"):
        assert f"\n  {line}\n" in text


def test_ssh_itself_reads_the_config_as_it_is_meant(tmp_path: Path) -> None:
    path = ssh.write_config(tmp_path, {"head": {"HostName": "10.0.0.1", "Port": "2200"}})
    try:
        made = subprocess.run(["ssh", "-G", "-F", str(path), "head"], capture_output=True, text=True, check=True)
    except FileNotFoundError:
        pytest.skip("there is no ssh")
    options = dict(line.split(" ", 1) for line in made.stdout.splitlines() if " " in line)
    assert (options["hostname"], options["port"]) == ("10.0.0.1", "2200")
    assert options["stricthostkeychecking"] in ("yes", "true")


def test_words_keep_their_spaces_and_quotes_over_ssh(tmp_path: Path) -> None:
    words = ["sh", "-c", 'echo "it\'s $HOME" && exit', "", "a b"]
    *command, line = ssh.over_ssh(tmp_path, "head", words, terminal=False)
    assert command == ["ssh", "-F", f"{tmp_path}/ssh_config", "-T", "head", "--"]
    assert shlex.split(line) == words
    assert ssh.over_ssh(tmp_path, "head", words, terminal=True)[3] == "-t"


def test_ansible_reaches_a_host_by_the_same_config(tmp_path: Path) -> None:
    told = ssh.ansible_variables(tmp_path / "a b", "head")
    assert shlex.split(told["ansible_ssh_common_args"]) == ["-F", f"{tmp_path}/a b/ssh_config"]
    assert told["ansible_host"] == "head"


@pytest.mark.parametrize(
    ("addresses", "subnet"),
    [
        (["10.0.0.1", "10.0.0.2"], "10.0.0.0/30"),
        (["10.0.0.10", "10.0.0.13", "10.0.0.11"], "10.0.0.8/29"),
        (["10.0.0.255", "10.0.1.0"], "10.0.0.0/23"),
        (["10.0.0.7"], "10.0.0.6/31"),
        (["192.168.1.1", "192.168.129.1"], "192.168.0.0/16"),
    ],
)
def test_a_subnet_is_the_smallest_that_holds_all_addresses(addresses: list[str], subnet: str) -> None:
    assert ssh._subnet(addresses) == subnet


class Machines:
    """Somebody's inventory, as ansible-inventory lists it, and which of its hosts answer."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.answers, self.torch = folder, True, "cpu"
        self.listed: dict[str, Any] = {}
        self.saved: list[tuple[str, Path]] = []
        monkeypatch.setattr(ssh, "_listed", lambda path: self.listed)
        monkeypatch.setattr(ssh, "probed", self.probed)
        monkeypatch.setattr(ssh, "_archive", self.archive)
        monkeypatch.setattr(ssh, "counted", lambda folder, nodes, told: {n.name: told.get(n.name, 2) for n in nodes})
        monkeypatch.setattr(docker_engine, "torch_build", lambda image: self.torch)

    def probed(self, folder: Path, nodes: tuple[Node, ...]) -> dict[str, State]:
        return {node.name: "running" if self.answers or node.name == "head" else "unreachable" for node in nodes}

    def archive(self, image: str, folder: Path) -> dict[str, str]:
        self.saved.append((image, folder))
        return {"image_name": image, "image_id": "sha256:aa", "image_archive": "/image-aa.tar"}

    def up(self, head: list[str], workers: list[str], **hosts: Mapping[str, Any]) -> Cluster:
        given = {host: {"ansible_host": f"10.0.0.{i}"} for i, host in enumerate([*head, *workers], start=1)}
        self.listed = {
            "_meta": {"hostvars": {host: {**values, **hosts.get(host, {})} for host, values in given.items()}},
            **{group: {"hosts": names} for group, names in (("head", head), ("workers", workers)) if names},
        }
        return ssh.up(Request("lab", inventory=Path("hosts.yml"), image="draco:x"), self.folder)


@pytest.fixture
def machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machines:
    return Machines(tmp_path, monkeypatch)


def test_somebodys_machines_become_a_cluster_in_their_order(machines: Machines) -> None:
    made = machines.up(
        ["big"], ["z", "a"],
        big={"ansible_user": "me", "ansible_port": 2200, "ansible_ssh_private_key_file": "k", "draco_cores": 8},
        a={"draco_address": "10.9.0.2"}, z={"draco_address": "10.9.0.3"},
    )  # fmt: skip
    assert made.nodes == (Node("head", "10.0.0.1"), Node("z", "10.9.0.3"), Node("a", "10.9.0.2"))
    assert (made.backend, made.runtime, made.python, made.user) == (
        "ssh",
        "container",
        "/opt/draco/bin/python",
        "draco",
    )
    text = (machines.folder / "ssh_config").read_text()
    assert "Host head\n  User me\n  Port 2200\n  IdentityFile k\n  HostName 10.0.0.1\n" in text
    image = {"image_name": "draco:x", "image_id": "sha256:aa", "image_archive": "/image-aa.tar"}
    assert {key: value for key, value in made.details.items() if key != "variables"} == {
        "image": "draco:x", "inventory": str(Path("hosts.yml").resolve()), **image,
        "gpus": {"head": 0, "z": 0, "a": 0},
    }  # fmt: skip
    assert machines.saved == [("draco:x", machines.folder)]
    assert lifecycle._variables(made) == image  # what the play is told
    told = ssh.connection(made, machines.folder, "head")
    assert (told["draco_cores"], told["ansible_host"]) == (8, "head")
    assert "ansible_ssh_private_key_file" not in told
    assert json.loads(json.dumps(made.details)) == made.details  # as it is kept


def test_gpus_of_somebodys_machines_are_counted_where_ranks_can_use_them(machines: Machines) -> None:
    assert machines.up(["h"], ["w"]).details["gpus"] == {"head": 0, "w": 0}
    machines.torch = "cuda"
    assert machines.up(["h"], ["w"]).details["gpus"] == {"head": 2, "w": 2}
    machines.torch = "cpu"
    on_hosts = {"draco_runtime": "host"}
    assert machines.up(["h"], ["w"], h=on_hosts, w=on_hosts).details["gpus"] == {"head": 2, "w": 2}


def test_what_all_machines_share_is_taken_from_their_variables(machines: Machines) -> None:
    shared = {"draco_runtime": "host", "draco_python": "/p", "draco_user": "u", "draco_subnet": "10.0.0.0/8"}
    made = machines.up(["h"], ["w"], h=shared, w=shared)
    assert (made.runtime, made.python, made.user, made.subnet) == ("host", "/p", "u", "10.0.0.0/8")
    assert ssh.images(made, machines.folder) == {}
    assert machines.saved == []
    assert set(made.details) == {"variables", "inventory", "gpus"}


class Engine:
    """A Docker Engine with one image, whose `docker save` may fail half-way."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.digits, self.fails = "ab" * 32, False
        self.saved: list[str] = []
        monkeypatch.setattr(docker_engine, "image_id", lambda image: f"sha256:{self.digits}")
        monkeypatch.setattr(docker_engine.subprocess, "run", self.run)

    def run(self, argv: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        *command, path, image = argv
        assert command == ["docker", "save", "--output"]
        Path(path).write_text(self.digits[: 7 if self.fails else 64])
        self.saved.append(image)
        said = "Error response from daemon: no space left on device\n" if self.fails else ""
        return subprocess.CompletedProcess(argv, int(self.fails), "", said)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    return Engine(monkeypatch)


def test_an_image_is_saved_once_beside_the_clusters_keys(tmp_path: Path, monkeypatch, engine: Engine) -> None:
    monkeypatch.chdir(tmp_path)
    Path("lab").mkdir()
    told = ssh._archive("draco:x", Path("lab"))
    archive = tmp_path.resolve() / "lab" / "image-abababababab.tar"
    assert told == {"image_name": "draco:x", "image_id": f"sha256:{'ab' * 32}", "image_archive": str(archive)}
    assert archive.read_text() == engine.digits
    assert ssh._archive("draco:x", Path("lab")) == told
    assert engine.saved == ["draco:x"]


def test_another_image_takes_the_place_of_the_one_that_was_saved(tmp_path: Path, engine: Engine) -> None:
    (tmp_path / "key").write_text("secret")
    ssh._archive("draco:x", tmp_path)
    engine.digits = "cd" * 32
    told = ssh._archive("draco:x", tmp_path)
    assert (told["image_id"], Path(told["image_archive"]).read_text()) == (f"sha256:{engine.digits}", engine.digits)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["image-cdcdcdcdcdcd.tar", "key"]


def test_an_image_that_was_saved_in_part_is_saved_again(tmp_path: Path, engine: Engine) -> None:
    engine.fails = True
    with pytest.raises(MissingError, match=r"/image-abababababab\.tar\.part: docker save: no space left on device$"):
        ssh._archive("draco:x", tmp_path)
    assert not list(tmp_path.glob("*.tar"))
    engine.fails = False
    told = ssh._archive("draco:x", tmp_path)
    assert Path(told["image_archive"]).read_text() == engine.digits
    assert [path.name for path in tmp_path.iterdir()] == ["image-abababababab.tar"]


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("Error response from daemon: No such image: draco:x\n", "draco:x: there is no such image: make image"),
        ("Cannot connect to the Docker daemon at unix:///var/run/docker.sock.\n", "no Docker Engine answers: start it"),
        ("permission denied while trying to connect to the Docker daemon socket\n", "this user may not use the Docker"),
        ("Error response from daemon: disk on fire\n", "docker image inspect draco:x: disk on fire"),
    ],
    ids=["no image", "no engine", "no right", "anything else"],
)
def test_an_image_is_missed_only_where_the_engine_says_so(
    monkeypatch: pytest.MonkeyPatch, said: str, told: str
) -> None:
    made = subprocess.CompletedProcess([], 1, "", said)
    monkeypatch.setattr(docker_engine.subprocess, "run", lambda *_, **__: made)
    with pytest.raises(MissingError) as missing:
        docker_engine.image_id("draco:x")
    assert str(missing.value).startswith(told)
    assert ("make image" in str(missing.value)) == ("make image" in told)


def test_the_memory_that_containers_may_use_is_kept_with_their_cluster(tmp_path: Path, monkeypatch) -> None:
    for module, values in (
        (docker_engine, {"cores": 4, "image_id": "sha256:0", "told": {}, "torch_build": "cpu"}),
        (docker, {
            "_containers": {}, "_bring_up": None, "_make_volumes": None,
            "_subnet": ipaddress.IPv4Network("198.19.0.0/24"), "_created": "2026-01-01T00:00:00+00:00",
        }),
    ):  # fmt: skip
        for name, value in values.items():
            monkeypatch.setattr(module, name, lambda *_, value=value: value)
    made = docker.up(Request("dev", workers=1, image="draco:x", memory_mb=512), tmp_path)
    assert json.loads(json.dumps(made.details)) == {
        "image": "draco:x", "image_id": "sha256:0", "cpus": 2.0, "cores": 4, "memory_mb": 512,
        "gpus": {"head": 0, "worker-01": 0},
    }  # fmt: skip


def test_fewer_workers_than_there_are_namespaces_of_are_refused(tmp_path: Path, monkeypatch) -> None:
    def goes_on(folder: Path) -> Path:
        raise MissingError("it went on")

    monkeypatch.setattr(netns, "_require_tools", lambda: None)
    monkeypatch.setattr(netns, "_storage", goes_on)
    for node in names(2):
        (tmp_path / f"{node}.pid").write_text(f"{os.getpid()} {run_directory.process_start(os.getpid())}")
    before = {path.name: path.read_text() for path in tmp_path.iterdir()}
    fewer = r"^dev: has 2 worker nodes, and WORKERS=1 is fewer; make cluster-down first; runs and data stay$"
    with pytest.raises(RefusedError, match=fewer):
        netns.up(Request("dev", workers=1), tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == before
    for workers in (2, 3):
        with pytest.raises(MissingError, match="it went on"):
            netns.up(Request("dev", workers=workers), tmp_path)


def test_without_an_inventory_the_error_says_what_is_needed(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"CLUSTER=ssh needs INVENTORY=hosts\.yml"):
        ssh.up(Request("lab"), tmp_path)


@pytest.mark.parametrize(
    ("head", "workers", "faults"),
    [
        ([], ["w"], ["hosts.yml: group head has 0 hosts; it must have exactly one"]),
        (["a", "b"], ["w"], ["hosts.yml: group head has 2 hosts; it must have exactly one"]),
        (["a"], [], ["hosts.yml: group workers has no host; it needs one or more"]),
        (
            [], [],
            [
                "hosts.yml: group head has 0 hosts; it must have exactly one",
                "hosts.yml: group workers has no host; it needs one or more",
            ],
        ),
        (["a"], ["a", "b"], None),
        (["a"], ["head"], None),
    ],
)  # fmt: skip
def test_an_inventory_that_is_no_cluster_is_refused(machines: Machines, head, workers, faults) -> None:
    with pytest.raises(RefusedError) as refused:
        machines.up(head, workers)
    assert faults is None or str(refused.value).splitlines() == faults


def test_values_that_must_be_shared_and_are_not_are_refused(machines: Machines) -> None:
    with pytest.raises(RefusedError, match=r"draco_user: hosts differ: u, v; it must be the same for all"):
        machines.up(["h"], ["w"], h={"draco_user": "u"}, w={"draco_user": "v"})


def test_a_runtime_that_is_not_known_is_refused(machines: Machines) -> None:
    with pytest.raises(RefusedError, match="draco_runtime"):
        machines.up(["h"], ["w"], h={"draco_runtime": "hots"}, w={"draco_runtime": "hots"})


def test_an_address_that_is_none_is_told_with_its_host(machines: Machines) -> None:
    with pytest.raises((MissingError, RefusedError), match="draco_address"):
        machines.up(["h"], ["w"], w={"draco_address": "w.example"})


def test_machines_that_do_not_answer_are_all_named(machines: Machines) -> None:
    machines.answers = False
    with pytest.raises(MissingError) as missing:
        machines.up(["h"], ["w", "v"])
    assert [line.split(":")[0] for line in str(missing.value).splitlines()] == ["w", "v"]


def lists(monkeypatch: pytest.MonkeyPatch, code: int, output: str, errors: str) -> None:
    """Let ansible-inventory say that."""
    made = subprocess.CompletedProcess([], code, output, errors)
    monkeypatch.setattr(ssh.subprocess, "run", lambda *_, **__: made)


def test_a_file_that_is_no_inventory_is_refused_with_ansibles_reason(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "hosts.yml").write_text("")
    lists(monkeypatch, 1, "", "[WARNING]: x\n[ERROR]: it has no colon\n")
    with pytest.raises(RefusedError, match=r"hosts\.yml: is not an Ansible inventory: \[ERROR\]: it has no colon"):
        ssh._listed(tmp_path / "hosts.yml")
    lists(monkeypatch, 0, '{"_meta": {}}', "")
    assert ssh._listed(tmp_path / "hosts.yml") == {"_meta": {}}


def test_a_file_that_is_not_there_is_named_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lists(monkeypatch, 0, "{}", "[WARNING]: No inventory was parsed, only implicit localhost is available\n")
    with pytest.raises((MissingError, RefusedError), match=r"none\.yml: .*no such file"):
        ssh._listed(tmp_path / "none.yml")


def test_a_command_runs_in_the_storage_in_the_container_where_there_is_one(tmp_path: Path) -> None:
    on_host = cluster(backend="ssh")
    line = ssh.command(on_host, tmp_path, "head", ["ls", "a b"])[-1]
    assert shlex.split(line) == ["env", "--chdir=/srv/draco", "ls", "a b"]
    inside = ssh.command(on_host._replace(runtime="container"), tmp_path, "head", ["ls", "a b"], terminal=True)
    assert shlex.split(inside[-1]) == [
        "sudo", "-n", "docker", "exec", "--workdir", "/srv/draco", "-i", "-t", "draco", "ls", "a b",
    ]  # fmt: skip


def test_nothing_is_done_to_somebodys_machines_that_cannot_be_undone(tmp_path: Path, monkeypatch) -> None:
    def started(*_: object, **__: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(ssh.subprocess, "Popen", started)  # which subprocess.run calls, too
    (tmp_path / "kept").write_text("")
    with pytest.raises(RefusedError, match=r"^lab: these machines are yours: remove /srv/draco on them yourself$"):
        ssh.purge("lab", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    with pytest.raises(RefusedError, match="lab: head is somebody's machine"):
        ssh.eviction(cluster("lab", "ssh"), tmp_path, "head", 120.0)
    assert ssh.storage_command(cluster("lab", "ssh"), tmp_path, ["true"]) is None


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_the_functions_of_its_interface(kind: str) -> None:
    interfaces = [Backend, Paid] if KINDS[kind].is_paid else [Backend]
    wanted = {
        name: list(inspect.signature(function).parameters)[1:]
        for interface in interfaces for name, function in vars(interface).items()
        if inspect.isfunction(function) and not name.startswith("_")
    }  # fmt: skip
    assert len(wanted) > 8
    for name, parameters in wanted.items():
        assert list(inspect.signature(getattr(named(kind), name)).parameters) == parameters
