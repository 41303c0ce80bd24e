"""A process that is killed while it writes: before every single call to the system, and in the middle of a write."""

import errno
import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from draco import files
from draco.job import Job
from draco.runs import directory as run_directory
from draco.training import checkpoint

Make = Callable[..., Job]
CALLS = ("open", "write", "fsync", "close", "rename", "replace", "unlink")
KILLED = 9


def kills(action: Callable[[], object]) -> Iterator[Callable[[], bool]]:
    """Yield `run()`, again and again: it does the action in a child that is killed one call later each time.

    `run()` returns whether the child was killed; after the first that was not, there are no more.
    """
    for last in itertools.count():
        ended: list[bool] = []

        def run(last: int = last, ended: list[bool] = ended) -> bool:
            child = os.fork()
            if not child:
                try:
                    _die_before_call(last)
                    action()
                    os._exit(0)
                finally:
                    os._exit(1)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            assert code in (0, KILLED)
            ended.append(code == 0)
            return code == KILLED

        yield run
        if ended == [True]:
            return


def _die_before_call(last: int) -> None:
    """Let this process end without a word before its call number `last`; long writes take two calls."""
    made = itertools.count()
    halves = itertools.count()

    def dying(call: Callable[..., object]) -> Callable[..., object]:
        def instead(*args: object, **options: object) -> object:
            if next(made) == last:
                os._exit(KILLED)
            if call is write and len(args[1]) > 100 and next(halves) % 2 == 0:
                return write(args[0], args[1][: len(args[1]) // 2])
            return call(*args, **options)

        return instead

    write = os.write
    for name in CALLS:
        setattr(os, name, dying(getattr(os, name)))


def usable(folder: Path) -> int:
    """Return the step in the newest checkpoint that can be used; the one in its name."""
    taken: list[int] = []

    def restore(step: int, contents: checkpoint.Contents) -> None:
        assert contents["step"] == step
        taken.append(step)

    checkpoint.newest_usable(folder, 1 << 30, restore, lambda path, why: None)
    (step,) = taken
    return step


@pytest.fixture
def whole(make_job: Make, train):
    """An uninterrupted run of three steps with a checkpoint of each."""
    return train(make_job("workers=2", "batch_size=4", "steps=3", "checkpoint_every=1"))


@pytest.mark.parametrize("found", [None, b"garbage"], ids=["nothing-there", "a-bad-one-there"])
def test_a_run_whose_server_is_killed_while_it_saves_goes_on_with_the_same_bits(
    whole, train, tmp_path: Path, found: bytes | None
) -> None:
    job = run_directory.read_job(whole.run)
    contents = checkpoint.load(whole.run / "checkpoints" / "step-00000002.pt")
    killed = 0
    newest: set[int] = set()
    copy = tmp_path / "copy"
    for run in kills(lambda: checkpoint.save(copy / "checkpoints", 2, contents)):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(whole.run, copy)
        folder = copy / "checkpoints"
        for path in folder.glob("step-00000003.*"):
            path.unlink()
        if found is None:
            for path in folder.glob("step-00000002.*"):
                path.unlink()
        else:
            (folder / "step-00000002.pt").write_bytes(found)
        (copy / "evaluations.jsonl").unlink(missing_ok=True)
        killed += run()
        newest.add(usable(shutil.copytree(folder, copy / "looked-at")))
        shutil.rmtree(copy / "looked-at")
        resumed = train(job, copy)
        assert resumed.status.state == "succeeded"
        assert torch.equal(resumed.model, whole.model)
        assert [path.name for path in copy.rglob(".*")] == [".reserve"]
        assert [step for step, _ in checkpoint.steps(folder)] == [1, 2, 3]
        assert checkpoint.load(folder / "step-00000002.pt")["step"] == 2
    assert newest == {1, 2}
    assert killed > 15


@pytest.mark.parametrize("full", [False, True], ids=["", "on-a-full-disk"])
def test_a_status_is_the_old_or_the_new_one_wherever_its_writer_is_killed(tmp_path: Path, full: bool) -> None:
    run = run_directory.create(tmp_path, "a", "")
    sync = os.fsync

    def fsync(descriptor: int) -> None:
        if full and (run / ".reserve").exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    def write() -> None:
        os.fsync = fsync
        run_directory.write_status(run, "running", 5)

    steps: list[int] = []
    for killed in kills(write):
        run_directory.write_status(run, "pending", 4)
        run_directory.reserve(run)
        gone = killed()
        steps.append(run_directory.read_status(run).step)
        assert gone or steps[-1] == 5
        files.remove_temporaries(run, run_directory.exists)
        left = {path.name for path in run.rglob(".*")}
        assert left <= {".reserve"} if full else left == {".reserve"}
        run_directory.write_status(run, "failed", 6)
        assert run_directory.read_status(run).step == 6
    assert steps == sorted(steps)
    assert set(steps) == {4, 5}


def test_only_what_nobody_is_writing_any_more_is_removed(tmp_path: Path) -> None:
    run = run_directory.create(tmp_path, "a", "")
    (run / "launch").mkdir()
    alive = os.getppid()
    gone, mine, theirs = (
        [run / ".state.json.{}", run / "checkpoints" / ".step-00000001.pt.{}", run / "launch" / ".supervisor.json.{}"]
        for _ in range(3)
    )
    for paths, pid in ((gone, 2**22 + 1), (mine, os.getpid()), (theirs, alive)):
        paths[:] = [Path(str(path).format(pid)) for path in paths]
        for path in paths:
            path.write_bytes(b"half")
    other = run / ".reserve.bak"
    other.touch()
    files.remove_temporaries(run, run_directory.exists)
    assert not any(path.exists() for path in (*gone, *mine))
    assert all(path.exists() for path in (*theirs, other, run / ".reserve", run / "state.json"))
