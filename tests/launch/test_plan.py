"""The plan for a cluster, compared as a whole: what is run, with which files, and how a shell takes it."""

import json
import shlex
import subprocess
from pathlib import Path

import pytest

from draco.errors import NotConfiguredError
from draco.job import Job, parse
from draco.launch.mpirun import AS_ROOT, mpirun
from draco.launch.plan import plan
from draco.launch.planned import Plan
from draco.launch.roster import Host, Roster, read
from draco.launch.roster import parse as parse_roster

NODES = Roster(
    "dev", "10.0.0.0/24", "/opt/draco/bin/python", "/etc/draco/ssh_config",
    (
        Host("head", "10.0.0.10", 4), Host("worker-01", "10.0.0.11", 4), Host("worker-02", "10.0.0.12", 4),
        Host("worker-03", "10.0.0.13", 4),
    ),
)  # fmt: skip
RUN = Path("runs/a-1")


def job(*overrides: str) -> Job:
    text = "{name: a, workers: 4, model: lenet, data: synthetic, batch_size: 8, steps: 2, scheme: uncoded}"
    return parse(text, "test", overrides)


def test_a_cluster_is_run_by_one_mpirun_on_the_head() -> None:
    assert plan(job("threads=2"), RUN, NODES) == Plan(
        argv=(
            "/opt/draco/bin/mpirun", "--bind-to", "none",
            "--mca", "btl_tcp_if_include", "10.0.0.0/24",
            "--prtemca", "prte_if_include", "10.0.0.0/24",
            "--prtemca", "plm_ssh_no_tree_spawn", "1",
            "--prtemca", "plm_ssh_agent", "ssh -F /etc/draco/ssh_config",
            "--prtemca", "oob_tcp_keepalive_time", "10",
            "--prtemca", "oob_tcp_keepalive_intvl", "5",
            "--prtemca", "oob_tcp_keepalive_probes", "3",
            "--prtemca", "oob_tcp_dynamic_ipv4_ports", "20824-20827",
            "--prtemca", "oob_tcp_disable_ipv6_family", "1",
            "-x", "PYTHONSAFEPATH=1",
            "-x", "PYTHONUTF8=1",
            "-x", "OMP_NUM_THREADS=2",
            "-x", "MKL_NUM_THREADS=2",
            "-x", "OPENBLAS_NUM_THREADS=2",
            "-x", "THP_MEM_ALLOC_ENABLE=1",
            "-x", "PYTORCH_NVML_BASED_CUDA_CHECK=1",
            "-x", "OMPI_MCA_pml=ob1",
            "-x", "OMPI_MCA_btl=self,sm,tcp",
            "-x", "OMPI_MCA_mpi_yield_when_idle=1",
            "-x", "OMPI_MCA_threads_pthreads_yield_strategy=sched_yield",
            "-x", "OMPI_MCA_mpi_abort_delay=3",
            "-x", "OMPI_MCA_btl_tcp_disable_family=6",
            "-x", "OMPI_MCA_btl_tcp_port_min_v4=20000",
            "-x", "OMPI_MCA_btl_tcp_port_range_v4=800",
            "--with-ft", "ulfm", "-n", "5", "--hostfile", "runs/a-1/launch/hostfile",
            "--map-by", "seq:OVERSUBSCRIBE",
            "--output", "file=runs/a-1/logs/rank,merge",
            "/opt/draco/bin/python", "-m", "draco", "rank", "runs/a-1",
        ),
        environment=tuple(AS_ROOT.items()),
        files=(
            (
                RUN / "launch/hostfile",
                "10.0.0.10\n10.0.0.11\n10.0.0.12\n10.0.0.13\n10.0.0.11\n",
            ),
            (RUN / "launch/nodes.json", '["worker-01", "worker-02", "worker-03", "worker-01"]'),
        ),
        roster=NODES,
        starter="mpirun",
    )  # fmt: skip


def test_a_simulation_on_a_head_stays_on_the_head() -> None:
    made = plan(job("launcher=simulate"), RUN, NODES, "python")
    assert made.argv == ("python", "-m", "draco", "rank", "runs/a-1", "--simulate")
    assert made.roster is None
    assert made.files == ()


@pytest.mark.parametrize("nodes", [None, NODES], ids=["this machine", "a cluster"])
def test_the_last_line_of_a_dry_run_is_the_command_as_a_shell_takes_it(nodes: Roster | None) -> None:
    made = plan(job(), Path("runs/it's a run"), nodes)
    words = shlex.split(str(made).splitlines()[-1])
    settings = [f"{name}={value}" for name, value in made.environment]
    assert words == [*settings, *made.argv]


def test_a_dry_run_can_be_pasted_as_a_whole(tmp_path: Path) -> None:
    made = Plan(("true",), (("A", "b c"),), ((tmp_path / "launch/hostfile", "10.0.0.10 slots=1\n"),))
    ran = subprocess.run(["sh", "-c", str(made)], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_a_dry_run_shows_every_file_with_its_path() -> None:
    made = plan(job(), RUN, NODES)
    for path, text in made.files:
        assert f"# {path}\n" in str(made)
        for line in text.splitlines():
            assert line in str(made)


@pytest.mark.parametrize("nodes", [None, NODES], ids=["this machine", "a cluster"])
def test_nothing_in_a_plan_weakens_ssh(nodes: Roster | None) -> None:
    text = str(plan(job(), RUN, nodes)).lower()
    for word in ("stricthostkeychecking", "userknownhostsfile", "/dev/null", "rsh"):
        assert word not in text


def test_what_every_program_on_the_nodes_needs_comes_from_the_roster() -> None:
    made = mpirun(NODES._replace(subnet="192.168.7.0/24", python="/x/python", ssh_config="/y"), {"A": "b"}, "x")
    assert made[0] == "/x/mpirun"
    assert made.count("192.168.7.0/24") == 2
    assert "ssh -F /y" in made
    assert "A=b" in made


# The roster


def written(**changes: object) -> str:
    return json.dumps({**NODES._asdict(), "nodes": [host._asdict() for host in NODES.nodes], **changes})


def test_a_roster_is_read_as_ansible_wrote_it(tmp_path: Path) -> None:
    path = tmp_path / "cluster.json"
    assert read(path) is None
    path.write_text(written())
    assert read(path) == NODES


@pytest.mark.parametrize(
    "text",
    [
        "", "7", "[]", "{}", '"text"', written(nodes=[{"name": "head"}]), written(nodes=None), written(nodes=[]),
        written(more=1),
    ],
)  # fmt: skip
def test_a_roster_that_is_not_one_says_where_it_is_and_what_writes_it(text: str) -> None:
    with pytest.raises(NotConfiguredError, match=r"^/etc/x: is not a roster .*make cluster-up writes it anew"):
        parse_roster(text, "/etc/x")


def test_programs_at_the_same_time_listen_on_ports_of_their_own_that_firewalls_know() -> None:
    ports = set()
    for purpose in map(str, range(500)):
        made = mpirun(NODES, {}, purpose)
        first, last = map(int, made[made.index("oob_tcp_dynamic_ipv4_ports") + 1].split("-"))
        assert 20_800 <= first < last < 21_000
        ports.add((first, last))
    assert len(ports) == 50
    assert sum(last - first + 1 for first, last in ports) == 200
