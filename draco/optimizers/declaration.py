"""What optimizers and schedules declare besides their options, and torch's optimizers without its compiler."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from draco.declaration import Declaration
from draco.lazy import torch

Given = Mapping[str, Any]  # options


def _nothing(*_: Any) -> None:
    return None


@dataclass(frozen=True, kw_only=True)
class OptimizerDeclaration(Declaration):
    """What an optimizer declares. Its function makes one of a list with the flat parameter vector (p,)."""

    vectors: Callable[[Given], int]  # options -> vectors as long as the parameters that it keeps
    # It is none of ours: what it keeps may change its form from step to step, as long as checkpoints can hold it.
    own: bool = False
    # (options) -> what a user may not have meant, or None; raises OwnCodeError where it cannot train with them.
    doubt: Callable[[Given], str | None] = _nothing


@dataclass(frozen=True, kw_only=True)
class ScheduleDeclaration(Declaration):
    """What a schedule declares. Its function makes one of (optimizer, *, steps, warmup, options)."""

    own: bool = False  # as in `OptimizerDeclaration`
    # (makes an optimizer of a parameter, steps, warm-up, options); raises OwnCodeError where it cannot train with them.
    tried: Callable[[Callable[[Any], Any], int, int, Given], None] = _nothing


@functools.cache
def uncompiled(kind: type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    """Return an optimizer without what keeps torch's compiler off it: for that alone the compiler is imported.

    That import takes as long as torch's own, and nothing of Draco's is compiled. What remains is the same code. What a
    class that is not torch's defines itself stays as it is.
    """
    names = ("add_param_group", "state_dict", "load_state_dict", "zero_grad")
    spared = [name for name in names if getattr(kind, name) is getattr(torch.optim.Optimizer, name)]
    methods: dict[str, Any] = {name: inspect.unwrap(getattr(kind, name)) for name in spared}
    if kind.__module__.partition(".")[0] == "torch":
        methods["step"] = torch.no_grad()(inspect.unwrap(kind.step))
    return type(kind.__name__, (kind,), methods)
