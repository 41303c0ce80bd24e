"""Activations that are computed again in the backward pass instead of being kept: `recompute` in a job.

It is torch.utils.checkpoint around chosen modules, without a change of their names. What the second computation would
otherwise change is kept apart: dropout draws the masks of the first one from the same generators, and BatchNorm counts
a batch once. So gradient and statistics have the bits that they have without it.

Source: Chen, Xu, Zhang, Guestrin, Training deep nets with sublinear memory cost, 2016 (arXiv:1604.06174).
"""

import fnmatch
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from draco.errors import JobError
from draco.models.batch_norm import batch_norm_layers
from draco.models.dropout import SeededDropout

_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


def wrap(model: nn.Module, globs: Sequence[str]) -> None:
    """Let the modules whose names match a glob compute their activations again in the backward pass.

    Of modules inside each other the outermost counts. A glob's `*` goes over dots too.

    Raises:
        JobError: a glob matches no module; lists those that there are.
    """
    names = [name for name, _ in model.named_modules() if name]
    chosen: list[str] = []
    for glob in globs:
        found = [name for name in names if fnmatch.fnmatchcase(name, glob)]
        if not found:
            shown = ", ".join(names[:40]) + (f" and {len(names) - 40} more" if len(names) > 40 else "")
            raise JobError([f"recompute: {glob} matches no module of the model; its modules are {shown or 'none'}"])
        chosen += found
    for name in dict.fromkeys(chosen):
        if not any(name.startswith(f"{other}.") for other in chosen):
            _wrap(model.get_submodule(name))


def _wrap(module: nn.Module) -> None:
    once = module.forward

    def forward(*arguments: Any, **named: Any) -> Any:
        if not module.training or not torch.is_grad_enabled():
            return once(*arguments, **named)
        return checkpoint(once, *arguments, use_reentrant=False, context_fn=_contexts(module), **named)

    module.forward = forward


def _contexts(
    module: nn.Module,
) -> Callable[[], tuple[AbstractContextManager[None], AbstractContextManager[None]]]:
    """Return what torch calls as a module's forward begins: for the contexts of its first and second computation."""

    def begin() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        layers = [each for each in module.modules() if isinstance(each, SeededDropout)]
        sources = {id(source): source for layer in layers for _, source in layer.segments}
        states = {key: source.get_state() for key, source in sources.items()}
        return nullcontext(), _again(module, layers, sources, states)

    return begin


@contextmanager
def _again(
    module: nn.Module,
    layers: Sequence[SeededDropout],
    sources: dict[int, torch.Generator],
    states: dict[int, torch.Tensor],
) -> Iterator[None]:
    """Compute a module's forward again as it was: from generators as they were, without a trace in BatchNorm."""
    later = {key: source.get_state() for key, source in sources.items()}
    norms = batch_norm_layers(module)
    kept = [{name: layer._buffers[name] for name in _BUFFERS} for layer in norms]
    for key, state in states.items():
        sources[key].set_state(state)
    for layer in layers:
        layer.restored = True
    for norm, buffers in zip(norms, kept, strict=True):  # others in their place: autograd sees no write to them
        norm._buffers.update({name: None if value is None else value.clone() for name, value in buffers.items()})
    try:
        yield
    finally:
        for norm, buffers in zip(norms, kept, strict=True):
            norm._buffers.update(buffers)
        for layer in layers:
            layer.restored = False
        for key, state in later.items():
            sources[key].set_state(state)
