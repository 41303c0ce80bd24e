"""Early stopping: whether a training ends before its last step, decided from its own evaluations alone.

Those are recorded and the same whenever they are made, so a run ends at one step: simulated, over MPI, and resumed.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

from draco.job import Job
from draco.job.sections import StopEarlySection
from draco.metrics import Mode, merit, mode_of


class Stopped(NamedTuple):
    """The end of a training before its last step."""

    step: int  # of the evaluation that ended it
    best_step: int | None  # of the last one that was better than all before; None: none was a number
    best: float


def stopped(values: Mapping[int, float], patience: int, min_delta: float, mode: Mode) -> Stopped | None:
    """Return at which evaluation a training ends, or None while it goes on.

    Args:
        values: step -> the metric, of each evaluation, steps rising.
        patience: so many evaluations in a row that are no better than the best before end it.
        min_delta: by how much one must be better.
        mode: whether the least or the most is best. What is no number is never better.
    """
    best_step, best, since = None, math.nan, 0
    for step, value in values.items():
        if merit(value, mode) > merit(best, mode) + min_delta:
            best_step, best, since = step, value, 0
        else:
            since += 1
        if since >= patience:
            return Stopped(step, best_step, best)
    return None


def verdict(spec: StopEarlySection, evaluated: Mapping[int, Mapping[str, float]]) -> Stopped | None:
    """Return at which of the evaluations, step -> metrics, the training ends; None while it goes on."""
    values = {step: found[spec.metric] for step, found in evaluated.items()}
    return stopped(values, spec.patience, spec.min_delta, mode_of(spec.metric, spec.mode))


def sentence(spec: StopEarlySection, end: Stopped, steps: int) -> str:
    """Say at which step and why a training of so many steps has ended."""
    least = f" by more than {spec.min_delta:g}" if spec.min_delta else ""
    best = "never was a number" if end.best_step is None else f"was best at step {end.best_step}, {end.best:.6g}"
    return (
        f"stopped early after step {end.step} of {steps}: {spec.metric} {best}, and {spec.patience} evaluations in a "
        f"row did not improve on it{least}"
    )


def missing(job: Job, metrics: Mapping[str, float]) -> str:
    """Return which metric the job names that the task has not, or nothing."""
    named = {"stop_early.metric": job.stop_early and job.stop_early.metric}
    named["checkpoint_keep.metric"] = job.checkpoint_keep.metric
    for key, metric in named.items():
        if metric and metric not in metrics:
            return f"{key}: the task has no metric {metric}; it has {', '.join(metrics)}"
    return ""
