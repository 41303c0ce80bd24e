"""The plan of Slurm's srun: the ranks of a job on the nodes of an allocation that its user has.

An allocation is made by salloc or sbatch, never by Draco. The nodes share a file system with the run directory, and
have this virtual environment at the same path. Before each launch they are asked whether that is so, and the first of
them, where rank 0 will be, for a free port.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from draco.errors import MissingError, NotConfiguredError
from draco.job import Job
from draco.launch import meeting
from draco.launch.environment import launch_environment
from draco.launch.facts import facts
from draco.launch.planned import Allocation, Plan, Start
from draco.runs import spoken

NAME = "srun"
EXAMPLE = "examples/slurm/train.sbatch"
_ID, _NODES, _CORES = "SLURM_JOB_ID", "SLURM_JOB_NODELIST", "SLURM_JOB_CPUS_PER_NODE"
_KEPT = (_ID, _NODES, _CORES, "SLURM_CONF")  # of the allocation's variables; all others would be options of srun's
_LIMIT_S = 120.0  # for the nodes to answer, whose Python may have to come from a cold file system
# A step may share cores with the shell that it is started from, which is a step too where salloc opens it on a node.
_STEP = ("--overlap", "--mpi=none", "--export=ALL")
# The others go on when a rank is lost, or ends before them, or its node fails: the server is told, and decides.
_FAULT_TOLERANT = ("--kill-on-bad-exit=0", "--no-kill", "--wait=0")
_SAME = ("draco", "python", "torch", "numpy")  # facts that must be the same on all nodes
_RUN = re.compile(r"(\d+)(?:\(x(\d+)\))?")  # 4(x2): two nodes of 4


def allocation(job: Job, environ: Mapping[str, str] | None = None) -> Allocation:
    """Return the allocation in which this process is, if it has room for the job.

    Raises:
        MissingError: there is none, or it is too small; says how to get one.
    """
    environ = os.environ if environ is None else environ
    size = job.workers + 1
    asked = f"--ntasks={size} --cpus-per-task={job.threads}"
    if lacking := [name for name in (_ID, _NODES, _CORES) if not environ.get(name)]:
        raise MissingError(
            f"launcher: slurm: there is no allocation here ({lacking[0]} is not set): begin one with salloc {asked}, "
            f"or hand a script like {EXAMPLE} to sbatch"
        )
    for program in (NAME, "scontrol"):
        if not shutil.which(program):
            raise MissingError(f"launcher: slurm: {program} is not on the PATH, though {_ID} is set")
    kept = {name: environ[name] for name in _KEPT if name in environ}
    given = Allocation(kept, hostnames(environ[_NODES]), _counts(environ[_CORES]))
    if not given.nodes or len(given.nodes) != len(given.cores):
        raise MissingError(
            f"launcher: slurm: {_NODES}={environ[_NODES]} and {_CORES}={environ[_CORES]} do not go together, as "
            "scontrol reads them: they are of no allocation, so begin another"
        )
    room = sum(_rooms(given, job))
    if room < size:
        raise MissingError(
            f"launcher: slurm: the allocation {environ[_ID]} has room for {room} processes of {job.threads} "
            f"thread{'s' if job.threads > 1 else ''}, and the job needs {size}: ask for {asked}"
        )
    return given


def hostnames(nodelist: str) -> tuple[str, ...]:
    """Return the nodes of a list such as n[1-3], as Slurm itself reads it; nothing where its tool cannot say."""
    environment = launch_environment(os.environ, {name: os.environ[name] for name in _KEPT if name in os.environ})
    try:
        made = subprocess.run(
            ["scontrol", "show", "hostnames", nodelist], capture_output=True, text=True, check=False, env=environment,
            timeout=_LIMIT_S,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return tuple(made.stdout.split())


def _counts(text: str) -> tuple[int, ...]:
    """Return the numbers of a text such as 4(x2),1, which is 4, 4, 1."""
    return tuple(int(count) for count, times in _RUN.findall(text) for _ in range(int(times or 1)))


def _rooms(given: Allocation, job: Job) -> list[int]:
    """Return how many ranks of the job each node has room for."""
    return [cores // job.threads for cores in given.cores]


def deal(given: Allocation, job: Job) -> list[str]:
    """Return the node of every rank, dealt out in turn to those that have room, which is srun's `cyclic`.

    So neighbouring ranks are on different nodes, as on a cluster of Draco's (rank_placement.py).
    """
    left = dict(zip(given.nodes, _rooms(given, job), strict=True))
    dealt: list[str] = []
    while len(dealt) <= job.workers:
        for node in [node for node, room in left.items() if room]:
            dealt.append(node)
            left[node] -= 1
    return dealt[: job.workers + 1]


def plan(start: Start) -> Plan:
    """The server on the first node of the allocation, and the workers on all of them.

    Raises:
        MissingError: there is no allocation, or it is too small.
    """
    given = start.allocation or allocation(start.job)
    nodes = deal(given, start.job)
    used = list(dict.fromkeys(nodes))
    port = "PORT" if given.port is None else str(given.port)
    told = {spoken.NAME: "torch", "MASTER_ADDR": used[0], "MASTER_PORT": port}
    argv = (
        *_srun(used), "--ntasks", str(len(nodes)), "--distribution", "cyclic",
        "--cpus-per-task", str(start.job.threads), *_FAULT_TOLERANT, *start.rank,
    )  # fmt: skip
    files = ((start.run / "launch" / "nodes.json", json.dumps(nodes[1:])),)
    return Plan(argv, tuple({**start.ranks, **told, **given.environment}.items()), files, starter=NAME)


def _srun(nodes: Sequence[str]) -> tuple[str, ...]:
    return (NAME, *_STEP, "--nodes", str(len(nodes)), "--nodelist", ",".join(nodes))


def meet(job: Job, folder: Path, python: str = sys.executable) -> Allocation:
    """Return the allocation with a port, once its nodes have said that they see a folder and are as this one.

    Raises:
        MissingError: there is no allocation, or it is too small.
        NotConfiguredError: a node does not answer, does not see the folder, or differs; names each with its reason.
    """
    given = allocation(job)
    used = list(dict.fromkeys(deal(given, job)))
    argv = [
        *_srun(used), "--ntasks", str(len(used)), "--ntasks-per-node=1",
        python, "-m", "draco.launch.slurm_node", str(folder.absolute()), used[0],
    ]  # fmt: skip
    environment = launch_environment(os.environ, given.environment)
    try:
        made = subprocess.run(
            argv, capture_output=True, text=True, check=False, env=environment, timeout=_LIMIT_S,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        words = _last(made.stderr)
        said = {str(each["node"]): each for line in made.stdout.splitlines() if (each := _answer(line))}
    except subprocess.TimeoutExpired:
        said, words = {}, f"no answer within {_LIMIT_S:.0f} s"
    if found := faults(said, used, folder, facts(), words):
        raise NotConfiguredError("\n".join(found))
    return given._replace(port=int(said[used[0]]["port"]))


def faults(
    said: Mapping[str, Mapping[str, Any]], nodes: Sequence[str], folder: Path, here: Mapping[str, Any], words: str = ""
) -> list[str]:
    """Return one sentence for everything that keeps nodes from a run, by what each said; `words` are srun's last."""
    found = []
    for node in nodes:
        if node not in said:
            found.append(f"{node}: does not answer by srun: {words or 'srun said nothing'}")
            continue
        answer = said[node]
        if not answer["sees"]:
            found.append(
                f"{node}: does not see {folder.absolute()}: launcher slurm needs a file system that all nodes share; "
                "name a folder on one with --runs DIR"
            )
        if node == nodes[0] and answer["port"] is None:
            found.append(f"{node}: has no free port from {meeting.PORTS.start} to {meeting.PORTS.stop - 1}")
        if not answer["knows"]:
            found.append(f"{node}: does not know an address of {nodes[0]}, where the server will be")
        found += [
            f"{node}: {what} is {answer['facts'].get(what)}, here it is {here[what]}; all nodes must see the same "
            "virtual environment at the same path"
            for what in _SAME
            if answer["facts"].get(what) != here[what]
        ]
    return found


def _answer(line: str) -> dict[str, Any] | None:
    """Return what a node said, None for a line that is of somebody else."""
    try:
        said = json.loads(line)
    except ValueError:
        return None
    return said if isinstance(said, dict) and {"node", "sees", "knows", "port", "facts"} <= said.keys() else None


def _last(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
