"""What travels of a working directory, and the copy in a run."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from draco import own
from draco.code import recorded
from draco.code.gather import Gathered, check_installed, gather, said, sources
from draco.code.pack import Pack
from draco.code.selection import looks_secret, selected
from draco.errors import OwnCodeError, RefusedError
from draco.job import Job, to_yaml
from draco.launch.resume import code_of, new_run
from draco.runs import directory as run_directory


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with code and much that does not travel."""
    for name in (
        "task.py", "lib/a.py", "lib/data/part.py", "table.csv", ".env", "id_rsa", "lib/server.pem", ".git/HEAD",
        "runs/r/state.json", "data/mnist/x", "__pycache__/task.cpython-311.pyc", "env/pyvenv.cfg", "env/lib/x.py",
        "old.pyc", "thing.egg-info/PKG-INFO", "lib/.secret.py",
    ):  # fmt: skip
        (tmp_path / "work" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "work" / name).write_text("x = 1\n")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def test_a_folder_travels_without_runs_data_environments_hidden_files_and_keys(
    folder: Path, make_job: Callable[..., Job]
) -> None:
    got = gather(make_job("code=[.]"))
    assert sorted(got.pack.files) == ["lib/a.py", "lib/data/part.py", "table.csv", "task.py"]
    assert got.left_out == ("id_rsa", "lib/server.pem")
    assert said(got) == ["code: left out, as they look like keys: id_rsa, lib/server.pem"]


def test_what_git_ignores_does_not_travel(folder: Path) -> None:
    (folder / ".git/HEAD").unlink()
    (folder / ".git").rmdir()
    (folder / ".gitignore").write_text("*.csv\n")
    subprocess.run(["git", "init", "-q", "."], check=True)
    assert list(selected(folder, "."))[-1] == "lib/data/part.py"
    assert "table.csv" not in list(selected(folder, "."))
    assert "task.py" in list(selected(folder, "."))


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        ("gone.py", "code: gone.py: there is no such file or folder"),
        ("../work", "code: ../work: must lie below"),
        ("/etc", "code: /etc: must lie below"),
        ("id_rsa", "code: id_rsa: looks like a file of keys"),
        ("thing.egg-info", ""),
        (".git", ""),
        ("runs", ""),
        ("lib/a.py/x", "there is no such file or folder"),
    ],
)
def test_a_path_that_is_of_no_use_is_a_fault(folder: Path, make_job: Callable[..., Job], code: str, fault: str) -> None:
    (folder / ".git/HEAD").rename(folder / ".git/.HEAD")
    if not fault and code != ".git":
        assert gather(make_job(f"code=[{code}]")).pack.files
        return
    with pytest.raises(OwnCodeError, match=fault or "holds no file that travels"):
        gather(make_job(f"code=[{code}]"))


@pytest.mark.parametrize("name", [".env", "a.PEM", "id_ed25519", "x.key", "credentials.json", "prod.tfvars"])
def test_keys_are_known_by_their_names(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("x")
    (tmp_path / "harmless.py").symlink_to(tmp_path / name)
    assert looks_secret(tmp_path / name)
    assert looks_secret(tmp_path / "harmless.py")


def test_code_is_what_a_job_names_by_its_path_and_nothing_else(
    folder: Path, make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An option's text may have a colon in it. Where it names a file that is there, the file travels too."""

    def named(task: str, options: str = "{}") -> list[str]:
        return sources(make_job("model=null", "data={}", f"task={{name: '{task}', options: {options}}}"))

    assert named("task.py:Digits", "{device: 'cuda:all', loss: 'lib/a.py:f', text: 'gone.py:f'}") == [
        "task.py", "lib/a.py",
    ]  # fmt: skip
    assert named("lib.a:Digits") == ["lib.a"]
    monkeypatch.setitem(own.GIVEN, "given:Digits", object)
    assert named("given:Digits") == named("<given>:Digits") == []
    assert sources(make_job()) == []


def test_what_is_not_installed_is_said_before_the_start(folder: Path, make_job: Callable[..., Job]) -> None:
    (folder / "task.py").write_text("import json\nimport no_such_package\n")
    from draco.code.discovery import discover

    with pytest.raises(OwnCodeError, match=r"task\.py, line 2: needs no_such_package.*pip install no_such_package"):
        check_installed(discover(["task.py"], folder))


def test_a_run_has_a_copy_that_editing_does_not_change(folder: Path, make_job: Callable[..., Job]) -> None:
    taken = new_run(folder / "runs", make_job("code=[task.py, lib]"))
    taken.hold.release()
    (folder / "task.py").write_text("x = 2\n")
    copy = recorded.copy(taken.run)
    assert copy is not None
    assert (copy.folder / "task.py").read_text() == "x = 1\n"
    assert copy.environment == {"DRACO_CODE": str(taken.run / "code"), "DRACO_CODE_DIGEST": copy.digest}


def test_a_resume_refuses_changed_code_and_shows_it(folder: Path, make_job: Callable[..., Job]) -> None:
    job = make_job("code=[task.py]")
    before = gather(job)
    run = run_directory.create(folder / "runs", job.name, to_yaml(job), before.pack)
    assert code_of(run, job, before, as_recorded=False) == before
    (folder / "task.py").write_text("x = 2\n")
    with pytest.raises(RefusedError) as caught:
        code_of(run, job, gather(job), as_recorded=False)
    assert str(caught.value).splitlines()[-3:] == ["@@ -1 +1 @@", "-x = 1", "+x = 2"]
    for remedy in ("restore it", "RECORDED=1", "NEW=1"):
        assert remedy in str(caught.value)
    assert code_of(run, job, Gathered(), as_recorded=True).pack == before.pack


def test_an_evaluation_loads_from_the_run_and_leaves_everything_as_it_was(
    folder: Path, make_job: Callable[..., Job]
) -> None:
    (folder / "task.py").write_text("import helper\nvalue = helper.value\n")
    (folder / "helper.py").write_text("value = 1\n")
    pack = Pack({name: (folder / name).read_bytes() for name in ("task.py", "helper.py")})
    runs = [run_directory.create(folder / "runs", "a", to_yaml(make_job()), each) for each in (
        pack, Pack({**pack.files, "helper.py": b"value = 2\n"}), Pack()
    )]  # fmt: skip
    (folder / "helper.py").write_text("value = 3\n")
    path, variables = list(sys.path), dict(os.environ)
    try:
        assert own.load("task.py:value") == 3
        for run, value in zip(runs, (1, 2, 3), strict=True):
            with recorded.loading_from(run):
                assert own.load("task.py:value") == value
        assert own.load("task.py:value") == 3
        assert not list((folder / "runs").rglob("__pycache__"))
        assert dict(os.environ) == variables
    finally:
        sys.path[:] = path
        for name in ("task", "helper"):
            sys.modules.pop(name, None)
        own.forget()


def test_a_rank_refuses_another_copy(
    folder: Path, make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_directory.create(folder / "runs", "a", to_yaml(make_job()), Pack({"task.py": b"x"}))
    copy = recorded.copy(run)
    assert copy is not None
    for name, value in copy.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    recorded.verify_here()
    assert sys.dont_write_bytecode
    (run / "code/other.py").write_text("x")
    with pytest.raises(OwnCodeError, match=r"other\.py was not recorded"):
        recorded.verify_here()
