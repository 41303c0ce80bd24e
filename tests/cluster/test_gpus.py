"""GPUs of nodes: counted by Ansible, passed to containers by CDI, told by `make status`. Drivers here are stand-ins."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpu_stand_ins
import pytest
from gpu_stand_ins import DRIVER, FAILED
from rich.console import Console
from test_ansible import ANSIBLE, PLAYBOOK, needs_ansible
from test_docker_nodes import IMAGE, lacking

from draco.cluster import docker, engine, gpus, ssh, status
from draco.cluster.backend import BACKENDS, Cluster, Node, Request
from draco.cluster.gpus import Gpu
from draco.cluster.inventory import inventory
from draco.errors import MissingError, NotConfiguredError, RefusedError
from draco.launch import roster

NODES = (Node("head", "10.0.0.1"), Node("worker-01", "10.0.0.2"))
LABELLED = json.dumps([{"Id": "sha256:0", "Config": {"Labels": {"draco.torch": "cuda"}}}])
TWO = ("NVIDIA A10G, 1024, 23028, 90", "NVIDIA A10G, 512, 23028, 30")
NO_DRIVER = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."
# An engine of version 25: it takes devices once nvidia-ctk has told it so and it was started again.
ENGINE = """case $1 in
info) [ -e $0.started ] && echo '["/etc/cdi"]' || echo '[]';;
version) echo 25.0.16;;
esac"""
CTK = """echo "$@" >> $0.log
case "$1 $2" in
'cdi generate') printf 'path: /lib/libcuda.so.580.105.08\\npath: /dev/nvidia-uvm\\nname: all\\n' > ${3#--output=};;
'runtime configure') touch $0.configured;;
esac"""
RESTART = "[ -e ${0%/*}/nvidia-ctk.configured ] && touch ${0%/*}/docker.started"

LOCAL = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}

Tool = Callable[[str, str], Path]


def cluster(**details: Any) -> Cluster:
    return Cluster("dev", "docker", NODES, "10.0.0.0/24", "node", "/p", "draco", "2026-01-01T00:00:00+00:00", details)


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tool:
    """Return `tool(name, script)`: put a command before all others on PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def make(name: str, script: str) -> Path:
        path = folder / name
        path.write_text(f"#!/bin/bash\n{script}\n")
        path.chmod(0o755)
        return path

    return make


@pytest.fixture
def driver(tool: Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return `driver(*gpus)`: let this machine have these GPUs and nvidia-smi."""
    gpu_stand_ins.install(tmp_path / "bin", gpu_stand_ins.SMI)
    monkeypatch.setenv("FAKE_GPUS", str(tmp_path / "gpus"))

    def have(*gpus: str) -> None:
        gpu_stand_ins.put(tmp_path / "gpus", gpus)

    return have


# Passed to containers


@pytest.fixture
def cdi(tool: Tool, driver: Callable[..., None], tmp_path: Path) -> Callable[[], "subprocess.CompletedProcess[str]"]:
    """Return what runs cdi.sh on a machine with two GPUs, the toolkit and an engine of version 25."""
    driver(*TWO)
    for name, script in (("nvidia-ctk", CTK), ("docker", ENGINE), ("systemctl", RESTART)):
        tool(name, script)
    script = (ANSIBLE / "roles/gpu/files/cdi.sh").read_text()
    files = [str(tmp_path / "etc/nvidia.yaml"), str(tmp_path / "run/nvidia.yaml")]
    return lambda: subprocess.run(["bash", "-c", script, "node-7", *files], capture_output=True, text=True, check=False)


def test_gpus_are_described_and_the_engine_is_told_once(cdi: Any, tmp_path: Path) -> None:
    assert cdi().stdout == "described enabled\n"
    assert (tmp_path / "bin/nvidia-ctk.log").read_text().splitlines() == [
        f"cdi generate --output={tmp_path}/etc/nvidia.yaml", "runtime configure --runtime=docker --cdi.enabled",
    ]  # fmt: skip
    assert cdi().stdout == "\n"


def test_a_description_for_another_driver_is_made_anew_and_the_toolkits_own_will_do(cdi: Any, tmp_path: Path) -> None:
    cdi()
    own, other = tmp_path / "etc/nvidia.yaml", tmp_path / "run/nvidia.yaml"
    own.write_text("path: /lib/libcuda.so.535.1")
    assert cdi().stdout == "described\n"
    own.unlink()
    other.parent.mkdir()
    for words, said in [
        ("path: /dev/nvidia-uvm\nname: all", "\n"),
        ('path: /dev/nvidia-uvm\nname: "0"', "described\n"),  # without what containers are given
        ("name: all", "described\n"),  # made before the module was loaded
    ]:
        other.write_text(f"path: /lib/libcuda.so.{DRIVER}\n{words}")
        assert cdi().stdout == said


@pytest.mark.parametrize(
    ("name", "script", "told"),
    [
        ("nvidia-ctk", "echo no NVML >&2; exit 1", "node-7: nvidia-ctk cdi generate: no NVML"),
        ("nvidia-ctk", "touch ${3#--output=}", "node-7: nvidia-ctk cdi generate: wrote no description of driver 580."),
        ("systemctl", "echo no such unit >&2; exit 5", "node-7: systemctl restart docker: no such unit"),
        ("systemctl", "exit 0", "node-7: Docker Engine 25.0.16 takes no CDI devices: 25 or newer"),
    ],
    ids=["toolkit", "empty", "restart", "engine"],
)
def test_what_goes_wrong_is_named_with_the_node(cdi: Any, tool: Tool, name: str, script: str, told: str) -> None:
    tool(name, script)
    made = cdi()
    assert (made.returncode, made.stdout[: len(told)], made.stdout.count("\n")) == (1, told, 1)


def test_gpus_without_the_toolkit_are_told_what_is_missing(
    cdi: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin/nvidia-ctk").unlink()
    assert cdi().stdout == "node-7: has GPUs, and no nvidia-ctk: install the NVIDIA Container Toolkit there\n"


@needs_ansible
def test_a_play_counts_the_gpus_lets_containers_have_them_and_refuses_fewer(
    tool: Tool, driver: Callable[..., None], tmp_path: Path
) -> None:
    """The role, the options of the container and the head's roster, on this machine in the place of two nodes."""
    driver(*TWO)
    for name, script in (("nvidia-ctk", CTK), ("docker", ENGINE), ("systemctl", RESTART)):
        tool(name, script)
    play = tmp_path / "play.yml"
    play.write_text(
        """\
- hosts: head:workers
  gather_facts: false
  tasks:
    - ansible.builtin.import_role: {name: gpu}
    - ansible.builtin.include_vars: {file: ROLES/node_agent/defaults/main.yml}
    - ansible.builtin.set_fact:
        wanted: "{{ node_agent_gpu_options if gpu_count | int > 0 else [] }}"
        listed: "{{ lookup('ansible.builtin.template', 'ROLES/mpi/templates/cluster.json.j2') }}"
    - ansible.builtin.copy:
        content: "{{ {'wanted': wanted, 'roster': listed} | to_json }}"
        dest: "OUT/{{ inventory_hostname }}.json"
        mode: "0600"
      when: draco_gpus | default(0) | int < 3
""".replace("ROLES", str(ANSIBLE / "roles")).replace("OUT", str(tmp_path))
    )

    def played(**draco_gpus: int) -> subprocess.CompletedProcess[str]:
        made = inventory(
            cluster(gpus=draco_gpus), {node.name: {**LOCAL, "draco_cores": 4} for node in NODES}
        )  # fmt: skip
        made["all"]["vars"] |= {
            "draco_runtime": "container", "gpu_cdi_files": [str(tmp_path / "cdi/nvidia.yaml")],
            "draco_workers": ["worker-01"], "draco_head": "head", "draco_etc": "/etc/draco",
        }  # fmt: skip
        (tmp_path / "inventory.yml").write_text(json.dumps(made))
        environment = {**os.environ, "ANSIBLE_CONFIG": str(ANSIBLE / "ansible.cfg"), "NO_COLOR": "1"}
        return subprocess.run(
            [str(PLAYBOOK), "-i", str(tmp_path / "inventory.yml"), "--forks", "1", str(play)],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip

    good = played(head=0)  # the head's are to be left alone
    assert good.returncode == 0, good.stdout
    head, worker = (json.loads((tmp_path / f"{node.name}.json").read_text()) for node in NODES)
    assert (head["wanted"], worker["wanted"][0]) == ([], "--device=nvidia.com/gpu=all")
    told = roster.parse(head["roster"], "test")
    assert [(node.cores, node.gpus) for node in told.nodes] == [(4, 0), (4, 2)]
    driver(TWO[0], FAILED)
    refused = played(**{"worker-01": 2})
    assert refused.returncode != 0
    told_why = "worker-01: its driver sees 1 GPUs, and the node should have 2: [Unknown Error]; see nvidia-smi there"
    assert told_why in " ".join(refused.stdout.split())


@pytest.mark.parametrize(
    ("gpus", "hangs", "told"),
    [
        (TWO, False, [DRIVER, DRIVER]),
        ((TWO[0], FAILED), False, [DRIVER, "[Unknown Error]"]),
        ((), False, [f"nvidia-smi fails: {NO_DRIVER}"]),
        (TWO, True, ["nvidia-smi hangs: restart the machine"]),
        (None, False, ["it has no nvidia-smi: install NVIDIA's driver"]),
    ],
    ids=["well", "one failed", "no driver", "hangs", "no command"],
)  # fmt: skip
def test_a_node_counts_the_gpus_that_work_and_says_what_keeps_others(
    driver: Callable[..., None], tmp_path: Path, gpus: tuple[str, ...] | None, hangs: bool, told: list[str]
) -> None:
    if gpus is None:
        (tmp_path / "bin/nvidia-smi").unlink()
    else:
        driver(*gpus)
    if hangs:
        (tmp_path / "gpus/hangs").touch()
    script = (ANSIBLE / "roles/gpu/files/count.sh").read_text()
    made = subprocess.run(
        ["bash", "-c", script], env={**os.environ, "LIMIT_S": "0.2"}, capture_output=True, text=True, check=False
    )
    assert (made.returncode, made.stdout.splitlines(), made.stderr) == (0, told, "")


# Containers on this machine


@pytest.mark.parametrize(
    ("told", "described", "count"),
    [
        (
            {"DiscoveredDevices": [{"Source": "cdi", "ID": f"nvidia.com/gpu={name}"} for name in ("0", "1", "all")]},
            "",
            2,
        ),
        ({"DiscoveredDevices": [{"Source": "cdi", "ID": "vendor.com/net=0"}]}, "", 0),
        ({"CDISpecDirs": ["DIR"]}, "kind: nvidia.com/gpu", 2),
        ({"CDISpecDirs": ["DIR"]}, "kind: vendor.com/net", 0),
        ({"CDISpecDirs": []}, "kind: nvidia.com/gpu", 0),
        ({}, "", 0),
    ],
    ids=["listed", "others", "described", "others described", "not taken", "old"],
)
def test_an_engine_passes_on_the_gpus_that_it_knows_of(
    driver: Callable[..., None], tmp_path: Path, told: dict[str, Any], described: str, count: int
) -> None:
    driver(*TWO)
    (tmp_path / "nvidia.yaml").write_text(described)
    assert engine.gpu_count(json.loads(json.dumps(told).replace("DIR", str(tmp_path)))) == count


@pytest.mark.parametrize(
    ("workers", "gpus", "dealt"),
    [
        (3, 0, [(), (), (), ()]),
        (3, 1, [(0,), (0,), (0,), (0,)]),
        (3, 2, [(0, 1), (0,), (1,), (0,)]),
        (3, 8, [(0, 1, 2, 3, 4, 5, 6, 7), (0, 3, 6), (1, 4, 7), (2, 5)]),
        (0, 2, [(0, 1)]),
    ],
)
def test_nodes_share_a_machines_gpus_evenly_as_each_counts_from_its_first(
    workers: int, gpus: int, dealt: list[tuple[int, ...]]
) -> None:
    assert docker.deal(workers + 1, gpus) == dealt


def test_nodes_get_their_gpus_or_no_device_at_all() -> None:
    argv = docker._node_arguments(Request("dev"), NODES[1], "sha256:0", 1.0, (1, 3))
    given = [argv[i + 1] for i, word in enumerate(argv) if word == "--device"]
    assert given == ["nvidia.com/gpu=1", "nvidia.com/gpu=3"]
    assert argv[-1] == "sha256:0"
    assert "--device" not in docker._node_arguments(Request("dev"), NODES[1], "sha256:0", 1.0)


def test_a_gpu_that_is_described_no_more_is_told_with_what_to_do() -> None:
    said = "docker: Error response from daemon: CDI device injection failed: unresolvable CDI devices nvidia.com/gpu=1"
    assert engine.explained("worker-01: docker run", f"{said}\n\nRun 'docker run --help' for more information") == (
        "worker-01: docker run: CDI device injection failed: unresolvable CDI devices nvidia.com/gpu=1; describe the "
        "GPUs anew: nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml"
    )


def test_an_image_without_cuda_is_refused_for_gpus_and_one_that_does_not_say_is_not(tool: Tool) -> None:
    for label, build in (("cuda", "cuda"), ("cpu", "cpu")):
        tool("docker", f"echo '{LABELLED.replace('cuda', label)}'")
        assert engine.torch_build("draco:latest") == build
    with pytest.raises(
        RefusedError, match="draco:latest: holds torch's CPU build, which sees no GPU: make image TORCH=cuda"
    ):
        engine.refuse_build("draco:latest")
    tool("docker", """echo '[{"Id": "sha256:0", "Config": {"Labels": null}}]'""")
    engine.refuse_build("draco:latest")
    tool("docker", "echo 'Error: No such image: draco:latest' >&2; exit 1")
    assert engine.torch_build("draco:latest") is None


# Told


def test_a_drivers_answer_is_read_line_by_line_and_what_it_does_not_tell_is_unknown() -> None:
    text = "NVIDIA A10G, 512, 23028, 40\nNVIDIA H100 80GB HBM3, 0, [N/A], [Not Supported]\nfailed to talk\n"
    assert gpus.read(text) == (
        Gpu("NVIDIA A10G", 512, 23028, 40), Gpu("NVIDIA H100 80GB HBM3", 0, None, None),
    )  # fmt: skip
    assert gpus.words(gpus.read(text)[1:]) == "1 x NVIDIA H100 80GB HBM3"
    assert gpus.words(()) == "nvidia-smi does not answer there"


@pytest.mark.parametrize("said", ["ERR!", "[Unknown Error]", "[GPU is lost]", "[GPU requires reset]"])
def test_a_gpu_that_has_failed_is_told_and_not_counted(said: str) -> None:
    found = gpus.read(f"NVIDIA A10G, 512, 23552, 40\nNVIDIA A10G, {said}, {said}, {said}\n")
    plain = said.strip("[]")
    assert found[1] == Gpu("NVIDIA A10G", None, None, None, plain)
    assert gpus.words(found) == f"1 x NVIDIA A10G, 0.5 of 23.0 GiB, 40 % busy, 1 failed: {plain}"
    assert gpus.words(found[1:]) == f"0 x NVIDIA A10G, 1 failed: {plain}"


def test_nodes_with_gpus_are_asked_and_the_others_are_not(
    driver: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    driver(*TWO)
    asked: list[str] = []

    def command(cluster: Cluster, folder: Path, node: str, argv: Any) -> list[str]:
        asked.append(node)
        return [*argv]

    monkeypatch.setattr(BACKENDS["docker"], "command", command)
    wanted = cluster(gpus={"head": 0, "worker-01": 2})
    found = gpus.asked(wanted, Path(), ["head", "worker-01"])
    assert asked == ["worker-01"]
    assert gpus.asked(cluster(), Path(), ["head", "worker-01"]) == {}
    told = status.gather(wanted, dict.fromkeys(("head", "worker-01"), "running"), {}, {}, "", {}, found)
    assert told["nodes"][1]["gpus"][0] == {
        "name": "NVIDIA A10G", "used_mib": 1024, "total_mib": 23028, "busy": 90, "fault": "",
    }  # fmt: skip
    out = io.StringIO()
    Console(file=out, width=120).print(status.table(told))
    assert "worker-01  running  10.0.0.2  2 x NVIDIA A10G, 1.5 of 45.0 GiB, 60 % busy" in out.getvalue()
    assert "GPUs" not in shown_without_gpus()


def shown_without_gpus() -> str:
    out = io.StringIO()
    told = status.gather(cluster(), dict.fromkeys(("head", "worker-01"), "running"), {}, {}, "")
    Console(file=out, width=120).print(status.table(told))
    return out.getvalue()


def test_gpus_of_machines_reached_by_ssh_are_counted_all_at_once(
    tool: Tool, driver: Callable[..., None], tmp_path: Path
) -> None:
    driver(*TWO)
    tool("ssh", 'case "$*" in *head*) exit 255;; esac; eval "${@: -1}"')
    assert ssh.counted(tmp_path, NODES, {}) == {"head": 0, "worker-01": 2}
    driver(TWO[0], FAILED)
    assert ssh.counted(tmp_path, NODES, {"head": 4}) == {"head": 4, "worker-01": 1}  # whose owner told


def test_a_driver_that_hangs_is_told_and_its_owner_may_leave_it_alone(
    tool: Tool, driver: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver(*TWO)
    (tmp_path / "gpus/hangs").touch()
    tool("ssh", 'eval "exec ${@: -1}"')
    monkeypatch.setattr(gpus, "_PATIENCE_S", 0.2)
    with pytest.raises(MissingError) as raised:
        ssh.counted(tmp_path, NODES, {"head": 0})
    assert str(raised.value) == (
        "worker-01: nvidia-smi does not answer within 0 s: restart that machine, or leave its GPUs alone "
        "(draco_gpus: 0 in an inventory)"
    )
    assert ssh.counted(tmp_path, NODES, {"head": 0, "worker-01": 0}) == {"head": 0, "worker-01": 0}


def test_a_roster_from_before_gpus_were_counted_is_read() -> None:
    text = {"name": "d", "subnet": "10.0.0.0/24", "python": "/p", "ssh_config": "c",
            "nodes": [{"name": "head", "address": "10.0.0.1", "cores": 2}]}  # fmt: skip
    assert roster.parse(json.dumps(text), "test").nodes[0].gpus is None
    with pytest.raises(NotConfiguredError):
        roster.parse("{}", "test")


# Containers of a real engine, before which a stand-in takes devices


@pytest.mark.alone
@pytest.mark.skipif(bool(lacking()), reason=lacking() or "-")
def test_containers_see_the_gpus_that_they_were_dealt_and_a_missing_description_is_told(
    tool: Tool, driver: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver(*TWO)
    gpu_stand_ins.install(tmp_path / "bin", gpu_stand_ins.TOOLKIT, gpu_stand_ins.ENGINE)
    (tmp_path / "cdi").mkdir()
    monkeypatch.setenv("FAKE_CDI", str(tmp_path / "cdi"))
    name, image = f"test-gpus-{os.getpid()}", f"draco-cuda:test-gpus-{os.getpid()}"
    made = f"FROM {IMAGE}\nLABEL draco.torch=cuda\n"
    subprocess.run(["docker", "build", "--quiet", "--tag", image, "-"], input=made, text=True, check=True)
    toolkit = str(tmp_path / "bin/nvidia-ctk")
    described = [toolkit, "cdi", "generate", f"--output={tmp_path}/cdi/nvidia.yaml"]
    try:
        assert engine.gpu_count(engine.told()) == 0  # nobody has told the engine
        for words in (described, [toolkit, "runtime", "configure", "--runtime=docker", "--cdi.enabled"]):
            subprocess.run(words, check=True)
        up = docker.up(Request(name, workers=1, image=image), tmp_path)
        assert up.details["gpus"] == {"head": 2, "worker-01": 2}
        seen = gpus.asked(up, tmp_path, ["head", "worker-01"])
        assert seen == dict.fromkeys(["head", "worker-01"], gpus.read("\n".join(TWO)))
        (tmp_path / "cdi/nvidia.yaml").write_text("kind: nvidia.com/gpu\ndevices:\n")
        with pytest.raises(MissingError) as raised:
            docker.up(Request(name, workers=2, image=image), tmp_path)
        assert str(raised.value) == (
            "worker-02: docker run: CDI device injection failed: unresolvable CDI devices nvidia.com/gpu=1; describe "
            "the GPUs anew: nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml"
        )
    finally:
        docker.down(cluster()._replace(name=name), tmp_path)
        docker.purge(name, tmp_path)
        subprocess.run(["docker", "image", "rm", image], check=True, stdout=subprocess.DEVNULL)
