"""A run from cells of a notebook, whose classes are in no file; what a cell shows; a run's records as columns."""

import html
import os
import signal
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from draco import own
from draco.errors import MissingError, OwnCodeError, RefusedError
from draco.experiment import Interrupted, Run, columns
from draco.experiment.naming import named, path_of
from draco.experiment.progress import InCell, console, display
from draco.launch.progress import Progress
from draco.runs.events import EventLog

# What somebody types. Nothing here is in a file, and the functions have the names that IPython gives to cells.
IMPORTS = """
import torch
from draco.experiment import Run, run
from draco.tasks import Task
"""
TASK = """
class Largest(Task):
    def __init__(self, size=4):
        self.size = size

    def model(self):
        return torch.nn.Linear(self.size, 3)

    def samples(self, split):
        inputs = torch.randn(90, self.size, generator=torch.Generator().manual_seed(len(split)))
        return inputs, inputs[:, :3].argmax(1)

    def loss(self, model, batch):
        inputs, labels = batch
        return torch.nn.functional.cross_entropy(model(inputs), labels, reduction="none")

job = {"workers": 5, "batch_size": 30, "steps": 4, "scheme": {"name": "repetition", "adversaries": 1},
       "attack": "reverse_gradient", "eval_every": 0, "checkpoint_every": 2, "checkpoint_keep": "all"}
"""
TRAIN = 'found = run(job, task=Largest, launcher="simulate", progress=False)'


class Notebook:
    """Cells that are executed one after the other in the module `__main__` of nobody."""

    def __init__(self) -> None:
        self.names: dict[str, Any] = {"__name__": "__main__"}
        self.count = 0

    def cell(self, text: str) -> None:
        self.count += 1
        exec(compile(text, f"<ipython-input-{self.count}-5f0c>", "exec"), self.names)

    def __getitem__(self, name: str) -> Any:
        return self.names[name]


@pytest.fixture
def notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Notebook:
    monkeypatch.chdir(tmp_path)
    made = Notebook()
    for text in (IMPORTS, TASK, TRAIN):
        made.cell(text)
    return made


def test_a_class_of_a_cell_is_trained_and_its_run_read_again(notebook: Notebook) -> None:
    found: Run = notebook["found"]
    assert found.status.state == "succeeded"
    assert found.job.name == "largest"
    assert found.job.task.name == "<given>:Largest"
    assert found.events["suspects"] == found.events["byzantine"]
    assert found.model().training is False
    notebook.cell("first, last = found.model(2), found.model()")
    assert not np.array_equal(notebook["first"].weight.detach(), notebook["last"].weight.detach())
    with pytest.raises(MissingError, match="no checkpoint of step 3; there are 2, 4"):
        found.model(3)
    assert own.GIVEN == {}


def test_a_rule_and_an_attack_of_a_cell_are_taken_and_taken_anew_once_they_are_defined_anew(notebook: Notebook) -> None:
    """The rule keeps the first gradients; the second definition of the attack sends the honest reply."""
    notebook.cell(
        "from functools import partial\ndef first(gradients, *, f=0, keep=1):\n    return gradients[:keep].mean(0)"
    )
    notebook.cell(
        'ruled = run(job, task=Largest, launcher="simulate", progress=False, scheme="uncoded", attack="none",\n'
        "            aggregator=partial(first, keep=3), new=True)"
    )
    ruled: Run = notebook["ruled"]
    assert (ruled.job.aggregator.name, dict(ruled.job.aggregator.options)) == ("<given>:first", {"keep": 3})
    assert Run(ruled.path, task=notebook["Largest"], aggregator=notebook["first"]).model().weight.shape == (3, 4)
    caught = []
    for sent in ("-reply", "reply"):
        notebook.cell(f"def lie(reply, *, magnitude=1.0, generator, scene):\n    return {sent}")
        notebook.cell('lied = run(job, task=Largest, launcher="simulate", progress=False, attack=lie, new=True)')
        caught.append(notebook["lied"].events["suspects"])
    assert caught == [notebook["found"].events["byzantine"], [[], [], [], []]]


def test_it_cannot_be_trained_over_mpi_which_is_said_with_what_to_do(notebook: Notebook) -> None:
    with pytest.raises(RefusedError, match=r"Largest is defined in this session.*at the top level of a file"):
        notebook.cell("run(job, task=Largest, new=True, progress=False)")
    assert len([*Path("runs").iterdir()]) == 1


def test_an_old_run_asks_for_the_class_that_it_trained_and_takes_it(notebook: Notebook) -> None:
    old = Run(notebook["found"].path)
    assert old.events["step"].tolist() == [1, 2, 3, 4]
    with pytest.raises(OwnCodeError, match=r"Largest: was defined in the session.*draco\.Run\(RUN, task=Largest\)"):
        old.model()
    assert Run(old.path, task=notebook["Largest"]).model().weight.shape == (3, 4)
    with pytest.raises(RefusedError, match="its job has no aggregator of your own"):
        Run(old.path, aggregator=max)


def test_the_line_of_a_cell_that_fails_is_named(notebook: Notebook) -> None:
    notebook.cell("class Bad(Largest):\n    def loss(self, model, batch):\n        return [][1]\n")
    with pytest.raises(OwnCodeError, match=r"<ipython-input-4-5f0c>, line 3: IndexError") as caught:
        notebook.cell('run(job, task=Bad, launcher="simulate", progress=False)')
    assert isinstance(caught.value.__cause__, IndexError)


def test_evaluations_of_the_checkpoints_are_made_once_and_are_columns(notebook: Notebook) -> None:
    found: Run = notebook["found"]
    assert found.evaluations["step"].tolist() == []
    made = found.evaluate()
    assert made["step"].tolist() == [2, 4]
    assert made["samples"].tolist() == [90, 90]
    assert made["loss"][1] < made["loss"][0] < 3
    assert found.evaluate()["time"].tolist() == made["time"].tolist()


def test_a_run_shows_itself_as_a_table_and_writes_its_page(notebook: Notebook) -> None:
    found: Run = notebook["found"]
    shown = found._repr_html_()
    assert "<caption>largest: succeeded</caption>" in shown
    assert "repetition s=1, 5 workers; reverse_gradient" in shown
    assert found.report() == found.path / "report" / "index.html"
    assert found.report("page").read_text().startswith("<!DOCTYPE html>")
    assert repr(found) == f"<Run {found.path}: succeeded at step 4>"


def test_a_foreign_run_is_shown_and_not_obeyed(notebook: Notebook) -> None:
    found: Run = notebook["found"]
    log = EventLog(found.path / "events.jsonl")
    log.write("start", job={"name": "<script>"}, setting="<b>\x1b[31m", steps=4)
    log.close()
    shown = found._repr_html_()
    assert "<script>" not in shown
    assert "<b>" not in shown
    assert html.escape("<script>") in shown


def test_a_run_whose_processes_are_gone_is_lost(notebook: Notebook) -> None:
    found: Run = notebook["found"]
    code = f"from draco.runs import directory as d; d.write_status(d.Path({str(found.path)!r}), 'running', 2)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert found.status[:2] == ("lost", 2)


# Columns


STEP = {
    "event": "step", "time": 5.0, "loss": 1.5, "lr": 0.1, "suspects": [2], "byzantine": [2], "refused": {"3": "why"},
    "lost": [], "straggling": [], "seconds": {"compute": 0.25, "decode": 0.5}, "bytes_received": 640,
}  # fmt: skip


def test_events_are_columns_of_one_length_with_nan_for_what_was_not_told() -> None:
    records = [
        {"event": "start", "time": 1.0}, {**STEP, "step": 1}, {**STEP, "step": 2, "loss": 9.0},
        {"event": "resume", "step": 1, "time": 2.0}, {**STEP, "step": 2, "decoding_error": 0.5},
        {"event": "step", "step": 3, "time": 6.0},
    ]  # fmt: skip
    found = columns.events(records)
    assert {len(column) for column in found.values()} == {3}
    assert found["step"].tolist() == [1, 2, 3]
    assert found["loss"][:2].tolist() == [1.5, 1.5]
    assert np.isnan(found["loss"][2])
    assert found["seconds.decode"][:2].tolist() == [0.5, 0.5]
    assert found["suspects"] == [[2], [2], []]
    assert found["refused"] == [{"3": "why"}, {"3": "why"}, {}]
    assert np.array_equal(found["decoding_error"], [np.nan, 0.5, np.nan], equal_nan=True)
    assert {*columns.EVENTS} == {*found} - {"decoding_error"}


def test_a_run_without_steps_has_the_columns_all_the_same() -> None:
    assert {name: len(column) for name, column in columns.events([]).items()} == dict.fromkeys(columns.EVENTS, 0)


def test_of_two_evaluations_of_a_step_the_later_counts_and_old_and_own_figures_are_columns() -> None:
    found = columns.evaluations([
        {"step": 4, "time": 1.0, "loss": 2.0, "top1": 0.5, "samples": 10},
        {"step": 2, "time": 2.0, "loss": 3.0, "samples": 10},
        {"step": 4, "time": 3.0, "loss": 1.0, "mae": 0.25, "samples": 10},
    ])  # fmt: skip
    assert found["step"].tolist() == [2, 4]
    assert found["loss"].tolist() == [3.0, 1.0]
    assert np.array_equal(found["mae"], [np.nan, 0.25], equal_nan=True)


def test_pandas_takes_the_columns() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(columns.events([{**STEP, "step": 1}, {**STEP, "step": 2}]))
    assert frame["step"].dtype == np.int64
    assert frame["loss"].dtype == frame["seconds.compute"].dtype == np.float64
    assert frame["suspects"].tolist() == [[2], [2]]


# Names


def test_objects_are_named_by_where_they_are(notebook: Notebook, monkeypatch: pytest.MonkeyPatch) -> None:
    assert path_of(notebook["Largest"]) == "<given>:Largest"
    assert path_of(lambda: 0) == "<given>:_lambda_"
    assert path_of(np.linalg.norm) == "numpy.linalg:norm"
    assert path_of(types.SimpleNamespace) == "types:SimpleNamespace"
    this = "test_objects_are_named_by_where_they_are"
    assert path_of(test_objects_are_named_by_where_they_are) == f"<given>:{this}"  # a file outside the working folder
    monkeypatch.chdir(Path(__file__).parent)
    assert path_of(test_objects_are_named_by_where_they_are) == f"test_notebook.py:{this}"


def test_two_functions_without_a_name_have_two_paths() -> None:
    first, second = (lambda: 1), (lambda: 2)
    found = named({"aggregator": first, "attack": {"name": second, "options": {"z": np.float64(2)}}})
    assert found.values == {
        "aggregator": "<given>:_lambda_",
        "attack": {"name": "<given>:_lambda__2", "options": {"z": 2.0}},
    }
    assert found.objects == {"<given>:_lambda_": first, "<given>:_lambda__2": second}


# What is shown


class Shown:
    """IPython's `display`, and the handle that it returns."""

    def __init__(self) -> None:
        self.displays: list[dict[str, str]] = []
        self.updates: list[dict[str, str]] = []

    def __call__(self, data: dict[str, str], *, raw: bool, display_id: bool) -> "Shown":
        assert raw
        assert display_id
        self.displays.append(data)
        return self

    def update(self, data: dict[str, str], *, raw: bool) -> None:
        assert raw
        self.updates.append(data)


def test_a_cell_has_one_output_that_is_updated(tmp_path: Path) -> None:
    events = tmp_path / "events.jsonl"
    shown, log = Shown(), EventLog(events)
    with InCell(events, shown, "starting one process") as bar:
        log.write("start", steps=8, summary="<b>cyclic")
        for step in (1, 2):
            log.write("step", step=step, loss=0.5, suspects=[4])
        bar.update()
    log.close()
    assert len(shown.displays) == 1
    last = shown.updates[-1]
    assert "2/8  loss 0.5000" in last["text/plain"]
    assert last["text/plain"].startswith("<b>cyclic\n")
    assert "suspects: 4" in last["text/html"]
    assert '<progress value="2" max="8">' in last["text/html"]
    assert "&lt;b&gt;cyclic" in last["text/html"]


def test_outside_a_notebook_a_line_goes_to_stderr_and_quietly_nothing(capsys) -> None:
    assert display() is None
    for quiet in (False, True):
        with Progress(None, console(quiet), f"quiet {quiet}"):
            pass
    assert capsys.readouterr() == ("", "quiet False\n")


def test_a_kernel_that_is_interrupted_says_so_in_the_cell(notebook: Notebook, monkeypatch) -> None:
    """IPython's presence is all that differs; its kernel sends the signal to the process."""
    shown = Shown()
    shell = types.SimpleNamespace(kernel=object())
    fake = types.SimpleNamespace(get_ipython=lambda: shell, display=types.SimpleNamespace(display=shown))
    monkeypatch.setitem(sys.modules, "IPython", fake)
    monkeypatch.setitem(sys.modules, "IPython.display", fake.display)

    def interrupt_once_it_trains() -> None:
        events = max(Path("runs").glob("*/events.jsonl"), key=lambda path: path.stat().st_mtime)
        if '"event": "start"' in events.read_text():  # the first check calls the loss before
            notebook["Slow"].loss = notebook["Largest"].loss
            os.kill(os.getpid(), signal.SIGINT)

    notebook.names["interrupt_once_it_trains"] = interrupt_once_it_trains
    notebook.cell(
        "class Slow(Largest):\n    def loss(self, model, batch):\n        interrupt_once_it_trains()\n"
        "        return super().loss(model, batch)\n"
    )
    with pytest.raises(Interrupted) as caught:
        notebook.cell('run(job, task=Slow, launcher="simulate")')
    assert caught.value.run.status.step == 1
    assert "SIGINT: stopping after this step" in shown.updates[-1]["text/plain"]
    assert "1/4" in shown.updates[-1]["text/plain"]
