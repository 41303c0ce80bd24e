"""Optimizers and learning-rate schedules: torch's own, over one flat parameter vector, with the options of a job."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from draco.declaration import Option, table
from draco.lazy import torch
from draco.optimizers.declaration import OptimizerDeclaration, ScheduleDeclaration, uncompiled
from draco.optimizers.own_optimizer import adapt_optimizer, adapt_schedule

__all__ = ["OPTIMIZERS", "SCHEDULES", "OptimizerDeclaration", "ScheduleDeclaration"]


def _weight_decay(usual: float) -> Option:
    return Option(float, usual, "Weight decay.", ge=0.0, le=1e3)


def _lr(usual: float) -> Option:
    return Option(float, usual, "Initial learning rate.", gt=0.0, le=1e3)


_ADAM = {
    "betas": Option(tuple[float, float], (0.9, 0.999), "Decay rates of the two moments.", ge=0.0, lt=1.0),
    "eps": Option(float, 1e-8, "Added to the root of the second moment.", gt=0.0, le=1.0),
}
OPTIMIZERS: dict[str, OptimizerDeclaration] = table(
    adapt_optimizer,
    OptimizerDeclaration(
        name="sgd",
        function=lambda parameters, **options: uncompiled(torch.optim.SGD)(parameters, **options),
        text="stochastic gradient descent",
        options={
            "lr": _lr(0.01),
            "weight_decay": _weight_decay(0.0),
            "momentum": Option(float, 0.0, "Momentum.", ge=0.0, lt=1.0),
            "nesterov": Option(bool, False, "Nesterov momentum; needs momentum above 0."),
        },
        vectors=lambda given: int(given["momentum"] > 0),
    ),
    OptimizerDeclaration(
        name="adam",
        function=lambda parameters, **options: uncompiled(torch.optim.Adam)(parameters, **options),
        text="Adam",
        options={"lr": _lr(0.001), "weight_decay": _weight_decay(0.0), **_ADAM},
        vectors=lambda given: 2,
    ),
    OptimizerDeclaration(
        name="adamw",
        function=lambda parameters, **options: uncompiled(torch.optim.AdamW)(parameters, **options),
        text="Adam with decoupled weight decay",
        options={"lr": _lr(0.001), "weight_decay": _weight_decay(0.01), **_ADAM},
        vectors=lambda given: 2,
    ),
)


def _constant(optimizer: torch.optim.Optimizer, **_: Any) -> Any:
    return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)


def _step(optimizer: torch.optim.Optimizer, *, step_size_steps: int, gamma: float, **_: Any) -> Any:
    return torch.optim.lr_scheduler.StepLR(optimizer, step_size_steps, gamma)


def _multistep(
    optimizer: torch.optim.Optimizer, *, milestones: Sequence[int], gamma: float, warmup: int, **_: Any
) -> Any:
    return torch.optim.lr_scheduler.MultiStepLR(optimizer, [step - warmup for step in milestones], gamma)


def _exponential(optimizer: torch.optim.Optimizer, *, gamma: float, **_: Any) -> Any:
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma)


def _cosine(optimizer: torch.optim.Optimizer, *, eta_min: float, steps: int, **_: Any) -> Any:
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min)


_GAMMA = Option(float, 0.1, "Factor of each decay.", gt=0.0, le=1.0)
# (optimizer, *, steps after the warm-up, warmup (its steps), options) -> the schedule after the warm-up.
SCHEDULES: dict[str, ScheduleDeclaration] = table(
    adapt_schedule,
    ScheduleDeclaration(name="constant", function=_constant, text="the same learning rate throughout"),
    ScheduleDeclaration(
        name="step",
        function=_step,
        text="a decay after every so many steps",
        options={
            "step_size_steps": Option(int, None, "Steps between two decays.", ge=1, required=True),
            "gamma": _GAMMA,
        },
    ),
    ScheduleDeclaration(
        name="multistep",
        function=_multistep,
        text="a decay at each milestone",
        options={
            "milestones": Option(tuple[int, ...], None, "Steps at which lr decays, increasing.", ge=1, required=True),
            "gamma": _GAMMA,
        },
    ),
    ScheduleDeclaration(
        name="exponential",
        function=_exponential,
        text="a decay at every step",
        options={"gamma": Option(float, None, "Factor of the decay at every step.", gt=0.0, le=1.0, required=True)},
    ),
    ScheduleDeclaration(
        name="cosine",
        function=_cosine,
        text="half a cosine down to eta_min",
        options={"eta_min": Option(float, 0.0, "Learning rate at the last step.", ge=0.0)},
    ),
)
