"""Disturbs one run again and again, at random, and checks that it ends with the model of an undisturbed one.

make soak [FAULTS=50] [WHERE=local|netns|docker] [SEED=1] [MINUTES=20]

What must hold: the run succeeds at its last step; its model has the bits of a simulation of the same job; no time
without a step is longer than STILL_S; it resumes from no older checkpoint than the newest it had (unless that one was
spoilt here); every launch after the first is explained by an event. One line a fault; the exit code says whether all
held.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import faults
import torch
from clusters import Bench, cluster

from draco import data
from draco.runs import directory as run_directory
from draco.runs import events
from draco.training import checkpoint

# From a fault to the next step: a node that is cut off is found within 35 s, a hang within 60 s; then mpirun is ended
# (at most 15 s), started and joined by all ranks.
STILL_S = 150.0
STEPS_BETWEEN = (3, 25)
JOB = """\
name: soak
workers: {workers}
model: lenet
data: synthetic
batch_size: 18
steps: {steps}
scheme: {{name: repetition, adversaries: 1}}
attack: {attack}
optimizer: {{name: sgd, lr: 0.02, momentum: 0.9}}
checkpoint_every: 10
eval_every: 0
patience_s: 1.0
on_loss: {{name: replace, per_hour: 1000}}
"""


class Site:
    """Where the run goes on, on this machine: its processes are found by their folder."""

    workers, attack = 5, "none"

    def __init__(self, folder: Path, draw: random.Random) -> None:
        self.folder, self.draw = folder, draw
        self.spoilt: set[str] = set()

    @property
    def run(self) -> Path:
        return run_directory.runs(self.folder / "runs")[-1]

    def events(self) -> list[events.Event]:
        runs = run_directory.runs(self.folder / "runs")
        return list(events.read(runs[-1] / "events.jsonl")) if runs else []  # none has been made yet

    def status(self) -> run_directory.Status:
        return run_directory.read_status(self.run)

    def model(self) -> torch.Tensor:
        path = checkpoint.newest(self.run / "checkpoints")
        assert path
        return flat(checkpoint.load(path))

    def command(self, *options: str) -> list[str]:
        return [sys.executable, "-m", "draco", "train", "soak.yaml", *options]

    def processes(self, word: str, rank: int | None = None) -> list[int]:
        """Return the processes of the run whose command has `word`, of one rank where that is given."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                here = (entry / "cwd").resolve() == self.folder.resolve()
                words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
                known = (entry / "environ").read_bytes().split(b"\0") if rank is not None else []
            except OSError:
                continue
            mine = rank is None or f"OMPI_COMM_WORLD_RANK={rank}".encode() in known
            if here and mine and word in [Path(each).name for each in words[:4]]:
                found.append(int(entry.name))
        return found

    def signal(self, number: int, rank: int) -> None:
        for pid in self.processes("rank", rank):
            os.kill(pid, number)

    def worker(self) -> int:
        return self.draw.randrange(1, self.workers + 1)


def flat(contents: checkpoint.Contents) -> torch.Tensor:
    return torch.cat([value.flatten() for value in contents["model"].values()])


# --- Faults: each does something to the site and says what ------------------------------------------------------------


def kill_worker(site: Site) -> str:
    rank = site.worker()
    site.signal(signal.SIGKILL, rank)
    return f"rank {rank} killed"


def kill_two_workers(site: Site) -> str:
    ranks = site.draw.sample(range(1, site.workers + 1), 2)
    for rank in ranks:
        site.signal(signal.SIGKILL, rank)
    return f"ranks {ranks} killed"


def freeze_worker(site: Site) -> str:
    rank, seconds = site.worker(), site.draw.uniform(0.2, 6.0)
    site.signal(signal.SIGSTOP, rank)
    time.sleep(seconds)
    site.signal(signal.SIGCONT, rank)
    return f"rank {rank} frozen for {seconds:.1f} s"


def freeze_worker_for_good(site: Site) -> str:
    rank = site.worker()
    site.signal(signal.SIGSTOP, rank)
    return f"rank {rank} frozen for good"


def kill_server(site: Site) -> str:
    site.signal(signal.SIGKILL, 0)
    return "server killed"


def freeze_server(site: Site) -> str:
    site.signal(signal.SIGSTOP, 0)
    return "server frozen for good"


def kill_launcher(site: Site) -> str:
    for pid in site.processes("prterun"):
        os.kill(pid, signal.SIGKILL)
    return "mpirun killed"


def spoil_checkpoint(site: Site) -> str:
    """Cut or change the newest checkpoint, and kill the server at once."""
    path = checkpoint.newest(site.run / "checkpoints")
    kill_server(site)
    if path is None:
        return "server killed"
    site.spoilt.add(path.name)
    raw = bytearray(path.read_bytes())
    if site.draw.random() < 0.5:
        del raw[site.draw.randrange(len(raw)) :]
    else:
        raw[site.draw.randrange(len(raw))] ^= 0xFF
    path.write_bytes(raw)
    return f"server killed and {path.name} spoilt"


def kill_everything(site: Site) -> str:
    """The supervisor with all it has started, as a power cut does; the soak resumes the run."""
    for word in ("train", "prterun", "rank"):
        for pid in site.processes(word):
            os.kill(pid, signal.SIGKILL)
    return "everything killed"


def ask_for_checkpoint(site: Site) -> str:
    for pid in site.processes("prterun"):
        os.kill(pid, signal.SIGUSR1)
    return "SIGUSR1 to mpirun"


Fault = Callable[..., str]
LOCAL: tuple[tuple[Fault, int], ...] = (  # with how often each is drawn
    (kill_worker, 6), (kill_two_workers, 2), (freeze_worker, 6), (freeze_worker_for_good, 1), (kill_server, 4),
    (freeze_server, 1), (kill_launcher, 3), (spoil_checkpoint, 3), (kill_everything, 3), (ask_for_checkpoint, 2),
)  # fmt: skip


class ClusterSite(Site):
    """Where the run goes on, on the nodes of a cluster, told by its operator."""

    workers, attack = 6, "{name: reverse_gradient, ranks: [2]}"

    def __init__(self, folder: Path, draw: random.Random, bench: Bench) -> None:
        super().__init__(folder, draw)
        self.bench = bench

    def _on_head(self, line: str) -> str:
        made = self.bench.on("head", "sh", "-c", line, limit_s=60)
        return made.stdout

    def _newest(self, path: str) -> str:
        return f"$(ls -td runs/*/ | head -1){path}"

    def events(self) -> list[events.Event]:
        lines = self._on_head(f"cat {self._newest('events.jsonl')}").splitlines()
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]

    def status(self) -> run_directory.Status:
        return run_directory.Status(**json.loads(self._on_head(f"cat {self._newest('state.json')}")))

    def model(self) -> torch.Tensor:
        files = self._newest("checkpoints/*.pt")
        with tempfile.NamedTemporaryFile(suffix=".pt") as kept:
            command = self.bench.backend.command(
                self.bench.cluster, self.bench.own, "head", ["sh", "-c", f"cat $(ls {files} | tail -1)"]
            )
            subprocess.run(command, stdout=kept, check=True)
            return flat(torch.load(kept.name, weights_only=True))

    def signal(self, number: int, rank: int) -> None:
        find = f"for e in /proc/[0-9]*; do tr '\\0' '\\n' < $e/environ | grep -qx OMPI_COMM_WORLD_RANK={rank} && " \
               f"grep -qz rank $e/cmdline && kill -{int(number)} ${{e#/proc/}}; done 2> /dev/null; true"  # fmt: skip
        for node in [node.name for node in self.bench.cluster.nodes]:
            if self.states()[node] == "running":
                self.bench.on(node, "sh", "-c", find)

    def states(self) -> dict[str, str]:
        return dict(self.bench.backend.states(self.bench.cluster, self.bench.own))

    def node(self) -> str | None:
        """Return a worker node that can be spared: another one runs as well."""
        running = [name for name, state in self.states().items() if state == "running" and name != "head"]
        return self.draw.choice(running) if len(running) > 1 else None


def _node_fault(site: ClusterSite, does: Callable[[str, float], None], what: str, longest: float = 0.0) -> str:
    node = site.node()
    if node is None:
        return kill_worker(site)
    seconds = site.draw.uniform(0.2, longest) if longest else 0.0
    does(node, seconds)
    return f"{node} {what}{f' for {seconds:.1f} s' if seconds else ''}"


def kill_node(site: ClusterSite) -> str:
    return _node_fault(site, lambda node, _: faults.kill(site.bench.cluster, site.bench.own, node), "killed")


def freeze_node(site: ClusterSite) -> str:
    def freeze(node: str, seconds: float) -> None:
        faults.pause(site.bench.cluster, site.bench.own, node)
        time.sleep(seconds)
        faults.resume(site.bench.cluster, site.bench.own, node)

    return _node_fault(site, freeze, "frozen", 45.0)


def cut_node(site: ClusterSite) -> str:
    def cut(node: str, seconds: float) -> None:
        faults.cut(site.bench.cluster, site.bench.own, node)
        time.sleep(seconds)
        faults.heal(site.bench.cluster, site.bench.own, node)

    return _node_fault(site, cut, "cut off", 45.0)


def interrupt_node(site: ClusterSite) -> str:
    def interrupt(node: str, seconds: float) -> None:
        site.bench.draco("cluster", "interrupt", node, "--name", site.bench.name, "--notice", "6", "--wait", "0")

    return _node_fault(site, interrupt, "interrupted with notice")


CLUSTER: tuple[tuple[Fault, int], ...] = (
    (kill_worker, 3), (freeze_worker, 3), (kill_server, 2), (kill_node, 4), (freeze_node, 3), (cut_node, 3),
    (interrupt_node, 3),
)  # fmt: skip


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


# --- The run ---------------------------------------------------------------------------------------------------------


class Verdict(NamedTuple):
    """What the soak found."""

    faults: int
    launches: int
    seconds: float
    worst_still_s: float


def soak(site: Site, kinds: tuple[tuple[Fault, int], ...], faults: int, limit_s: float) -> Verdict:
    """Disturb a run `faults` times, or until the time is up; raise an AssertionError where something does not hold."""
    steps = 40 + 30 * faults  # steps are taken while a fault lasts, too; the soak ends with the run
    (site.folder / "soak.yaml").write_text(JOB.format(workers=site.workers, steps=steps, attack=site.attack))
    began = time.monotonic()
    done, worst, cuts = 0, 0.0, 0
    with _trained(site) as process:
        await_step(site, process, 3)
        while done < faults and time.monotonic() - began < limit_s:
            at = newest_step(site)
            if at >= steps - STEPS_BETWEEN[1]:
                break
            await_step(site, process, at + site.draw.randint(*STEPS_BETWEEN))
            fault = site.draw.choices([kind for kind, _ in kinds], [weight for _, weight in kinds])[0]
            count = len(site.events())
            said = fault(site)
            done += 1
            hit = time.monotonic()
            if fault is kill_everything:
                process.communicate()
                process, cuts = started(site, "--resume"), cuts + 1
            still = await_new_step(site, process, count)
            worst = max(worst, still)
            say(f"{done:3d}  {hit - began:6.0f} s  step {at:5d}  {said}; next step after {still:.1f} s")
        process.communicate(timeout=steps * 2 + STILL_S)
    launches = check(site, steps, cuts)
    return Verdict(done, launches, time.monotonic() - began, worst)


@contextmanager
def _trained(site: Site) -> Iterator["subprocess.Popen[bytes]"]:
    process = started(site, "--new")
    try:
        yield process
    finally:
        kill_everything(site)


def started(site: Site, *options: str) -> "subprocess.Popen[bytes]":
    with open(site.folder / "output", "ab") as output:
        return subprocess.Popen(
            site.command(*options), cwd=site.folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip


def taken(site: Site, after: int = 0) -> list[int]:
    return [event["step"] for event in site.events()[after:] if event["event"] == "step"]


def newest_step(site: Site) -> int:
    return max(taken(site), default=0)


def await_new_step(site: Site, process: "subprocess.Popen[bytes]", count: int) -> float:
    """Wait for a step among the events after the first `count`, twice: the first may have been under way already."""
    began = time.monotonic()
    while len(taken(site, count)) < 2:
        look(site, process, began)
        if process.poll() == 0:
            break
    return time.monotonic() - began


def await_step(site: Site, process: "subprocess.Popen[bytes]", step: int) -> None:
    began, newest = time.monotonic(), newest_step(site)
    while newest < step and process.poll() != 0:
        look(site, process, began)
        if newest_step(site) != newest:
            began, newest = time.monotonic(), newest_step(site)


def look(site: Site, process: "subprocess.Popen[bytes]", began: float) -> None:
    """Wait a moment; nobody may give up, hang, or say that the run is over."""
    time.sleep(0.2)
    said = (site.folder / "output").read_text(errors="replace")[-2000:]
    assert process.poll() in (None, 0), f"the run ended with exit code {process.poll()}\n{said}"
    assert time.monotonic() - began < STILL_S, f"no step for {STILL_S:.0f} s\n{said}"


def check(site: Site, steps: int, cuts: int) -> int:
    """Assert what must hold of the run that has ended, `cuts` of whose launches were ours; return their number."""
    status, log = site.status(), site.events()
    assert (status.state, status.step) == ("succeeded", steps), status
    assert {event["step"] for event in log if event["event"] == "step"} == {*range(1, steps + 1)}
    saved, explained, launches, unexplained = 0, True, 0, 0
    for event in log:
        if event["event"] in ("interruption", "relaunch"):
            explained = True
        elif event["event"] == "checkpoint":
            saved = event["step"]
        elif event["event"] == "refused_checkpoint":
            assert event["file"] in site.spoilt, event
            saved = 0
        elif event["event"] == "resume":
            assert event["step"] >= saved, f"resumed from {event['step']} though there was a checkpoint of {saved}"
        elif event["event"] == "start":
            launches += 1
            unexplained += not explained
            explained = False
    assert unexplained <= cuts, f"{unexplained} launches without a word, {cuts} of them ours"
    alone = site.folder / "alone"
    subprocess.run(
        [sys.executable, "-m", "draco", "train", "soak.yaml", "--here", "--simulate", "--new", "--runs", str(alone)],
        cwd=site.folder, check=True, capture_output=True,
    )  # fmt: skip
    path = checkpoint.newest(run_directory.runs(alone)[-1] / "checkpoints")
    assert path
    assert torch.equal(site.model(), flat(checkpoint.load(path))), "its model is not that of an undisturbed run"
    return launches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=50)
    parser.add_argument("--where", choices=("local", "netns", "docker"), default="local")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=20.0, help="after which no further fault follows")
    args = parser.parse_args()
    draw = random.Random(args.seed)
    with tempfile.TemporaryDirectory(prefix="draco-soak-") as name:
        folder = Path(name)
        data.prepare("synthetic", folder / "data")
        if args.where == "local":
            found = soak(Site(folder, draw), LOCAL, args.faults, args.minutes * 60)
        else:
            with cluster(folder, args.where, workers=3) as bench:
                found = soak(ClusterSite(folder, draw, bench), CLUSTER, args.faults, args.minutes * 60)
    say(f"{found.faults} faults, {found.launches} launches, {found.seconds:.0f} s, longest time to a new step "
        f"{found.worst_still_s:.1f} s: the model has the bits of an undisturbed run")  # fmt: skip


if __name__ == "__main__":
    main()
