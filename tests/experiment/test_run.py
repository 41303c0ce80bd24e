"""`draco.run` inside this process and over MPI: the bits, what it leaves of the caller's state, how it ends."""

import hashlib
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from draco import own
from draco.cli.main import main
from draco.errors import JobError, MissingError, OwnCodeError, RefusedError
from draco.experiment import Interrupted, Run, here, run
from draco.job import to_yaml
from draco.tasks import Task

pytestmark = pytest.mark.usefixtures("forks")

HERE = Path(__file__).parent
JOB: dict[str, Any] = {
    "name": "largest", "workers": 5, "batch_size": 30, "steps": 6, "scheme": {"name": "cyclic", "adversaries": 1},
    "attack": "reverse_gradient", "optimizer": {"name": "sgd", "lr": 0.2, "momentum": 0.9}, "checkpoint_every": 2,
    "eval_every": 0,
}  # fmt: skip


class Largest(Task):
    """As in task_of_a_file.py; before each loss `before` is called with the steps that the newest run has taken."""

    before: Callable[[int], None] = staticmethod(lambda steps: None)

    def __init__(self) -> None:
        self.count = 0

    def model(self) -> torch.nn.Module:
        return torch.nn.Linear(4, 3)

    def samples(self, split: str) -> Any:
        inputs = torch.randn(90, 4, generator=torch.Generator().manual_seed(len(split)))
        return inputs, inputs[:, :3].argmax(1)

    def loss(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        self.count += 1
        self.before(steps_taken())
        inputs, labels = batch
        return torch.nn.functional.cross_entropy(model(inputs), labels, reduction="none")


def steps_taken() -> int:
    runs = sorted(Path("runs").glob("*/events.jsonl"), key=lambda path: (len(path.parent.name), path))
    return runs[-1].read_text().count('"event": "step"') if runs else 0


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with a task in a file, as a user has one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    shutil.copy(HERE / "task_of_a_file.py", tmp_path / "own_task.py")
    yield tmp_path
    own._file.cache_clear()
    sys.modules.pop("own_task", None)


def simulated(task: Any = Largest, **more: Any) -> Run:
    return run(JOB, task=task, launcher="simulate", **{"progress": False, **more})


def digest(found: Run) -> str:
    """Return a hash of every tensor of the trained model."""
    state = found.model().state_dict()
    return hashlib.sha256(b"".join(state[name].numpy().tobytes() for name in sorted(state))).hexdigest()


def test_simulated_from_python_and_from_the_command_line_and_over_mpi_are_the_same_bits(folder: Path) -> None:
    """With one secret, as rows and projections follow from it."""
    Path("secret").write_text("11" * 32)
    torch.set_num_threads(2)
    try:
        here_simulated = simulated("own_task.py:Largest", secret="secret", workers=3)
    finally:
        torch.set_num_threads(1)
    Path("job.yaml").write_text(to_yaml(here_simulated.job))
    assert main(["train", "job.yaml", "--secret", "secret", "--runs", "others", "--here"]) == 0
    (from_the_shell,) = Path("others").iterdir()
    over_mpi = run("job.yaml", launcher="mpi", secret="secret", progress=False, new=True)
    assert over_mpi.job.launcher == "mpi"
    assert digest(here_simulated) == digest(Run(from_the_shell)) == digest(over_mpi)
    assert here_simulated.events["suspects"] == over_mpi.events["suspects"] == over_mpi.events["byzantine"]
    assert [len(suspects) for suspects in over_mpi.events["suspects"]] == [1] * 6
    assert here_simulated.events["loss"].tolist() == over_mpi.events["loss"].tolist()


def test_what_the_caller_had_is_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = digest(simulated())
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    torch.set_num_threads(2)
    torch.set_default_dtype(torch.float64)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    try:
        with torch.no_grad():
            changed = simulated(new=True, secret=next(Path("runs").glob("*/secret")))
            assert not torch.is_grad_enabled()
        assert (torch.get_num_threads(), torch.get_default_dtype()) == (2, torch.float64)
    finally:
        torch.set_num_threads(1)
        torch.set_default_dtype(torch.float32)
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert os.environ.get(own.FOLDER) is None
    assert own.GIVEN == {}
    assert digest(changed) == plain


@pytest.mark.parametrize(("times", "stopped_after"), [(1, 4), (2, 2)])
def test_ctrl_c_once_ends_after_the_step_and_twice_at_once_and_either_is_resumed_to_the_same_bits(
    times: int, stopped_after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = simulated()

    def interrupt(steps: int) -> None:
        if steps == 3:  # in the midst of the fourth step
            monkeypatch.setattr(Largest, "before", staticmethod(lambda steps: None))
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Largest, "before", staticmethod(interrupt))
    with pytest.raises(Interrupted, match="resume=True") as caught:
        simulated(new=True, secret=whole.path / "secret")
    stopped = caught.value.run
    assert isinstance(caught.value, KeyboardInterrupt)
    assert (stopped.status.state, stopped.status.step) == ("interrupted", stopped_after)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(RefusedError, match="resume"):
        simulated()
    monkeypatch.undo()
    monkeypatch.chdir(stopped.path.parent.parent)  # which the line above has undone
    resumed = simulated(resume=True)
    assert resumed.path == stopped.path
    assert resumed.status.state == "succeeded"
    assert resumed.events["step"].tolist() == [1, 2, 3, 4, 5, 6]
    assert digest(resumed) == digest(whole)


def test_ctrl_c_in_the_last_step_ends_the_callers_work_though_the_run_has_succeeded(monkeypatch) -> None:

    def interrupt(steps: int) -> None:
        if steps == 5:
            monkeypatch.setattr(Largest, "before", staticmethod(lambda steps: None))
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Largest, "before", staticmethod(interrupt))
    with pytest.raises(Interrupted, match=r"succeeded at step 6$") as caught:
        simulated()
    assert caught.value.run.model().weight.shape == (3, 4)


def test_it_runs_in_another_thread_and_draco_stop_reaches_it_there(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[Any] = []

    def in_thread() -> None:
        try:
            ended.append(simulated())
        except Interrupted as error:
            ended.append(error)

    def stop(steps: int) -> None:
        if steps == 2:
            monkeypatch.setattr(Largest, "before", staticmethod(lambda steps: None))
            assert main(["stop", "--here", "--no-wait"]) == 0

    for before in (lambda steps: None, stop):
        monkeypatch.setattr(Largest, "before", staticmethod(before))
        thread = threading.Thread(target=in_thread)
        thread.start()
        thread.join()
    first, second = ended
    assert first.status.state == "succeeded"
    assert second.run.status[:3] == ("interrupted", 3, "asked to stop")


def test_a_second_run_in_this_process_is_refused_while_one_goes_on() -> None:
    with here.alone(), pytest.raises(RefusedError, match="another simulated run is going on in this process"):
        simulated()
    assert simulated(new=True).status.state == "succeeded"


def test_a_process_of_multiprocessing_that_imports_the_script_starts_no_run(monkeypatch) -> None:
    """As Python itself refuses to start processes there: each of them would start a run in its turn."""
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    with pytest.raises(OwnCodeError, match=r"calls draco\.run while it is imported"):
        simulated()
    assert not Path("runs").exists()


def test_what_fails_in_the_callers_code_keeps_its_traceback_and_names_file_line_and_run(monkeypatch) -> None:
    monkeypatch.setattr(Largest, "before", staticmethod(lambda steps: 1 // (steps < 2)))
    with pytest.raises(OwnCodeError, match=r"test_run\.py, line \d+.*ZeroDivisionError") as caught:
        simulated()
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    (failed,) = Path("runs").iterdir()
    assert str(failed) in caught.value.__notes__[0]
    assert Run(failed).status.state == "failed"
    assert Run(failed).status.step == 2
    assert Run(failed, task=Largest).model(2).weight.shape == (3, 4)


def test_every_fault_of_a_job_is_raised_at_once_and_nothing_is_started() -> None:
    with pytest.raises(JobError) as caught:
        run({**JOB, "workers": 0, "shceme": "cyclic"}, task=Largest, launcher="simulate", steps=-1)
    assert {fault.split(": ")[1] for fault in caught.value.faults} == {"workers", "shceme", "steps"}
    for value in ({1, 2}, object()):
        with pytest.raises(JobError, match=f"seed: a {type(value).__name__} is no value of a job"):
            simulated(seed=value)
    with pytest.raises(JobError, match=r"absent\.yaml: cannot be read"):
        run("absent.yaml")
    assert not Path("runs").exists()


def test_values_of_numpy_and_overrides_of_a_file_are_taken_as_set_takes_them() -> None:
    Path("job.yaml").write_text("".join(f"{key}: {value}\n" for key, value in JOB.items() if key != "steps"))
    found = run(
        Path("job.yaml"), task="own_task.py:Largest", launcher="simulate", progress=False, steps=np.int64(2),
        **{"optimizer.lr": np.float32(0.5)},
    )  # fmt: skip
    assert (found.job.steps, found.job.optimizer.lr, found.job.optimizer.momentum) == (2, 0.5, 0.9)
    assert found.job.task.name == "own_task.py:Largest"


def test_a_task_of_a_file_is_named_by_it_and_options_come_along_with_a_partial() -> None:
    from own_task import Largest as OfAFile

    found = simulated(partial(OfAFile, size=5))
    assert (found.job.task.name, dict(found.job.task.options)) == ("own_task.py:Largest", {"size": 5})
    again = Run(found.path)
    assert again.model().weight.shape == (3, 5)
    assert digest(again) == digest(found)


def test_a_task_that_was_made_already_is_taken_as_it_is() -> None:
    made = Largest()
    assert simulated(made).job.task.name == "<given>:Largest"
    assert made.count >= 5 * 6


def test_a_missing_file_and_a_class_that_is_none_are_named() -> None:
    with pytest.raises(OwnCodeError, match=r"absent\.py: there is no such file"):
        simulated("absent.py:Largest")
    with pytest.raises(MissingError, match="not a run directory"):
        Run("runs/absent")


SCRIPT = """
from draco.experiment import run
from own_task import Largest

class Mine(Largest):
    pass

run({job!r}, task=Mine, launcher="mpi")
"""


def test_a_script_that_calls_run_at_its_top_level_is_told_so_before_anything_starts() -> None:
    """docs/python.md has one that calls it below its guard; tests/docs/test_python.py runs that."""
    Path("script.py").write_text(SCRIPT.format(job=JOB))
    made = subprocess.run([sys.executable, "script.py"], capture_output=True, text=True, check=False, timeout=120)
    assert made.returncode == 1
    said = made.stderr.strip().splitlines()[-1]
    assert re.search(r"script\.py: calls draco\.run while it is imported.*if __name__ == .__main__.", said)
    assert not Path("runs").exists()
