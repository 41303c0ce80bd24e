"""Run directories and the events in them."""

import os
import stat
from pathlib import Path

from draco import events, run_directory


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


def test_a_status_of_a_process_that_is_gone_is_not_alive(tmp_path: Path) -> None:
    run_directory.write_status(tmp_path, "running", 4)
    status = run_directory.read_status(tmp_path)
    assert run_directory.is_alive(status)
    assert not run_directory.is_alive(status._replace(pid=2**22 + 1))
    assert run_directory.is_alive(status._replace(pid=2**22 + 1, host="elsewhere"))


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
