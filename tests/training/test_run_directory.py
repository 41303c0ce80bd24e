"""Run directories and the events in them."""

import errno
import json
import os
import stat
import subprocess
from pathlib import Path

import pytest

from draco import files
from draco.runs import directory as run_directory
from draco.runs import events
from draco.runs.alive import life
from draco.training import checkpoint


def test_a_new_run_is_pending_and_holds_its_job(tmp_path: Path) -> None:
    run = run_directory.create(tmp_path / "runs", "quickstart", "name: quickstart\n")
    assert run.name.startswith("quickstart-")
    assert run_directory.read_status(run).state == "pending"
    assert (run / "job.yaml").read_text() == "name: quickstart\n"
    assert (run / "checkpoints").is_dir()


def test_two_runs_started_in_the_same_second_do_not_collide(tmp_path: Path) -> None:
    made = [run_directory.create(tmp_path, "a", "") for _ in range(3)]
    assert len(set(made)) == 3
    assert run_directory.runs(tmp_path) == made


def test_the_secret_is_made_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    first = run_directory.secret(tmp_path)
    assert len(first) == 32
    assert run_directory.secret(tmp_path) == first
    assert stat.S_IMODE(os.stat(tmp_path / "secret").st_mode) == 0o600


def test_events_are_read_back_without_the_half_line_of_a_killed_run(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = events.EventLog(path)
    log.write("step", step=1)
    log.close()
    with open(path, "a") as file:
        file.write('{"event": "st')
    again = events.EventLog(path)
    again.write("step", step=2)
    again.close()
    assert [event["step"] for event in events.read(path)] == [1, 2]


def test_events_of_a_run_that_wrote_none_are_empty(tmp_path: Path) -> None:
    assert list(events.read(tmp_path / "events.jsonl")) == []


def full_disk(monkeypatch: pytest.MonkeyPatch, run: Path, number: int = errno.ENOSPC) -> None:
    """Let nothing reach the disk while the reserve takes up its last space."""
    sync = os.fsync

    def fsync(descriptor: int) -> None:
        if (run / ".reserve").exists():
            raise OSError(number, os.strerror(number))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_on_a_full_disk_the_state_is_written_in_the_place_of_the_reserve(tmp_path, monkeypatch, number: int) -> None:
    run = run_directory.create(tmp_path, "a", "")
    assert (run / ".reserve").stat().st_size >= 4096
    full_disk(monkeypatch, run, number)
    run_directory.write_status(run, "failed", 7, "no space left")
    status = run_directory.read_status(run)
    assert (status.state, status.step, status.message) == ("failed", 7, "no space left")
    assert not (run / ".reserve").exists()


def test_what_did_not_fit_gives_its_space_back_and_nothing_else_goes(tmp_path: Path, monkeypatch) -> None:
    run = run_directory.create(tmp_path, "a", "x: 1")
    full_disk(monkeypatch, run)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(run / "checkpoints", 3, {})
    run_directory.write_status(run, "failed", 0, "no space left")
    assert sorted(p.name for p in run.rglob("*")) == ["checkpoints", "job.yaml", "logs", "state.json"]


def test_a_disk_that_stays_full_or_breaks_is_not_hidden(tmp_path: Path, monkeypatch) -> None:
    run = run_directory.create(tmp_path, "a", "")
    full_disk(monkeypatch, run, errno.EIO)
    with pytest.raises(OSError, match="Input/output error"):
        run_directory.write_status(run, "failed", 7)
    assert (run / ".reserve").exists()
    assert run_directory.read_status(run).state == "pending"


def test_a_file_that_could_not_be_written_leaves_no_part_of_it(tmp_path: Path, monkeypatch) -> None:
    run = run_directory.create(tmp_path, "a", "old")
    full_disk(monkeypatch, run)
    with pytest.raises(OSError, match="No space left"):
        files.replace(run / "job.yaml", b"new")
    assert (run / "job.yaml").read_text() == "old"
    assert list(run.glob(".job.yaml*")) == []


def test_a_process_that_has_ended_is_gone_though_nobody_has_asked_how() -> None:
    with subprocess.Popen(["true"]) as process:
        started = run_directory.process_start(process.pid)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not run_directory.exists(process.pid, started)


def test_a_state_from_before_processes_were_dated_is_read(tmp_path: Path) -> None:
    run_directory.write_status(tmp_path, "running", 4)
    path = tmp_path / "state.json"
    old = json.loads(path.read_text())
    del old["started"]
    path.write_text(json.dumps(old))
    status = run_directory.read_status(tmp_path)
    assert (status.state, status.step, status.started) == ("running", 4, "")
    assert life(tmp_path).by == f"process {os.getpid()}"
    path.write_text(json.dumps(old | {"pid": 2**22 + 1}))
    assert not life(tmp_path).by


def test_the_nodes_of_workers_are_known_on_a_cluster_only(tmp_path: Path) -> None:
    assert run_directory.nodes(tmp_path) is None
    (tmp_path / "launch").mkdir()
    (tmp_path / "launch" / "nodes.json").write_text('["worker-01", "worker-02"]')
    assert run_directory.nodes(tmp_path) == ["worker-01", "worker-02"]


def test_a_beat_is_a_newer_file_without_another_event(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = events.EventLog(path)
    log.write("start")
    os.utime(path, (1, 1))
    log.beat()
    log.close()
    assert path.stat().st_mtime > 1
    assert len(list(events.read(path))) == 1


def test_the_step_of_a_checkpoint_is_in_its_name(tmp_path: Path) -> None:
    assert checkpoint.step_of(checkpoint.save(tmp_path, 120, {})) == 120
