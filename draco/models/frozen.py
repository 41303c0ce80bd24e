"""Modules that a model in training mode has in evaluation mode, such as frozen BatchNorm: they stay so."""

from __future__ import annotations

import types

from torch import nn

_MARK = "stays_in_evaluation_mode"


def keep_frozen(model: nn.Module) -> None:
    """Have each module stay in evaluation mode that is in it while the whole model is in training mode.

    A model that is in evaluation mode as a whole, as one that was just loaded, has no such modules.
    """
    if not model.training:
        return
    for module in model.modules():
        if not module.training:
            setattr(module, _MARK, True)
            module.train = types.MethodType(_pass_on, module)  # type: ignore[method-assign]


def is_frozen(module: nn.Module) -> bool:
    """Say whether a module stays in evaluation mode."""
    return hasattr(module, _MARK)


def _pass_on(module: nn.Module, mode: bool = True) -> nn.Module:
    """Set the mode of a frozen module's children, in the place of `nn.Module.train`."""
    for child in module.children():
        child.train(mode)
    return module
