"""Paths and files as a user's machine has them: `~`, variables, faults of files, and runs that are damaged."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from draco import files
from draco.cli import jobs, where
from draco.cli.main import main
from draco.cli.parser import build_parser
from draco.errors import MissingError
from draco.launch import fork_client, supervise
from draco.launch.resume import named_or_newest, unfinished
from draco.runs import alive, hold
from draco.runs import directory as run_directory

pytestmark = pytest.mark.usefixtures("forks")

JOB = """
name: small
workers: 3
launcher: simulate
model: lenet
data: {name: synthetic, root: %s}
batch_size: 6
steps: 2
scheme: uncoded
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home, which is also the working folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PLACE", str(tmp_path / "place"))
    monkeypatch.delenv("NOWHERE", raising=False)
    monkeypatch.chdir(tmp_path)
    files.expanded("~")
    return tmp_path


# `~` and variables


def test_a_path_is_expanded_and_what_is_there_by_that_name_is_taken_as_it_is(home: Path) -> None:
    assert files.expanded("~/x") == home / "x"
    assert files.expanded("$HOME/x") == files.expanded("${HOME}/x") == home / "x"
    assert files.expanded("$PLACE") == home / "place"
    assert files.expanded("a/b") == Path("a/b")
    assert files.expanded("~no-such-user/x") == Path("~no-such-user/x")
    with pytest.raises(MissingError, match=r"^\$NOWHERE/x: the variable NOWHERE is not set here"):
        files.expanded("$NOWHERE/x")
    (home / "$NOWHERE").mkdir()
    assert files.expanded("$NOWHERE") == Path("$NOWHERE")


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["train", "~/j", "--runs", "$HOME/r", "--secret", "~/s"], ("job", "runs", "secret")),
        (["report", "~/a", "$HOME/b", "--runs", "~/r"], ("run", "runs")),
        (["report", "--html=~/h", "--plot=$HOME/p"], ("html", "plot")),
        (["eval", "~/a", "--runs", "~/r"], ("run", "runs")),
        (["logs", "~/a"], ("run",)),
        (["stop", "~/a"], ("run",)),
        (["compare", "~/g", "--runs", "~/r"], ("grid", "runs")),
        (["validate", "~/a", "$HOME/b"], ("jobs",)),
        (["data", "~/a"], ("jobs",)),
        (["bench", "--json", "~/b"], ("json",)),
        (["cluster", "up", "--inventory", "~/i"], ("inventory",)),
    ],
    ids=lambda given: given[0],
)  # fmt: skip
def test_every_option_that_is_a_path_is_expanded(words: list[str], option: tuple[str, ...], home: Path) -> None:
    args = build_parser().parse_args(words)
    for name in option:
        given = getattr(args, name)
        for path in given if isinstance(given, list) else [given]:
            assert path.parent == home


def test_what_a_head_is_passed_is_expanded_as_a_shell_here_would(home: Path) -> None:
    words = ["report", "~/runs/a", "--runs=$HOME/r", "--markdown", "--on", "x"]
    assert [where._as_typed(word) for word in words] == [
        "report", f"{home}/runs/a", f"--runs={home}/r", "--markdown", "--on", "x"
    ]  # fmt: skip


def test_a_jobs_paths_are_expanded_where_it_trains_and_its_run_records_them_so(
    home: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(data_root / "synthetic", home / "place" / "synthetic")
    (home / "job.yaml").write_text(JOB % "$PLACE")
    assert jobs.read_job(Path("job.yaml")).data.root == "$PLACE"  # as for a cluster's head
    status = run_directory.Status("interrupted", 0, "", 1, "", 0.0)
    monkeypatch.setenv(fork_client.NAME, "of a stand-in")

    def supervised(*_: object, held: hold.Hold, forks: str) -> supervise.Outcome:
        del forks
        held.release()
        return supervise.Outcome(status, "")

    monkeypatch.setattr(supervise, "supervise", supervised)
    assert main(["train", "job.yaml"]) == 130
    (run,) = (home / "runs").iterdir()
    assert run_directory.read_job(run).data.root == str(home / "place")
    assert main(["train", "job.yaml", "--set", "data.root=$NOWHERE"]) == 3
    assert main(["data", "job.yaml", "--here"]) == 0


# Faults of files


@pytest.mark.parametrize("number", sorted(files._REMEDIES), ids=lambda number: errno.errorcode[number])
def test_a_fault_of_a_file_is_one_sentence_and_no_traceback(
    number: int, home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), str(home / "a\x1b[31m"))

    monkeypatch.setattr("draco.launch.resume.named_or_newest", fail)
    for command in ("report", "logs", "stop", "eval"):
        assert main([command]) == 3
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"{home}/a\\x1b[31m: ")
        assert len(line) > len(f"{home}/a\\x1b[31m: ") + 10


def test_an_error_without_a_file_is_still_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ECONNREFUSED, "refused")

    monkeypatch.setattr("draco.launch.resume.named_or_newest", fail)
    with pytest.raises(OSError, match="refused"):
        main(["logs"])


def loop(place: Path) -> Path:
    place.symlink_to(place)
    return place / "x"


def under_a_file(place: Path) -> Path:
    place.write_text("")
    return place / "x"


PLACES: dict[str, Callable[[Path], Path]] = {
    "nothing": lambda place: place,
    "below nothing": lambda place: place / "x",
    "a folder": lambda place: place.mkdir() or place,
    "below a file": under_a_file,
    "a loop": loop,
    "too long": lambda place: place / ("x" * 300),
}
COMMANDS = [
    ["report", "@"], ["eval", "@"], ["logs", "@"], ["stop", "@"], ["train", "@"], ["validate", "@"], ["data", "@"],
    ["compare", "@"], ["report", "--runs", "@"], ["train", "job.yaml", "--secret", "@"],
]  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_every_command_says_in_a_sentence_what_is_wrong_with_a_path(
    place: str, home: Path, data_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = PLACES[place](home / "given")
    (home / "job.yaml").write_text(JOB % data_root)
    for words in COMMANDS:
        assert main([word.replace("@", str(path)) for word in words]) in (2, 3), words
        said = capsys.readouterr().err.strip()
        assert str(path)[:200] in said, words
        assert "Traceback" not in said
        assert len(said.splitlines()) == 1, words


@pytest.mark.parametrize("place", ["below a file", "a loop", "too long"])
def test_what_a_command_writes_finds_its_sentence_too(
    place: str, home: Path, data_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = PLACES[place](home / "given")
    (home / "job.yaml").write_text(JOB % data_root)
    assert main(["train", "job.yaml", "--runs", str(path)]) == 3
    assert str(path)[:200] in capsys.readouterr().err
    assert main(["train", "job.yaml", "--set", f"data.root={path}"]) == 3
    assert str(path)[:200] in capsys.readouterr().err
    run = run_directory.create(home / "runs", "small", "")
    for option in ("--html", "--plot"):
        assert main(["report", str(run), option, str(path / "x.svg")]) == 3
        assert str(path)[:200] in capsys.readouterr().err


AS_ANYBODY = """
import contextlib, ctypes, io, json, os, sys
from draco.cli.main import main
import draco.report, draco.report.page  # while everything may be read
# Root may read all; without its capabilities, the user of number 0 may only what the modes of files say.
header = (ctypes.c_uint32 * 2)(0x20080522, 0)
assert ctypes.CDLL(None).capset(header, (ctypes.c_uint32 * 6)()) == 0
found = []
for words in json.load(sys.stdin):
    out = io.StringIO()
    with contextlib.redirect_stderr(out), contextlib.redirect_stdout(io.StringIO()):
        code = main(words)
    found.append([words, code, out.getvalue()])
print(json.dumps(found))
"""


def test_files_that_this_user_may_not_use_are_told_in_a_sentence(home: Path, data_root: Path) -> None:
    whole = run_directory.create(home / "runs", "small", JOB % data_root)
    run_directory.write_status(whole, "succeeded", 2)
    closed = home / "closed"
    shutil.copytree(whole, closed / "run")
    (home / "job.yaml").write_text(JOB % data_root)
    (home / "shut.yaml").write_text(JOB % data_root)
    silent = home / "runs" / "silent"
    shutil.copytree(whole, silent)
    commands = [
        ["logs", "--runs", "runs"], ["report", str(closed / "run")], ["logs", str(closed / "run")],
        ["stop", str(closed / "run")], ["report", "--runs", str(closed)], ["report", str(silent)],
        ["train", "job.yaml", "--secret", "shut.yaml"], ["validate", "shut.yaml"],
        ["train", "job.yaml", "--runs", str(closed)], ["train", "job.yaml", "--set", f"data.root={closed}/data"],
        ["report", str(whole), "--html", str(closed / "page")],
    ]  # fmt: skip
    for path in (closed, silent / "state.json", home / "shut.yaml"):
        path.chmod(0)
    try:
        made = subprocess.run(
            [sys.executable, "-c", AS_ANYBODY], input=json.dumps(commands), capture_output=True, text=True,
            check=True, cwd=home, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )  # fmt: skip
    finally:
        closed.chmod(0o700)
    assert made.stderr == ""
    (_, code, said), *told = json.loads(made.stdout)
    for words, ended, why in told:
        assert ended in (2, 3), (words, why)
        assert len([line for line in why.strip().splitlines() if not line.startswith("disk: ")]) == 1, (words, why)
        assert "may not be used by this user" in why or "Permission denied" in why, (words, why)
    assert code == 0  # the newest run that may be read
    assert "passed over: " in said
    assert "silent/state.json: may not be used by this user" in said


# Runs that are damaged


def empty_state(run: Path) -> None:
    (run / "state.json").write_text("")


def half_state(run: Path) -> None:
    (run / "state.json").write_bytes((run / "state.json").read_bytes()[:-30])


def odd_state(run: Path) -> None:
    (run / "state.json").write_text('{"state": "asleep", "step": -1}')


def folder_state(run: Path) -> None:
    (run / "state.json").unlink()
    (run / "state.json").mkdir()


def no_job(run: Path) -> None:
    (run / "job.yaml").unlink()


def no_text(run: Path) -> None:
    (run / "job.yaml").write_bytes(b"\xff\xfe\x00")


def another_version(run: Path) -> None:
    (run / "job.yaml").write_text("{later: 1}")


def a_file(run: Path) -> None:
    shutil.rmtree(run)
    run.write_text("")


@pytest.mark.parametrize(
    "damage", [empty_state, half_state, odd_state, folder_state, no_job, no_text, another_version, a_file]
)
def test_a_damaged_run_is_passed_over_by_others_and_explained_by_its_own_commands(
    damage: Callable[[Path], None], home: Path, data_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "job.yaml").write_text(JOB % data_root)
    job = jobs.read_job(Path("job.yaml"))
    whole = run_directory.create(home / "runs", "small", JOB % data_root)
    run_directory.write_status(whole, "interrupted", 1)
    bad = run_directory.create(home / "runs", "small", JOB % data_root)
    run_directory.write_status(bad, "interrupted", 1)
    damage(bad)
    if damage not in (no_text, another_version):  # whose state says all that these commands need
        assert named_or_newest(None, home / "runs") == whole
    taken = unfinished(home / "runs", job, resume=True, new=False)
    assert taken
    taken.hold.release()
    assert taken.run == whole
    capsys.readouterr()
    assert main(["eval", str(bad)]) == 3
    said = capsys.readouterr().err
    assert len(said.strip().splitlines()) == 1
    assert str(bad) in said
    for command in ("logs", "stop"):
        assert main([command, str(bad)]) in (0, 3, 4)  # what they need of it may be there
        assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("pid", [-1, 0, 2**31, 10**30])
def test_a_process_id_that_means_all_processes_is_nobodys(pid: int, home: Path) -> None:
    assert not run_directory.exists(pid)
    (home / "launch").mkdir()
    (home / "launch" / "supervisor.json").write_text(json.dumps({"pid": pid, "started": ""}))
    assert alive.supervisor(home) is None
