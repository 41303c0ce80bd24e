"""A cluster of containers from one end to the other, by the commands of the README. Needs a Docker Engine and an image.

Most faults are tried on namespaces (test_cluster.py), which are quicker; here are those that only containers have, and
those that show that both kinds fail alike.
"""

import json
import subprocess
import time
from collections.abc import Iterator

import faults
import pytest
from clusters import Bench, cluster, ended
from test_cluster import (  # noqa: F401 - tests that must hold here too
    KILLED_S,
    SILENT_S,
    same_as_local,
    test_a_second_cluster_up_changes_nothing,
    test_a_worker_can_log_in_nowhere,
    test_a_worker_neither_sees_the_runs_nor_writes_the_data,
    test_only_the_head_holds_a_private_key,
    test_the_heads_key_is_of_no_use_on_a_worker,
    test_workers_accept_the_heads_key_for_commands_only,
)
from test_docker_nodes import IMAGE, lacking

pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(bool(lacking()), reason=lacking() or "-"),
    pytest.mark.timeout(400),
]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with cluster(tmp_path_factory.mktemp("docker"), "docker", workers=3, options=("--image", IMAGE)) as made:
        yield made


def docker(*argv: str) -> str:
    return subprocess.run(["docker", *argv], capture_output=True, text=True, check=True).stdout


def test_the_quickstart_trains_and_is_evaluated_in_containers(bench: Bench) -> None:
    job = bench.quickstart()
    trained = bench.draco("train", str(job), "--set", "steps=12")
    assert trained.returncode == 0, trained.stderr
    assert "quickstart: succeeded" in trained.stdout
    assert "12 caught, 0 missed, 0 falsely accused" in trained.stdout
    assert "worker-01 hosts ranks 1, 4, 7: if that node is Byzantine" in trained.stderr
    assert bench.draco("eval").returncode == 0
    status = bench.status()
    assert "4 nodes x " in status["room"]
    assert len({node["image"] for node in status["nodes"]}) == 1
    assert status["run"]["state"] == "succeeded"


def test_the_model_is_bit_for_bit_that_of_plain_local_mpi_in_the_same_image(bench: Bench) -> None:
    assert bench.draco("train", str(bench.job(steps=3))).returncode == 0
    same_as_local(bench)


def test_a_container_that_is_paused_is_lost_within_the_limit(bench: Bench) -> None:
    with bench.training(on_loss="fail") as process:
        faults.pause(bench.cluster, bench.own, "worker-01")
        try:
            code, said = ended(process, SILENT_S)
        finally:
            faults.resume(bench.cluster, bench.own, "worker-01")
    assert code == 8, said
    assert "worker-01 (ranks 1) is lost" in said


def test_a_head_that_is_killed_is_reported_and_recorded_beside_its_storage(bench: Bench) -> None:
    with bench.training(steps=40) as process:
        faults.kill(bench.cluster, bench.own, "head")
        code, said = ended(process, KILLED_S)
        assert code == 8, said
        assert "head is lost" in said
        assert bench.up("--image", IMAGE).returncode == 0
        assert bench.run_state()["state"] == "lost"


def test_a_node_with_another_image_is_named_before_anything_starts(bench: Bench) -> None:
    """The same software under another digest: one node was made from an image that was built anew."""
    name = f"draco-{bench.name}-worker-02"
    made = json.loads(docker("container", "inspect", name))[0]
    other = f"draco-other:{bench.name}"
    docker("rm", "--force", "--volumes", name)
    subprocess.run(
        ["docker", "build", "--quiet", "--tag", other, "-"], input=f"FROM {IMAGE}\nLABEL other=yes\n", text=True,
        check=True, capture_output=True,
    )  # fmt: skip
    try:
        labels = [part for key in ("draco.cluster", "draco.node", "draco.address")
                  for part in ("--label", f"{key}={made['Config']['Labels'][key]}")]  # fmt: skip
        network = next(iter(made["NetworkSettings"]["Networks"]))
        address = made["Config"]["Labels"]["draco.address"]
        docker("run", "--detach", "--name", name, *labels, "--network", network, "--ip", address, other)
        refused = bench.draco("train", str(bench.job()), "--new")
        assert refused.returncode == 6
        assert "worker-02: runs image " in refused.stderr
        assert not bench.status()["healthy"]
        assert "worker-02: runs with another image than is asked for" in bench.up("--image", IMAGE).stderr
    finally:
        docker("rm", "--force", "--volumes", name)
        assert bench.up("--image", IMAGE).returncode == 0
        docker("image", "rm", other)


def test_cluster_down_leaves_no_container_network_or_key_and_keeps_the_runs(bench: Bench) -> None:
    """The last test here: the runs are found again by a cluster of the same name."""
    runs = bench.sh("head", "ls runs").split()
    assert runs
    began = time.monotonic()
    down = bench.draco("cluster", "down", "--name", bench.name)
    assert down.returncode == 0, down.stderr
    assert time.monotonic() - began < 15
    label = f"label=draco.cluster={bench.name}"
    assert docker("ps", "--all", "--quiet", "--filter", label) == ""
    assert docker("network", "ls", "--quiet", "--filter", label) == ""
    assert not bench.own.exists()
    assert len(docker("volume", "ls", "--quiet", "--filter", label).split()) == 2
    assert bench.up("--workers", "1", "--image", IMAGE).returncode == 0
    assert bench.sh("head", "ls runs").split() == runs
