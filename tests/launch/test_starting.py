"""A launch before its first word: its stage, that a stall is found and named, and what could not be started."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from draco.job import parse, to_yaml
from draco.launch import fork_client, not_started, pulse, starting, watch
from draco.launch.judge import Observed, judge
from draco.launch.planned import Plan
from draco.launch.progress import Progress
from draco.launch.run import Stops, run
from draco.launch.starting import STALL_S, Starting, Waited, waited
from draco.launch.watch import QUIET_S, Watch
from draco.runs import directory as run_directory
from draco.runs import stages
from draco.runs.directory import Status
from draco.runs.stages import STAGES, Reached

JOB = "{name: a, workers: 2, model: fc, data: synthetic, batch_size: 8, steps: 1, scheme: uncoded, eval_every: 0}"


def at(*reached: str | None) -> dict[int, Reached]:
    return {rank: Reached(stage, 100 + rank) for rank, stage in enumerate(reached) if stage}


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (at(None, None, None), Waited(None, (0, 1, 2))),
        (at("imported", None, "up"), Waited(None, (1,))),
        (at("imported", "up", "imported"), Waited("up", (1,))),
        (at("joined", "imported", "told"), Waited("imported", (1,))),
        (at("joined", "joined", "joined"), Waited("joined", (0,))),
        (at("told", "joined", "ready"), Waited("told", (0,))),  # a worker that does not greet is the server's affair
        (at("ready", "joined", "told"), None),
    ],
)
def test_a_launch_waits_for_those_who_are_behind(found: Mapping[int, Reached], expected: Waited | None) -> None:
    assert waited(found, 3) == expected


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 9**6), st.sampled_from(STAGES), st.text())))
def test_stages_are_read_among_other_lines(said: list[tuple[int, int, str, str]]) -> None:
    lines = [
        line for rank, pid, stage, noise in said for line in (f"draco: rank {rank}, process {pid}: {stage}", noise)
    ]
    assert stages.reached(lines) == {rank: Reached(stage, pid) for rank, pid, stage, _ in said}


class Logs:
    """The logs of a launch of three ranks, a clock, and the pulse of whoever is asked for."""

    def __init__(self, folder: Path, nodes: list[str] | None = None) -> None:
        self.log, self.now, self.beat = folder / "output.log", 0.0, 0
        self.log.write_text("draco: rank 0, process 9: ready\n")  # of an earlier launch
        self.asked: list[set[int]] = []
        self.look = Starting(folder, 3, self._pulse, nodes)

    def _pulse(self, ranks: Sequence[int], reached: Mapping[int, Reached]) -> int:
        self.asked.append({*ranks})
        return self.beat

    def say(self, *lines: str) -> None:
        with open(self.log, "a") as file:
            file.write("".join(f"{line}\n" for line in lines))

    def reach(self, stage: str, *ranks: int) -> None:
        self.say(*(f"draco: rank {rank}, process {100 + rank}: {stage}" for rank in ranks))

    def after(self, seconds: float, beats: bool = False) -> str:
        """Look once a second for so long and return what was said at the end."""
        for _ in range(int(seconds)):
            self.now += 1
            self.beat += beats
            if why := self.look(self.now):
                return why
        return ""


def test_a_slow_start_is_no_stall_as_long_as_who_is_waited_for_does_anything(tmp_path: Path) -> None:
    logs = Logs(tmp_path)
    assert logs.after(600, beats=True) == ""
    logs.reach("up", 0, 1, 2)
    logs.reach("imported", 0, 2)
    logs.asked.clear()
    assert logs.after(600, beats=True) == ""
    assert logs.asked == [{1}] * len(logs.asked)  # those that wait for it do not count
    logs.reach("imported", 1)
    logs.reach("joined", 0, 1, 2)
    logs.reach("told", 0)
    assert logs.after(600, beats=True) == ""
    logs.reach("ready", 0)
    assert logs.after(600) == ""  # the server's own limits hold from here


@pytest.mark.parametrize(
    ("reached", "said"),
    [
        ({}, "stalled: ranks 0, 1, 2 on head, worker-02, worker-01 have not started"),
        ({"up": (0, 2)}, "stalled: rank 1 on worker-02 has not started"),
        ({"up": (0, 1, 2)}, "stalled: ranks 0, 1, 2 on head, worker-02, worker-01 have not imported torch"),
        ({"joined": (0, 1, 2), "told": (0,)}, "stalled: rank 0 on head has not loaded the data"),
    ],
)
def test_a_stage_without_any_doing_is_a_stall(tmp_path: Path, reached: dict[str, tuple[int, ...]], said: str) -> None:
    logs = Logs(tmp_path, ["worker-02", "worker-01"])
    for stage, ranks in reached.items():
        logs.reach(stage, *ranks)
    assert logs.after(2 * STALL_S) == said
    assert logs.now <= STALL_S + 2 * starting.LOOK_EVERY_S
    assert QUIET_S + STALL_S + starting.LOOK_EVERY_S <= 30


@pytest.mark.parametrize(("stage", "said"), [("imported", "joined the run"), ("joined", "taken the job")])
def test_waiting_with_a_busy_core_is_not_doing(tmp_path: Path, stage: str, said: str) -> None:
    logs = Logs(tmp_path)
    logs.reach(stage, 0, 1, 2)
    assert logs.after(2 * STALL_S, beats=True).endswith(said)


def test_a_rank_that_waits_for_a_fork_server_has_its_pulse_until_it_serves(tmp_path: Path) -> None:
    """Torch may take minutes to come from a cold disk."""
    (tmp_path / "slow.py").write_text("import time\ntime.sleep(0.3)\ndef load(): pass\n")
    name = f"test-{os.getpid()}-slow"
    environment = {**os.environ, fork_client.NAME: name, "PYTHONPATH": str(tmp_path)}
    with (
        subprocess.Popen(["sleep", "60"], env=environment) as waiting,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(fork_client, "MODULE", "slow")
        with fork_client.start(name, environment) as server:
            assert pulse.pulse([str(waiting.pid)]) > 0
            still = pulse._of(waiting.pid)
            while pulse.pulse([str(waiting.pid)]) > still:
                assert server.poll() is None
            server.terminate()
        waiting.kill()


def test_the_pulse_of_a_process_that_computes_grows_and_of_one_that_sleeps_does_not() -> None:
    codes = ("import time; time.sleep(60)", "while True: pass")
    processes = [subprocess.Popen([sys.executable, "-Sc", code]) for code in codes]
    try:
        time.sleep(1)
        before = [pulse.pulse([str(process.pid)]) for process in processes]
        time.sleep(0.5)
        after = [pulse.pulse([str(process.pid)]) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert before[0] == after[0] > 0
    assert before[1] < after[1]
    assert pulse.pulse([str(processes[0].pid)]) == 0  # it is gone


def test_of_ranks_that_are_not_up_whatever_else_is_there_of_the_run_counts(tmp_path: Path) -> None:
    code = "import sys; sys.argv; exec('while True: pass')"
    run = f"runs/{tmp_path.name}"
    processes = [subprocess.Popen([sys.executable, "-Sc", code, "draco", "rank", run]) for _ in range(2)]
    try:
        time.sleep(0.5)
        look = starting.pulses(Path(run), None, None)
        up = {0: Reached("imported", processes[0].pid)}
        both = {**up, 1: Reached("up", processes[1].pid)}
        assert look([1], up) > 0
        assert look([1], both) > 0
        processes[1].kill()
        processes[1].wait()
        assert look([1], up) == look([1], both) == 0  # rank 0 computes, and is not waited for
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_a_launch_that_says_nothing_is_ended_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in (
        (watch, "QUIET_S"),
        (starting, "STALL_S"),
        (starting, "LOOK_EVERY_S"),
        (watch, "LOOK_EVERY_S"),
    ):
        monkeypatch.setattr(module, name, 0.2)
    directory = run_directory.create(tmp_path, "a", to_yaml(parse(JOB, "test")))
    look = Watch(directory, parse(JOB, "test"), dict, starting=Starting(directory / "logs", 3, lambda *_: 0))
    progress = Progress(directory / "events.jsonl", Console(quiet=True), "starting")
    with progress, Stops(directory, progress) as stops:
        ended = run(Plan((sys.executable, "-Sc", "import time; time.sleep(60)"), ()), directory, progress, stops, look)
    assert (ended.state, ended.message) == ("lost", "stalled: ranks 0, 1, 2 have not started")


# What could not be started

NO_LOOPBACK = ["[vm:1] pmix_ifinit: unable to find network interfaces.", "-----", "You requested support for tools"]
UNKNOWN = ["draco: rank 1, process 7: imported", "*** An error that nobody knows", "", "---", "It says more."]
NO_DAEMON = ["A daemon failed to report back after being spawned. This could"]


@pytest.mark.parametrize(
    ("printed", "step", "state", "message"),
    [
        (NO_LOOPBACK, 0, "failed", "could not be started (exit code 213): [vm:1] pmix_ifinit: unable to find network "
         "interfaces. You requested support for tools; give this machine its loopback address: ip link set lo up"),
        (NO_LOOPBACK, 7, "failed", "could not be started (exit code 213): [vm:1] pmix_ifinit: unable"),
        (UNKNOWN, 0, "failed", "could not be started (exit code 213): *** An error that nobody knows It says more"),
        (UNKNOWN, 7, "lost", "could not be started (exit code 213): *** An error that nobody knows It says more"),
        (NO_DAEMON, 0, "lost", "could not be started (exit code 213): A daemon failed to report back"),
        ([], 0, "failed", "could not be started (exit code 213): mpirun said nothing"),
        (["draco: rank 1, process 7: joined"], 0, "lost", "its processes ended (exit code 213) without a word"),
        (["x.MissingError: no data"], 0, "failed", "its processes ended (exit code 213): x.MissingError: no data"),
    ],
)  # fmt: skip
def test_an_end_before_any_rank_had_joined_is_no_loss(printed: list[str], step: int, state: str, message: str) -> None:
    status = Status("pending", step, "", 1, "here", 0.0)
    verdict = judge(Observed(status, 213, printed=printed, starter="mpirun"))
    assert (verdict[0], verdict[1][: len(message)]) == (state, message)


def test_too_little_shared_memory_is_found_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = parse(JOB, "test")
    usage = shutil.disk_usage(tmp_path)
    for free, fault in ((not_started.SEGMENT_BYTES - 1, True), (not_started.SEGMENT_BYTES, False)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: usage._replace(free=free))
        said = not_started.shared_memory_fault(job, tmp_path)
        assert said.startswith(f"{tmp_path}: 16 MiB free, and MPI needs 17 MiB") == fault
    assert not_started.shared_memory_fault(parse(JOB, "test", ["launcher=simulate"]), tmp_path) == ""
    assert not_started.shared_memory_fault(job, tmp_path / "none") == ""


MACHINES = {  # a namespace's machine -> how it is made, the exit code, and what the command must say
    "a small /dev/shm": ("mount -t tmpfs -o size=16m tmpfs /dev/shm", 3, "docker run --shm-size=1g"),
    "no loopback address": ("true", 7, "ip link set lo up"),
    "a read-only /tmp": ("mount --bind /tmp /tmp && mount -o remount,bind,ro /tmp", 7, "TMPDIR=..."),
}


@pytest.mark.parametrize("machine", MACHINES)
def test_a_machine_without_what_mpi_needs_is_told_so(machine: str, data_root: Path) -> None:
    if subprocess.run(["unshare", "-mn", "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs the right to make namespaces")
    make, code, remedy = MACHINES[machine]
    network = ["-n"] if machine == "no loopback address" else []
    folder = Path("/var/tmp") / f"draco-test-{os.getpid()}"
    shutil.copytree(data_root, folder / "data")
    try:
        (folder / "job.yaml").write_text(JOB)
        command = f"mount --make-rprivate / && {make} && exec {sys.executable} -m draco train job.yaml --here"
        made = subprocess.run(
            ["unshare", "-m", *network, "sh", "-c", command], cwd=folder, capture_output=True, text=True, timeout=120,
            env={name: value for name, value in os.environ.items() if name != "TMPDIR"}, check=False,
        )  # fmt: skip
    finally:
        shutil.rmtree(folder)
    assert made.returncode == code, made.stderr
    assert remedy in made.stderr
    assert "RESUME=1" not in made.stderr
    assert "launch 2" not in made.stderr
    assert code == 3 or "could not be started" in made.stderr
