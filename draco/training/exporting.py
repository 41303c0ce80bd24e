"""The model of a run as one file that loads without Draco: safetensors, or a plain state_dict.

It holds the whole state_dict of the task's model, frozen parameters included, or with `trained` what the run changed.
Every name has numbers of its own in the file: names that share theirs in the model (tied weights) are written twice, so
that both formats load with `strict=True`. Loading them into a model that ties them gives the same model.
"""

import hashlib
import io
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from draco import files
from draco.errors import MissingError, RefusedError
from draco.job import Job
from draco.models import batch_norm
from draco.training import checkpoint, saved, thinning
from draco.training.build import Built
from draco.training.evaluate import evaluations

Format = Literal["safetensors", "state_dict"]
SUFFIXES: dict[str, Format] = {".safetensors": "safetensors", ".pt": "state_dict", ".pth": "state_dict"}


class Exported(NamedTuple):
    """A file that was written."""

    path: Path
    size: int  # bytes
    step: int
    sha256: str


def chosen(run: Path, step: int | None = None) -> tuple[int, Path]:
    """Return the step and the path of a run's newest checkpoint, or of the one of a step.

    Raises:
        MissingError: there is no such checkpoint; names those that there are.
    """
    there = dict(checkpoint.steps(run / "checkpoints"))
    if not there:
        raise MissingError(f"{run}: has no checkpoint to export yet")
    wanted = max(there) if step is None else step
    if wanted not in there:
        raise MissingError(f"{run}: has no checkpoint of step {wanted}; it has {', '.join(map(str, there))}")
    return wanted, there[wanted]


def best(run: Path, job: Job) -> tuple[int, Path]:
    """Return the step and the path of a run's checkpoint with the best evaluation, as `checkpoint_keep` reckons it.

    Raises:
        MissingError: no checkpoint is evaluated.
    """
    there = dict(checkpoint.steps(run / "checkpoints"))
    evaluated = {step: result.metrics for step, result in evaluations(run).items() if step in there}
    if not evaluated:
        raise MissingError(f"{run}: none of its checkpoints is evaluated; make eval RUN={run} does it")
    step = thinning.best(evaluated, job.checkpoint_keep)
    return step, there[step]


def state(model: nn.Module, *, trained: bool) -> dict[str, Tensor]:
    """Return the numbers of a model by name, each in memory of its own.

    With `trained` only what a run changes: parameters that require a gradient, and the statistics of BatchNorm.
    """
    names = {name for name, parameter in model.named_parameters(remove_duplicate=False) if parameter.requires_grad}
    layers = {id(layer) for layer in batch_norm.batch_norm_layers(model)}
    inner = [prefix for prefix, module in model.named_modules() if id(module) in layers]
    names |= {f"{prefix}.{name}".lstrip(".") for prefix in inner for name in ("running_mean", "running_var")}
    return {
        name: value.detach().contiguous().clone()
        for name, value in model.state_dict().items()
        if isinstance(value, Tensor) and (name in names or not trained)
    }


def packed(tensors: dict[str, Tensor], kind: Format, metadata: dict[str, str]) -> bytes:
    """Return the content of a file of tensors; only safetensors has a place for metadata."""
    if kind == "safetensors":
        import safetensors.torch

        content: bytes = safetensors.torch.save(tensors, metadata={"format": "pt", **metadata})
        return content
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    return buffer.getvalue()


def export(built: Built, step: int, path: Path, output: Path, kind: Format, *, last: bool, trained: bool) -> Exported:
    """Write the model of a checkpoint to a file that is not there yet.

    Args:
        built: the run's job, whose model is built anew.
        step: of the checkpoint.
        path: the checkpoint.
        output: the file.
        kind: its format.
        last: the weights after the last step, where the job averages them (`ema`).
        trained: only what the run changed.

    Raises:
        RefusedError: there is something of that name.
        CheckpointError: the checkpoint cannot be used.
    """
    if output.exists():
        raise RefusedError(f"{output}: is there already; name another file (--output), or move it away")
    job, model = built.job, built.model
    saved.load_into(model, job, step, path, last=last)
    about = {"job": job.name, "step": str(step), "weights": "average" if job.ema and not last else "last"}
    content = packed(state(model, trained=trained), kind, about)
    output.parent.mkdir(parents=True, exist_ok=True)
    files.replace(output, content)
    return Exported(output, len(content), step, hashlib.sha256(content).hexdigest())
