"""The first check of loss() in float64, for a job with `precision: float64_rounded`: whether all of it stays in that.

A tensor of a fixed format in loss() or in a module's forward either does not go with float64, which raises, or takes
float64 numbers and leaves fewer bits of them. Workers on unlike processors would then send other vectors, and nothing
would say why. Every operation of one forward pass is looked at.
"""

from __future__ import annotations

import copy
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from draco import own
from draco.models.dropout import set_dropout
from draco.sampling import generator
from draco.tasks.batch import mapped, tensors, widened
from draco.tasks.first_check.calls import Calls

_BITS = 64  # of a number that is wide enough


def check(calls: Calls, model: nn.Module, batch: Any) -> None:
    """Note where loss() makes fewer bits of float64 numbers; model and batch stay as they are.

    Raises:
        Failed: it raised; a fault says what, and where.
    """
    wide, watch = copy.deepcopy(model).double().train(), _Watch()
    own_batch = mapped(batch, lambda rows: rows.to(calls.setting.device, copy=True))  # loss() may change it
    size = len(next(iter(tensors(batch))))
    set_dropout(wide, [(size, generator(calls.setting.seed, "dropout", 1, 0))])

    def watched() -> Any:
        with watch, torch.no_grad():
            return calls.task.loss(wide, widened(own_batch))

    calls.call("loss", watched, about=lambda: "; model and batch are float64, as precision: float64_rounded computes")
    for place, operation in watch.found.items():
        calls.fault_at(
            "loss",
            place,
            f"{operation} makes fewer bits of float64 numbers, and precision: float64_rounded needs them all; take the "
            "format from a tensor that is given (dtype=x.dtype, torch.zeros_like, x.new_zeros), or leave .float() out",
        )


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the operations that take float64 numbers and give floating-point numbers of fewer bits."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: dict[str, str] = {}  # file and line in the user's code -> operation

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        given = [*tensors([list(args), dict(kwargs or {})])]
        if any(each.dtype == torch.float64 for each in given) and any(_narrow(each) for each in tensors([result])):
            self.found.setdefault(_place(), f"{func.overloadpacket.__name__.strip('_')}()")
        return result


def _narrow(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and torch.finfo(tensor.dtype).bits < _BITS


def _place() -> str:
    """Return the innermost line of the user's code that is running, as `, my_task.py, line 3`."""
    for frame in reversed(traceback.extract_stack()):
        if own.is_own(frame.filename):
            return f", {own.shown(frame.filename)}, line {frame.lineno}"
    return ""
