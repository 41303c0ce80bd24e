"""A user's own optimizers and schedules, named by their path: a class such as `torch.optim:RMSprop`, or a function.

An optimizer works on one flat vector of all parameters, so it must treat every number by itself. What it and a schedule
keep from step to step must be in their `state_dict`, as tensors and plain values: a run goes on from a checkpoint. Both
are tried for a few steps on three numbers before a run.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from draco.errors import OwnCodeError
from draco.lazy import Tensor, torch
from draco.optimizers.declaration import OptimizerDeclaration, ScheduleDeclaration, uncompiled
from draco.own_function import declared, defined, read, watched

OPTIMIZER = "an optimizer is a torch.optim.Optimizer, or a function ([parameter], options) that returns one"
SCHEDULE = "a schedule is an LRScheduler, or a function (optimizer, *, steps, warmup, options) that returns one"
_STEPS = 3  # of a trial
_APART = 1e-4  # relative difference between the flat vector and single numbers that is put down to rounding


class Trial(NamedTuple):
    """What a few steps of an optimizer showed."""

    vectors: int  # as long as the parameters, in what it keeps
    by_element: bool  # it does the same to each number as to all together


def adapt_optimizer(path: str, found: Any) -> OptimizerDeclaration:
    """Return the declaration of a user's own optimizer.

    Raises:
        OwnCodeError: it is none.
    """
    known = declared(path, found, OptimizerDeclaration, OPTIMIZER)
    if known is not None:
        build, options = known.function, known.options
    else:
        options = read(path, found, OPTIMIZER, 1, (), classes=True).options
        is_class = isinstance(found, type) and issubclass(found, torch.optim.Optimizer)
        build = uncompiled(found) if is_class else found

    def function(parameters: Any, **given: Any) -> torch.optim.Optimizer:
        with watched(path):
            made = build(parameters, **given)
        if not isinstance(made, torch.optim.Optimizer):
            raise OwnCodeError(f"{path}{defined(found)}: returned {type(made).__name__}; {OPTIMIZER}")
        held = [each for group in made.param_groups for each in group["params"]]
        if len(held) != len(parameters) or any(a is not b for a, b in zip(held, parameters, strict=True)):
            raise OwnCodeError(f"{path}{defined(found)}: must hold the parameters that it is given, and no others")
        if any("lr" not in group for group in made.param_groups):
            raise OwnCodeError(f"{path}{defined(found)}: has no lr, which a schedule changes")
        return made

    def trial(given: Mapping[str, Any]) -> Trial:
        return _trial(path, function, {name: given[name] for name in options if name in given})

    def doubt(given: Mapping[str, Any]) -> str | None:
        if trial(given).by_element:
            return None
        return f"{path} does not treat every number by itself: here all parameters are one vector, not one a layer"

    if known is not None:
        return replace(known, function=function, own=True, doubt=doubt)
    return OptimizerDeclaration(
        name=path,
        function=function,
        text=f"your own: {path}",
        options=options,
        vectors=lambda given: trial(given).vectors,
        own=True,
        doubt=doubt,
    )


def adapt_schedule(path: str, found: Any) -> ScheduleDeclaration:
    """Return the declaration of a user's own learning-rate schedule.

    Raises:
        OwnCodeError: it is none.
    """
    known = declared(path, found, ScheduleDeclaration, SCHEDULE)
    if known is not None:
        build, options = known.function, known.options
    else:
        signature = read(path, found, SCHEDULE, 1, ("steps", "warmup"), classes=True)
        options = signature.options

        def build(optimizer: Any, **arguments: Any) -> Any:
            return found(optimizer, **signature.of(arguments))

    def function(optimizer: torch.optim.Optimizer, **arguments: Any) -> Any:
        with watched(path):
            made = build(optimizer, **arguments)
        if not isinstance(made, torch.optim.lr_scheduler.LRScheduler):
            raise OwnCodeError(f"{path}{defined(found)}: returned {type(made).__name__}; {SCHEDULE}")
        return made

    def tried(optimizer: Callable[[Any], Any], steps: int, warmup: int, given: Mapping[str, Any]) -> None:
        _try_schedule(path, lambda made: function(made, steps=steps, warmup=warmup, **given), optimizer, steps)

    if known is not None:
        return replace(known, function=function, own=True, tried=tried)
    return ScheduleDeclaration(
        name=path, function=function, text=f"your own: {path}", options=options, own=True, tried=tried
    )


def _trial(path: str, build: Callable[..., Any], given: Mapping[str, Any]) -> Trial:
    """Take a few steps on three numbers, go on from what a checkpoint holds, and compare.

    Raises:
        OwnCodeError: it raises, cannot be kept in a checkpoint, or does not go on from one with the same bits.
    """
    vector = torch.nn.Parameter(_numbers(0))
    optimizer = build([vector], **given)
    with watched(f"{path}: step()"):
        for step in range(1, _STEPS):
            _step(optimizer, [vector], step)
    kept = _kept(path, optimizer.state_dict())
    other = torch.nn.Parameter(vector.detach().clone())
    resumed = build([other], **given)
    with watched(f"{path}: load_state_dict()"):
        resumed.load_state_dict(kept)
    with watched(f"{path}: step()"):
        _step(optimizer, [vector], _STEPS)
        _step(resumed, [other], _STEPS)
    if not torch.equal(vector, other):
        raise OwnCodeError(
            f"{path}: does not go on from its state_dict as if it had not stopped; all that it keeps must be in its "
            "`state`, and nothing drawn at random"
        )
    state: dict[int, dict[str, Any]] = optimizer.state_dict()["state"]
    vectors = sum(isinstance(value, torch.Tensor) and value.shape == (3,) for value in state.get(0, {}).values())
    return Trial(vectors, _is_by_element(build, given, vector))


def _is_by_element(build: Callable[..., Any], given: Mapping[str, Any], whole: Tensor) -> bool:
    """Say whether three parameters of one number come to where one of three came; `whole` (3,)."""
    single = [torch.nn.Parameter(number.clone().reshape(1)) for number in _numbers(0)]
    try:
        optimizer = build(single, **given)
        for step in range(1, _STEPS + 1):
            _step(optimizer, single, step)
    except Exception:  # whatever it has against three parameters, it does not take them as it takes one
        return False
    return torch.allclose(torch.cat([*single]), whole, rtol=_APART, atol=_APART * 1e-2, equal_nan=True)


def _try_schedule(path: str, build: Callable[[Any], Any], make_optimizer: Callable[[Any], Any], steps: int) -> None:
    """Take a few steps, go on from what a checkpoint holds, and compare the learning rates."""

    def made() -> tuple[Any, Any, Any]:
        parameter = torch.nn.Parameter(_numbers(0))
        optimizer = make_optimizer(parameter)
        return parameter, optimizer, build(optimizer)

    def rates(parts: tuple[Any, Any, Any], first: int, last: int) -> list[float]:
        parameter, optimizer, schedule = parts
        taken = []
        for step in range(first, min(last, steps) + 1):
            taken.append(float(schedule.get_last_lr()[0]))
            _step(optimizer, [parameter], step)
            with watched(f"{path}: step()"):
                schedule.step()
        return taken

    before, after = made(), made()
    rates(before, 1, _STEPS)
    if before[2].last_epoch != min(_STEPS, steps):
        raise OwnCodeError(f"{path}: must count its steps in last_epoch, as an LRScheduler does")
    after[1].load_state_dict(before[1].state_dict())
    with watched(f"{path}: load_state_dict()"):
        after[2].load_state_dict(_kept(path, before[2].state_dict()))
    if rates(before, _STEPS + 1, 2 * _STEPS) != rates(after, _STEPS + 1, 2 * _STEPS):
        raise OwnCodeError(
            f"{path}: does not go on from its state_dict as if it had not stopped; all that it keeps must be its "
            "attributes, and nothing drawn at random"
        )


def _kept(path: str, state: Any) -> Any:
    """Return a state as a checkpoint gives it back."""
    buffer = io.BytesIO()
    try:
        torch.save(state, buffer)
        return torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)
    except Exception as error:  # pickle's, zip's, and what a foreign object raises when it is written
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise OwnCodeError(f"{path}: its state_dict holds more than tensors and plain values: {why}") from error


def _step(optimizer: Any, parameters: list[Any], step: int) -> None:
    for place, parameter in enumerate(parameters):
        gradient = _numbers(step)
        parameter.grad = gradient if len(parameters) == 1 else gradient[place : place + 1]
    optimizer.step()


def _numbers(step: int) -> Tensor:
    """Return three numbers, other ones for every step, from no generator."""
    return torch.tensor([0.5, -1.25, 2.0]) * (1 + 0.3 * step) + torch.tensor([0.0, 0.7, -0.4]) * step
