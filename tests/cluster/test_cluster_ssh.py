"""Somebody's own machines, reached by ssh: strangers to the cluster code, which here are bare namespaces."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import faults
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


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("ssh")
    strangers = folder / "strangers"
    strangers.mkdir()
    machines = netns.up(Request("strangers", workers=2), strangers)
    try:
        for machine in machines.nodes:  # no storage of ours on them
            inside = [
                "nsenter",
                "--target",
                str(faults.init_process(strangers, machine.name)),
                "--mount",
                "--pid",
                "--",
            ]
            subprocess.run([*inside, "umount", "--recursive", "/srv"], check=True)
            subprocess.run([*inside, "mount", "-t", "tmpfs", "tmpfs", "/srv"], check=True)
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
        yield made
    finally:
        netns.down(machines, strangers)


def test_a_second_cluster_up_needs_no_inventory_and_changes_nothing(bench: Bench) -> None:
    made = bench.draco("cluster", "up", "--name", "lab")
    assert made.returncode == 0, made.stderr
    assert "nothing changed" in made.stderr


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
