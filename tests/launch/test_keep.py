"""The keeper of runs on a head: which get another supervisor, and that their models do not show it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from conftest import Trained

from draco.errors import RefusedError
from draco.job import Job, to_yaml
from draco.launch import every_node, keep, supervise
from draco.launch.keep import GONE, is_due
from draco.launch.resume import unfinished
from draco.launch.roster import Host, Roster
from draco.launch.settle import settle
from draco.launch.sweep import going_on
from draco.runs import directory as run_directory
from draco.runs import events
from draco.runs.alive import supervisor
from draco.runs.hold import Hold

NOBODY = 2**22 + 1  # no process has this id


@pytest.fixture
def orphan(make_job: Callable[..., Job], tmp_path: Path) -> Path:
    """A run that is at its tenth step and has neither supervisor nor server."""
    return left(tmp_path, make_job())


def left(root: Path, job: Job) -> Path:
    run = run_directory.create(root, job.name, to_yaml(job))
    (run / "launch").mkdir()
    (run / "launch" / "supervisor.json").write_text(json.dumps({"pid": NOBODY, "started": "1", "events": 0}))
    as_left(run, "running")
    events.append(run / "events.jsonl", "step", step=10)
    return run


def as_left(run: Path, state: run_directory.State) -> None:
    run_directory.write_status(run, state, 10)
    values = json.loads((run / "state.json").read_text())
    (run / "state.json").write_text(json.dumps(values | {"pid": NOBODY, "started": "1"}))


def took_over(run: Path, times: int) -> None:
    for _ in range(times):
        events.append(run / "events.jsonl", "interruption", cause=GONE, nodes={}, ranks=[])


@pytest.mark.parametrize("state", ["pending", "running"])
def test_a_run_in_the_midst_of_it_is_due(orphan: Path, state: run_directory.State) -> None:
    as_left(orphan, state)
    assert is_due(orphan)


@pytest.mark.parametrize("state", ["interrupted", "succeeded", "failed", "lost"])
def test_a_verdict_stands(orphan: Path, state: run_directory.State) -> None:
    as_left(orphan, state)
    assert not is_due(orphan)


def test_a_run_with_its_supervisor_is_left_alone(orphan: Path) -> None:
    me = {"pid": os.getpid(), "started": run_directory.process_start(os.getpid()), "events": 0}
    (orphan / "launch" / "supervisor.json").write_text(json.dumps(me))
    assert not is_due(orphan)


def test_a_run_that_had_none_is_left_alone(orphan: Path) -> None:
    (orphan / "launch" / "supervisor.json").unlink()
    assert not is_due(orphan)


def test_a_run_that_was_asked_to_stop_is_not_started_again(orphan: Path) -> None:
    run_directory.ask_to_stop(orphan)
    assert not is_due(orphan)


def test_a_job_that_is_to_fail_fails(make_job: Callable[..., Job], tmp_path: Path) -> None:
    assert not is_due(left(tmp_path, make_job("on_loss=fail")))


def test_without_a_step_in_between_three_are_enough(orphan: Path) -> None:
    took_over(orphan, 2)
    assert is_due(orphan)
    took_over(orphan, 1)
    assert not is_due(orphan)
    events.append(orphan / "events.jsonl", "step", step=11)
    assert is_due(orphan)


def test_the_jobs_limit_of_losses_an_hour_holds(make_job: Callable[..., Job], tmp_path: Path) -> None:
    run = left(tmp_path, make_job("on_loss.per_hour=2"))
    for step in (11, 12):
        assert is_due(run)
        took_over(run, 1)
        events.append(run / "events.jsonl", "step", step=step)
    assert not is_due(run)
    old = [event | {"time": time.time() - 3601} for event in events.read(run / "events.jsonl")]
    (run / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in old))
    assert is_due(run)


@pytest.fixture
def keeper(orphan: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is said to be the keeper of the orphan's folder."""
    line = (
        "import pathlib, sys; from draco.runs import hold; hold.take(pathlib.Path(sys.argv[1]), ''); print(flush=True)"
    )
    argv = [sys.executable, "-c", f"{line}; input()", str(orphan.parent / ".keeper")]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        yield process
        process.kill()


def test_whoever_looks_leaves_such_a_run_to_its_keeper(orphan: Path, keeper) -> None:
    job = run_directory.read_job(orphan)
    assert settle(orphan).state == "running"
    with pytest.raises(RefusedError, match=r"is about to go on by itself"):
        unfinished(orphan.parent, job, resume=True, new=False)
    assert unfinished(orphan.parent, job, resume=False, new=True) is None
    keeper.kill()
    keeper.wait()
    assert settle(orphan).state == "lost"


@pytest.mark.parametrize("content", ["", "{", '{"pid": 4194305, "started": "1"}'])
def test_a_keeper_that_is_gone_or_is_just_beginning_keeps_nothing(orphan: Path, content: str) -> None:
    (orphan.parent / ".keeper").write_text(content)
    assert not keep.kept(orphan)


def test_one_keeper_at_a_time_starts_each_run_once(orphan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keep, "_EVERY_S", 0.01)
    begun: list[tuple[int, Path]] = []

    class EnoughError(Exception):
        pass

    def again(number: int) -> Callable[[Path, Hold], None]:
        def start(run: Path, held: Hold) -> None:
            held.release()
            begun.append((number, run))
            as_left(run, "lost")
            time.sleep(0.1)
            if (other := orphan.parent / "b").exists():
                raise EnoughError
            os.rename(left(other.parent, run_directory.read_job(run)), other)

        return start

    def keeping(number: int) -> None:
        with contextlib.suppress(EnoughError):
            keep.keep(orphan.parent, again(number))

    threads = [threading.Thread(target=keeping, args=(number,), daemon=True) for number in (1, 2)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 20
    while all(thread.is_alive() for thread in threads):
        assert time.monotonic() < deadline
    assert [run for _, run in begun] == [orphan, orphan.parent / "b"]
    assert len({number for number, _ in begun}) == 1
    told = [event for event in events.read(orphan / "events.jsonl") if event["event"] == "interruption"]
    assert [event["cause"] for event in told] == [GONE]


@pytest.mark.parametrize(("silent", "out"), [((), ()), (("b",), ("b",)), (("b", "c"), ())])
def test_nodes_that_do_not_let_the_head_in_are_left_out_unless_that_is_all(
    orphan: Path, monkeypatch: pytest.MonkeyPatch, silent: tuple[str, ...], out: tuple[str, ...]
) -> None:
    roster = Roster("r", "10.0.0.0/24", "python", "config", tuple(Host(n, f"10.0.0.{ord(n)}", 1) for n in "abc"))
    monkeypatch.setattr(every_node, "ask", lambda *_, **__: {})
    monkeypatch.setattr(every_node, "unreachable", lambda _: dict.fromkeys(silent, "frozen"))
    assert keep.end_what_is_left(orphan, roster) == {}  # it never ran on nodes
    (orphan / "launch" / "nodes.json").write_text('["b", "c"]')
    assert keep.end_what_is_left(orphan, roster) == dict.fromkeys(out, "frozen")


@pytest.fixture(scope="module")
def trained() -> dict[str, Trained]:
    """What both cases of the next test compare with."""
    return {}


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # the supervisor is to outlive us
@pytest.mark.usefixtures("forks")
@pytest.mark.parametrize("killed", ["supervisor", "all"])
def test_a_run_whose_supervisor_is_killed_ends_with_the_same_model(
    make_job: Callable[..., Job], tmp_path: Path, killed: str, train, trained: dict[str, Trained]
) -> None:
    # So long that the run cannot end by itself before the keeper has started.
    job = make_job("steps=300", "workers=2", "batch_size=2", "checkpoint_every=30", "chain=none")
    if not trained:
        trained["undisturbed"] = train(job)
    root = tmp_path / "runs-of-the-keeper"
    run = run_directory.create(root, job.name, to_yaml(job))
    supervise.detach(run, here=True)
    until(lambda: run_directory.read_status(run).step >= 10)
    pid = supervisor(run)
    assert pid
    os.kill(pid, signal.SIGKILL)
    if killed == "all":
        server = run_directory.read_status(run).pid
        with contextlib.suppress(ProcessLookupError):
            os.kill(server, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)
    line = "import pathlib, sys; from draco.launch import keep, supervise; keep.keep(pathlib.Path(sys.argv[1]), "
    line += "lambda run, held: supervise.detach(run, here=True, again=True, held=held))"
    with subprocess.Popen([sys.executable, "-c", line, str(root)]) as keeper:
        until(lambda: run_directory.read_status(run).state == "succeeded" and supervisor(run) is None)
        keeper.kill()
    told = [event for event in events.read(run / "events.jsonl") if event["event"] == "interruption"]
    assert [event["cause"] for event in told] == [GONE]
    (again,) = [event for event in events.read(run / "events.jsonl") if event["event"] == "relaunch"]
    assert (again["launch"], again["without"]) == (2, {})
    assert str(run) not in going_on()
    assert torch.equal(Trained(run).model, trained["undisturbed"].model)


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 90
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)
