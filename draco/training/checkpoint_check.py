"""The check that a checkpoint is this job's own: its job, step, names, shapes and dtypes, and finite numbers.

Everything is compared with contents that the job has made itself, before anything is restored, so that a restored
training is whole. Older contents may lack an option that Draco or torch has gained since: it then has its default.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from draco.aggregators import AGGREGATORS
from draco.job import Job, to_dict
from draco.optimizers import OPTIMIZERS, SCHEDULES
from draco.training import build

Values = Mapping[str, Any]

_DEEPEST, _FEW = 12, 1 << 10  # of what a user's own optimizer keeps: levels, and numbers that are no parameters'
_SLACK = 1 << 24  # bytes of a checkpoint that are no tensors, and then some


def limit(job: Job, model: Values, parameters: int) -> int:
    """Return the bytes that a checkpoint of the job may take: twice what its tensors need, and some."""
    tensors = [*_tensors(model), *_tensors(_optimizer_state(job, parameters))]
    if AGGREGATORS[job.aggregator.name].remembers:
        tensors.append(torch.empty(parameters, device="meta"))  # where its next step starts
    if job.ema:
        tensors.append(torch.empty(parameters, device="meta"))  # the average of the weights
    momenta = 4 * job.workers * parameters if job.local.momentum else 0
    return 2 * (sum(tensor.numel() * tensor.element_size() for tensor in tensors) + momenta) + _SLACK


def misfit(contents: Values, own: Values, job: Job, step: int, parameters: int) -> str:
    """Return why a training of the job cannot go on from `contents`, or nothing.

    Args:
        contents: what a checkpoint holds.
        own: what a training of the job holds before its first step.
        job: the job.
        step: the step in the checkpoint's name.
        parameters: p, the length of the vector that the optimizer works on.
    """
    if why := _key_difference(contents, own):
        return why
    if why := model_misfit(contents, own["model"], job, step):
        return why
    if type(contents["steps"]) is not int or contents["steps"] != own["steps"] or step > own["steps"]:
        return f"it is at step {step} of {_show(contents['steps'])}, this job has {own['steps']} steps"
    if type(contents["torch"]) is not str:
        return f"torch: is {_kind(contents['torch'])} instead of a version"
    older = contents["torch"] != own["torch"]
    return (
        _optimizer_misfit(contents["optimizer"], own["optimizer"], job, step, parameters, older)
        or _schedule_misfit(contents["schedule"], own["schedule"], job, older)
        or ("" if contents["schedule"].get("last_epoch") == step else f"schedule: is not that of step {step}")
        or _difference(contents.get("centre"), own.get("centre"), "centre")
        or _difference(contents.get("momenta"), own.get("momenta"), "momenta")
        or average_misfit(contents, job, parameters)
        or _ledger_misfit(contents["ledger"], own["ledger"], job.workers)
        or _court_misfit(contents.get("court", {}), job)
    )


def model_misfit(contents: Values, model: Values, job: Job, step: int) -> str:
    """Return why `contents` do not hold the job's model at that step, or nothing; `model` is a state of that model."""
    if type(contents.get("step")) is not int or contents["step"] != step:
        return f"it holds step {_show(repr(contents.get('step')))}, its name says {step}"
    return _job_difference(contents.get("job"), job) or _difference(contents.get("model"), model, "model")


def average_misfit(contents: Values, job: Job, parameters: int) -> str:
    """Return why `contents` do not hold the average of the weights (p,) where the job keeps one, or nothing."""
    if not job.ema:
        return ""
    return _difference(contents.get("average"), torch.empty(parameters, device="meta"), "average")


def _job_difference(found: Any, job: Job) -> str:
    try:
        theirs = _flat(to_dict(Job.model_validate(found)))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        return f"its job is none that this version of Draco reads ({_show(where)}: {first['msg']})"
    ours = _flat(to_dict(job))
    for key in sorted((theirs.keys() | ours.keys()) - {"device", "server_device"}):  # where it is computed, not what
        if theirs.get(key) != ours.get(key):
            return f"it is of another job: {key} is {_show(theirs.get(key))}, not {_show(ours.get(key))}"
    return ""


def _flat(values: Values, prefix: str = "") -> dict[str, Any]:
    """Return {"section.option": value}."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _optimizer_misfit(found: Any, own: Values, job: Job, step: int, parameters: int, older: bool) -> str:
    """Return why `found` is no state of the job's optimizer at that step, or nothing.

    What a user's own keeps may take another form from step to step. There it must be finite, and of the parameters'
    length; its `load_state_dict` says the rest.
    """
    if not OPTIMIZERS[job.optimizer.name].own:
        state = _optimizer_state(job, parameters) if step else {}
        return _difference(found, {**own, "state": state}, "optimizer", older)
    if not isinstance(found, dict) or found.keys() != own.keys():
        return f"optimizer: is not a dict of {_show(', '.join(own))}"
    groups = [{"params": group["params"]} for group in own["param_groups"]]
    theirs = found["param_groups"]
    if not isinstance(theirs, list) or any(not isinstance(group, dict) for group in theirs):
        return "optimizer.param_groups: is not a list of dicts"
    held = [{"params": group.get("params")} for group in theirs]
    return _difference(held, groups, "optimizer.param_groups") or _strange(found, "optimizer", parameters)


def _schedule_misfit(found: Any, own: Values, job: Job, older: bool) -> str:
    if not SCHEDULES[job.schedule.name].own:
        return _difference(found, own, "schedule", older)
    return _strange(found, "schedule", 1) if isinstance(found, dict) else "schedule: is not a dict"


def _strange(found: Any, where: str, longest: int, depth: int = _DEEPEST) -> str:
    """Return what a state of a user's own code must not hold, or nothing: it is of tensors and plain values."""
    if not depth:
        return f"{where}: is nested too deeply"
    if isinstance(found, Tensor):
        if found.numel() > max(longest, _FEW):
            return f"{where}: has {found.numel()} numbers"
        return _tensor_difference(found, torch.empty(found.shape, dtype=found.dtype, device="meta"), where)
    if isinstance(found, dict):
        inner = ((value, f"{where}.{_show(key)}") for key, value in found.items())
    elif isinstance(found, list | tuple):
        inner = ((value, f"{where}.{place}") for place, value in enumerate(found))
    elif type(found) in (int, float):
        return "" if _is_finite(found) or found in (math.inf, -math.inf) else f"{where}: is not a finite number"
    else:
        return "" if found is None or type(found) in (bool, str) else f"{where}: is {_kind(found)}"
    return next(filter(None, (_strange(value, name, longest, depth - 1) for value, name in inner)), "")


def _optimizer_state(job: Job, parameters: int) -> dict[Any, Any]:
    """Return the optimizer's state after a step, or three of a user's own; tensors of p elements take no memory.

    The step is one of two elements, whose places those of p then take: a step on the `meta` device has torch import its
    symbolic shapes, for most of a second.
    """
    vector = nn.Parameter(torch.zeros(2))
    optimizer = build.build_optimizer(job, vector)
    for _ in range(3 if OPTIMIZERS[job.optimizer.name].own else 1):
        vector.grad = torch.ones(2)
        optimizer.step()
    state: dict[int, dict[str, Any]] = optimizer.state_dict()["state"]
    return {index: {name: _widened(value, parameters) for name, value in each.items()} for index, each in state.items()}


def _widened(value: Any, parameters: int) -> Any:
    each_element = isinstance(value, Tensor) and value.shape == (2,)
    return torch.empty(parameters, dtype=value.dtype, device="meta") if each_element else value


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Mapping):
        return [tensor for item in value.values() for tensor in _tensors(item)]
    return [value] if isinstance(value, Tensor) else []


def _difference(found: Any, own: Any, where: str, older: bool = False) -> str:
    """Return the first way in which `found` is not of the kind of `own`, or nothing; `older` may lack keys.

    It goes down into `own`, which is finite, never into what only `found` holds.
    """
    if isinstance(own, Tensor):
        return _tensor_difference(found, own, where)
    if isinstance(own, Mapping):
        if not isinstance(found, dict):
            return f"{where}: is {_kind(found)} instead of a dict"
        if why := _key_difference(found, own, older):
            return f"{where}: {why}"
        inner = ((found[key], own[key], f"{where}.{key}") for key in own if key in found)
    elif isinstance(own, list | tuple):
        if not isinstance(found, list | tuple) or len(found) != len(own):
            return f"{where}: is not a list of {len(own)}"
        inner = ((a, b, f"{where}.{i}") for i, (a, b) in enumerate(zip(found, own, strict=True)))
    elif type(own) in (int, float):
        return "" if _is_finite(found) else f"{where}: is not a finite number"
    else:
        return "" if type(found) is type(own) else f"{where}: is {_kind(found)} instead of {_kind(own)}"
    return next(filter(None, (_difference(a, b, name, older) for a, b, name in inner)), "")


def _tensor_difference(found: Any, own: Tensor, where: str) -> str:
    if type(found) not in (Tensor, nn.Parameter):
        return f"{where}: is {_kind(found)} instead of a tensor"
    if found.shape != own.shape or found.dtype != own.dtype:
        return f"{where}: is {tuple(found.shape)} {found.dtype}, and must be {tuple(own.shape)} {own.dtype}"
    if found.layout != torch.strided or found.device.type != "cpu" or not found.is_contiguous():
        return f"{where}: its numbers do not lie one after the other in memory"
    if found.is_floating_point() and not bool(torch.isfinite(found).all()):
        return f"{where}: holds numbers that are not finite"
    return ""


def _ledger_misfit(found: Any, own: Values, workers: int) -> str:
    """Return why `found` is no ledger, or nothing; a ledger counts, per kind or per rank."""
    if not isinstance(found, dict):
        return f"ledger: is {_kind(found)} instead of a dict"
    if why := _key_difference(found, own, older=True):
        return f"ledger: {why}"
    for key, value in found.items():
        if (type(value) is dict) != (type(own[key]) is dict):
            return f"ledger.{key}: is {_kind(value)} instead of {_kind(own[key])}"
        counts = value if type(value) is dict else {1: value}
        if any(type(rank) is not int or not 1 <= rank <= workers for rank in counts):
            return f"ledger.{key}: names ranks that are none of 1 to {workers}"
        if any(type(count) is not int or count < 0 for count in counts.values()):
            return f"ledger.{key}: is not a count"
    return ""


def _court_misfit(found: Any, job: Job) -> str:
    """Return why `found` does not tell who is expelled, and by which proof, or nothing."""
    if not isinstance(found, dict) or any(type(rank) is not int or not 1 <= rank <= job.workers for rank in found):
        return f"court: names workers that are none of 1 to {job.workers}"
    if len(found) > job.scheme.adversaries:
        return f"court: has {len(found)} expelled workers, and scheme.adversaries is {job.scheme.adversaries}"
    for proof in found.values():
        if not isinstance(proof, list | tuple) or [type(each) for each in proof] != [int, int, str, str]:
            return "court: a proof is not a step, a partition, a claim and the truth"
    return ""


def _key_difference(found: Mapping[Any, Any], own: Mapping[Any, Any], older: bool = False) -> str:
    """Return which keys `found` lacks (which it may where it is `older`) or has beyond ours, or nothing."""
    if unknown := sorted(_show(key) for key in found if key not in own):
        return f"holds {unknown[0]}, which is none of {_show(', '.join(map(str, own)))}"
    missing = [] if older else [_show(key) for key in own if key not in found]
    return f"lacks {missing[0]}" if missing else ""


def _is_finite(value: Any) -> bool:
    return abs(value) < 2**63 if type(value) is int else type(value) is float and math.isfinite(value)


def _kind(value: Any) -> str:
    return type(value).__name__


def _show(value: Any) -> str:
    """Return a value in one short line."""
    text = value if isinstance(value, str) and value.isprintable() else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
