"""The first check of loss(): its shape, its gradient, and whether the same partition always has the same bits.

Shapes: B samples in a batch, p trained parameters.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from draco.models.batch_norm import batch_norm_layers
from draco.models.dropout import SeededDropout, set_dropout
from draco.sampling import generator
from draco.tasks.batch import mapped
from draco.tasks.first_check.bits import digest, not_finite, shapes, some, tensors
from draco.tasks.first_check.calls import Calls, is_finite, said

_ROUNDING = 1e-3  # by which a sample's loss may differ in another batch, relative to the largest of them
_ROUNDING_CUDA = 1e-4  # by which the same loss may differ at two times on a GPU


class Passed(NamedTuple):
    """What one forward and backward pass left behind."""

    loss: Tensor  # (B,) or ()
    gradients: dict[str, str]  # parameter -> digest of its gradient; "" where it has none
    infinite: list[str]  # parameters whose gradient is not finite
    state: Mapping[str, str]  # buffer -> its digest, without those of BatchNorm
    seconds: float


def check(calls: Calls, model: nn.Module, batch: Any, places: Sequence[int]) -> float:
    """Take two passes over a training batch with the model, which is left as it was; return the seconds of the second.

    `places` are the samples of the batch.

    Raises:
        Failed: there is no loss to speak of; faults say why.
    """
    task, parameters = calls.task, _trained(model)
    size = len(next(iter(tensors(batch).values())))
    versions = [parameter._version for _, parameter in parameters]
    with _restored(model):
        model.train()
        before = calls.draws
        loss = calls.call(
            "loss",
            lambda: task.loss(model, _fresh(calls, model, batch)),
            about=lambda: f"; the batch is {shapes(batch)}",
        )
        drew = calls.draws > before
        if text := shape_fault(loss, size, task.per_sample):
            raise calls.fail("loss", f"{text}; the batch is {shapes(batch)}")
        if not is_finite(loss):
            calls.fault("loss", _not_finite(calls, model, batch, loss, places))
            return 0.0
        if not loss.requires_grad:
            raise calls.fail(
                "loss",
                "it has no gradient: nothing that is trained was used, or it was detached, by .detach(), .item() or "
                "torch.no_grad()",
            )
        if [parameter._version for _, parameter in parameters] != versions:
            names = [name for (name, each), old in zip(parameters, versions, strict=True) if each._version != old]
            raise calls.fail("loss", f"it changes the parameters {some(names)} themselves; the optimizer does that")
        del loss
        passes = [_pass(calls, model, batch, parameters) for _ in range(2)]
        _compare(calls, passes, places, drew)
        return passes[1].seconds


def shape_fault(loss: Any, size: int, per_sample: bool) -> str:
    """Return what is wrong with the kind of a loss of `size` samples; nothing where it is right."""
    if not isinstance(loss, Tensor):
        return f"returns {'None' if loss is None else f'a {type(loss).__name__}'}, not a tensor"
    shape = tuple(loss.shape)
    if not loss.is_floating_point():
        return f"returns {str(loss.dtype).removeprefix('torch.')} numbers, which have no gradient; float32 is needed"
    if not per_sample:
        if shape == ():
            return ""
        return (
            f"returns the shape {shape}, and with per_sample = False it is one number, the mean of the batch: .mean()"
        )
    if shape == (size,):
        return ""
    needed = f"returns the shape {shape}, and must return the loss of each sample, ({size},)"
    if shape == ():
        return f'{needed}: reduction="none"; or, where a sample has no loss of its own, per_sample = False'
    if shape == (size, 1):
        return f"{needed}: .squeeze(1)"
    if len(shape) > 1 and shape[0] == size:
        return f"{needed}: the mean over what is not the batch, .flatten(1).mean(1)"
    if shape and size and shape[0] % size == 0:
        return f"{needed}: .view({size}, -1).mean(1), if its rows are those of the samples in order"
    return needed


def check_influence(calls: Calls, model: nn.Module, batch: Any) -> None:
    """Compare the losses of a batch's first samples with what they are in a smaller batch.

    No sample may matter to another. Dropout is off for it. The batch needs two samples.
    """
    task, size = calls.task, len(next(iter(tensors(batch).values())))
    if size < 2:
        return
    with _restored(model), _no_dropout(model), torch.no_grad():
        model.train()
        whole = task.loss(model, _moved(calls, batch))
        for few in sorted({1, size // 2}):
            part = mapped(batch, lambda rows, few=few: rows[:few])
            try:
                losses = task.loss(model, _moved(calls, part))
            except Exception as error:
                calls.fault("loss", f"a batch of {few} of its samples: {type(error).__name__}: {error}; {_REMEDY}")
                return
            if losses.shape != (few,):
                calls.fault("loss", f"a batch of {few} samples gives the shape {tuple(losses.shape)}")
                return
            difference = (losses - whole[:few]).abs().max().item()
            if difference > _ROUNDING * max(whole.abs().max().item(), 1e-6):
                culprit = _first_to_mix(calls, model, batch, part, few)
                calls.fault(
                    "loss",
                    f"sample 0 has loss {whole[0].item():.6g} among {size} samples and {losses[0].item():.6g} among "
                    f"{few}{culprit}: they influence each other; {_REMEDY}",
                )
                return


_REMEDY = "per_sample = False in the task says so, and the job encodes without it"


def blame(calls: Calls, model: nn.Module, batch: Any, places: Sequence[int], step: int) -> str:
    """Return why the loss of a training batch is not finite, with file and line; nothing where it is finite."""
    with _restored(model), torch.no_grad():
        model.train()
        loss = calls.task.loss(model, _fresh(calls, model, batch))
        if is_finite(loss):
            return ""
        why = _not_finite(calls, model, batch, loss, places, step)
        return f"{calls.setting.name}: loss(){calls.defined('loss')}: {why}"


def _pass(calls: Calls, model: nn.Module, batch: Any, parameters: Sequence[tuple[str, nn.Parameter]]) -> Passed:
    began = time.perf_counter()
    loss = calls.task.loss(model, _fresh(calls, model, batch))
    try:
        found = torch.autograd.grad(loss.mean(), [parameter for _, parameter in parameters], allow_unused=True)
    except RuntimeError as error:
        raise calls.fail("loss", f"its gradient: {said(error)}") from error
    if calls.setting.device != "cpu":
        torch.get_device_module(calls.setting.device).synchronize()
    seconds = time.perf_counter() - began
    named = [(name, gradient) for (name, _), gradient in zip(parameters, found, strict=True)]
    gradients = {name: "" if gradient is None else digest([gradient]) for name, gradient in named}
    infinite = [name for name, gradient in named if gradient is not None and not is_finite(gradient)]
    return Passed(loss.detach().cpu(), gradients, infinite, _state(model), seconds)


def _compare(calls: Calls, passes: Sequence[Passed], places: Sequence[int], drew: bool) -> None:
    """Say how two passes over the same batch differ, and what of them is of no use."""
    first, second = passes
    if first.infinite:
        calls.fault("loss", f"the gradient of {some(first.infinite)} is not finite at the first step; the loss is")
    unused = [name for name, found in first.gradients.items() if not found]
    if unused:
        calls.warn("loss", f"{some(unused)} get no gradient and stay as they are; freeze them, or use them")
    carried = [name for name in second.state if first.state.get(name) != second.state[name]]
    if carried:
        calls.fault(
            "model",
            f"the buffers {some(carried)} change in every forward in training; only BatchNorm statistics are carried "
            "between workers: freeze them, or compute them of the batch",
        )
    if drew or carried:
        return
    if digest([first.loss]) == digest([second.loss]):
        if differing := [name for name in first.gradients if first.gradients[name] != second.gradients[name]]:
            text = f"the same partition has the same loss and another gradient of {some(differing)} at a second time"
            (calls.fault if calls.setting.repeats else calls.warn)("loss", f"{text}{_WHY}")
        return
    distance = (first.loss - second.loss).abs().max().item()
    others = "" if first.loss.ndim == 0 else f" of {_samples(first.loss != second.loss, places)}"
    text = f"the same partition has another loss{others} at a second time, by {distance:.3g}"
    close = distance <= _ROUNDING_CUDA * first.loss.abs().max().item()
    (calls.warn if close and not calls.setting.repeats else calls.fault)("loss", f"{text}{_WHY}")


_WHY = (
    "; no global generator was drawn from: look for something that counts calls, a generator without a seed, the time, "
    "the order of a set, threads, and operations that torch does not repeat (torch.use_deterministic_algorithms)"
)


def _fresh(calls: Calls, model: nn.Module, batch: Any) -> Any:
    """Return the batch on the device, with the dropout of step 1, partition 0 announced."""
    size = len(next(iter(tensors(batch).values())))
    set_dropout(model, [(size, generator(calls.setting.seed, "dropout", 1, 0))])
    return _moved(calls, batch)


def _trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def _moved(calls: Calls, batch: Any) -> Any:
    """Return a batch of its own on the device: what loss() does to it touches nobody else's."""
    return mapped(batch, lambda rows: rows.to(calls.setting.device, copy=True))


def _not_finite(calls: Calls, model: nn.Module, batch: Any, loss: Tensor, places: Sequence[int], step: int = 1) -> str:
    """Return in words what of a loss, and of what it was made of, is not finite."""
    given: list[Any] = []
    outputs: list[Any] = []

    def note(module: nn.Module, inputs: Any, named: Any, output: Any) -> None:
        given.append([inputs, named])
        outputs.append(output)

    handle = model.register_forward_hook(note, with_kwargs=True)
    try:
        calls.task.loss(model, _fresh(calls, model, batch))
    finally:
        handle.remove()
    where = "" if loss.ndim == 0 else f" of {_samples(~loss.isfinite(), places)}"
    inputs = not_finite(batch)
    parameters = [name for name, each in [*model.named_parameters(), *model.named_buffers()] if not is_finite(each)]
    if inputs:
        why = f"{some(inputs)} has NaN or infinity already: look at the samples"
    elif parameters:
        origin = "its initial weights" if step == 1 else "optimizer.lr, or for a defence"
        why = f"the model's {some(parameters)} has NaN or infinity already: look at {origin}"
    elif not_finite(given):
        why = "batch and weights are finite, and what loss() gives to the model is not"
    elif not_finite(outputs):
        why = "batch and weights are finite, and the model's output is not: look at its forward()"
    else:
        why = "batch, weights and the model's output are finite: look at what loss() makes of them, such as log(0)"
    return f"the loss{where} is not finite at step {step} ({_values(loss)}): {why}"


def _samples(which: Tensor, places: Sequence[int]) -> str:
    """Return the samples at which something is true, of those in a batch."""
    return f"samples {some([places[place] for place in which.nonzero()[:, 0].tolist()])}"


def _values(loss: Tensor) -> str:
    bad = loss.detach().reshape(-1)
    return some(dict.fromkeys(str(value) for value in bad[~bad.isfinite()].tolist()))


def _first_to_mix(calls: Calls, model: nn.Module, batch: Any, part: Any, few: int) -> str:
    """Return the first module whose output for the same samples is another one among fewer, ` (BatchNorm1d norm)`."""
    recorded: list[list[tuple[str, Tensor]]] = []
    for each in (batch, part):
        seen: list[tuple[str, Tensor]] = []
        recorded.append(seen)
        handles = [
            module.register_forward_hook(_recorder(seen, f"{type(module).__name__} {name}".rstrip()))
            for name, module in model.named_modules()
            if not [*module.children()]
        ]
        try:
            calls.task.loss(model, _moved(calls, each))
        finally:
            for handle in handles:
                handle.remove()
    for (name, whole), (other, cut) in zip(*recorded, strict=False):
        if name != other or len(whole) < few or whole[:few].shape != cut.shape:
            return ""
        if (whole[:few] - cut).abs().max().item() > _ROUNDING * max(whole.abs().max().item(), 1e-6):
            return f", from {name} on"
    return ""


def _recorder(seen: list[tuple[str, Tensor]], name: str) -> Callable[[nn.Module, Any, Any], None]:
    def record(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim and output.is_floating_point():
            seen.append((name, output.detach()))

    return record


@contextmanager
def _restored(model: nn.Module) -> Iterator[None]:
    """Leave modes and BatchNorm statistics of a model as they were."""
    modes = {module: module.training for module in model.modules()}
    held = {
        (layer, name): value.clone()
        for layer in batch_norm_layers(model)
        for name in ("running_mean", "running_var", "num_batches_tracked")
        if (value := getattr(layer, name)) is not None
    }
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for (layer, name), value in held.items():
            getattr(layer, name).copy_(value)


@contextmanager
def _no_dropout(model: nn.Module) -> Iterator[None]:
    layers = {module: module.p for module in model.modules() if isinstance(module, SeededDropout)}
    for layer in layers:
        layer.p = 0.0
    try:
        yield
    finally:
        for layer, p in layers.items():
            layer.p = p


def _state(model: nn.Module) -> Mapping[str, str]:
    """Return the digest of each buffer that is no BatchNorm statistic, by name."""
    of_norms = {id(buffer) for layer in batch_norm_layers(model) for buffer in layer.buffers()}
    return {name: digest([buffer]) for name, buffer in model.named_buffers() if id(buffer) not in of_norms}
