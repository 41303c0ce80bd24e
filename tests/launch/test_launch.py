"""Plans are values; running one judges the run's own record."""

import io
import sys
from pathlib import Path
from typing import get_args

import pytest
from rich.console import Console

from draco.job import Job, parse, to_yaml
from draco.launch.plan import LAUNCHERS, plan
from draco.launch.planned import Allocation, Plan
from draco.launch.progress import Progress
from draco.launch.run import Ended, Stops, run
from draco.runs import directory as run_directory
from draco.runs import events

JOB = "{name: a, workers: 4, model: lenet, data: synthetic, batch_size: 8, steps: 2, scheme: uncoded}"


@pytest.mark.parametrize("launcher", get_args(Job.model_fields["launcher"].annotation))
def test_every_launcher_that_a_job_can_name_is_in_the_table_and_has_a_plan(launcher: str) -> None:
    given = Allocation({}, ("n1",), (8,)) if LAUNCHERS[launcher].allocation else None
    made = plan(parse(JOB, "test", [f"launcher={launcher}"]), Path("runs/a-1"), allocation=given)
    assert made.argv
    assert made.roster is None
    assert bool(made.starter) == (launcher != "simulate")


def test_local_mpi_starts_a_server_and_n_workers_that_yield() -> None:
    made = plan(parse(JOB, "test"), Path("runs/a-1"), python="/venv/bin/python", home="/home/me")
    assert made.argv == (
        "/venv/bin/mpirun", "--with-ft", "ulfm", "-x", "HOME=/home/me", "-n", "5",
        "--map-by", ":OVERSUBSCRIBE", "--bind-to", "none",
        "/venv/bin/python", "-m", "draco", "rank", "runs/a-1",
    )  # fmt: skip
    environment = dict(made.environment)
    assert environment["OMPI_MCA_mpi_yield_when_idle"] == "1"
    assert environment["OMP_NUM_THREADS"] == "1"


def test_a_simulation_is_one_process() -> None:
    made = plan(parse(JOB, "test", ["launcher=simulate", "threads=2"]), Path("runs/a-1"), python="python")
    assert made.argv == ("python", "-m", "draco", "rank", "runs/a-1", "--simulate")
    assert dict(made.environment)["OMP_NUM_THREADS"] == "2"
    assert str(made).endswith(" python -m draco rank runs/a-1 --simulate")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return run_directory.create(tmp_path, "a", to_yaml(parse(JOB, "test")))


def ended(directory: Path, code: str) -> Ended:
    progress = Progress(directory / "events.jsonl", Console(file=io.StringIO()), "starting")
    with progress, Stops(directory, progress) as stops:
        return run(Plan((sys.executable, "-c", code), ()), directory, progress, stops)


def test_a_process_that_ends_well_without_a_record_is_lost(directory: Path) -> None:
    """mpirun exits 0 after losing a node: the exit code is no evidence."""
    result = ended(directory, "print('nothing done')")
    assert result.state == "lost"
    assert "exit code 0" in result.message
    assert "nothing done" in result.output


def test_a_run_that_recorded_its_success_has_succeeded_whatever_the_exit_code(directory: Path) -> None:
    code = f"""
from pathlib import Path
from draco.runs import events, directory as run_directory
run_directory.write_status(Path({str(directory)!r}), "succeeded", 2)
raise SystemExit(3)
"""
    assert ended(directory, code).state == "succeeded"


def test_progress_tells_what_the_supervisor_does_a_line_each(directory: Path) -> None:
    text = io.StringIO()
    log = directory / "events.jsonl"
    with Progress(log, Console(file=text, width=200), "starting") as progress:
        events.append(log, "notice", node="b", kind="interruption", at="2026-01-02T03:04:05Z")
        events.append(log, "interruption", cause="b: it goes", nodes={"b": "it goes"}, ranks=[1, 3])
        events.append(
            log, "relaunch", launch=2, nodes=["c", "d", "c"], without={"b": "it goes"}, warnings=["c is full"]
        )
        events.append(log, "relaunch", launch=3, nodes=None, without={}, warnings=[])
        progress.update()
    first, *rest = text.getvalue().splitlines()[1:]
    assert first.startswith("b: spot interruption at ")
    assert rest == ["interrupted: b: it goes", "launch 2 on c, d without b", "warning: c is full", "launch 3"]


def test_an_event_is_appended_after_what_a_killed_server_left(directory: Path) -> None:
    log = directory / "events.jsonl"
    tail = events.Tail(log)
    log.write_text('{"event": "start", "time": 1}\n{"event": "st')
    assert [event["event"] for event in tail.read()] == ["start"]
    events.append(log, "relaunch", launch=2)
    assert [event["event"] for event in tail.read()] == ["relaunch"]
    assert [event["event"] for event in events.read(log)] == ["start", "relaunch"]


def test_progress_shows_steps_loss_and_suspects(directory: Path) -> None:
    text = io.StringIO()
    progress = Progress(directory / "events.jsonl", Console(file=text, width=200), "starting 4 workers")
    from draco.runs.events import EventLog

    log = EventLog(directory / "events.jsonl")
    with progress:
        log.write("start", steps=9, summary="uncoded: no redundancy")
        log.write("step", step=1, loss=2.5, suspects=[3])
        progress.update()
        progress._said -= 60  # a minute later
        log.write("step", step=2, loss=2.25, suspects=[3, 4])
        progress.update()
    log.close()
    said = text.getvalue()
    assert "starting 4 workers" in said
    assert "uncoded: no redundancy" in said
    assert "step 2/9" in said
    assert "loss 2.2500" in said
    assert "suspects: 3, 4" in said


def test_progress_on_a_terminal_redraws_one_line(directory: Path) -> None:
    from draco.runs.events import EventLog

    text = io.StringIO()
    log = EventLog(directory / "events.jsonl")
    with Progress(
        directory / "events.jsonl", Console(file=text, force_terminal=True, width=160), "starting"
    ) as progress:
        log.write("start", steps=9, summary="s")
        log.write("step", step=1, loss=2.5, suspects=[])
        progress.update()
        progress._bar.refresh()
    log.close()
    assert "1/9" in text.getvalue()
    assert "suspects: none" in text.getvalue()
