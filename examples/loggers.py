"""Watch a run in Weights & Biases or in MLflow, by a class of 20 lines each.

    pip install wandb        # or mlflow; neither comes with Draco, and only the server needs it
    loggers: [{name: examples/loggers.py:Wandb, options: {project: robust}}]    # in a job

A logger is made with the run's directory, its job as plain values, and the options of the job's `loggers`.
"""

from pathlib import Path
from typing import Any


class Wandb:
    """A run of Weights & Biases with the id of Draco's run, so that a resume goes on with it."""

    def __init__(self, run: Path, job: dict[str, Any], **options: Any) -> None:
        import wandb

        self.run = wandb.init(id=run.name, name=run.name, dir=str(run), config=job, resume="allow", **options)

    def step(self, event: dict[str, Any]) -> None:
        """Log a line of events.jsonl."""
        self.run.log(figures(event), step=event["step"])

    def evaluation(self, step: int, metrics: dict[str, float]) -> None:
        """Log the task's metrics."""
        self.run.log({f"test/{name}": value for name, value in metrics.items()}, step=step)

    def close(self) -> None:
        """End the run."""
        self.run.finish()


class MLflow:
    """A run of MLflow, where MLFLOW_TRACKING_URI says; its id is kept with Draco's run, for a resume."""

    def __init__(self, run: Path, job: dict[str, Any], experiment: str = "draco") -> None:
        import mlflow

        self.mlflow, kept = mlflow, run / "mlflow-run"
        mlflow.set_experiment(experiment)
        active = mlflow.start_run(run_id=kept.read_text() if kept.exists() else None, run_name=run.name)
        kept.write_text(active.info.run_id)
        mlflow.log_dict(job, "job.json")

    def step(self, event: dict[str, Any]) -> None:
        """Log a line of events.jsonl."""
        self.mlflow.log_metrics(figures(event), step=event["step"])

    def evaluation(self, step: int, metrics: dict[str, float]) -> None:
        """Log the task's metrics."""
        self.mlflow.log_metrics({f"test/{name}": value for name, value in metrics.items()}, step=step)

    def close(self) -> None:
        """End the run."""
        self.mlflow.end_run()


def figures(event: dict[str, Any]) -> dict[str, float]:
    """Return the numbers of a step."""
    counts = {name: len(event[name]) for name in ("suspects", "lost", "straggling")}
    seconds = {f"seconds/{part}": value for part, value in event["seconds"].items()}
    return {"loss": event["loss"], "lr": event["lr"], "bytes": event["bytes_received"], **counts, **seconds}
