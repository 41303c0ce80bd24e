"""Disks that are full, over quota, read-only or failing while a run is going on: it ends, says why, and resumes."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from draco.errors import TrainingError
from draco.job import Job, parse
from draco.launch import stop
from draco.launch.settle import GONE, settle
from draco.runs import directory as run_directory
from draco.runs import events
from draco.training import checkpoint, evaluate

Make = Callable[..., Job]
SMALL = ("workers=2", "batch_size=4", "checkpoint_every=2")
JOB = """
name: on-a-bad-disk
workers: 2
launcher: simulate
model: lenet
data: {{name: synthetic, root: {root}}}
batch_size: 4
scheme: uncoded
optimizer: {{name: sgd, lr: 0.05, momentum: 0.9}}
steps: {steps}
checkpoint_every: {every}
eval_every: 0
"""


def failing(monkeypatch: pytest.MonkeyPatch, run: Path, number: int, while_true: Callable[[], bool]) -> None:
    """Let everything that would change the run's directory fail, though not what only reads it."""

    def guarded(name: str) -> None:
        call = getattr(os, name)

        def instead(path: object, *args: object, **options: object) -> object:
            writes = name != "open" or (args and args[0] & (os.O_WRONLY | os.O_RDWR))
            if writes and str(path).startswith(str(run)) and while_true():
                raise OSError(number, os.strerror(number), str(path))
            return call(path, *args, **options)

        monkeypatch.setattr(os, name, instead)

    for name in ("open", "rename", "unlink", "mkdir"):
        guarded(name)
    write = events.write_all

    def write_all(descriptor: int, content: bytes) -> None:
        if while_true():
            write(descriptor, content[: len(content) // 2])
            raise OSError(number, os.strerror(number))
        write(descriptor, content)

    monkeypatch.setattr(events, "write_all", write_all)


def steps_of(run: Path) -> list[int]:
    return [e["step"] for e in events.read(run / "events.jsonl") if e["event"] == "step"]


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "no space left on the disk of {run}; free some, then resume"),
        (errno.EDQUOT, "no space left on the disk of {run}; free some, then resume"),
        (errno.EIO, "the disk of {run} has failed to read or write; see to it, then resume"),
    ],
)
def test_half_an_event_ends_the_run_and_spoils_nothing_else(
    make_job: Make, train, tmp_path: Path, monkeypatch, number: int, message: str
) -> None:
    """The disk takes half of the fourth step's line and then no more."""
    job = make_job(*SMALL, "steps=5")
    whole = train(job)
    write = events.write_all
    full: list[int] = []

    def write_all(descriptor: int, content: bytes) -> None:
        if full or (b'"event": "step"' in content and b'"step": 4' in content):
            write(descriptor, b"" if full else content[:40])
            full.append(1)
            raise OSError(number, os.strerror(number))
        write(descriptor, content)

    monkeypatch.setattr(events, "write_all", write_all)
    run = run_directory.create(tmp_path / "runs", "partial", (whole.run / "job.yaml").read_text())
    shutil.copy(whole.run / "secret", run / "secret")
    with pytest.raises(OSError, match=r"events\.jsonl"):
        train(job, run)
    status = run_directory.read_status(run)
    assert (status.state, status.step, status.message) == ("failed", 4, message.format(run=run))
    assert steps_of(run) == [1, 2, 3]
    monkeypatch.undo()
    resumed = train(job, run)
    assert torch.equal(resumed.model, whole.model)
    assert steps_of(run) == [1, 2, 3, 5]


@pytest.mark.parametrize(
    ("number", "said", "remedy"),
    [
        (errno.EROFS, "is read-only: nothing more can be recorded", "remount it for writing, then resume"),
        (errno.EIO, "cannot be written (Input/output error): nothing more can be recorded", "mend that, then resume"),
    ],
)
def test_a_disk_that_takes_nothing_any_more_ends_the_run_with_one_clear_error(
    make_job: Make, train, tmp_path: Path, monkeypatch, number: int, said: str, remedy: str
) -> None:
    job = make_job(*SMALL, "steps=5")
    whole = train(job)
    run = run_directory.create(tmp_path / "runs", "partial", (whole.run / "job.yaml").read_text())
    shutil.copy(whole.run / "secret", run / "secret")
    failing(monkeypatch, run, number, lambda: 3 in steps_of(run))
    with pytest.raises(TrainingError) as caught:
        train(job, run)
    assert str(caught.value) == (f"{run}: {said}; what is on disk says `running` though the run has ended: {remedy}")
    monkeypatch.undo()
    assert run_directory.read_status(run).step == 2
    assert torch.equal(train(job, run).model, whole.model)


@pytest.fixture
def abandoned(tmp_path: Path) -> Path:
    """A run that says `running` though nobody runs it."""
    run = run_directory.create(tmp_path, "a", JOB.format(root="data", steps=4, every=1))
    run_directory.write_status(run, "running", 3)
    status = json.loads((run / "state.json").read_text())
    (run / "state.json").write_text(json.dumps({**status, "pid": 2**22 + 1}))
    return run


def test_settling_a_run_whose_disk_is_read_only_says_what_cannot_be_recorded(abandoned: Path, monkeypatch) -> None:
    failing(monkeypatch, abandoned, errno.EROFS, lambda: True)
    status = settle(abandoned)
    assert (status.state, status.step) == ("lost", 3)
    assert status.message.startswith(GONE)
    assert "is read-only: nothing more can be recorded; what is on disk says `running`" in status.message
    assert run_directory.read_status(abandoned).state == "running"
    assert stop.wait(abandoned, None) == status  # and does not wait for ever
    monkeypatch.undo()
    assert settle(abandoned) == run_directory.read_status(abandoned)
    assert run_directory.read_status(abandoned)[:3] == ("lost", 3, GONE)


def test_evaluations_that_cannot_be_written_fail(tmp_path: Path, monkeypatch) -> None:
    failing(monkeypatch, tmp_path, errno.EROFS, lambda: True)
    with pytest.raises(OSError, match=r"evaluations\.jsonl"):
        evaluate.append(tmp_path, 1, evaluate.Evaluation({"loss": 0.0}, 1))


def may_mount() -> bool:
    """Say whether this user may have a mount namespace of its own."""
    return (
        shutil.which("unshare") is not None
        and not subprocess.run(
            ["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, check=False
        ).returncode
    )


MOUNTS = pytest.mark.skipif(not may_mount(), reason="needs root, for mounts in a namespace of its own")


def in_namespace(script: str, folder: Path, limit_s: float = 120.0) -> str:
    """Run a script in a mount namespace of its own; every mount is gone at its end. Returns what it printed."""
    train = (
        f"{sys.executable} -m draco train {folder}/job.yaml --simulate --here --checked --runs {folder}/disk/runs "
        f"--secret {folder}/secret"
    )
    made = subprocess.run(
        ["unshare", "-m", "bash", "-euc", f"train='{train}'; draco='{sys.executable} -m draco'; cd {folder}\n{script}"],
        capture_output=True, text=True, timeout=limit_s, check=False, cwd=folder,
    )  # fmt: skip
    assert not made.returncode, made.stdout + made.stderr
    assert "Traceback" not in made.stdout + made.stderr
    return made.stdout


@pytest.fixture
def folder(tmp_path: Path, data_root: Path, train) -> Callable[..., tuple[Path, torch.Tensor]]:
    """Return `make(steps, every)`: a folder with a job, and the model of its uninterrupted run."""

    def make(steps: int, every: int) -> tuple[Path, torch.Tensor]:
        folder = tmp_path / "namespace"
        (folder / "disk").mkdir(parents=True)
        text = JOB.format(root=data_root, steps=steps, every=every)
        (folder / "job.yaml").write_text(text)
        whole = train(parse(text, "test"))
        shutil.copy(whole.run / "secret", folder / "secret")
        return folder, whole.model

    return make


def final_model(run: Path) -> torch.Tensor:
    newest = checkpoint.newest(run / "checkpoints")
    assert newest is not None
    return torch.cat([value.flatten().double() for value in checkpoint.load(newest)["model"].values()])


@pytest.mark.long
@MOUNTS
def test_a_run_on_a_full_disk_ends_truthfully_and_resumes_where_there_is_space(folder, train) -> None:
    """A disk that is too small is refused; one that loses its space takes two checkpoints and a part of the third."""
    place, model = folder(steps=4, every=1)
    printed = in_namespace(
        """
        mount -t tmpfs -o size=8m none disk
        code=0; $train 2>stderr || code=$?
        echo "code $code"; tail -n 1 stderr; ls disk
        mount -o remount,size=24m disk
        code=0; $train 2>stderr & pid=$!
        until [ -e disk/runs/*/launch/supervisor.json ]; do sleep 0.02; done
        head -c 16M /dev/zero >disk/others  # while the run still starts
        wait $pid || code=$?
        echo "code $code"
        tail -n 1 stderr
        cp -r disk/runs out
        """,
        place,
    )
    refused, ended = printed.split("code ")[1:]
    assert re.fullmatch(r"3\n.*: 1\d\.\d MB is needed, and 8\.4 MB is free .*\n", refused)  # nothing was touched
    assert ended.startswith("7")
    assert "no space left on the disk" in ended
    (run,) = (place / "out").iterdir()
    status = run_directory.read_status(run)
    assert (status.state, status.step) == ("failed", 2)
    assert [path.name for path in run.rglob(".*")] == [".reserve"]  # nothing half written is left
    assert torch.equal(train(run_directory.read_job(run), run).model, model)


@pytest.mark.long
@MOUNTS
def test_a_run_whose_disk_turns_read_only_ends_with_one_line_and_resumes_once_it_is_not(folder) -> None:
    """A read-only mount over the run's directory: files that are open can be written, no name can be changed."""
    place, model = folder(steps=80, every=5)
    printed = in_namespace(
        """
        code=0; $train 2>stderr & pid=$!
        until grep -q '"step": 6,' disk/runs/*/events.jsonl 2>/dev/null; do sleep 0.02; done
        run=$(echo disk/runs/*)
        mkdir aside; mount --bind $run aside; mount -o remount,bind,ro aside; mount --move aside $run # all at once
        wait $pid || code=$?
        echo "code $code"; tail -n 1 stderr
        grep -c . stderr >lines
        cp $run/state.json state
        code=0; $train --resume 2>stderr || code=$?
        echo "resume $code"; tail -n 1 stderr
        code=0; $draco stop $run 2>stderr || code=$?
        echo "stop $code"; cat stderr
        umount $run
        $train --resume 2>stderr || cat stderr
        """,
        place,
    )
    (run,) = (place / "disk" / "runs").iterdir()
    lines = printed.splitlines()
    assert lines[0] == "code 7"
    assert lines[1] == (
        f"{run}: is read-only: nothing more can be recorded; what is on disk says `running` though the run has ended: "
        "remount it for writing, then resume"
    )
    assert lines[2] == "resume 3"
    assert lines[3].endswith("cannot be written: its disk is read-only; remount it, or name another path")
    assert lines[4] == "stop 4"
    assert "cannot be asked to stop (Read-only file system)" in lines[5]
    assert json.loads((place / "state").read_text())["state"] == "running"
    assert int((place / "lines").read_text()) < 12
    assert run_directory.read_status(run).state == "succeeded"
    assert torch.equal(final_model(run), model)
