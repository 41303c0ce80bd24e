"""Somebody's own machines, reached by ssh: strangers to the cluster code, which here are bare namespaces.

Two of them have GPUs, for which files stand (gpu_stand_ins.py): `left` two and `right` one; the head has no driver.
"""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import faults
import gpu_stand_ins
import pytest
from clusters import Bench
from test_cluster import why_not
from test_own_code import write

from draco.cluster import netns
from draco.cluster.backend import Request

pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(bool(why_not()), reason=why_not() or "-"),
    pytest.mark.timeout(400),
]


def within(folder: Path, machine: str) -> list[str]:
    """Return what runs a command on a machine with all rights."""
    return ["nsenter", "--target", str(faults.init_process(folder, machine)), "--mount", "--pid", "--"]


def have(folder: Path, machine: str, *gpus: str, hangs: bool = False) -> None:
    """Let a machine have these GPUs and no others."""
    lines = [f"echo {gpu!r} > /run/gpus/nvidia{number}" for number, gpu in enumerate(gpus)]
    lines += ["touch /run/gpus/hangs"] if hangs else []
    line = "; ".join(["mkdir -p /run/gpus", "rm -f /run/gpus/*", *lines])
    subprocess.run([*within(folder, machine), "sh", "-c", line], check=True)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("ssh")
    strangers = folder / "strangers"
    strangers.mkdir()
    machines = netns.up(Request("strangers", workers=2), strangers)
    try:
        tools = gpu_stand_ins.install(folder / "tools", gpu_stand_ins.SMI)
        for machine, gpus in zip(machines.nodes, (None, 2, 1), strict=True):  # no storage of ours on them
            inside = within(strangers, machine.name)
            subprocess.run([*inside, "umount", "--recursive", "/srv"], check=True)
            subprocess.run([*inside, "mount", "-t", "tmpfs", "tmpfs", "/srv"], check=True)
            if gpus is not None:
                subprocess.run([*inside, "mount", "--bind", str(tools), "/usr/local/sbin"], check=True)
                have(strangers, machine.name, *[gpu_stand_ins.A10G] * gpus)
        hosts = folder / "hosts.yml"
        head, left, right = (machine.address for machine in machines.nodes)
        hosts.write_text(f"""\
all:
  vars:
    ansible_user: root
    ansible_ssh_private_key_file: {strangers}/operator_key
    draco_known_hosts: {strangers}/known_hosts
    draco_runtime: host
    draco_python: {machines.python}
    draco_user: root
  children:
    head: {{hosts: {{big: {{ansible_host: {head}, ansible_python_interpreter: {machines.python}}}}}}}
    workers:
      hosts:
        left: {{ansible_host: {left}, ansible_python_interpreter: {machines.python}}}
        right: {{ansible_host: {right}, ansible_python_interpreter: {machines.python}}}
""")
        made = Bench(folder, "ssh", "lab")
        up = made.up("--inventory", str(hosts))
        assert up.returncode == 0, up.stderr
        assert "GPUs: head 0, left 2, right 1\n" in up.stderr
        yield made
    finally:
        netns.down(machines, strangers)


def test_a_second_cluster_up_needs_no_inventory_and_changes_nothing(bench: Bench) -> None:
    made = bench.draco("cluster", "up", "--name", "lab")
    assert made.returncode == 0, made.stderr
    assert "nothing changed" in made.stderr


def test_gpus_are_told_and_workers_are_dealt_out_by_them_though_the_head_has_none(bench: Bench) -> None:
    shown = bench.draco("cluster", "status").stdout
    assert "2 x NVIDIA A10G, 1.0 of 45.0 GiB, 30 % busy" in shown
    assert "1 x NVIDIA A10G, 0.5 of 22.5 GiB, 30 % busy" in shown
    job = str(bench.job(workers=5))
    planned = bench.draco("train", job, "--dry-run", "--set", "device=cuda")
    assert planned.returncode == 0, planned.stderr
    head, left, right = (f"# {node.address}" for node in bench.cluster.nodes)
    assert "\n".join(["hostfile", head, left, right, left, left, right, ""]) in planned.stdout
    assert "left: 3 workers share 2 GPUs" in planned.stderr
    assert "right: 2 workers share 1 GPU\n" in planned.stderr
    refused = bench.draco("train", job, "--set", "device=cuda", "--set", "server_device=cuda")
    assert refused.returncode == 3
    assert "head: has no GPU, and the job says server_device: cuda; server_device=auto, or " in refused.stderr


# On the head: what ranks are told that a planned launch starts, a program of ours in the place of each.
TOLD = """
import json, os, subprocess
from pathlib import Path
from draco.job import parse
from draco.launch.environment import launch_environment
from draco.launch import plan, roster
text = "{name: a, workers: 3, model: fc, data: synthetic, batch_size: 6, steps: 2, scheme: uncoded, device: cuda}"
made = plan.plan(parse(text, "test"), Path("/run/a-1"), roster.read())
for path, text in made.files:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
argv = [word for word in made.argv[: made.argv.index("draco") - 1] if word[:5] != "file=" and word != "--output"]
names = ["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "CUBLAS_WORKSPACE_CONFIG"]
names += ["PYTORCH_NVML_BASED_CUDA_CHECK"]
say = f"import os, socket; print(socket.gethostname(), *[os.environ[name] for name in {names}])"
environment = launch_environment(os.environ, dict(made.environment))
print(subprocess.run([*argv, "-c", say], env=environment, capture_output=True, text=True, check=True).stdout)
"""


def test_ranks_on_every_machine_are_told_which_of_its_gpus_is_theirs(bench: Bench) -> None:
    said = bench.on("head", bench.cluster.python, "-c", TOLD)
    assert said.returncode == 0, said.stderr
    found = sorted(line.split() for line in said.stdout.splitlines() if line)
    assert [(name, rank, place) for name, rank, place, *_ in found] == [
        ("head", "0", "0"), ("worker-01", "1", "0"), ("worker-01", "3", "1"), ("worker-02", "2", "0"),
    ]  # fmt: skip
    assert {tuple(settings) for *_, settings in ((*line[:3], line[3:]) for line in found)} == {(":4096:8", "1")}


def test_a_run_prepares_the_data_on_every_machine_and_trains(bench: Bench) -> None:
    trained = bench.draco("train", str(bench.job(steps=4)))
    assert trained.returncode == 0, trained.stderr
    assert "4 caught, 0 missed, 0 falsely accused" in trained.stdout
    for node in ("left", "right"):
        assert "manifest.json" in bench.sh(node, "ls data/synthetic")
        assert bench.on(node, "sh", "-c", "ls runs | grep .").returncode != 0
    assert bench.status()["run"]["state"] == "succeeded"
    assert [node["name"] for node in bench.status()["nodes"]] == ["head", "left", "right"]


def test_own_code_is_sent_to_every_machine_and_mended_where_it_was_touched(bench: Bench) -> None:
    write(bench.folder)
    for _ in range(2):
        trained = bench.draco("train", "own.yaml", "--set", "steps=4")
        assert trained.returncode == 0, trained.stderr
        (digest,) = bench.sh("left", "ls data/.code").split()
        assert bench.sh("right", f"cat data/.code/{digest}/lib/scale.py") == "SCALE = 1.0\n"
        bench.sh("right", f"echo SCALE = 3.0 > data/.code/{digest}/lib/scale.py")  # by its own user, who may


def test_a_machine_whose_key_nobody_knows_is_refused(bench: Bench, tmp_path: Path) -> None:
    hosts = tmp_path / "hosts.yml"
    hosts.write_text((bench.folder / "hosts.yml").read_text().replace("strangers/known_hosts", "strangers/none"))
    made = bench.draco("cluster", "up", "--cluster", "ssh", "--name", "other", "--inventory", str(hosts))
    assert made.returncode == 3, made.stderr
    assert "head: no login by ssh -F " in made.stderr


def test_what_keeps_a_machine_from_its_gpus_is_told_with_its_name(bench: Bench) -> None:
    """No cluster comes up here: the last test but one."""
    folder, machine = bench.folder / "strangers", "worker-02"  # which is `right`
    inventory = bench.folder / "hosts.yml"
    have(folder, machine, gpu_stand_ins.FAILED)
    assert [gpu["fault"] for gpu in bench.status()["nodes"][2]["gpus"]] == ["Unknown Error"]
    have(folder, machine, gpu_stand_ins.A10G, hangs=True)
    hanging = bench.up("--inventory", str(inventory))
    assert hanging.returncode == 3, hanging.stderr
    assert "right: nvidia-smi does not answer within 10 s: restart that machine, or " in hanging.stderr
    have(folder, machine)  # whose driver does not work
    inventory.write_text(inventory.read_text().replace("right: {", "right: {draco_gpus: 1, "))
    refused = bench.up("--inventory", str(inventory))
    assert refused.returncode == 6, refused.stderr
    fault = "right: its driver sees 0 GPUs, and the node should have 1: nvidia-smi fails: NVIDIA-SMI has failed"
    assert fault in refused.stderr


def test_cluster_down_leaves_the_machines_and_their_runs_and_takes_the_rest(bench: Bench) -> None:
    """The last test here."""
    folder, cluster = bench.folder / "strangers", bench.cluster
    down = bench.draco("cluster", "down", "--name", "lab")
    assert down.returncode == 0, down.stderr
    look = "ls -d /etc/draco; ls /srv/draco/runs; ls /run/draco-sshd.pid"
    said = subprocess.run(
        netns.command(cluster, folder, "head", ["sh", "-c", look]), capture_output=True, text=True, check=False
    )
    assert "tiny-" in said.stdout
    assert "/etc/draco\n" not in said.stdout
    assert "draco-sshd.pid" not in said.stdout
