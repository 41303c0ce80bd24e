"""The command line: what it prints, what it refuses, and what it exits with."""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from draco.cli.main import main
from draco.cli.parser import build_parser
from draco.runs import directory as run_directory

pytestmark = pytest.mark.usefixtures("forks")

JOB = """
name: small
workers: 3
model: lenet
data: {name: synthetic, root: %s}
batch_size: 6
steps: 2
scheme: uncoded
"""


@pytest.fixture
def job(tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "small.yaml"
    path.write_text(JOB % data_root)
    return path


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    for command in ("train", "validate", "data", "eval", "report", "bench"):
        assert command in text


def parsers(parser: argparse.ArgumentParser, name: str = "draco") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Yield every command that the help lists, those of a command too, with its parser."""
    yield name, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for listed in action._choices_actions:
                yield from parsers(action.choices[listed.dest], f"{name} {listed.dest}")


@pytest.mark.parametrize(("name", "parser"), [pytest.param(*found, id=found[0]) for found in parsers(build_parser())])
def test_every_command_says_what_it_does_and_each_option_too(name: str, parser: argparse.ArgumentParser) -> None:
    assert parser.description
    assert not parser.allow_abbrev  # a cluster's head is passed the very words
    options = [a for a in parser._actions if not isinstance(a, argparse._SubParsersAction)]
    assert [option.dest for option in options if not option.help] == []


def test_commands_that_draco_starts_itself_are_not_in_the_help() -> None:
    listed = {name.split()[-1] for name, _ in parsers(build_parser())}
    assert not listed & {"rank", "supervise", "follow", "head"}


def test_the_command_line_is_light() -> None:
    """`draco --help` answers at once: nothing large is imported before a command needs it."""
    code = (
        "import sys; from draco.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: print(*sys.modules, file=sys.stderr)"
    )
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported = {name.split(".")[0] for name in made.stderr.split()}
    assert not imported & {"torch", "numpy", "pydantic", "ruamel", "rich", "matplotlib", "mpi4py", "boto3"}


def test_commands_that_compute_nothing_import_no_torch(job: Path, tmp_path: Path) -> None:
    """Each is to answer within half a second of CPU: torch alone takes twice that. One process gives all of them."""
    runs = str(tmp_path / "runs")
    run = run_directory.create(tmp_path / "runs", "over", job.read_text())
    run_directory.write_status(run, "succeeded", 2)
    commands = [
        ["validate", str(job)], ["train", str(job), "--dry-run"], ["logs", str(run)], ["stop", str(run)],
        ["cluster", "status"], ["train", str(job), "--resume", "--runs", runs],
    ]  # fmt: skip
    code = (
        "import json, sys; from draco.cli.main import main\n"
        "for number, words in enumerate(json.loads(sys.argv[1])):\n"
        "    main(words)\n"
        "    print(f'command {number}:', 'torch._C' in sys.modules)"
    )
    argv = [sys.executable, "-c", code, json.dumps(commands)]
    made = subprocess.run(argv, capture_output=True, text=True, check=True, cwd=tmp_path)
    found = [line for line in made.stdout.splitlines() if line.startswith("command ")]
    assert found == [f"command {number}: False" for number in range(len(commands))], made.stderr


def test_a_bad_job_exits_with_2_one_line_a_fault_and_touches_nothing(job: Path, capsys) -> None:
    job.write_text("{name: small, workers: 3, model: lenet, data: mnist, batch_size: 6, steps: 2, shceme: cyclic}")
    assert main(["train", str(job)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith(f"{job}: ") for line in lines)
    assert any("did you mean scheme" in line for line in lines)
    assert sorted(p.name for p in job.parent.iterdir()) == ["small.yaml"]


def test_a_job_that_is_not_there_exits_with_2(tmp_path: Path, capsys) -> None:
    assert main(["train", str(tmp_path / "none.yaml")]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_validate_reports_all_files_at_once(job: Path, capsys) -> None:
    bad = job.with_name("bad.yaml")
    bad.write_text("{name: bad}")
    assert main(["validate", str(job), str(bad)]) == 2
    printed = capsys.readouterr()
    assert f"{job}: valid" in printed.out
    assert f"{bad}: " in printed.err


def test_validate_takes_overrides(job: Path, capsys) -> None:
    assert main(["validate", str(job), "--set", "workers=0"]) == 2
    assert "workers" in capsys.readouterr().err


def test_the_schema_is_json(capsys) -> None:
    assert main(["validate", "--schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "Draco job"


def test_a_dry_run_prints_the_command_and_runs_nothing(job: Path, capsys) -> None:
    assert main(["train", str(job), "--dry-run"]) == 0
    assert "mpirun --with-ft ulfm -x HOME=" in capsys.readouterr().out
    assert not (job.parent / "runs").exists()


def test_a_simulated_run_trains_reports_and_evaluates(job: Path, capsys) -> None:
    assert main(["train", str(job), "--simulate", "--set", "checkpoint_every=1"]) == 0
    (run,) = (job.parent / "runs").iterdir()
    assert "small: succeeded" in capsys.readouterr().out
    assert main(["eval"]) == 0
    assert "step 1: top-1 " in capsys.readouterr().out
    assert main(["eval", str(run)]) == 0
    assert "every checkpoint is evaluated already" in capsys.readouterr().out
    assert main(["report", str(run), str(run), "--markdown", "--plot", "curves.svg"]) == 0
    assert capsys.readouterr().out.startswith("| run |")
    assert (job.parent / "curves.svg").read_text().startswith("<?xml")


def test_report_without_a_run_takes_the_newest(job: Path, capsys) -> None:
    assert main(["report"]) == 3
    assert "there is no run" in capsys.readouterr().err
    for name in ("first", "second"):
        assert main(["train", str(job), "--simulate", "--set", f"name={name}"]) == 0
    capsys.readouterr()
    assert main(["report"]) == 0
    said = capsys.readouterr().out
    assert "second: succeeded" in said
    assert "first" not in said


def test_resume_without_a_run_is_refused(job: Path, capsys) -> None:
    assert main(["train", str(job), "--resume"]) == 4
    assert "no unfinished run" in capsys.readouterr().err
    assert main(["train", str(job), "--resume", "--new"]) == 4


def test_eval_and_report_say_what_is_missing(tmp_path: Path, capsys) -> None:
    assert main(["eval", "--runs", str(tmp_path)]) == 3
    assert main(["eval", str(tmp_path)]) == 3
    assert main(["report", str(tmp_path)]) == 3
    assert "not a run directory" in capsys.readouterr().err


def test_tensorboard_is_asked_for_before_anything_starts(job: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("draco.launch.ready.find_spec", lambda name: None)
    assert main(["train", str(job), "--set", "loggers=[tensorboard]"]) == 3
    assert "make setup EXTRAS=tensorboard" in capsys.readouterr().err
    assert not (job.parent / "runs").exists()


def test_a_gpu_that_is_not_there_is_missed_before_anything_starts(job: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["train", str(job), "--set", "device=cuda"]) == 3
    assert "make setup TORCH=cuda" in capsys.readouterr().err
    assert not (job.parent / "runs").exists()


def test_tensorboard_files_hold_the_figures_of_every_step(job: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert main(["train", str(job), "--simulate", "--set", "loggers=[tensorboard]"]) == 0
    (run,) = (job.parent / "runs").iterdir()
    board = EventAccumulator(str(run / "tensorboard")).Reload()
    logged = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    losses = [e["loss"] for e in logged if e["event"] == "step"]
    assert [point.value for point in board.Scalars("loss")] == pytest.approx(losses)
    assert [point.step for point in board.Scalars("test/top1")] == [2]


def test_data_is_prepared_beforehand(job: Path, capsys) -> None:
    assert main(["data", str(job)]) == 0
    assert "synthetic" in capsys.readouterr().out
