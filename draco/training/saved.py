"""The model that a checkpoint holds: its weights loaded into the job's model, for an evaluation or an export."""

from pathlib import Path

import torch
from torch import nn
from torch.nn.utils import vector_to_parameters

from draco.job import Job
from draco.models.flat import trained, trained_size, trained_state
from draco.training import checkpoint, checkpoint_check


def load_into(model: nn.Module, job: Job, step: int, path: Path, *, last: bool = False) -> None:
    """Load the checkpoint of a step into the job's model.

    Where the job averages the weights (`ema`) the average is loaded, but with `last` the weights themselves.

    Raises:
        CheckpointError: it cannot be used, or is none of this job at that step.
    """
    state, parameters = trained_state(model), trained_size(model)
    contents = checkpoint.load(path, checkpoint_check.limit(job, state, parameters))
    why = checkpoint_check.model_misfit(contents, state, job, step)
    if why := why or checkpoint_check.average_misfit(contents, job, parameters):
        raise checkpoint.CheckpointError(why, path)
    model.load_state_dict(contents["model"], strict=False)  # without frozen parameters
    if job.ema and not last:
        with torch.no_grad():
            vector_to_parameters(contents["average"], trained(model))
