"""Who holds a run: one process at a time, however it ends; and how long a run is waited for that is not seen."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from draco.cli.main import main
from draco.errors import RefusedError
from draco.job import Job, to_yaml
from draco.launch import follow, logs, stop, supervise
from draco.launch.resume import unfinished
from draco.launch.settle import give_up, settle, verdict
from draco.runs import alive, hold
from draco.runs import directory as run_directory
from draco.runs.alive import LOST_AFTER_S, REBOOTED_AFTER_S, life
from draco.training import evaluate
from draco.training.build import Built

TRIES = 30


@pytest.fixture
def run(make_job: Callable[..., Job], tmp_path: Path) -> Path:
    job = make_job()
    return run_directory.create(tmp_path / "runs", job.name, to_yaml(job))


@contextlib.contextmanager
def python(code: str, *words: object, **options: object) -> Iterator[subprocess.Popen[str]]:
    """Run some lines in a process of its own, which is killed at the end."""
    argv = [sys.executable, "-c", f"import sys, time; from pathlib import Path; {code}", *map(str, words)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options) as process:
        yield process
        process.kill()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


HOLDS = "from draco.runs import hold; held = hold.take(Path(sys.argv[1]), ''); print(flush=True); input()"


@pytest.fixture
def held(run: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that looks after the run."""
    with python(HOLDS, run / hold.SUPERVISOR) as process:
        said(process)
        yield process


# One at a time

RACES = """
from draco.errors import RefusedError
from draco.job import parse
from draco.launch import resume
resume._MOMENT_S = 0  # or the one that is refused would come too late for the next
root = Path(sys.argv[1])
job = parse((root / "job.yaml").read_text(), "test", checked=True)
mine = []
print(flush=True)
for number in sys.stdin:
    try:
        mine.append(resume.unfinished(root / number.strip(), job, resume=True, new=False))  # and prepares its data
        print("goes on", flush=True)
    except RefusedError as error:
        print(error, flush=True)
"""


def test_of_two_that_resume_a_run_at_once_one_goes_on(make_job: Callable[..., Job], tmp_path: Path) -> None:
    job = make_job()
    (tmp_path / "job.yaml").write_text(to_yaml(job))
    code = f"exec({RACES!r})"
    with python(code, tmp_path) as one, python(code, tmp_path) as other:
        for process in (one, other):
            said(process)
        for number in range(TRIES):
            run = run_directory.create(tmp_path / str(number), job.name, to_yaml(job))
            run_directory.write_status(run, "interrupted", 5)
            for process in (one, other):
                assert process.stdin
                process.stdin.write(f"{number}\n")
                process.stdin.flush()
            answers = sorted(map(said, (one, other)), key=lambda answer: answer != "goes on")
            assert answers[0] == "goes on"
            assert re.search(r"(is running|just being resumed by another process) \(process \d+ on ", answers[1])


def test_who_holds_a_run_is_named_with_its_machine_and_since_when(run: Path, held) -> None:
    words = f"process {held.pid} on {os.uname().nodename} since 2"
    assert life(run).by.startswith(words)
    job = run_directory.read_job(run)
    run_directory.write_status(run, "interrupted", 5)
    with pytest.raises(RefusedError, match=rf"this job is running \({words}"):
        unfinished(run.parent, job, resume=True, new=False)
    with pytest.raises(RefusedError, match=words):
        supervise.detach(run, here=True)
    assert run_directory.read_status(run).state == "interrupted"  # nothing was touched


def test_neither_a_look_nor_a_refusal_takes_the_lock_away(run: Path, held) -> None:
    """As closing any descriptor of the file would, were it a POSIX lock; from the holder's process, too."""
    path = run / "mine"
    with hold.take(path, ""):
        for each in (path, run / hold.SUPERVISOR):
            with pytest.raises(RefusedError):
                hold.take(each, "held")
            assert hold.look(each).held
            assert hold.look(each).held
    assert not hold.look(path).held


def test_a_holder_that_is_killed_holds_nothing(run: Path, held) -> None:
    held.send_signal(signal.SIGKILL)
    held.wait()
    assert not life(run).by
    assert hold.look(run / hold.SUPERVISOR).holder.pid == held.pid  # it could not take its name away
    with hold.take(run / hold.SUPERVISOR, ""):
        assert life(run).by


def test_a_copy_of_a_run_that_goes_on_is_not_held(run: Path, held, tmp_path: Path) -> None:
    with hold.take(run / hold.SERVER, ""):
        run_directory.write_status(run, "running", 3)
        copy = shutil.copytree(run, tmp_path / "copies" / run.name)
        assert life(run).by
        assert not life(copy).by
    settle(copy)
    taken = unfinished(copy.parent, run_directory.read_job(run), resume=True, new=False)
    assert taken
    taken.hold.release()


HANDS_OVER = """
import os, subprocess
from draco.runs import hold
path = Path(sys.argv[1])
held = hold.take(path, "")
code = "import sys; from pathlib import Path; from draco.runs import hold; "
code += "held = hold.adopt(Path(sys.argv[1]), int(sys.argv[2])); print(flush=True); input()"
child = subprocess.Popen([sys.executable, "-c", code, path, str(held.descriptor)], pass_fds=[held.descriptor])
held.leave()
print(child.pid, flush=True)
input()
"""


def test_a_lock_is_handed_over_without_a_gap_and_outlives_who_gave_it(run: Path) -> None:
    path, seen, over = run / "lock", list[bool](), threading.Event()

    def watch() -> None:
        while not over.is_set():
            seen.append(hold.look(path).held)

    watching = threading.Thread(target=watch)
    with python(f"exec({HANDS_OVER!r})", path) as parent:
        while not hold.look(path).held:
            assert parent.poll() is None
        watching.start()
        child = int(said(parent))
        said(parent)  # the child has adopted it
        parent.kill()
        parent.wait()
        over.set()
        watching.join()
        assert all(seen)
        holder = hold.look(path).holder
        assert holder
        assert holder.pid == child
        os.kill(child, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while hold.look(path).held:
            assert time.monotonic() < deadline


def test_a_descriptor_of_another_file_is_not_adopted(run: Path) -> None:
    with hold.take(run / "a", "") as held, pytest.raises(RefusedError, match="was not handed over"):
        hold.adopt(run / "state.json", held.descriptor)


def test_a_holder_shows_again_and_again_that_it_lives(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hold, "BEAT_S", 0.01)
    path = run / hold.SUPERVISOR
    with hold.take(path, ""):
        for _ in range(2):
            os.utime(path, (1, 1))
            deadline = time.monotonic() + 10
            while path.stat().st_mtime == 1:
                assert time.monotonic() < deadline
    assert path.read_text() == ""
    assert not [thread for thread in threading.enumerate() if thread.name == f"beat of {path}"]


@pytest.mark.usefixtures("forks")
def test_a_file_system_without_locks_is_refused_with_a_remedy(run: Path, monkeypatch, capsys) -> None:
    def none(*_: object) -> None:
        raise OSError(95, os.strerror(95))

    run_directory.write_status(run, "interrupted", 5)
    monkeypatch.setattr(hold.fcntl, "fcntl", none)
    job = run.parent / "a.yaml"
    job.write_text((run / "job.yaml").read_text())
    assert main(["train", str(job), "--resume", "--here", "--runs", str(run.parent)]) == 3
    assert "its file system has no locks (Operation not supported)" in capsys.readouterr().err


def test_two_servers_do_not_write_into_one_run_nor_two_evaluators(
    make_job: Callable[..., Job], train, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = run_directory.read_job(run)
    take = hold.take
    monkeypatch.setattr(hold, "take", lambda path, refusal, wait_s=0.0: take(path, refusal))
    with hold.take(run / hold.SERVER, ""), pytest.raises(RefusedError, match="another server writes into it"):
        train(job, run)
    assert not (run / "events.jsonl").exists()
    with hold.take(run / hold.EVALUATOR, ""), pytest.raises(RefusedError, match="another draco eval is at work"):
        next(evaluate.evaluate_run(run, Built(job), follow=False))


APART = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--uts", "sh", "-c", 'hostname apart; exec "$@"']


@pytest.mark.skipif(
    subprocess.run([*APART, "sh", "true"], capture_output=True, check=False).returncode != 0,
    reason="needs root, for namespaces",
)
def test_a_container_of_this_machine_is_seen_and_its_end_too(run: Path) -> None:
    """Its process ids are others, and its name may be any."""
    argv = [*APART, "sh", sys.executable, "-c", f"import sys; from pathlib import Path; {HOLDS}", run / hold.SUPERVISOR]
    run_directory.write_status(run, "interrupted", 5)
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as container:
        said(container)
        assert re.fullmatch(r"process \d+ on apart since .*Z", life(run).by)
        with pytest.raises(RefusedError, match=r"is running \(process \d+ on apart"):
            unfinished(run.parent, run_directory.read_job(run), resume=True, new=False)
        container.kill()
        container.wait()
        deadline = time.monotonic() + 10
        while life(run).by:
            assert time.monotonic() < deadline


# A run that is not seen

ELSEWHERE = hold.Holder("elsewhere", "another boot", 7, "7", 1.8e9)


def leave(run: Path, holder: hold.Holder, age_s: float, state: run_directory.State = "running") -> None:
    """Leave a run as a machine does that is cut off: its last sign of life is `age_s` old."""
    run_directory.write_status(run, state, 5)
    values = json.loads((run / "state.json").read_text())
    (run / "state.json").write_text(json.dumps(values | {"host": holder.host, "pid": 2**22 + 1}))
    (run / "launch").mkdir(exist_ok=True)
    (run / "events.jsonl").touch()
    for name in (hold.SUPERVISOR, hold.SERVER):
        (run / name).write_text(json.dumps(holder._asdict()))
    now = time.time()
    for name in ("events.jsonl", "state.json", hold.SUPERVISOR, hold.SERVER):
        os.utime(run / name, (now - age_s, now - age_s))


HERE = os.uname().nodename


@pytest.mark.parametrize(
    ("holder", "age_s", "waits"),
    [
        (ELSEWHERE, LOST_AFTER_S - 20, True),
        (ELSEWHERE, LOST_AFTER_S + 20, False),
        (ELSEWHERE._replace(host=HERE), REBOOTED_AFTER_S - 10, True),  # another machine of that name?
        (ELSEWHERE._replace(host=HERE), REBOOTED_AFTER_S + 10, False),  # this one before it was booted
        (ELSEWHERE._replace(boot=hold.boot()), 0, False),  # a container of this machine: its lock would be seen
        (ELSEWHERE._replace(host=HERE, boot=hold.boot(), pid=os.getpid()), 0, False),  # the process id is used again
    ],
)
@pytest.mark.parametrize("skew_s", [0, 86400, -86400])
def test_a_run_elsewhere_is_judged_by_its_heartbeat_and_the_clock_of_its_files(
    run: Path, monkeypatch: pytest.MonkeyPatch, holder: hold.Holder, age_s: float, waits: bool, skew_s: float
) -> None:
    leave(run, holder, age_s)
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + skew_s)
    found = life(run)
    assert (bool(found.by), found.sure) == (waits, not waits)
    if waits:
        assert f"process 7 on {holder.host}, last heard {age_s:.0f} s ago, given up after" in found.by
    assert settle(run).state == ("running" if waits else "lost")
    if not waits and holder.boot != hold.boot():
        assert f"{holder.host} is not seen from here, and was last heard" in run_directory.read_status(run).message


def test_a_run_of_an_earlier_version_elsewhere_is_lost_after_as_long(run: Path) -> None:
    leave(run, ELSEWHERE, LOST_AFTER_S - 20)
    shutil.rmtree(run / "launch")
    assert "on elsewhere, last heard 280 s ago" in life(run).by
    leave(run, ELSEWHERE, LOST_AFTER_S + 1)
    shutil.rmtree(run / "launch")
    assert settle(run).state == "lost"


@pytest.mark.parametrize("state", ["interrupted", "failed", "lost"])
def test_between_two_launches_elsewhere_a_run_is_waited_for_and_a_success_is_one(
    run: Path, state: run_directory.State
) -> None:
    leave(run, ELSEWHERE, 10, state)
    assert not life(run).sure
    assert verdict(run) is None
    leave(run, ELSEWHERE, 10, "succeeded")
    assert verdict(run)
    leave(run, ELSEWHERE, LOST_AFTER_S + 1, state)
    assert verdict(run)


def test_nothing_waits_for_ever_for_a_machine_that_is_gone(run: Path, monkeypatch, capsys) -> None:
    job = run_directory.read_job(run)
    monkeypatch.setattr(alive, "LOST_AFTER_S", 0.3)
    waits: list[Callable[[], object]] = [
        lambda: stop.wait(run, None),
        lambda: logs.show(run, None, follow=True),
        lambda: follow.follow(run, None),
        lambda: list(evaluate.evaluate_run(run, Built(job), follow=True)),
    ]
    for wait in waits:
        leave(run, ELSEWHERE, 0)
        wait()
        assert "waiting for process 7 on elsewhere" in capsys.readouterr().err or wait is waits[2]
        assert settle(run).state == "lost"
        assert "elsewhere is not seen from here" in settle(run).message


def test_on_the_users_word_it_is_given_up_and_resumed(run: Path, capsys) -> None:
    job = run_directory.read_job(run)
    leave(run, ELSEWHERE, 10)
    with pytest.raises(RefusedError, match=r"running \(process 7 on elsewhere, last heard 1. s ago.*--lost gives"):
        unfinished(run.parent, job, resume=True, new=False)
    with pytest.raises(RefusedError, match=r"cannot be killed from here \(process 7 on elsewhere"):
        stop.stop(run, kill=True)
    assert main(["stop", str(run), "--lost", "--here"]) == 0
    assert "lost at step 5: elsewhere is lost: given up by the user; process 7" in capsys.readouterr().out
    taken = unfinished(run.parent, job, resume=True, new=False)
    assert taken
    taken.hold.release()


def test_a_run_that_is_seen_to_go_on_is_not_given_up(run: Path, held) -> None:
    run_directory.write_status(run, "running", 3)
    with pytest.raises(RefusedError, match=rf"it goes on \(process {held.pid}"):
        give_up(run)
    assert run_directory.read_status(run).state == "running"


def test_the_end_of_a_run_is_not_recorded_while_somebody_begins_to_look_after_it(run: Path, monkeypatch) -> None:
    leave(run, ELSEWHERE, LOST_AFTER_S + 1)
    with hold.take(run / hold.SUPERVISOR, ""):
        monkeypatch.setattr("draco.launch.settle.life", lambda run: alive.Life(run_directory.read_status(run)))
        assert settle(run).state == "running"
    assert settle(run).state == "lost"
