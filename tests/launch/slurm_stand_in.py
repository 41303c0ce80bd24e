"""Stand-ins for srun and scontrol: what Draco uses of them, as Slurm 22.05 was seen to do it on three nodes.

slurm_stand_in.py srun OPTIONS COMMAND        starts the tasks, all on this machine, each with the name of a node
slurm_stand_in.py scontrol show hostnames LIST

An allocation is what salloc puts into the environment; without SLURM_JOB_ID there is none. Output is unbuffered and
goes to the task's own descriptors, not by srun.
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from itertools import cycle
from pathlib import Path

WORDS = {9: "Killed", 11: "Segmentation fault", 6: "Aborted"}


def hostnames(text: str) -> list[str]:
    """Return the nodes of a list: a,n[1-3,7]."""
    found = []
    for part in re.findall(r"[^,\[]+(?:\[[^\]]*\])?", text):
        name, _, rest = part.partition("[")
        for each in rest.rstrip("]").split(",") if rest else [""]:
            first, _, last = each.partition("-")
            found += [f"{name}{n}" for n in range(int(first), int(last or first) + 1)] if each else [name]
    return found


def counts(text: str) -> list[int]:
    return [int(n) for n, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text) for _ in range(int(times or 1))]


def parsed(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(prog="srun", allow_abbrev=False)
    for name in ("nodes", "ntasks", "cpus-per-task", "ntasks-per-node"):
        parser.add_argument(f"--{name}", type=int, default=1)
    for name in ("nodelist", "distribution", "mpi", "export", "kill-on-bad-exit", "wait"):
        parser.add_argument(f"--{name}", default="")
    for name in ("overlap", "no-kill"):
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    found = parser.parse_args(words)
    return found, found.command


def error(text: str) -> int:
    sys.stderr.write(f"srun: error: {text}\n")
    return 1


def placed(options: argparse.Namespace) -> list[str] | None:
    """Return the node of each task, dealt out in turn; None: there is no room."""
    all_cores = dict(
        zip(
            hostnames(os.environ["SLURM_JOB_NODELIST"]),
            counts(os.environ["SLURM_JOB_CPUS_PER_NODE"]),
            strict=True,
        )
    )
    room = {node: all_cores[node] // options.cpus_per_task for node in hostnames(options.nodelist)}
    if sum(room.values()) < options.ntasks or len(room) != options.nodes:
        return None
    found: list[str] = []
    for node in cycle(room):
        if len(found) == options.ntasks:
            return found
        if room[node]:
            room[node] -= 1
            found.append(node)
    return None


def srun(words: list[str]) -> int:
    options, command = parsed(words)
    job = os.environ.get("SLURM_JOB_ID")
    if not job:
        return error("Unable to allocate resources: No partition specified or system default partition")
    nodes = placed(options)
    if nodes is None:
        return error(f"Unable to create step for job {job}: More processors requested than permitted")
    step, tasks = str(os.getpid()), []
    with open(os.path.join(os.environ["STAND_IN_FOLDER"], "calls"), "a") as calls:
        calls.write(" ".join(words) + "\n")
    for rank, node in enumerate(nodes):
        told = {
            "SLURM_PROCID": rank, "SLURM_NTASKS": len(nodes), "SLURM_STEP_NUM_TASKS": len(nodes), "SLURM_STEP_ID": step,
            "SLURM_STEP_NODELIST": options.nodelist, "SLURMD_NODENAME": node, "SLURM_LOCALID": nodes[:rank].count(node),
        }  # fmt: skip
        environment = {**os.environ, **{name: str(value) for name, value in told.items()}}
        tasks.append(subprocess.Popen(command, env=environment, start_new_session=True))
    cancelled: list[int] = []
    signal.signal(signal.SIGTERM, lambda *_: cancelled.append(1))
    codes: dict[int, int] = {}
    while len(codes) < len(tasks):
        time.sleep(0.02)
        if cancelled == [1]:
            cancelled.append(2)
            sys.stderr.write("srun: forcing job termination\n")
            sys.stderr.write("srun: Job step aborted: Waiting up to 32 seconds for job step to finish.\n")
            for task in tasks:
                if task.poll() is None:
                    task.kill()
        for rank, task in enumerate(tasks):
            if rank not in codes and task.poll() is not None:
                codes[rank] = code = task.poll() or 0
                if code < 0:
                    error(f"{nodes[rank]}: task {rank}: {WORDS.get(-code, 'Terminated')}")
                elif code:
                    error(f"{nodes[rank]}: task {rank}: Exited with exit code {code}")
    if bad := max(128 - code if code < 0 else code for code in codes.values()):
        sys.stderr.write(f"srun: Force Terminated StepId={job}.{step}\n")
    return bad


def install(folder: Path) -> Path:
    """Put `srun` and `scontrol` into a folder for the PATH; `calls` in it will have the options of each srun."""
    for name in ("srun", "scontrol"):
        script = folder / name
        command = f"'{sys.executable}' -S '{Path(__file__).resolve()}' {name} \"$@\""
        script.write_text(f"#!/bin/sh\nSTAND_IN_FOLDER='{folder}' exec {command}\n")
        script.chmod(0o755)
    return folder


def main(name: str, words: list[str]) -> int:
    if name == "srun":
        return srun(words)
    assert words[:2] == ["show", "hostnames"]
    sys.stdout.write("\n".join(hostnames(words[2])) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
