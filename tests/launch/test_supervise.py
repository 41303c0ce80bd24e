"""The supervisor of a run: the watch over its heartbeat, the verdict of whoever finds it, and how it is stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from draco.errors import RefusedError
from draco.job import Job, parse, to_dict, to_yaml
from draco.launch import changes, every_node, fork_client, head, preflight, supervise
from draco.launch import follow as following
from draco.launch import run as running
from draco.launch import stop as stopping
from draco.launch import sweep as sweeping
from draco.launch.notices import Notice
from draco.launch.planned import Plan
from draco.launch.progress import Progress
from draco.launch.resume import unfinished
from draco.launch.roster import Host, Roster
from draco.launch.run import Ended, Stops
from draco.launch.settle import settle, verdict
from draco.launch.sweep import sweep
from draco.launch.watch import PACE_LEAST_S, SLACK_S, Watch
from draco.runs import directory as run_directory
from draco.runs import events
from draco.runs.alive import Life, life, supervisor

JOB = """{name: a, workers: 3, model: lenet, data: synthetic, batch_size: 6, steps: 2, scheme: uncoded,
reply_timeout_s: 20, start_timeout_s: 30, eval_every: 0}"""
NODES = Roster("dev", "10.0.0.0/24", "python", "ssh_config", (Host("head", "10.0.0.10", 2), Host("b", "10.0.0.11", 2)))
NOBODY = 2**22 + 1  # no process has this id


@pytest.fixture(autouse=True)
def _no_fork_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(fork_client.NAME, "of a stand-in")  # whose launches start no rank


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
        self.watch = Watch(directory, job, self.unreachable, lambda: self.now)
        if before:
            self.beat(*before)
            self.watch = Watch(directory, job, self.unreachable, lambda: self.now)

    def unreachable(self) -> Mapping[str, str]:
        self.asked += 1
        return dict(self.lost)

    def beat(self, *events: str, behind: float = 0.0) -> None:
        """Let the server write something; `behind`: the clock of whoever stores the file."""
        with open(self.events, "a") as file:
            file.writelines(json.dumps({"event": event, "time": self.now, "step": 1}) + "\n" for event in events)
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


def paced(watched: Watched, steps: int, seconds: float) -> None:
    watched.beat("start")
    for _ in range(steps):
        watched.now += seconds
        watched.beat("step")


def test_a_launch_that_loses_its_pace_hangs(watched: Watched) -> None:
    paced(watched, 5, 0.1)
    assert watched.after(PACE_LEAST_S - 1) == ""
    assert watched.after(2) == f"no step for {PACE_LEAST_S + 1:.0f} s"


def test_the_pace_is_that_of_the_newest_steps(watched: Watched) -> None:
    paced(watched, 30, 0.1)
    paced(watched, 21, 4.0)
    assert watched.after(79) == ""
    assert watched.after(2) == "no step for 81 s"


def test_a_few_steps_are_no_pace_and_those_of_earlier_launches_do_not_count(directory: Path, job: Job) -> None:
    watched = Watched(directory, job, "start", *["step"] * 30)
    paced(watched, 4, 0.1)
    assert watched.after(SLACK_S + 19) == ""


def test_a_server_that_evaluates_or_saves_keeps_its_launch(watched: Watched) -> None:
    paced(watched, 9, 0.1)
    for _ in range(20):
        assert watched.after(PACE_LEAST_S - 1) == ""
        watched.beat()


def test_a_watch_knows_whether_its_launch_has_taken_a_step(directory: Path, job: Job) -> None:
    watched = Watched(directory, job, "start", "step")
    assert not watched.watch.stepped
    watched.beat("resume", "start")
    assert not watched.watch.stepped
    watched.beat("step")
    assert watched.watch.stepped


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
def test_a_run_that_nobody_looks_after_is_lost_at_its_last_checkpoint(directory: Path, left) -> None:
    abandoned(directory, left)
    settle(directory)
    status = run_directory.read_status(directory)
    assert (status.state, status.step) == ("lost", 4)
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
    monkeypatch.setattr(every_node, "unreachable", lambda roster: {"c": "frozen"})
    settle(directory, NODES)
    assert run_directory.read_status(directory).message == "c (ranks 2) is lost: frozen"


def test_a_run_on_the_head_alone_cannot_be_lost_with_a_node(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    abandoned(directory)
    monkeypatch.setattr(every_node, "unreachable", lambda roster: {"b": "frozen"})
    settle(directory, NODES)
    assert run_directory.read_status(directory).message.startswith("its launcher and its server are gone")


@pytest.mark.parametrize("over", ["interrupted", "succeeded", "failed", "lost"])
def test_what_is_over_stays_as_it_is(directory: Path, over) -> None:
    abandoned(directory, over)
    before = (directory / "state.json").read_bytes()
    settle(directory, lost={"b": "stopped"})
    assert (directory / "state.json").read_bytes() == before


def test_a_run_that_ends_while_it_is_looked_at_keeps_its_own_word(directory: Path, monkeypatch) -> None:
    def ends(run: Path) -> Life:
        before = life(run)
        run_directory.write_status(run, "succeeded", 9)
        return before

    abandoned(directory)
    monkeypatch.setattr("draco.launch.settle.life", ends)
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


def launched(directory: Path, plan: Plan, watch: Callable[[], str] = lambda: "") -> Ended:
    """Launch a plan once and return the verdict on it."""
    with quiet() as progress, Stops(directory, progress) as stops:
        return running.run(plan, directory, progress, stops, watch)


@pytest.fixture
def lost_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(every_node, "ask", lambda *_, **__: {"b": every_node.Answer("", "frozen")})


@pytest.mark.parametrize(
    ("recorded", "verdict"),
    [
        ("succeeded", "succeeded"),
        ("failed", "lost"),
        ("running", "lost"),
        ("interrupted", "lost"),
    ],
)
def test_a_launch_that_ended_with_a_node_is_lost(directory: Path, tmp_path: Path, lost_node, recorded, verdict) -> None:
    on_nodes(directory)
    plan = writes(directory, tmp_path, recorded)._replace(roster=NODES)
    ended = launched(directory, plan)
    assert ended.state == verdict
    assert ended.lost == ({} if verdict == "succeeded" else {"b": "frozen"})


def test_what_the_watch_says_ends_the_launch_and_is_the_reason(directory: Path) -> None:
    ended = launched(directory, Plan(("sleep", "60"), ()), lambda: "nothing was heard")
    assert (ended.state, ended.message) == ("lost", "nothing was heard")


def test_a_launch_that_the_user_killed_is_interrupted(directory: Path) -> None:
    signals = [signal.SIGINT, signal.SIGTERM]

    def impatient() -> str:
        while signals:
            os.kill(os.getpid(), signals.pop())
        return ""

    ended = launched(directory, Plan(("sleep", "60"), ()), impatient)
    assert signals == []
    assert ended.state == "interrupted"


def test_a_process_that_outlives_the_servers_last_word_is_ended(directory: Path, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(running, "_AFTER_END_S", 0.0)
    argv = writes(directory, tmp_path, "succeeded").argv
    assert launched(directory, Plan((*argv[:2], f"{argv[2]}; sleep 60"), ())).state == "succeeded"


def test_what_an_earlier_launch_printed_is_kept_and_not_taken_for_this_ones(directory: Path) -> None:
    logs = directory / "logs"
    (logs / "output.log").write_text("ValueError: earlier\n")
    (logs / "rank.a@1.0.out").write_text("ValueError: earlier, too\n")
    ended = launched(directory, Plan(("sh", "-c", f"echo new >> '{logs}/rank.a@1.0.out'; echo words"), ()))
    assert (ended.state, ended.output) == ("lost", "new\nwords")
    assert (logs / "output.log").read_text() == "ValueError: earlier\nwords\n"


# Launching again


class Launches:
    """Stand-in launchers for a supervised run: shell lines, one for each launch; the last one again and again."""

    def __init__(self, directory: Path, job: Job, *lines: str, roster: Roster | None = None) -> None:
        self.directory, self.job, self.lines, self.roster = directory, job, lines, roster
        self.notices: dict[str, Notice] = {}
        self.rosters: list[Roster | None] = []
        self.states: list[str] = []  # as each launch found them
        self.fit: list[str] = []  # nodes that could take part again
        self.asked: list[list[str]] = []

    def plan(self, job: Job, directory: Path, roster: Roster | None, **rest: object) -> Plan:
        del rest
        line = self.lines[min(len(self.rosters), len(self.lines) - 1)]
        self.rosters.append(roster)
        self.states.append(state(directory))
        hosts = json.dumps([node.name for node in roster.nodes[1:]]) if roster else ""
        files = [(directory / "launch" / "nodes.json", hosts)] if roster else []
        return Plan(("sh", "-c", f"cd '{directory}'; {line}"), (), tuple(files), roster)

    def fits(self, roster: Roster, job: Job, directory: Path, names: list[str]) -> list[str]:
        self.asked.append(list(names))
        return [name for name in self.fit if name in names]

    def supervise(self, after: Mapping[str, str] | None = None) -> run_directory.Status:
        made = supervise.supervise(self.job, self.directory, self.roster, None, lambda: self.notices, after)
        return made.status

    def told(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in events.read(self.directory / "events.jsonl") if event["event"] == kind]


STEP = """echo '{"event": "step", "step": 1, "time": 1}' >> events.jsonl"""
KILLED = "echo process rank 2 with PID 7 on node b exited on signal 9"
POLITE = "while [ ! -e stop ]; do sleep 0.02; done"


def says(state: run_directory.State, message: str = "") -> str:
    """Return the shell line of a server that records its end."""
    status = run_directory.Status(state, 5, message, NOBODY, "host", 0.0)
    return f"echo '{json.dumps(status._asdict())}' > .state; mv .state state.json"


@pytest.fixture
def launches(directory: Path, job: Job, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Launches]:
    """Return `launches(line, ..., roster=None, on_loss=...)`."""

    def make(*lines: str, roster: Roster | None = None, on_loss: str = "pack") -> Launches:
        made = Launches(directory, parse(JOB, "test", [f"on_loss={on_loss}"]), *lines, roster=roster)
        monkeypatch.setattr(supervise, "plan", made.plan)
        monkeypatch.setattr(preflight, "fit", made.fits)
        monkeypatch.setattr(every_node, "ask", lambda *_, **__: {})
        monkeypatch.setattr(changes, "RETURN_EVERY_S", 0.0)
        monkeypatch.setattr(changes, "READ_EVERY_S", 0.0)
        return made

    return make


THREE = NODES._replace(nodes=(*NODES.nodes, Host("c", "10.0.0.12", 2)))


def test_a_resumed_run_is_given_the_time_to_start(directory: Path, launches, monkeypatch) -> None:
    run_directory.write_status(directory, "interrupted", 3, "asked to stop")
    monkeypatch.setattr(running, "_AFTER_END_S", 0.0)
    assert launches(f"sleep 0.5; {says('succeeded')}").supervise().state == "succeeded"


def test_a_run_that_does_not_come_up_three_times_is_lost(directory: Path, launches) -> None:
    run_directory.write_status(directory, "interrupted", 3, "asked to stop")
    made = launches("false")
    status = made.supervise()
    assert (status.state, status.step) == ("lost", 3)
    assert status.message.startswith(
        "its processes ended (exit code 1) without a word of the server; 3 launches in a row"
    )
    assert made.states == ["interrupted", "pending", "pending"]


def test_a_run_whose_processes_go_is_launched_again_until_it_succeeds(directory: Path, launches) -> None:
    lines = (f"{STEP}; {KILLED}", f"{STEP}; {says('interrupted', 'by mpirun')}; {KILLED}",
             f"{STEP}; {says('lost', 'ranks 2 are silent')}", says("succeeded"))  # fmt: skip
    made = launches(*lines)
    assert made.supervise().state == "succeeded"
    assert made.states == ["pending"] * 4  # nothing that looks like an end in between
    killed = "rank 2 on b was killed by signal 9"
    found = [(event["cause"], event["nodes"], event["ranks"]) for event in made.told("interruption")]
    assert found == [(killed, {}, [2]), (killed, {}, [2]), ("ranks 2 are silent", {}, [])]
    again = [{key: value for key, value in event.items() if key != "time"} for event in made.told("relaunch")]
    assert again == [
        {"event": "relaunch", "launch": number, "nodes": None, "without": {}, "warnings": []} for number in (2, 3, 4)
    ]
    assert (directory / "logs" / "output.log").read_text().count("exited on signal") == 2


@pytest.mark.parametrize(
    ("line", "on_loss", "verdict", "said"),
    [
        (f"{STEP}; {says('failed', 'diverged')}", "pack", "failed", "diverged"),
        ("echo 'ValueError: no'", "pack", "failed", "its processes ended (exit code 0): ValueError: no; see "),
        (f"{STEP}; {KILLED}", "fail", "lost", "rank 2 on b was killed by signal 9; see "),
        (
            f"{STEP}; {KILLED}", "{name: pack, per_hour: 0}", "lost",
            "rank 2 on b was killed by signal 9; 1 interruptions within an hour, and on_loss.per_hour allows 0; see ",
        ),
        (says("interrupted", "asked to stop"), "pack", "interrupted", "asked to stop"),
    ],
)  # fmt: skip
def test_a_run_that_may_not_go_on_ends_at_once(launches, line, on_loss, verdict, said) -> None:
    made = launches(line, on_loss=on_loss)
    status = made.supervise()
    assert status.state == verdict
    assert status.message.startswith(said)
    assert len(made.rosters) == 1
    assert made.told("relaunch") == []


def lose(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Let these nodes be gone, each for the first time it is asked."""
    left = list(names)

    def ask(roster: Roster, argv: list[str], *_: Any, only: list[str], **__: Any) -> dict[str, every_node.Answer]:
        here = [left.pop(0)] if left and left[0] in only else []
        return {name: every_node.Answer("", "gone") for name in here}

    monkeypatch.setattr(every_node, "ask", ask)


def names(roster: Roster) -> list[str]:
    return [node.name for node in roster.nodes]


def test_a_run_goes_on_without_a_node_that_went(launches, monkeypatch) -> None:
    made = launches(f"{STEP}; {says('failed', 'MPI')}", says("succeeded"), roster=THREE)
    lose(monkeypatch, "b")
    assert made.supervise().state == "succeeded"
    assert [names(roster) for roster in made.rosters] == [["head", "b", "c"], ["head", "c"]]
    (interruption,), (relaunch,) = made.told("interruption"), made.told("relaunch")
    assert (interruption["nodes"], interruption["ranks"]) == ({"b": "gone"}, [1])
    assert (relaunch["nodes"], relaunch["without"]) == (["c", "c", "c"], {"b": "gone"})
    assert relaunch["warnings"] == ["c is oversubscribed: 3 ranks on 2 cores"]


def test_another_supervisor_goes_on_without_the_nodes_that_are_gone_then(launches, monkeypatch) -> None:
    made = launches(f"{STEP}; true", says("succeeded"), roster=THREE)
    assert made.supervise({"b": "gone"}).state == "succeeded"
    assert [names(roster) for roster in made.rosters] == [["head", "c"], ["head", "c"]]
    assert made.states[0] == "pending"
    relaunched = [(each["launch"], each["without"]) for each in made.told("relaunch")]
    assert relaunched == [(2, {"b": "gone"}), (3, {"b": "gone"})]
    assert len(made.told("interruption")) == 1  # the keeper records its own


def test_a_run_without_worker_nodes_is_lost(launches, monkeypatch) -> None:
    made = launches(f"{STEP}; true", roster=THREE)
    lose(monkeypatch, "b", "c")
    status = made.supervise()
    assert (status.state, status.message) == ("lost", "c (ranks 1) is lost: gone; no worker node is left")


NOTICE = Notice("interruption", "2026-01-02T03:04:05Z")


def test_a_node_that_says_that_it_goes_is_left_out_before_it_does(launches) -> None:
    made = launches(f"{STEP}; {POLITE}; {says('interrupted', 'asked to stop')}", says("succeeded"), roster=THREE)
    made.notices = {"c": NOTICE}
    assert made.supervise().state == "succeeded"
    assert [names(roster) for roster in made.rosters] == [["head", "b", "c"], ["head", "b"]]
    (notice,), (interruption,) = made.told("notice"), made.told("interruption")  # each once, though it stands
    assert (notice["node"], notice["kind"], notice["at"]) == ("c", "interruption", NOTICE.at)
    assert interruption["nodes"] == {"c": NOTICE.sentence()}
    assert not (made.directory / "stop").exists()


def test_a_notice_ends_a_run_that_is_to_fail(launches) -> None:
    made = launches(f"{STEP}; {POLITE}; {says('interrupted', 'asked to stop')}", roster=THREE, on_loss="fail")
    made.notices = {"c": NOTICE}
    status = made.supervise()
    assert (status.state, status.message) == ("lost", f"c: {NOTICE.sentence()}")


def test_a_node_that_may_go_is_kept_and_its_loss_made_cheap(launches) -> None:
    made = launches(f"{STEP}; while [ ! -e checkpoint ]; do sleep 0.02; done; {says('succeeded')}", roster=THREE)
    made.notices = {"c": Notice("rebalance", NOTICE.at)}
    assert made.supervise().state == "succeeded"
    assert len(made.told("notice")) == 1
    assert made.told("relaunch") == []


def test_a_node_that_is_back_is_taken_where_the_job_wants_it(launches, monkeypatch) -> None:
    made = launches(
        f"{STEP}; {says('lost', 'went')}", f"{STEP}; {POLITE}; {says('interrupted', 'asked to stop')}",
        says("succeeded"), roster=THREE, on_loss="{name: replace, per_hour: 1}",
    )  # fmt: skip
    lose(monkeypatch, "b")
    made.fit = ["b"]
    assert made.supervise().state == "succeeded"
    assert [names(roster) for roster in made.rosters] == [["head", "b", "c"], ["head", "c"], ["head", "b", "c"]]
    assert len(made.told("interruption")) == 1
    assert [event["without"] for event in made.told("relaunch")] == [{"b": "gone"}, {}]
    assert made.asked[0] == ["b"]


def test_a_node_that_is_about_to_go_is_not_taken_back(launches, monkeypatch) -> None:
    wait = "sleep 0.5"
    made = launches(f"{STEP}; false", f"{STEP}; {wait}; {says('succeeded')}", roster=THREE, on_loss="replace")
    lose(monkeypatch, "b")
    made.notices, made.fit = {"b": NOTICE}, ["b"]
    assert made.supervise().state == "succeeded"
    assert made.asked == []


def test_a_packed_run_asks_for_no_node(launches, monkeypatch) -> None:
    made = launches(f"{STEP}; false", f"{STEP}; sleep 0.5; {says('succeeded')}", roster=THREE)
    lose(monkeypatch, "b")
    made.fit = ["b"]
    assert made.supervise().state == "succeeded"
    assert made.asked == []


def test_a_user_who_stops_a_run_between_two_launches_is_heard(directory: Path, launches, monkeypatch) -> None:
    def asks(*_: Any, **__: Any) -> dict[str, every_node.Answer]:
        stopping.stop(directory)
        return {}

    made = launches(f"{STEP}; false", roster=THREE)
    monkeypatch.setattr(every_node, "ask", asks)
    status = made.supervise()
    assert (status.state, len(made.rosters)) == ("interrupted", 1)
    assert status.message == "asked to stop; its processes ended (exit code 1) without a word of the server"


def test_a_stop_just_before_a_launch_reaches_its_server(directory: Path, launches) -> None:
    made = launches(f"{STEP}; false", f"{POLITE}; {says('interrupted', 'asked to stop')}")
    plan = made.plan

    def late(*arguments: Any, **options: Any) -> Plan:
        if made.rosters:  # the supervisor has looked for the user's word already
            stopping.stop(directory)
        return plan(*arguments, **options)

    supervise.plan = late  # the fixture puts it back
    status = made.supervise()
    assert (status.state, status.message) == ("interrupted", "asked to stop")
    assert len(made.rosters) == 2


def test_a_signal_between_two_launches_ends_the_run_resumably(launches, monkeypatch) -> None:
    def ask(*_: Any, **__: Any) -> dict[str, every_node.Answer]:
        os.kill(os.getpid(), signal.SIGINT)
        return {}

    made = launches(f"{STEP}; false", roster=THREE)
    monkeypatch.setattr(every_node, "ask", ask)
    assert made.supervise().state == "interrupted"
    assert len(made.rosters) == 1


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # it is to outlive us
def test_a_detached_run_outlives_its_starter_and_ends_with_nobody_attending(
    make_job: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(fork_client.NAME)
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
    launched(directory, polite)
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
from draco.runs import directory as run_directory
from draco.launch import supervise
from draco.launch.planned import Plan

directory = Path(sys.argv[1])
supervise.plan = lambda *_, **__: Plan(("sh", "-c", f"touch '{directory / 'up'}'; exec sleep 60"), ())
supervise.supervise(run_directory.read_job(directory), directory, None)
"""


def test_a_kill_ends_a_run_that_does_not_stop(directory: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", STUBBORN, str(directory)]) as process:
        while not (directory / "up").exists():
            assert process.poll() is None
            time.sleep(0.05)
        assert supervisor(directory) == process.pid
        stopping.stop(directory, kill=True)
        assert process.wait(30) == 0
    assert state(directory) not in ("pending", "running")


def test_a_kill_bears_that_the_first_signal_was_enough(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []

    def kill(pid: int, number: int) -> None:
        if sent:
            raise ProcessLookupError
        if number:  # 0 asks whether it is there
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


def test_an_abandoned_run_that_is_followed_is_settled(directory: Path, capsys) -> None:
    abandoned(directory)
    following.follow(directory, None)
    assert lines(capsys)[-1]["state"] == "lost"


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
    monkeypatch.setattr("draco.runs.alive.supervisor", corrects)
    following.follow(directory, None)
    assert lines(capsys)[-1]["state"] == "failed"


# Going on, telling, clearing up


def resumed(directory: Path, job: Job) -> Path:
    """Return the run that is gone on with, and leave it to others."""
    taken = unfinished(directory.parent, job, resume=True, new=False)
    assert taken
    taken.hold.release()
    return taken.run


def test_a_run_that_is_still_looked_after_is_not_gone_on_with(directory: Path, job: Job) -> None:
    run_directory.write_status(directory, "interrupted", 3)
    supervised_by(directory, os.getpid(), run_directory.process_start(os.getpid()))
    with pytest.raises(RefusedError, match=f"{directory.name}: this job is running"):
        unfinished(directory.parent, job, resume=True, new=False)
    assert unfinished(directory.parent, job, resume=False, new=True) is None
    supervised_by(directory, NOBODY, "1")
    assert resumed(directory, job) == directory


def test_a_run_that_an_earlier_version_wrote_is_gone_on_with(directory: Path, job: Job) -> None:
    """It wrote the keys in another order, and options that say nothing."""
    written = to_dict(job)
    written["data"]["alpha"] = None
    (directory / "job.yaml").write_text(json.dumps(dict(reversed(written.items()))))
    run_directory.write_status(directory, "interrupted", 3)
    assert resumed(directory, job) == directory
    (directory / "job.yaml").write_text(json.dumps({**written, "seed": 8}))
    with pytest.raises(RefusedError, match="no unfinished run of this very job"):
        unfinished(directory.parent, job, resume=True, new=False)
    (directory / "job.yaml").write_text(json.dumps({**written, "of_a_later_version": 1}))
    assert unfinished(directory.parent, job, resume=False, new=False) is None


def test_a_head_tells_of_its_newest_run(directory: Path) -> None:
    told = [{"event": "start", "steps": 9, "time": 0.0}]
    told += [{"event": "step", "step": i, "time": i / 4, "suspects": [2] if i == 3 else []} for i in range(1, 4)]
    told += [{"event": "step", "step": 4, "time": 1.0, "suspects": [], "lost": [3], "straggling": [1]}]
    (directory / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in told))
    run_directory.write_status(directory, "running", 2)
    assert head.runs(directory.parent) == {
        "run": str(directory), "state": "running", "message": "", "step": 4, "steps": 9, "steps_per_s": 4.0,
        "suspects": [2], "lost": [3], "straggling": [1], "supervised": False, "interruptions": 0, "without": {},
        "others": 0, "copies": None, "expelled": [],
    }  # fmt: skip
    assert head.runs(directory / "nowhere") == {}


def test_between_two_launches_a_run_is_told_as_running_and_nobody_takes_it_for_over(directory: Path) -> None:
    """A server's word is the launch's; the run's is its supervisor's."""
    events.append(directory / "events.jsonl", "interruption", cause="b is lost", nodes={"b": "gone"}, ranks=[1])
    events.append(directory / "events.jsonl", "relaunch", launch=2, nodes=["c"], without={"b": "gone"}, warnings=[])
    run_directory.write_status(directory, "lost", 2, "ranks 1 are gone")
    supervised_by(directory, os.getpid(), run_directory.process_start(os.getpid()))
    told = head.runs(directory.parent)
    assert (told["state"], told["interruptions"], told["without"]) == ("running", 1, {"b": "gone"})
    assert life(directory).by
    assert verdict(directory) is None
    stopping.stop(directory)  # may still be asked for
    supervised_by(directory, NOBODY, "1")
    told = head.runs(directory.parent)
    assert (told["state"], told["interruptions"], told["without"]) == ("lost", 1, {})
    assert verdict(directory) == run_directory.read_status(directory)


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

    def ask(roster: Roster, argv: list[str], **_: object) -> dict[str, every_node.Answer]:
        told.append(" ".join(argv))
        made = subprocess.run(["sh", "-c", told[-1]], cwd="/", capture_output=True, text=True, check=False)
        return {"b": every_node.Answer(made.stdout, made.stderr)}

    monkeypatch.setattr(every_node, "ask", ask)
    monkeypatch.setattr(every_node, "WORK", str(folder))
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


def test_mpiruns_copies_on_a_worker_node_are_removed_and_no_run_is(tmp_path: Path, directory: Path) -> None:
    copies = tmp_path / "runs" / "a-1"
    (copies / "logs").mkdir(parents=True)
    (directory / "logs").mkdir(exist_ok=True)
    for run in (copies, directory):
        (run / "logs" / "rank.prterun@1.1.out").write_text("up")
        sweeping.remove_copies(run)
    assert not copies.exists()
    assert (directory / "logs" / "rank.prterun@1.1.out").exists()
    sweeping.remove_copies(tmp_path / "never there")
