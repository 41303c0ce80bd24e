"""The checkpoints that stay on the disk, by the job's `checkpoint_keep`, and the removal of the others.

One goes only after a newer one is safe. While an evaluator is at work, those that it has not come to stay as well, the
newest WAITING of them; it passes over what is gone nevertheless, and says so.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from draco import metrics
from draco.job.sections import CheckpointKeepSection
from draco.runs import directory as run_directory
from draco.runs import hold
from draco.training import checkpoint
from draco.training.evaluate import Evaluation, evaluations

WAITING = 20


def staying(
    steps: Sequence[int], evaluated: Mapping[int, Evaluation], keep: CheckpointKeepSection, waiting: int = 0
) -> set[int]:
    """Return which of the checkpoints stay.

    Args:
        steps: of the checkpoints, rising.
        evaluated: step -> its evaluation, of checkpoints that are there or were.
        keep: what the job says.
        waiting: so many of those that are not evaluated stay besides, the newest.
    """
    if keep.name == "all":
        return {*steps}
    kept = {*steps[-keep.last :]}
    if keep.every:
        kept |= {*sorted(evaluated)[keep.every - 1 :: keep.every]}
    if keep.best and (found := [step for step in steps if step in evaluated]):
        kept.add(best({step: evaluated[step].metrics for step in found}, keep))
    if waiting:
        kept |= {*[step for step in steps if step not in evaluated][-waiting:]}
    return kept & {*steps}


def thin(run: Path, keep: CheckpointKeepSection, every: int) -> None:
    """Remove the checkpoints of a run that do not stay; `every`: the steps between two of them.

    A run that an earlier version began keeps all, as it was promised.
    """
    if keep.name == "all" or not run_directory.job_says(run, "checkpoint_keep"):
        return
    folder = run / "checkpoints"
    steps = [step for step, _ in checkpoint.steps(folder)]
    if not steps:
        return
    evaluated = {s: result for s, result in evaluations(run).items() if every and s % every == 0}
    kept = staying(steps, evaluated, keep, WAITING if hold.look(run / hold.EVALUATOR).held else 0)
    cut = [step for step in checkpoint.unfinished(folder) if step < steps[-1]]  # the newest may be being written
    for step in [*cut, *steps]:
        if step not in kept:
            checkpoint.remove(folder, step)


def best(evaluated: Mapping[int, Mapping[str, float]], keep: CheckpointKeepSection) -> int:
    """Return the step with the best evaluation, of equals the newest; one without the metric is worse than all."""
    metric = keep.metric or metrics.usual({name for found in evaluated.values() for name in found})
    mode = metrics.mode_of(metric, keep.mode)
    return max(evaluated, key=lambda step: (metrics.rank({metric: math.nan, **evaluated[step]}, metric, mode), step))
