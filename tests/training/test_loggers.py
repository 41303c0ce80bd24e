"""Loggers: what each is told, that none can end a training, and that the CSV files are whole after any resume."""

import csv
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

from draco import own
from draco.errors import OwnCodeError
from draco.job import Job, parse, to_dict
from draco.launch.progress import _SENTENCES
from draco.report import read_summary
from draco.report import series as report_series
from draco.runs import directory as run_directory
from draco.runs import events
from draco.runs.events import EventLog
from draco.training import checkpoint, csv_files, evaluate
from draco.training.loggers import Loggers
from draco.training.server import Server

Make = Callable[..., Job]
ROOT = Path(__file__).parents[2]
WORDS = [
    "steps=5",
    "model=fc",
    "workers=3",
    "batch_size=6",
    "eval_every=2",
    "checkpoint_every=2",
    "checkpoint_keep=all",
]


class Told:
    """A logger that keeps what it is told, and raises where its options say so."""

    made: ClassVar[list["Told"]] = []

    def __init__(self, run: Path, job: dict[str, Any], raise_at: int = 0, close: bool = False) -> None:
        self.run, self.job, self.raise_at, self.raise_on_close = run, job, raise_at, close
        self.calls: list[tuple[Any, ...]] = []
        self.made.append(self)

    def step(self, event: dict[str, Any]) -> None:
        self.calls.append(("step", json.loads(json.dumps(event))))
        event["suspects"].append(99)  # what it does to its event is its own affair
        event.clear()
        if self.calls[-1][1]["step"] == self.raise_at:
            raise SystemExit("enough\x1b[31m")

    def evaluation(self, step: int, metrics: dict[str, float]) -> None:
        self.calls.append(("evaluation", step, dict(metrics)))
        metrics.clear()

    def close(self) -> None:
        self.calls.append(("close",))
        if self.raise_on_close:
            raise OSError("gone")


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Told]]:
    """Jobs may name `<given>:Told`; what was made of it."""
    monkeypatch.setitem(own.GIVEN, "<given>:Told", Told)
    Told.made.clear()
    yield Told.made
    Told.made.clear()


def steps_of(run: Path) -> list[dict[str, Any]]:
    return [e for e in events.read(run / "events.jsonl") if e["event"] == "step"]


def test_a_logger_of_ones_own_is_told_of_every_step_and_evaluation_and_of_the_end(make_job: Make, train, told) -> None:
    job = make_job(*WORDS, "loggers=[{name: '<given>:Told', options: {raise_at: 0}}]")
    done = train(job)
    (one,) = told
    assert (one.run, one.job) == (done.run, to_dict(job))
    assert [call[1] for call in one.calls if call[0] == "step"] == steps_of(done.run)
    assert {call[1]: call[2] for call in one.calls if call[0] == "evaluation"} == evaluate.of_training(done.run, 5)
    assert [call[0] for call in one.calls] == [
        "step", "step", "evaluation", "step", "step", "evaluation", "step", "evaluation", "close",
    ]  # fmt: skip
    assert all(99 not in event["suspects"] for event in steps_of(done.run))


def test_its_seconds_are_a_part_of_the_next_step_by_itself(make_job: Make, train, told, monkeypatch) -> None:
    monkeypatch.setattr("draco.training.loggers.time.perf_counter", iter(range(1000)).__next__)
    run = train(make_job(*WORDS, "loggers=['<given>:Told']")).run
    logged = [event["seconds"]["log"] for event in steps_of(run)]
    assert logged == [0, 1, 2, 1, 2]  # of a step, or of a step and an evaluation
    assert read_summary(run).logging_seconds == 1
    bare = train(make_job(*WORDS)).run
    assert all("log" not in event["seconds"] for event in steps_of(bare))
    assert read_summary(bare).logging_seconds is None


def test_one_that_raises_is_left_out_and_told_of_once_and_changes_nothing(make_job: Make, train, told) -> None:
    bare = train(make_job(*WORDS))
    words = "loggers=[{name: '<given>:Told', options: {raise_at: 3}}, {name: '<given>:Told', options: {close: true}}]"
    done = train(make_job(*WORDS, words))
    assert done.status.state == "succeeded"
    assert torch.equal(done.model, bare.model)
    first, second = told
    assert [call[0] for call in first.calls] == ["step", "step", "evaluation", "step"]
    assert len([call for call in second.calls if call[0] == "step"]) == 5
    logged = [e for e in events.read(done.run / "events.jsonl") if e["event"] == "logger"]
    assert [(e["name"], e["step"]) for e in logged] == [("<given>:Told", 3), ("<given>:Told (2)", 5)]
    assert logged[0]["why"].startswith(r"SystemExit: enough\x1b[31m, ")
    assert "OSError: gone" in logged[1]["why"]
    assert _SENTENCES["logger"](logged[0])[0].startswith(
        "warning: <given>:Told is left out of the loggers after step 3: SystemExit"
    )
    assert any("<given>:Told was left out of the loggers after step 3" in note for note in read_summary(done.run).notes)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (
            "def __init__(self, run, job): raise KeyError('no key')",
            "this logger cannot be made, mine.py, line 2: KeyErr",
        ),
        ("def __init__(self, run): pass", "this logger cannot be made.*: TypeError"),
        (
            "def __init__(self, run, job): pass\n    def step(self, event): pass",
            "lacks evaluation, close; it must have",
        ),
        ("x = 1 / 0", "mine.py: cannot be imported, mine.py, line 2: ZeroDivisionError"),
    ],
)
def test_one_that_cannot_be_made_is_an_error_before_the_first_step(
    make_job: Make, train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(f"class Mine:\n    {body}\n")
    own._file.cache_clear()
    sys.modules.pop("mine", None)
    job = make_job(*WORDS, "loggers=['mine.py:Mine']")
    with pytest.raises(OwnCodeError, match=words):
        train(job)
    (run,) = run_directory.runs(tmp_path / "runs")
    assert run_directory.read_status(run).state == "failed"
    assert "mine.py" in run_directory.read_status(run).message
    assert steps_of(run) == []
    sys.modules.pop("mine", None)


# --- CSV -------------------------------------------------------------------------------------------------------------


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def check_files(run: Path, last: int) -> None:
    """Compare the two files with the run's records."""
    rows, logged = table(run / "steps.csv"), {e["step"]: e for e in steps_of(run)}
    assert [int(row["step"]) for row in rows] == [*range(1, last + 1)]
    for row in rows:
        event = logged[int(row["step"])]
        assert [float(row[name]) for name in ("loss", "lr", "time")] == [event[name] for name in ("loss", "lr", "time")]
        assert [int(rank) for rank in row["suspects"].split()] == event["suspects"]
        assert float(row["seconds_compute"]) == event["seconds"]["compute"]
    found = {int(row.pop("step")): {name: float(value) for name, value in row.items()} for row in table(
        run / "evaluations.csv"
    )}  # fmt: skip
    assert found == evaluate.of_training(run, last)


def test_csv_files_hold_every_step_and_evaluation_once(make_job: Make, train) -> None:
    words = ["scheme={name: repetition, adversaries: 1}", "attack=reverse_gradient", "loggers=[csv]"]
    run = train(make_job(*WORDS, *words)).run
    check_files(run, 5)
    assert [row["suspects"] != "" for row in table(run / "steps.csv")] == [True] * 5
    assert (run / "evaluations.csv").read_text().startswith("step,top1,top5,loss\n2,")
    assert {*report_series.PARTS} == {*csv_files.PARTS} - {"log"}


@pytest.mark.parametrize("damage", ["killed while it wrote", "went back", "removed", "another's lines"])
def test_csv_files_are_whole_after_a_resume(make_job: Make, train, tmp_path: Path, damage: str, monkeypatch) -> None:
    """A run is killed in its fourth step, after the event and before or within the line."""
    job = make_job(*WORDS, "loggers=[csv]")
    run_step = Server.run_step

    def killed(server: Server) -> dict[str, Any]:
        if server.training.step == 3:
            raise KeyboardInterrupt
        return run_step(server)

    with monkeypatch.context() as patch:
        patch.setattr(Server, "run_step", killed)
        with pytest.raises(KeyboardInterrupt):
            train(job)
    (run,) = run_directory.runs(tmp_path / "runs")
    steps, evaluations = run / "steps.csv", run / "evaluations.csv"
    match damage:
        case "killed while it wrote":
            steps.write_text(steps.read_text()[:-9])
        case "went back":
            checkpoint.remove(run / "checkpoints", 3)
        case "removed":
            steps.unlink()
            evaluations.unlink()
        case _:
            steps.write_text("a,b\n1,2\n" * 9)
            evaluations.write_text("step,loss\n2,3\n77,3\n")
    assert train(job, run).status.state == "succeeded"
    check_files(run, 5)


def test_a_metric_that_comes_later_gets_a_column(tmp_path: Path) -> None:
    files = csv_files.CsvFiles(tmp_path, 0)
    for step, found in ((1, {"loss": 1.0}), (2, {"loss": 0.5, "mae": 2.0}), (3, {"mae": 3.0})):
        files.evaluation(step, found)
    files.close()
    assert (tmp_path / "evaluations.csv").read_text() == "step,mae,loss\n1,,1.0\n2,2.0,0.5\n3,3.0,\n"
    assert (tmp_path / "steps.csv").read_text() == ",".join(csv_files.HEADER) + "\n"


# --- examples/loggers.py ---------------------------------------------------------------------------------------------

EVENT = {
    "step": 1, "loss": 0.5, "lr": 0.1, "bytes_received": 7, "suspects": [2], "lost": [], "straggling": [],
    "seconds": {"compute": 0.2},
}  # fmt: skip
FIGURES = {"loss": 0.5, "lr": 0.1, "bytes": 7, "suspects": 1, "lost": 0, "straggling": 0, "seconds/compute": 0.2}


class Stub(ModuleType):
    """Stands in for wandb and mlflow, of which neither is installed: it keeps the calls that the loggers make of it.

    The names and arguments are those of wandb 0.31.0 and mlflow-skinny 3, with which the classes were tried by hand.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*args: Any, **options: Any) -> Any:
            self.calls.append((name, args, options))
            return SimpleNamespace(log=self.log, finish=self.finish, info=SimpleNamespace(run_id="id-1"))

        return call


def used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, module: str, options: str = "{}") -> Stub:
    """Tell the example's logger of a step and an evaluation, as a run would; return what it made of its package."""
    stub = Stub(module)
    monkeypatch.setitem(sys.modules, module, stub)
    monkeypatch.chdir(ROOT)
    run = tmp_path / "a-1"
    run.mkdir(exist_ok=True)
    job = parse(
        "{name: a, workers: 3, model: fc, data: synthetic, batch_size: 6, steps: 1, scheme: uncoded, "
        f"loggers: [{{name: 'examples/loggers.py:{kind}', options: {options}}}]}}", "a"
    )  # fmt: skip
    log = EventLog(run / "events.jsonl")
    loggers = Loggers(job, run, 0, log)
    loggers.step(EVENT)
    loggers.evaluation(1, {"loss": 0.25})
    loggers.close()
    log.close()
    assert (run / "events.jsonl").read_text() == ""  # none has raised
    return stub


def test_the_example_for_weights_and_biases_logs_steps_and_evaluations(tmp_path: Path, monkeypatch) -> None:
    stub = used(tmp_path, monkeypatch, "Wandb", "wandb", "{project: robust}")
    (name, _, options), *calls = stub.calls
    assert (name, options["project"], options["id"], options["resume"]) == ("init", "robust", "a-1", "allow")
    assert options["config"]["workers"] == 3
    assert calls == [
        ("log", (FIGURES,), {"step": 1}), ("log", ({"test/loss": 0.25},), {"step": 1}), ("finish", (), {}),
    ]  # fmt: skip


def test_the_example_for_mlflow_goes_on_with_its_run_after_a_resume(tmp_path: Path, monkeypatch) -> None:
    stub = used(tmp_path, monkeypatch, "MLflow", "mlflow", "{experiment: robust}")
    assert [call[0] for call in stub.calls] == [
        "set_experiment", "start_run", "log_dict", "log_metrics", "log_metrics", "end_run",
    ]  # fmt: skip
    assert stub.calls[1] == ("start_run", (), {"run_id": None, "run_name": "a-1"})
    assert stub.calls[3:5] == [
        ("log_metrics", (FIGURES,), {"step": 1}), ("log_metrics", ({"test/loss": 0.25},), {"step": 1}),
    ]  # fmt: skip
    again = used(tmp_path, monkeypatch, "MLflow", "mlflow")
    assert again.calls[:2] == [
        ("set_experiment", ("draco",), {}), ("start_run", (), {"run_id": "id-1", "run_name": "a-1"}),
    ]  # fmt: skip


def test_the_examples_are_short() -> None:
    text = (ROOT / "examples/loggers.py").read_text()
    classes = text.split("\nclass ")[1:]
    assert [part.split("(")[0].split(":")[0] for part in classes] == ["Wandb", "MLflow"]
    for part in classes:
        lines = [line for line in part.split("\ndef ")[0].splitlines() if line.strip()]
        assert len(lines) <= 20
