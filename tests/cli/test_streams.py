"""Standard streams as a shell hands them over: closed, full, narrow, of another encoding, with a reader that leaves."""

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from draco.cli.screen import Screen
from draco.launch.progress import Progress
from draco.runs import directory as run_directory
from draco.runs.events import EventLog

JOB = "{name: small, workers: 3, model: lenet, data: synthetic, batch_size: 6, steps: 2, scheme: uncoded}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a job and a run that has a long log, and letters that few encodings have."""
    folder = tmp_path_factory.mktemp("streams")
    (folder / "job.yaml").write_text(JOB)
    run = run_directory.create(folder / "runs", "small", JOB)
    log = EventLog(run / "events.jsonl")
    log.write("start", steps=2, setting="naïve 日本", summary="x")
    log.close()
    (run / "logs" / "output.log").write_text("naïve 日本\n" * 10_000)
    run_directory.write_status(run, "succeeded", 2)
    return folder


def shell(folder: Path, line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a line of bash, in which $d is draco and takes figures for drawn; bytes that are no text are shown as ?."""
    code = "import sys; from draco.cli.main import main; sys.exit(main())"
    kept = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **environment}
    return subprocess.run(
        ["bash", "-c", f'd() {{ "{sys.executable}" -c "{code}" "$@"; }}\n{line}'], cwd=folder, env=kept,
        capture_output=True, text=True, errors="replace", check=False, timeout=100,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("d logs | head -1; echo ${PIPESTATUS[0]}", 0, ""),
        ("d logs 2>&1 | head -1; exit ${PIPESTATUS[0]}", 141, ""),
        ("d logs >&- 2>&- <&-", 0, ""),
        ("d logs > /dev/full", 3, "standard output: cannot be written: No space left on device\n"),
        ("d logs > /dev/full 2>&1", 3, ""),
        ("d validate nothing.yaml 2> /dev/full", 2, ""),
        ("d stop 2>&- <&-", 4, ""),
    ],
)
def test_a_stream_that_cannot_be_used_is_told_in_one_sentence_or_not_at_all(
    line: str, code: int, said: str, folder: Path
) -> None:
    made = shell(folder, line)
    assert (made.returncode, made.stderr) == (code, said)
    if "echo" in line:
        assert made.stdout.splitlines()[-1] == "141"


def test_a_child_of_a_command_without_streams_finds_its_own_open(folder: Path) -> None:
    code = (
        "import subprocess, sys; from draco.cli import streams; streams.make_ready()\n"
        "made = subprocess.run(['sh', '-c', 'echo x && read y; test -e /dev/fd/2'])\n"
        "open(sys.argv[1], 'w').write(str(made.returncode))"
    )
    line = f'"{sys.executable}" -c "{code}" answer <&- >&- 2>&-'
    assert shell(folder, line).returncode == 0
    assert (folder / "answer").read_text() == "0"


@pytest.mark.parametrize(
    "environment",
    [
        {"COLUMNS": "0"},
        {"COLUMNS": "1", "TERM": ""},
        {"COLUMNS": "-3", "TERM": "dumb"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "latin-1", "TERM": "no-such-terminal"},
    ],
    ids=lambda environment: " ".join(f"{key}={value}" for key, value in environment.items()),
)
def test_a_table_is_shown_on_any_screen(environment: dict[str, str], folder: Path) -> None:
    (run,) = (folder / "runs").iterdir()
    code = (
        "import pathlib, sys; from draco.cli import console, streams; from draco import report\n"
        "streams.make_ready()\n"
        "console.results(None, soft_wrap=False).print(report.table([report.read_summary(pathlib.Path(sys.argv[1]))]))"
    )
    made = shell(folder, f'"{sys.executable}" -c "{code}" {run}', **environment)
    assert (made.returncode, made.stderr) == (0, "")
    assert "steps" in made.stdout
    assert "na" in made.stdout


class Full(io.StringIO):
    """A stream that takes nothing."""

    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("terminal", [False, True])
def test_a_display_that_cannot_be_written_ends_no_run_but_lost_results_are_told(terminal: bool, tmp_path: Path) -> None:
    log = tmp_path / "events.jsonl"
    log.touch()
    with Progress(log, Screen(stderr=True, file=Full(), force_terminal=terminal), "starting") as progress:
        log.write_text(
            '{"event": "start", "time": 1, "steps": 2, "summary": "x"}\n{"event": "step", "time": 2, "step": 1}\n'
        )
        progress.update()
        progress.say("the run goes on")
    with pytest.raises(OSError, match="No space left"):
        Screen(file=Full()).print("results")
