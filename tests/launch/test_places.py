"""What ranks that compute on GPUs are told, by whichever launcher: which of their node's each is, and cuBLAS's setting.

Launchers are real (Slurm's is a stand-in), and what they start is a program that prints its environment.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import slurm_stand_in

from draco.job import parse
from draco.launch import fork_client
from draco.launch.environment import gpu_environment, launch_environment, process_environment
from draco.launch.joining import joined
from draco.launch.plan import plan
from draco.launch.planned import Allocation, Plan
from draco.launch.roster import Host, Roster
from draco.training import device

JOB = "{name: a, workers: 2, model: fc, data: synthetic, batch_size: 6, steps: 2, scheme: uncoded, device: cuda}"
RUN = Path("runs/a-1")
CUBLAS, NVML = "CUBLAS_WORKSPACE_CONFIG", "PYTORCH_NVML_BASED_CUDA_CHECK"
NODES = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "localhost,127.0.0.1", "SLURM_JOB_CPUS_PER_NODE": "3,1"}
# Stands for draco.training.process: a rank is to see what its representative was told, not what the server was.
RANK = """
import json, os
def load(): pass
def main(run, simulate):
    os.write(1, (json.dumps(dict(os.environ)) + "\\n").encode())
"""
FORKED = "import sys; from draco.launch import fork_client as c; c.MODULE = 'printing_rank'; c.run_forked('r', False)"


def told(made: Plan, folder: Path, **user: str) -> list[dict[str, str]]:
    """Return the environments of the ranks that a plan starts, a program of ours in the place of each."""
    (folder / "printing_rank.py").write_text(RANK)
    program = folder / "rank.py"
    program.write_text(f"{FORKED}\nimport printing_rank; printing_rank.main('r', False)\n")
    *starting, flag, draco, rank, _ = made.argv
    assert (flag, draco, rank) == ("-m", "draco", "rank")
    needed = {**dict(made.environment), "PYTHONPATH": str(folder)}
    started = subprocess.run(
        [*starting, str(program)], env=launch_environment({**os.environ, **user}, needed),
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (started.returncode, "fork server is of no use" in started.stderr) == (0, False), started.stderr
    return sorted((json.loads(line) for line in started.stdout.splitlines()), key=lambda each: device.place(each))


@pytest.mark.parametrize("launcher", ["mpi", "torchrun"])
def test_every_rank_of_this_machine_has_a_place_of_its_own(launcher: str, tmp_path: Path) -> None:
    made = plan(parse(JOB, "test", [f"launcher={launcher}"]), RUN)
    found = told(made, tmp_path, CUDA_VISIBLE_DEVICES="1,0")
    assert [device.place(each) for each in found] == [0, 1, 2]
    assert {(each[CUBLAS], each[NVML], each["CUDA_VISIBLE_DEVICES"]) for each in found} == {(":4096:8", "1", "1,0")}


def test_a_forked_rank_has_the_place_of_its_representative_and_not_of_who_started_the_server(tmp_path: Path) -> None:
    """Where a node has no server its first rank starts one, whose own place is 0 or any other."""
    name = f"test-{os.getpid()}"
    (tmp_path / "printing_rank.py").write_text(RANK)
    mine = {"OMPI_COMM_WORLD_LOCAL_RANK": "5", "CUDA_VISIBLE_DEVICES": "9", "PYTHONPATH": str(tmp_path)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fork_client, "MODULE", "printing_rank")
        server = fork_client.start(name, launch_environment(os.environ, {**process_environment(1), **mine}))
    try:
        found = told(plan(parse(JOB, "test"), RUN, forks=name), tmp_path, CUDA_VISIBLE_DEVICES="1,0")
        assert [device.place(each) for each in found] == [0, 1, 2]
        assert {(each[CUBLAS], each["CUDA_VISIBLE_DEVICES"]) for each in found} == {(":4096:8", "1,0")}
        assert {each["OMPI_COMM_WORLD_SIZE"] for each in found} == {"3"}
    finally:
        server.terminate()
        server.wait()


def test_tasks_of_srun_count_from_0_on_each_node(tmp_path: Path) -> None:
    path = f"{slurm_stand_in.install(tmp_path)}:{os.environ['PATH']}"
    given = Allocation(NODES, ("localhost", "127.0.0.1"), (3, 1), 29_500)
    found = told(plan(parse(JOB, "test", ["launcher=slurm"]), RUN, allocation=given), tmp_path, PATH=path)
    assert sorted((each["SLURMD_NODENAME"], device.place(each), each[CUBLAS]) for each in found) == [
        ("127.0.0.1", 0, ":4096:8"), ("localhost", 0, ":4096:8"), ("localhost", 1, ":4096:8"),
    ]  # fmt: skip


def test_ranks_on_other_nodes_are_told_on_mpiruns_command_line() -> None:
    nodes = Roster("dev", "10.0.0.0/24", "/p", "/c", (Host("head", "10.0.0.10", 4), Host("worker-01", "10.0.0.11", 4)))
    words = " ".join(plan(parse(JOB, "test"), RUN, nodes).argv)
    assert f"-x {CUBLAS}=:4096:8" in words
    assert f"-x {NVML}=1" in words
    assert "CUDA_VISIBLE_DEVICES" not in words  # each node's own counts


@pytest.mark.parametrize(
    ("words", "user", "wanted"),
    [
        (["device=cpu"], {}, {}),
        (["device=cpu"], {CUBLAS: ":16:8"}, {}),
        ([], {}, {CUBLAS: ":4096:8"}),
        ([], {CUBLAS: ":16:8"}, {CUBLAS: ":16:8"}),
        (["device=cpu", "server_device=cuda"], {}, {CUBLAS: ":4096:8"}),
    ],
    ids=["cpu", "cpu, set", "gpus", "gpus, set", "the server's"],
)
def test_cublas_gets_a_workspace_where_gpus_compute_unless_the_user_has_set_one(
    words: list[str], user: Mapping[str, str], wanted: Mapping[str, str]
) -> None:
    assert gpu_environment(parse(JOB, "test", words), user) == wanted


@pytest.mark.parametrize(
    "started",
    [
        {"RANK": "3", "WORLD_SIZE": "5", "MASTER_ADDR": "n1", "MASTER_PORT": "29500", "LOCAL_RANK": "1"},
        {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "5", "SLURM_STEP_NODELIST": "n1", "SLURM_JOB_ID": "7",
         "SLURM_STEP_ID": "1", "SLURM_LOCALID": "1", "MASTER_ADDR": "n1"},
    ],
    ids=["torchrun", "srun"],
)  # fmt: skip
def test_who_joins_keeps_the_place_that_it_was_started_at(started: dict[str, str]) -> None:
    found = joined(started)
    assert found is not None
    assert device.place(launch_environment(started, found.told)) == 1
    as_server = plan(parse(JOB, "test"), RUN, joined=found.told)
    assert device.place(launch_environment(started, dict(as_server.environment))) == 1


def test_a_fork_server_has_not_asked_cuda_before_it_forks() -> None:
    """CUDA that was begun before a fork is of no use after it."""
    code = "from draco.training import process; process.load(); import torch; print(torch.cuda.is_initialized())"
    asked = "import torch; torch.cuda.device_count = torch.cuda.is_available = lambda: 1 / 0; " + code
    made = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, timeout=120, check=False)
    assert (made.returncode, made.stdout) == (0, "False\n"), made.stderr
