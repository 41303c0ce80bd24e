"""The first check of model(): what Draco can train, and whether every process builds the same.

A model is looked at as the task returns it, before Draco puts its own layers in the place of dropout.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parameter import is_lazy

from draco.models.dropout import SeededDropout
from draco.tasks.building import seeded
from draco.tasks.first_check.bits import digest, some, unlike
from draco.tasks.first_check.calls import Calls, Failed

_WRAPPERS = {
    "OptimizedModule": "torch.compile",
    "DataParallel": "DataParallel",
    "DistributedDataParallel": "DistributedDataParallel",
    "FullyShardedDataParallel": "FullyShardedDataParallel",
    "ScriptModule": "torch.jit",
    "RecursiveScriptModule": "torch.jit",
    "TopLevelTracedModule": "torch.jit",
}


def build(calls: Calls) -> nn.Module:
    """Return the task's model, built from the job's seed.

    Raises:
        Failed: it cannot be built, or is no model.
    """
    with seeded(calls.setting.seed, "weights"), torch.device("cpu"):
        model: object = calls.call("model", calls.task.model, seeded=True)
    if not isinstance(model, nn.Module):
        raise calls.fail("model", f"returns {_a(model)}, not a torch.nn.Module")
    return model


def check(calls: Calls) -> dict[str, str]:
    """Look at a model that is built for this and thrown away; return the digest of each of its tensors.

    Raises:
        Failed: it cannot be used any further; faults say why.
    """
    model = build(calls)
    unusable = [*_unusable(model)]
    for text in unusable:
        calls.fault("model", text)
    for names, text in _unseeded(model):
        calls.fault("model", text)
        calls.told.update(names)
    if unusable:
        raise Failed
    _batch_norm(calls, model)
    return fingerprints(model)


def check_again(calls: Calls, model: nn.Module, first: dict[str, str]) -> None:
    """Compare a second model, built from the same seed, with the digests of the first."""
    drawn = [name for name in first if any(fnmatch.fnmatchcase(name, glob) for glob in calls.setting.drawn)]
    second = fingerprints(model)
    differing = unlike({name: first[name] for name in drawn}, {name: second.get(name, "") for name in drawn})
    if differing:
        calls.fault(
            "model",
            f"built twice from the same seed it has other bits in {some(differing)}; draw from torch's, numpy's or "
            "Python's global generator, which the job seeds, and not from one without a seed, the time or a set",
        )


def fingerprints(model: nn.Module) -> dict[str, str]:
    """Return the digest of each parameter and buffer, by name; one at a time, so that none is copied for long."""
    held = [*model.named_parameters(), *model.named_buffers()]
    return {name: digest([tensor]) for name, tensor in held}


def _unusable(model: nn.Module) -> Iterator[str]:
    """Yield why a model cannot be trained here at all."""
    for name, module in model.named_modules():
        if type(module).__name__ in _WRAPPERS:
            which = f"{name or 'the model'} is wrapped by {_WRAPPERS[type(module).__name__]}"
            yield f"{which}; return the module inside, as Draco divides the work and carries its parameters by name"
            return
    lazy = [name for name, tensor in [*model.named_parameters(), *model.named_buffers()] if is_lazy(tensor)]
    if lazy:
        yield f"{some(lazy)} have no shape yet, as lazy modules; run one batch through the model before you return it"
        return
    parameters = [(name, each) for name, each in model.named_parameters() if each.requires_grad]
    if not parameters:
        frozen = sum(1 for _ in model.parameters())
        why = f"all {frozen} are frozen" if frozen else "it has none"
        yield f"has no parameters to train ({why}); requires_grad says which are trained"
    wrong = [f"{name} ({str(each.dtype).removeprefix('torch.')})" for name, each in parameters if not _is_float32(each)]
    if wrong:
        yield f"trains parameters that are not float32: {some(wrong)}; call .float(), and let `autocast` lower it"
    away = [f"{name} ({each.device})" for name, each in model.named_parameters() if each.device.type != "cpu"]
    if away:
        yield f"has parameters that are not on the CPU: {some(away)}; the job's device moves them"


def _unseeded(model: nn.Module) -> Iterator[tuple[list[str], str]]:
    """Yield (names, text) of modules that drop out, and not by the generators that Draco hands out."""
    found: dict[tuple[str, str], list[str]] = {}
    for name, module in model.named_modules():
        if why := _why_unseeded(module):
            found.setdefault((type(module).__name__, why), []).append(name)
    for (kind, why), names in found.items():
        yield names, f"{kind} {some(names)}".strip() + f" {why}"


def _why_unseeded(module: nn.Module) -> str:
    """Return what is wrong with a module's randomness; nothing where it has none, or Draco's."""
    if isinstance(module, nn.Dropout | SeededDropout):
        known = type(module).forward in (nn.Dropout.forward, SeededDropout.forward)
        return "" if known else "is a torch.nn.Dropout with a forward() of its own, which Draco would not call"
    if isinstance(module, _DropoutNd):
        return "draws from torch's global generator; use torch.nn.Dropout" if module.p > 0 else ""
    if isinstance(module, nn.MultiheadAttention | nn.RNNBase):
        drops = module.dropout > 0 and getattr(module, "num_layers", 2) > 1
        return f"has dropout={module.dropout}, drawn from torch's global generator; set it to 0.0" if drops else ""
    if isinstance(module, nn.RReLU):
        return "draws from torch's global generator in training; use torch.nn.LeakyReLU"
    return ""


def _batch_norm(calls: Calls, model: nn.Module) -> None:
    """Note BatchNorm layers whose statistics Draco cannot carry, and partitions that are too small for them."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}
    cumulative = [name for name, layer in layers.items() if layer.running_mean is not None and layer.momentum is None]
    if cumulative:
        calls.fault(
            "model", f"{some(cumulative)}: BatchNorm with momentum=None, a cumulative average; give it a number"
        )
    without = [name for name, layer in layers.items() if layer.running_mean is None]
    if without:
        calls.warn(
            "model",
            f"{some(without)}: BatchNorm without running statistics, so that the samples of a batch influence each "
            "other in an evaluation too; track_running_stats=True keeps them",
        )
    setting = calls.setting
    training = [name for name, layer in layers.items() if layer.training]
    if training and setting.batch_size // setting.partitions < 2:
        sizes = f"{setting.batch_size} samples in {setting.partitions} partitions"
        calls.fault("model", f"{some(training)}: BatchNorm needs 2 samples in a partition; batch_size gives {sizes}")


def _is_float32(parameter: nn.Parameter) -> bool:
    return parameter.dtype == torch.float32


def _a(thing: object) -> str:
    return "None" if thing is None else f"a {type(thing).__name__}"
