"""What stays with a run: the watch over its heartbeat, the verdict of whoever finds it, and how it is stopped."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from rich.console import Console

from draco import run_directory
from draco.errors import RefusedError
from draco.job import Job, parse, to_yaml
from draco.launch import follow as following
from draco.launch import head, nodes, preflight, supervise
from draco.launch import run as running
from draco.launch import stop as stopping
from draco.launch import sweep as sweeping
from draco.launch.plan import Plan
from draco.launch.progress import Progress
from draco.launch.resume import unfinished
from draco.launch.roster import Host, Roster
from draco.launch.supervise import SLACK_S, Watch, settle, supervisor
from draco.launch.sweep import sweep

JOB = """{name: a, workers: 3, model: lenet, data: synthetic, batch_size: 6, steps: 2, scheme: uncoded,
reply_timeout_s: 20, start_timeout_s: 30, eval_every: 0}"""
NODES = Roster("dev", "10.0.0.0/24", "python", "ssh_config", (Host("head", "10.0.0.10", 2), Host("b", "10.0.0.11", 2)))
NOBODY = 2**22 + 1  # no process has this id


@pytest.fixture
def job() -> Job:
    return parse(JOB, "test")


@pytest.fixture
def directory(tmp_path: Path, job: Job) -> Path:
    return run_directory.create(tmp_path, "a", to_yaml(job))


def state(directory: Path) -> str:
    return run_directory.read_status(directory).state


# The watch


class Watched:
    """A run, its watch, a clock that only the test moves, and nodes that are lost when the test says so."""

    def __init__(self, directory: Path, job: Job, *before: str) -> None:
        self.now, self.lost, self.asked = 1e9, dict[str, str](), 0
        self.events = directory / "events.jsonl"
        self.watch: Callable[[], str] = lambda: ""
        if before:
            self.beat(*before)
        self.watch = Watch(directory, job, self.unreachable, lambda: self.now)

    def unreachable(self) -> Mapping[str, str]:
        self.asked += 1
        return dict(self.lost)

    def beat(self, *events: str, behind: float = 0.0) -> None:
        """Let the server write something; `behind`: the clock of whoever stores the file."""
        with open(self.events, "a") as file:
            file.writelines(json.dumps({"event": event, "time": self.now}) + "\n" for event in events)
        os.utime(self.events, (self.now - behind, self.now - behind))
        self.watch()  # which is called often

    def after(self, seconds: float) -> str:
        self.now += seconds
        return self.watch()


@pytest.fixture
def watched(directory: Path, job: Job) -> Watched:
    return Watched(directory, job)


def test_a_run_that_has_just_started_may_be_quiet(watched: Watched) -> None:
    watched.lost = {"b": "frozen"}
    assert [watched.after(1) for _ in range(9)] == [""] * 9
    assert watched.asked == 0


def test_nodes_are_not_asked_while_steps_are_taken(watched: Watched) -> None:
    for _ in range(50):
        watched.beat("step")
        assert watched.after(5) == ""
    assert watched.asked == 0


def test_nodes_of_a_quiet_run_are_asked_every_few_seconds(watched: Watched) -> None:
    assert [watched.after(seconds) for seconds in (11, 1, 1, 1, 1, 1, 3)] == [""] * 7
    assert watched.asked == 3  # at 11, 15 and 19 s


def test_a_node_that_is_lost_once_ends_nothing(watched: Watched) -> None:
    watched.lost = {"b": "frozen"}
    assert watched.after(11) == ""
    watched.lost = {"c": "gone"}  # another one
    assert watched.after(5) == ""
    watched.lost = {}
    assert watched.after(5) == ""
    watched.lost = {"b": "frozen"}
    assert watched.after(5) == ""


def test_a_node_that_is_lost_twice_in_a_row_ends_the_run(watched: Watched) -> None:
    watched.lost = {"b": "frozen", "c": "gone"}
    assert watched.after(11) == ""
    assert watched.after(3) == ""  # too early to ask again
    watched.lost = {"b": "still frozen", "d": "gone"}
    assert watched.after(2) == "b is lost: still frozen"


def test_a_heartbeat_in_between_forgets_what_was_lost(watched: Watched) -> None:
    watched.lost = {"b": "frozen"}
    assert watched.after(11) == ""
    watched.beat("step")
    assert watched.after(1) == ""
    assert watched.after(11) == ""
    assert watched.after(5) == "b is lost: frozen"


def test_before_the_start_the_limit_is_that_of_the_start(watched: Watched) -> None:
    watched.beat("resume")
    assert watched.after(SLACK_S + 29) == ""
    assert watched.after(2) == f"nothing was heard from the server for {SLACK_S + 31:.0f} s"


def test_after_the_start_the_limit_is_that_of_a_reply(watched: Watched) -> None:
    assert watched.after(25) == ""
    watched.beat("start")
    assert watched.after(SLACK_S + 19) == ""
    watched.beat()
    assert watched.after(SLACK_S + 19) == ""
    assert watched.after(2) == f"nothing was heard from the server for {SLACK_S + 21:.0f} s"


def test_a_resumed_run_has_the_time_of_a_start_again(directory: Path, job: Job) -> None:
    watched = Watched(directory, job, "start", "step", "end")
    assert watched.after(SLACK_S + 25) == ""


def test_a_file_server_with_another_clock_and_a_clock_that_jumps_end_nothing(watched: Watched) -> None:
    for _ in range(10):
        watched.beat("start", behind=1000.0)
        assert watched.after(15) == ""


def test_a_step_of_a_simulation_may_take_long(directory: Path) -> None:
    watched = Watched(directory, parse(JOB, "test", ["launcher=simulate"]))
    watched.beat("start")
    assert watched.after(SLACK_S + 1000) == ""


# Who looks after a run


def supervised_by(directory: Path, pid: int, started: str) -> None:
    (directory / "launch").mkdir(exist_ok=True)
    (directory / "launch" / "supervisor.json").write_text(json.dumps({"pid": pid, "started": started}))


def test_a_supervisor_is_a_living_process_of_that_age(directory: Path) -> None:
    assert supervisor(directory) is None
    for pid, started, found in [
        (os.getpid(), run_directory.process_start(os.getpid()), os.getpid()),
        (os.getpid(), "1", None),  # the id is used again
        (NOBODY, "1", None),
    ]:
        supervised_by(directory, pid, started)
        assert supervisor(directory) == found


def abandoned(directory: Path, state: run_directory.State = "running") -> None:
    """Leave a run as a server does that was killed at step 4."""
    run_directory.write_status(directory, state, 4)
    path = directory / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "pid": NOBODY}))


def test_a_run_whose_server_lives_is_left_alone(directory: Path) -> None:
    before = run_directory.read_status(directory)
    settle(directory)
    assert run_directory.read_status(directory) == before


def test_a_run_whose_supervisor_lives_is_left_alone(directory: Path) -> None:
    abandoned(directory)
    supervised_by(directory, os.getpid(), run_directory.process_start(os.getpid()))
    settle(directory)
    assert state(directory) == "running"


@pytest.mark.parametrize("left", ["pending", "running"])
def test_a_run_that_nobody_looks_after_has_failed_at_its_last_checkpoint(directory: Path, left) -> None:
    abandoned(directory, left)
    settle(directory)
    status = run_directory.read_status(directory)
    assert (status.state, status.step) == ("failed", 4)
    assert status.message.startswith("its launcher and its server are gone")


def on_nodes(directory: Path) -> None:
    (directory / "launch").mkdir(exist_ok=True)
    (directory / "launch" / "nodes.json").write_text('["b", "c", "b"]')


def test_a_run_whose_nodes_are_known_to_be_gone_is_lost_though_its_server_seems_to_live(directory: Path) -> None:
    on_nodes(directory)
    settle(directory, lost={"b": "stopped"})
    status = run_directory.read_status(directory)
    assert (status.state, status.message) == ("lost", "b (ranks 1, 3) is lost: stopped")


def test_the_nodes_of_an_abandoned_run_are_asked(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_nodes(directory)
    abandoned(directory)
    monkeypatch.setattr(nodes, "unreachable", lambda roster: {"c": "frozen"})
    settle(directory, NODES)
    assert run_directory.read_status(directory).message == "c (ranks 2) is lost: frozen"


def test_a_run_on_the_head_alone_cannot_be_lost_with_a_node(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    abandoned(directory)
    monkeypatch.setattr(nodes, "unreachable", lambda roster: {"b": "frozen"})
    settle(directory, NODES)
    assert state(directory) == "failed"


@pytest.mark.parametrize("over", ["interrupted", "succeeded", "failed", "lost"])
def test_what_is_over_stays_as_it_is(directory: Path, over) -> None:
    abandoned(directory, over)
    before = (directory / "state.json").read_bytes()
    settle(directory, lost={"b": "stopped"})
    assert (directory / "state.json").read_bytes() == before


def test_a_run_that_ends_while_it_is_looked_at_keeps_its_own_word(directory: Path, monkeypatch) -> None:
    def ends(run: Path) -> None:
        run_directory.write_status(run, "succeeded", 9)

    abandoned(directory)
    monkeypatch.setattr(supervise, "supervisor", ends)
    settle(directory)
    assert state(directory) == "succeeded"


# Running and judging


def quiet() -> Progress:
    return Progress(None, Console(quiet=True), "")


def writes(directory: Path, tmp_path: Path, status: run_directory.State, *, after_s: float = 0.0) -> Plan:
    """Return a plan whose process records that state, as a server would."""
    before = (directory / "state.json").read_bytes()
    run_directory.write_status(directory, status, 5, "its own word")
    prepared = tmp_path / "prepared.json"
    prepared.write_bytes((directory / "state.json").read_bytes())
    (directory / "state.json").write_bytes(before)
    return Plan(("sh", "-c", f"sleep {after_s}; mv '{prepared}' '{directory / 'state.json'}'"), ())


@pytest.fixture
def lost_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "ask", lambda *_, **__: {})
    monkeypatch.setattr(nodes, "unreachable", lambda roster: {"b": "frozen"})


@pytest.mark.parametrize(
    ("recorded", "verdict"),
    [
        ("succeeded", "succeeded"),
        ("failed", "lost"),
        ("running", "lost"),
        ("interrupted", "lost"),
    ],
)
def test_a_run_that_ended_with_a_node_is_lost(directory: Path, tmp_path: Path, lost_node, recorded, verdict) -> None:
    on_nodes(directory)
    plan = writes(directory, tmp_path, recorded)._replace(roster=NODES)
    assert running.run(plan, directory, quiet()).status.state == verdict


def test_what_the_watch_says_ends_the_run_and_is_the_reason(directory: Path) -> None:
    outcome = running.run(Plan(("sleep", "60"), ()), directory, quiet(), lambda: "nothing was heard")
    assert outcome.status.state == "failed"
    assert outcome.status.message.startswith("nothing was heard; see ")


def test_a_run_that_the_user_killed_is_interrupted(directory: Path) -> None:
    signals = [signal.SIGINT, signal.SIGTERM]

    def impatient() -> str:
        while signals:
            os.kill(os.getpid(), signals.pop())
        return ""

    status = running.run(Plan(("sleep", "60"), ()), directory, quiet(), impatient).status
    assert signals == []
    assert status.state == "interrupted"


def test_a_process_that_outlives_its_final_state_is_ended(directory: Path, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(running, "_AFTER_END_S", 0.0)
    argv = writes(directory, tmp_path, "succeeded").argv
    assert running.run(Plan((*argv[:2], f"{argv[2]}; sleep 60"), ()), directory, quiet()).status.state == "succeeded"


def test_a_resumed_run_is_given_the_time_to_start(directory: Path, job: Job, monkeypatch, tmp_path: Path) -> None:
    run_directory.write_status(directory, "interrupted", 3, "asked to stop")
    made = writes(directory, tmp_path, "succeeded", after_s=0.5)
    monkeypatch.setattr(supervise, "plan", lambda *_: made)
    monkeypatch.setattr(running, "_AFTER_END_S", 0.0)
    assert supervise.supervise(job, directory, None).status.state == "succeeded"


def test_a_resumed_run_that_does_not_come_up_has_failed(directory: Path, job: Job, monkeypatch) -> None:
    run_directory.write_status(directory, "interrupted", 3, "asked to stop")
    monkeypatch.setattr(supervise, "plan", lambda *_: Plan(("false",), ()))
    status = supervise.supervise(job, directory, None).status
    assert (status.state, status.step) == ("failed", 3)


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # it is to outlive us
def test_a_detached_run_outlives_its_starter_and_ends_with_nobody_attending(
    make_job: Callable[..., Job], tmp_path: Path
) -> None:
    job = make_job("steps=2", "workers=2", "batch_size=4")
    directory = run_directory.create(tmp_path, job.name, to_yaml(job))
    supervise.detach(directory, here=True)
    pid = supervisor(directory)
    assert pid
    assert os.getsid(pid) == pid
    os.waitpid(pid, 0)
    status = run_directory.read_status(directory)
    assert (status.state, status.step) == ("succeeded", 2), (directory / "logs" / "supervisor.log").read_text()
    assert supervisor(directory) is None


# Stopping


def test_stopping_asks_the_server_and_the_verdict_is_waited_for(directory: Path, tmp_path: Path) -> None:
    made = writes(directory, tmp_path, "interrupted")
    polite = Plan(("sh", "-c", f"test -e '{directory / 'stop'}' && {made.argv[2]}"), ())
    stopping.stop(directory)
    running.run(polite, directory, quiet())
    status = stopping.wait(directory, None)
    assert (status.state, status.step, status.message) == ("interrupted", 5, "its own word")


@pytest.mark.parametrize("over", ["interrupted", "succeeded", "failed", "lost"])
def test_a_run_that_is_over_cannot_be_stopped(directory: Path, over) -> None:
    run_directory.write_status(directory, over, 7)
    with pytest.raises(RefusedError, match=f"{directory.name}: is not running: {over} at step 7"):
        stopping.stop(directory, kill=True)
    assert not (directory / "stop").exists()


STUBBORN = """
import sys
from pathlib import Path
from rich.console import Console
from draco.launch import supervise
from draco.launch.plan import Plan
from draco.launch.progress import Progress
from draco.launch.run import run

directory = Path(sys.argv[1])
supervise._write(directory)
said = []
watch = lambda: said.append(said or print("up", flush=True)) or ""
run(Plan(("sleep", "60"), ()), directory, Progress(None, Console(quiet=True), ""), watch)
"""


def test_a_kill_ends_a_run_that_does_not_stop(directory: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", STUBBORN, str(directory)], stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"up\n"
        assert supervisor(directory) == process.pid
        stopping.stop(directory, kill=True)
        assert process.wait(30) == 0
    assert state(directory) not in ("pending", "running")


def test_a_kill_bears_that_the_first_signal_was_enough(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []

    def kill(pid: int, number: int) -> None:
        if sent:
            raise ProcessLookupError
        sent.append(number)

    monkeypatch.setattr(stopping, "supervisor", lambda run: 1234)
    monkeypatch.setattr(stopping.os, "kill", kill)
    stopping.stop(directory, kill=True)
    assert sent == [signal.SIGTERM]


# Following


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines() if line]


def test_a_finished_run_is_followed_by_its_events_and_its_verdict(directory: Path, capsys) -> None:
    (directory / "events.jsonl").write_text('{"event": "start"}\n{"event": "step", "step": 1}\n')
    run_directory.write_status(directory, "failed", 1, "why")
    following.follow(directory, None)
    *told, verdict = lines(capsys)
    assert told == [{"event": "start"}, {"event": "step", "step": 1}]
    assert verdict == {"event": "state", **run_directory.read_status(directory)._asdict()}
    assert (verdict["state"], verdict["message"]) == ("failed", "why")


def test_a_run_without_events_has_a_verdict_only(directory: Path, capsys) -> None:
    run_directory.write_status(directory, "failed", 0, "it never started")
    following.follow(directory, None)
    assert [line["event"] for line in lines(capsys)] == ["state"]


def test_a_running_run_is_followed_in_whole_lines_until_it_ends(directory: Path, capsys, monkeypatch) -> None:
    steps = iter(['{"event": "start"}\n{"event": "st', 'ep"}\n', ""])

    def meanwhile(seconds: float) -> None:
        text = next(steps)
        with open(directory / "events.jsonl", "a") as file:
            file.write(text)
        if not text:
            run_directory.write_status(directory, "succeeded", 2)

    monkeypatch.setattr(following.time, "sleep", meanwhile)
    following.follow(directory, None)
    assert [line["event"] for line in lines(capsys)] == ["alive", "start", "step", "state"]


def test_an_abandoned_run_that_is_followed_is_settled(directory: Path, capsys, monkeypatch) -> None:
    abandoned(directory)
    monkeypatch.setattr(following, "_SETTLE_EVERY_S", -1.0)
    following.follow(directory, None)
    assert lines(capsys)[-1]["state"] == "failed"


def test_events_of_earlier_launches_are_not_told_again(directory: Path, capsys) -> None:
    """The last of them may have ended in half a line, which the next launch closes."""
    (directory / "events.jsonl").write_text('{"event": "start"}\n{"event": "st')
    supervise._write(directory, NOBODY)
    with open(directory / "events.jsonl", "a") as file:
        file.write('\n{"event": "resume"}\n')
    run_directory.write_status(directory, "succeeded", 2)
    following.follow(directory, None)
    assert [line["event"] for line in lines(capsys)] == ["resume", "state"]


def test_the_verdict_that_is_told_is_the_supervisors_last_word(directory: Path, capsys, monkeypatch) -> None:
    def corrects(run: Path) -> None:
        run_directory.write_status(run, "failed", 3, "rank 3 was killed")

    run_directory.write_status(directory, "interrupted", 3, "asked to stop")
    monkeypatch.setattr(following, "supervisor", corrects)
    following.follow(directory, None)
    assert lines(capsys)[-1]["state"] == "failed"


# Going on, telling, clearing up


def test_a_run_that_is_still_looked_after_is_not_gone_on_with(directory: Path, job: Job) -> None:
    run_directory.write_status(directory, "interrupted", 3)
    supervised_by(directory, os.getpid(), run_directory.process_start(os.getpid()))
    with pytest.raises(RefusedError, match=f"{directory.name}: this job is running"):
        unfinished(directory.parent, job, resume=True, new=False)
    assert unfinished(directory.parent, job, resume=False, new=True) is None
    supervised_by(directory, NOBODY, "1")
    assert unfinished(directory.parent, job, resume=True, new=False) == directory


def test_a_head_tells_of_its_newest_run(directory: Path) -> None:
    told = [{"event": "start", "steps": 9, "time": 0.0}]
    told += [{"event": "step", "step": i, "time": i / 4, "suspects": [2] if i == 3 else []} for i in range(1, 5)]
    (directory / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in told))
    run_directory.write_status(directory, "running", 2)
    assert head.runs(directory.parent) == {
        "run": str(directory), "state": "running", "message": "", "step": 4, "steps": 9, "steps_per_s": 4.0,
        "suspects": [2], "supervised": False, "others": 0,
    }  # fmt: skip
    assert head.runs(directory / "nowhere") == {}


@pytest.mark.parametrize("why", ["the head is stopped, and the server with it", "head is missing: it went"])
def test_a_run_that_went_with_its_head_is_recorded_beside_its_storage(directory: Path, why: str) -> None:
    on_nodes(directory)
    told = json.loads(head.lost(directory, why))
    assert (told["state"], told["message"]) == ("lost", f"head is lost: {why}")
    assert run_directory.read_status(directory)._asdict() == told


@pytest.fixture
def process() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts a process in a folder that waits and has those words in its command line."""
    started: list[subprocess.Popen[bytes]] = []

    def start(folder: Path, *words: str, line: str = "read x") -> subprocess.Popen[bytes]:
        folder.mkdir(parents=True, exist_ok=True)
        started.append(
            subprocess.Popen(["sh", "-c", line, *words], cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        )
        return started[-1]

    yield start
    for each in started:
        each.kill()
        each.communicate()


def test_what_is_left_of_a_run_is_ended_and_nothing_else(tmp_path: Path, monkeypatch, process) -> None:
    here, elsewhere = tmp_path / "a", tmp_path / "b"
    rank = process(here, "draco", "rank", "runs/x")
    others = [
        process(here, "draco", "rank", "runs/xy"),
        process(here, "draco", "eval", "runs/x"),
        process(here, "rank", "runs/x"),  # of another program
        process(elsewhere, "draco", "rank", "runs/x"),  # of another checkout
    ]
    monkeypatch.chdir(here)
    assert sweep(lambda run: run == "runs/x") == [rank.pid]
    assert rank.wait(10) == -signal.SIGKILL
    assert [other.poll() for other in others] == [None] * 4


def test_the_daemon_above_a_rank_goes_with_it(tmp_path: Path, monkeypatch, process) -> None:
    daemon = process(tmp_path, "prted", line='sh -c "echo \\$\\$; read x" draco rank runs/x; true')
    rank = int(daemon.stdout.readline())
    monkeypatch.chdir(tmp_path)
    assert sweep(lambda run: run == "runs/x") == [daemon.pid, rank]
    assert daemon.wait(10) == -signal.SIGKILL


@pytest.mark.parametrize(
    ("words", "ended"),
    [
        (["runs/x"], {"runs/x"}),
        (["--but", "runs/x", "runs/z"], {"runs/y"}),
        (["--but"], {"runs/x", "runs/y", "runs/z"}),
    ],
)
def test_a_node_is_told_which_run_to_end_or_which_go_on(tmp_path: Path, process, words, ended) -> None:
    here, elsewhere = tmp_path / "a", tmp_path / "b"
    ranks = {run: process(here, "draco", "rank", run) for run in ("runs/x", "runs/y", "runs/z")}
    others = [process(elsewhere, "draco", "rank", run) for run in ranks]
    subprocess.run([sys.executable, "-m", "draco.launch.sweep", *words], cwd=here, check=True)
    assert {run for run in ended if ranks[run].wait(10) == -signal.SIGKILL} == ended
    assert {run for run, rank in ranks.items() if rank.poll() is None} == set(ranks) - ended
    assert [other.poll() for other in others] == [None] * 3


def test_a_run_goes_on_where_its_launcher_or_a_rank_is_left(tmp_path: Path, process) -> None:
    launched, served, other = (f"{tmp_path}/{name}" for name in ("launched by", "served", "evaluated"))
    for words in (
        ["mpirun", "-n", "4", "python", "-m", "mpi4py", "-m", "draco", "rank", launched],
        *[["python", "-m", "mpi4py", "-m", "draco", "rank", served]] * 2,  # told once
        ["python", "-m", "draco", "rank", served, "--simulate"],
        ["python", "-m", "draco", "eval", other],
        ["python", "-m", "draco", "supervise", other],
        ["rank", other],  # of another program
        ["draco", "rank"],  # of no run
    ):
        process(tmp_path, *words)
    found = sweeping.going_on()
    assert [run for run in found if run.startswith(str(tmp_path))] == [launched, served]
    assert "" not in found


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, list[str]]:
    """Where ranks of the only node run, which is this machine, and what its shell is told, as ssh hands it on."""
    folder, told = tmp_path / "node", list[str]()
    (folder / "data").mkdir(parents=True)

    def ask(roster: Roster, argv: list[str], **_: object) -> dict[str, nodes.Answer]:
        told.append(" ".join(argv))
        made = subprocess.run(["sh", "-c", told[-1]], cwd="/", capture_output=True, text=True, check=False)
        return {"b": nodes.Answer(made.stdout, made.stderr)}

    monkeypatch.setattr(nodes, "ask", ask)
    monkeypatch.setattr(nodes, "WORK", str(folder))
    (tmp_path / "head").mkdir()
    monkeypatch.chdir(tmp_path / "head")
    return folder, told


def test_before_a_run_nodes_end_what_is_left_of_others_and_tell_their_facts_at_once(
    node: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch, process
) -> None:
    on_node, told = node
    over, waits, *going_on = [
        str(run_directory.create(Path(folder), name, JOB))
        for folder, name in (("runs", "over"), ("runs", "waits"), ("runs", "going on"), ("kept elsewhere", "it's b"))
    ]
    run_directory.write_status(Path(over), "lost", 3)
    supervised_by(Path(waits), os.getpid(), run_directory.process_start(os.getpid()))  # it has launched nothing yet
    on_head = [
        process(Path.cwd(), "mpirun", "draco", "rank", going_on[0]),
        process(Path.cwd(), "draco", "rank", going_on[1]),
    ]
    ended = [process(on_node, "draco", "rank", run) for run in (over,)]
    kept = [process(on_node, "draco", "rank", run) for run in (waits, *going_on)]
    # The node's processes are this machine's, too: a head sees none but its own.
    all_of_them, here = sweeping._processes, {each.pid for each in on_head}
    monkeypatch.setattr(sweeping, "_processes", lambda: [each for each in all_of_them() if each[0] in here])
    assert preflight._nodes(NODES._replace(python=sys.executable)) == []
    assert len(told) == 1
    assert [rank.wait(10) for rank in ended] == [-signal.SIGKILL]
    assert [each.poll() for each in (*kept, *on_head)] == [None] * 5


def test_after_a_run_nodes_end_its_ranks_whatever_it_is_called(node: tuple[Path, list[str]], process) -> None:
    on_node, told = node
    run = "runs/it's a; b"
    mine, other = process(on_node, "draco", "rank", run), process(on_node, "draco", "rank", "runs/it's")
    running._end_leftovers(Plan((), (), roster=NODES._replace(python=sys.executable)), Path(run), {})
    assert len(told) == 1
    assert mine.wait(10) == -signal.SIGKILL
    assert other.poll() is None
