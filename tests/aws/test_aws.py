"""A cluster at AWS from the first command to the last: real Terraform, Ansible, ssh, Docker and MPI on a fake AWS.

Workers have a GPU each, for which a file and stand-ins of NVIDIA's tools stand; the head has none, and ranks use none.
Its instances are namespaces with a Docker Engine each (fake_aws/README.md). The tests go on from one another.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import policy
import pytest
import terraform
from checkout import make
from clusters import PACE
from conftest import ROOT, copied
from fake_aws import Fake, running
from fake_aws.nodes import tools

from draco.cluster import engine
from draco.errors import MissingError


def why_not() -> str:
    """Say why this cannot run here, or nothing."""
    if reason := terraform.why_not() or tools.why_not("dockerd", "docker-registry", "sudo"):
        return reason
    try:
        engine.image_id("draco:latest")
    except MissingError as error:
        return str(error)
    return ""


pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(bool(why_not()), reason=why_not() or "-"),
    pytest.mark.timeout(600),
]
LIMIT_S = 540
IMAGE = f"draco-cuda:test-{os.getpid()}"  # the trainer's, which says of itself that its torch can use GPUs
MINUTE_S = 2.0  # of the timers on instances


class Operator:
    """Somebody at a checkout, with an account."""

    def __init__(self, folder: Path, fake: Fake) -> None:
        self.folder, self.fake = folder, fake

    def make(self, *arguments: str, code: int = 0) -> str:
        """Run make, which must end with `code` of the command line's; return what it printed."""
        made = make(self.folder, *arguments, limit_s=LIMIT_S)
        assert (made.returncode == 0) == (code == 0), (made.stdout, made.stderr)
        if code:
            assert f"Error {code}" in made.stderr, made.stderr
        return made.stdout + made.stderr

    def ssh(
        self, node: str, line: str, *, container: bool = False, limit_s: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run a shell line on a node, as root on the machine or as the trainer in its container."""
        inside = ["docker", "exec", "-i", "draco"] if container else []
        words = shlex.join(["sudo", "-n", *inside, "sh", "-c", line])
        command = ["ssh", "-F", str(self.folder / ".clusters/dev/ssh_config"), node, "--", words]
        return subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False)

    def status(self) -> dict[str, Any]:
        printed = self.make("--silent", "status", "FORMAT=json")
        found: dict[str, Any] = json.loads(printed[printed.index("{") : printed.rindex("}") + 1])
        return found

    def instances(self) -> dict[str, dict[str, Any]]:
        """Return the cluster's instances that live, by node, as AWS describes them."""
        described = self.fake.client("ec2").describe_instances(
            Filters=[{"Name": "tag:Cluster", "Values": ["dev"]}, {"Name": "instance-state-name", "Values": ["running"]}]
        )
        return {
            next(tag["Value"] for tag in each["Tags"] if tag["Key"] == "Node"): each
            for group in described["Reservations"] for each in group["Instances"]
        }  # fmt: skip


@pytest.fixture(scope="module")
def operator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    folder = tmp_path_factory.mktemp("operator")
    copied(folder)
    made = "FROM draco:latest\nLABEL draco.torch=cuda\n"
    subprocess.run(["docker", "build", "--quiet", "--tag", IMAGE, "-"], input=made, text=True, check=True)
    with (
        running(tmp_path_factory.mktemp("aws"), minute_s=MINUTE_S) as fake,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in (terraform.environment(folder) | fake.environment).items():
            patch.setenv(name, value)
        fake.set_quotas({"L-1216C47A": 256, "L-34B43A08": 256, "L-DB2E81BA": 64, "L-3819A6DF": 64})
        yield Operator(folder, fake)
    subprocess.run(["docker", "image", "rm", IMAGE], check=True, stdout=subprocess.DEVNULL)


def test_up_trains_and_evaluates(operator: Operator) -> None:
    gpus = ["SET=worker_types=g5.xlarge", f"IMAGE={IMAGE}"]
    said = operator.make("cluster-up", "CLUSTER=aws", "WORKERS=2", "YES=1", *gpus)
    assert "at most" in said
    assert "each worker: 4 vCPU and 1 x NVIDIA A10G of 22 GiB; 2 GPUs in workers" in said
    assert "the head has no GPU: the server computes on its CPU" in said
    assert "GPUs: head 0, worker-01 1, worker-02 1" in said
    assert "dev (aws): head and 2 workers, ready in" in said
    trained = operator.make("train", "JOB=jobs/quickstart.yaml", "SET=steps=12 workers=3", "CLUSTER=aws")
    assert "12 caught, 0 missed, 0 falsely accused" in trained
    assert "every checkpoint is evaluated already" in operator.make("eval", "CLUSTER=aws")


def test_status_tells_nodes_prices_and_the_end(operator: Operator) -> None:
    found = operator.status()
    assert [(node["name"], node["state"]) for node in found["nodes"]] == [
        ("head", "running"), ("worker-01", "running"), ("worker-02", "running"),
    ]  # fmt: skip
    assert found["healthy"]
    a10g = {"name": "NVIDIA A10G", "used_mib": 512, "total_mib": 22888, "busy": 30, "fault": ""}
    assert [node.get("gpus") for node in found["nodes"]] == [None, [a10g], [a10g]]  # seen in the containers
    assert found["run"]["state"] == "succeeded"
    notes = found["notes"]
    assert notes["market"] == {"head": "on-demand", "worker-01": "spot", "worker-02": "spot"}
    assert 0 < notes["spent"] < notes["per_hour"] < 2
    assert 3 < notes["hours_left"] < 4
    # 4.0 where it has come up in less than 3 minutes.
    assert re.search(r"ends itself in (3\.\d|4\.0) h", operator.make("cluster-status"))


def test_gpus_are_given_to_containers_by_a_description_and_a_head_without_any_is_left_alone(operator: Operator) -> None:
    roster = json.loads(operator.ssh("head", "cat /etc/draco/cluster.json").stdout)
    assert [node["gpus"] for node in roster["nodes"]] == [0, 1, 1]
    assert operator.ssh("head", "command -v nvidia-smi").returncode != 0
    described = operator.ssh("worker-01", "cat /etc/cdi/nvidia.yaml").stdout
    assert "kind: nvidia.com/gpu" in described
    asked = "nvidia-smi --list-gpus"
    assert operator.ssh("worker-01", asked, container=True).stdout == "GPU 0: NVIDIA A10G (UUID: GPU-0)\n"
    images = {node: each["ImageId"] for node, each in operator.instances().items()}
    assert images["head"] != images["worker-01"] == images["worker-02"]  # one has a driver


def test_resources_are_what_the_security_model_says(operator: Operator) -> None:
    ec2 = operator.fake.client("ec2")
    instances = operator.instances()
    assert {each["MetadataOptions"]["HttpTokens"] for each in instances.values()} == {"required"}
    assert {each["MetadataOptions"]["HttpPutResponseHopLimit"] for each in instances.values()} == {1}
    volumes = ec2.describe_volumes(Filters=[{"Name": "tag:Cluster", "Values": ["dev"]}])["Volumes"]
    assert len(volumes) == 3
    assert all(volume["Encrypted"] for volume in volumes)
    groups = ec2.describe_security_groups(Filters=[{"Name": "tag:Cluster", "Values": ["dev"]}])["SecurityGroups"]
    open_to = {r["CidrIp"] for group in groups for rule in group["IpPermissions"] for r in rule["IpRanges"]}
    assert open_to == {f"{self_address(operator)}/32"}
    (storage,) = operator.fake.client("efs").describe_file_systems()["FileSystems"]
    assert storage["Encrypted"]
    assert storage["ThroughputMode"] == "elastic"
    roles = {each["IamInstanceProfile"]["Arn"].rsplit("/")[-1] for each in instances.values()}
    assert roles == {"draco-dev-head", "draco-dev-worker"}


def self_address(operator: Operator) -> str:
    with urllib.request.urlopen(os.environ["DRACO_CHECKIP_URL"]) as answer:
        return str(answer.read().decode().strip())


def test_a_worker_reaches_what_it_needs_and_no_more(operator: Operator) -> None:
    addresses = {node: each["PrivateIpAddress"] for node, each in operator.instances().items()}

    def reaches(source: str, target: str, port: int) -> bool:
        line = f"timeout 3 bash -c '</dev/tcp/{addresses[target]}/{port}'"
        return operator.ssh(source, line).returncode == 0

    assert reaches("head", "worker-01", 2222)
    assert not reaches("worker-01", "head", 22)
    assert not reaches("worker-01", "worker-02", 22)
    assert not reaches("worker-01", "worker-02", 2222)
    assert "draco-dev-worker" in operator.ssh("worker-01", "aws sts get-caller-identity --region us-east-1").stdout
    token = "curl -sS -m 3 -X PUT http://169.254.169.254/latest/api/token -H X-aws-ec2-metadata-token-ttl-seconds:60"
    assert operator.ssh("worker-01", token).returncode == 0
    asked = """python3 -c 'import urllib.request as r; r.urlopen("http://169.254.169.254/latest", timeout=3)'"""
    refused = operator.ssh("worker-01", asked, container=True)
    assert "URLError" in refused.stderr, refused
    assert operator.ssh("worker-01", "touch /srv/draco/data/x").returncode != 0
    assert operator.ssh("worker-01", "ls /srv/draco/runs/*").returncode != 0
    assert operator.ssh("head", "ls -d /srv/draco/runs/*").stdout.count("quickstart") == 1


def test_a_worker_that_is_taken_away_is_announced_and_the_run_goes_on_without_it(operator: Operator) -> None:
    (operator.folder / "pace.py").write_text(PACE)
    paced = "SET=steps=100000 workers=3 loggers=[pace.py:Pace]"
    operator.make("train", "JOB=jobs/quickstart.yaml", paced, "NEW=1", "DETACH=1")
    deadline = time.monotonic() + 120
    while not (run := operator.status()["run"]) or run["step"] < 2:
        assert time.monotonic() < deadline
        time.sleep(2)
    refused = operator.make("interrupt", "NODE=head", code=4)
    assert "at AWS it is on demand" in refused
    # The notice is 100 s, more than what follows takes on a busy machine; once that is done the end comes at once.
    operator.fake.ask("settings", {"minute_s": 10})
    interrupted = ["interrupt", "NODE=worker-02", "NOTICE=600", "YES=1", "WAIT=120"]
    deadline = time.monotonic() + 120
    with ThreadPoolExecutor(1) as pool:
        said = pool.submit(make, operator.folder, *interrupted, limit_s=LIMIT_S)
        while operator.ssh("worker-02", "cat /run/draco/notice.json", container=True).returncode:
            assert time.monotonic() < deadline
        assert operator.ssh("worker-02", "touch /run/draco/x", container=True).returncode != 0
        assert operator.status()["notes"]["notices"]["worker-02"] == "marked-for-termination"
        operator.fake.interrupt(operator.instances()["worker-02"]["InstanceId"], after_s=0)
    assert "takes $1.00 for it" in said.result().stdout + said.result().stderr
    assert re.search(r"\d\.\d +node gone +worker-02", said.result().stdout), said.result()
    assert said.result().returncode == 0, said.result()
    assert operator.instances().keys() == {"head", "worker-01"}
    found = operator.status()
    assert (found["run"]["state"], [*found["run"]["without"]]) == ("running", ["worker-02"])
    assert {node["name"]: node["state"] for node in found["nodes"]}["worker-02"] == "missing"


def test_a_run_whose_supervisor_goes_with_its_container_gets_another(operator: Operator) -> None:
    before = operator.status()["run"]
    assert operator.ssh("head", "systemctl is-active draco-keeper").stdout == "active\n"
    assert operator.ssh("head", "docker restart -t 1 draco").returncode == 0
    deadline = time.monotonic() + 120
    while not (run := operator.status()["run"]) or run["interruptions"] == before["interruptions"]:
        assert time.monotonic() < deadline, run
        time.sleep(2)
    assert (run["run"], run["supervised"]) == (before["run"], True)
    while operator.status()["run"]["step"] <= run["step"]:
        assert time.monotonic() < deadline, operator.status()["run"]
        time.sleep(2)
    found = operator.status()["run"]
    assert (found["state"], [*found["without"]]) == ("running", ["worker-02"])
    assert found["interruptions"] == before["interruptions"] + 1


def test_a_cluster_ends_itself_when_its_time_is_up_and_not_before(operator: Operator) -> None:
    assert "dev: ends itself at " in operator.make("extend", "HOURS=1", "YES=1")
    head = operator.instances()["head"]["InstanceId"]
    past = (datetime.now(UTC) - timedelta(minutes=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    assert sorted(operator.instances()) == ["head", "worker-01"]
    operator.fake.client("ec2").create_tags(Resources=[head], Tags=[{"Key": "ExpiresAt", "Value": past}])
    deadline = time.monotonic() + 60
    while operator.instances():  # the head ends the workers, whose own tags say otherwise
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert f"the head ended it: the cluster expired at {past}" in operator.make("status")


def test_down_leaves_nothing_that_costs_but_the_storage(operator: Operator) -> None:
    assert "runs and data are kept" in operator.make("cluster-down")
    assert operator.instances() == {}
    left = operator.make("leftovers")
    assert "file system" in left
    assert "instance " not in left.replace("instance profile", "")
    assert "no cluster" in operator.make("status", code=3)


def test_the_documented_policy_allows_all_that_was_asked(operator: Operator) -> None:
    allowed = json.loads((ROOT / "docs/aws-policy.json").read_text())
    key = operator.fake.environment["AWS_ACCESS_KEY_ID"]  # nodes have their roles'
    own = [call for call in operator.fake.calls() if call["access_key"] == key]
    asked = {f"{call['service']}:{call['action']}" for call in own}
    assert len(asked) > 50
    assert sorted(action for action in asked if not policy.covers(allowed, action)) == []


def test_purge_removes_the_rest(operator: Operator) -> None:
    """The last test here."""
    operator.make("cluster-purge", "CLUSTER=aws", "YES=1")
    assert "nothing of Draco" in operator.make("leftovers")
    assert not list((operator.folder / ".clusters").glob("dev*"))
    shutil.rmtree(operator.folder / ".clusters")
