"""What a step's gradient is computed from, kept until the step is checked: references, and no activations.

A forward pass leaves its inputs, the state of the random generators, autocast, and the buffers that forward passes
change. A backward pass leaves the gradients that reached the model's outputs. From these `recompute` gives the bits
of the gradient again, without the loss, which is code outside of the model.

A record hangs on the graph of its outputs, so that a forward pass without a backward pass leaves nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from draco.errors import JobError
from draco.torch.measuring import Measure, same_bits


@dataclass
class Forward:
    """One forward pass: its number, the leaves of its inputs and their tree, and what else it read."""

    number: int
    leaves: list[Any]
    tree: pytree.TreeSpec
    versions: list[int]
    random: list[Tensor]  # the states of the processor's generator, and the device's
    autocast: tuple[bool, torch.dtype, bool]
    buffers: dict[str, Tensor]
    outputs: Tensor | None = None  # how the outputs measure


@dataclass
class Pass:
    """One backward pass: the gradient of each output that had one, by forward pass and by place in its outputs."""

    task: int
    forwards: dict[int, Forward] = field(default_factory=dict)
    seeds: dict[int, dict[int, Tensor]] = field(default_factory=dict)


class Recorder:
    """Records the passes of a module between two checks, where `armed`; `recompute` gives their gradient again."""

    def __init__(self, module: torch.nn.Module, device: torch.device, measure: Measure) -> None:
        self.module, self.device, self._measure = module, device, measure
        self.parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.armed = True
        self.passes: list[Pass] = []
        self.base: list[Tensor | None] | None = None  # gradients that were there before the first pass
        self._left: list[tuple[int, int]] = []  # identity and version of each gradient when the last pass ended
        self._moving: set[str] | None = None  # buffers that forward passes change, known after the first
        self._numbers = 0
        self._current: Forward | None = None
        self._busy = False
        module.register_forward_pre_hook(self._before, with_kwargs=True)
        module.register_forward_hook(self._after)

    @property
    def moving(self) -> set[str]:
        """The buffers that forward passes change."""
        return self._moving or set()

    def clear(self, armed: bool) -> None:
        """Forget the step; record the next one if `armed`."""
        self.passes, self.base, self.armed = [], None, armed

    def _before(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep what a forward pass reads."""
        if self._busy or not self.armed or not torch.is_grad_enabled():
            return
        leaves, tree = pytree.tree_flatten((args, kwargs))
        kind = self.device.type
        self._numbers += 1
        self._current = Forward(
            number=self._numbers,
            leaves=[leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in leaves],
            tree=tree,
            versions=[leaf._version for leaf in leaves if isinstance(leaf, Tensor)],
            random=self._random(),
            autocast=(
                torch.is_autocast_enabled(kind),
                torch.get_autocast_dtype(kind),
                torch.is_autocast_cache_enabled(),
            ),
            buffers={
                name: buffer.detach().clone()
                for name, buffer in module.named_buffers()
                if self._moving is None or name in self._moving
            },
        )

    def _after(self, module: torch.nn.Module, args: Any, outputs: Any) -> None:
        """Measure the outputs, and wait for their gradients."""
        forward, self._current = self._current, None
        if forward is None or self._busy:
            return
        if self._moving is None:
            now = dict(module.named_buffers())
            self._moving = {name for name, old in forward.buffers.items() if not same_bits(old, now[name])}
            forward.buffers = {name: old for name, old in forward.buffers.items() if name in self._moving}
        found = differentiable(outputs)
        if not found:
            raise JobError(
                [
                    f"the model returned a {type(outputs).__name__} in which the guard finds no tensor with a "
                    "gradient; return tensors, or lists, tuples, dicts or dataclasses of them"
                ]
            )
        forward.outputs = self._measure(found)
        for place, output in enumerate(found):
            output.register_hook(partial(self._arrived, forward, place))  # type: ignore[no-untyped-call]

    def _arrived(self, forward: Forward, place: int, gradient: Tensor) -> None:
        """Keep the gradient that reached an output; the first one of a backward pass begins it."""
        if self._busy or not self.armed:
            return
        task = torch._C._current_graph_task_id()
        if not self.passes or self.passes[-1].task != task:
            state = self._gradients()
            if not self.passes or state != self._left:
                self.passes = []
                gradients = [parameter.grad for parameter in self.parameters]
                self.base = [None if grad is None else grad.detach().clone() for grad in gradients]
            self.passes.append(Pass(task))
            torch.autograd.Variable._execution_engine.queue_callback(self._ended)
        current = self.passes[-1]
        current.forwards[forward.number] = forward
        current.seeds.setdefault(forward.number, {})[place] = gradient.detach()

    def _ended(self) -> None:
        """Note which gradients a backward pass left, so that the next one sees whether somebody changed them."""
        self._left = self._gradients()

    def _gradients(self) -> list[tuple[int, int]]:
        """Return the identity and the version of each gradient."""
        return [(0, 0) if p.grad is None else (id(p.grad), p.grad._version) for p in self.parameters]

    def _random(self) -> list[Tensor]:
        """Return the states of the random generators that a forward pass may draw from."""
        own = [torch.cuda.get_rng_state(self.device)] if self.device.type == "cuda" else []
        return [torch.get_rng_state(), *own]

    def recompute(
        self, passes: Sequence[Pass], base: Sequence[Tensor | None] | None
    ) -> tuple[list[Tensor], Recomputed]:
        """Return how the outputs of each forward pass measure, and the gradient, computed again.

        Args:
            passes: this rank's own, or those that another rank has lent.
            base: the gradients to add to, which were there before the first pass; None where there were none.

        Raises:
            JobError: somebody wrote into an input after its forward pass.
        """
        total: list[Tensor | None] = [
            None if old is None else old.clone() for old in base or [None] * len(self.parameters)
        ]
        measured: list[Tensor] = []
        # Activation checkpointing runs forward passes while differentiating, on the module's own buffers.
        own = [
            (buffer.data, buffer.detach().clone())
            for name, buffer in self.module.named_buffers()
            if name in self.moving
        ]
        self._busy = True
        try:
            with torch.enable_grad(), torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
                for backward in passes:
                    for place, gradient in enumerate(self._differentiate(backward, measured)):
                        if gradient is not None:
                            old = total[place]
                            total[place] = gradient.detach().clone() if old is None else old.add_(gradient)
        finally:
            self._busy = False
            for buffer, kept in own:
                buffer.copy_(kept)
        return measured, dict(zip(map(id, self.parameters), total, strict=True))

    def _differentiate(self, backward: Pass, measured: list[Tensor]) -> Sequence[Tensor | None]:
        """Return the gradient that one backward pass adds, for each parameter."""
        outputs: list[Tensor] = []
        seeds: list[Tensor] = []
        for number in sorted(backward.forwards):
            found = self._forward(backward.forwards[number])
            measured.append(self._measure(found))
            for place, seed in sorted(backward.seeds[number].items()):
                outputs.append(found[place])
                seeds.append(seed)
        return torch.autograd.grad(outputs, self.parameters, seeds, allow_unused=True)

    def _forward(self, forward: Forward) -> list[Tensor]:
        """Return the outputs with a gradient of one forward pass, run again; no buffer of the module changes."""
        tensors = [leaf for leaf in forward.leaves if isinstance(leaf, Tensor)]
        if [tensor._version for tensor in tensors] != forward.versions:
            raise JobError(
                ["an input of the model was written into before its backward pass had ended; give the model a copy"]
            )
        buffers = {
            name: forward.buffers.get(name, buffer).detach().clone() for name, buffer in self.module.named_buffers()
        }
        torch.set_rng_state(forward.random[0])
        if len(forward.random) > 1:
            torch.cuda.set_rng_state(forward.random[1], self.device)
        args, kwargs = pytree.tree_unflatten(forward.leaves, forward.tree)
        enabled, dtype, cached = forward.autocast
        with torch.autocast(self.device.type, dtype=dtype, enabled=enabled, cache_enabled=cached):
            outputs = torch.func.functional_call(self.module, buffers, args, kwargs, strict=False)
        return differentiable(outputs)


Recomputed = dict[int, "Tensor | None"]  # the identity of a parameter -> its gradient


def differentiable(outputs: Any) -> list[Tensor]:
    """Return the tensors in a model's outputs that gradients reach, each once, in order."""
    found = {id(tensor): tensor for tensor in _tensors(outputs) if tensor.requires_grad}
    return list(found.values())


def _tensors(tree: Any) -> Iterator[Tensor]:
    """Yield the tensors in lists, tuples, dicts and dataclasses."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from _tensors(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from _tensors(value)
    elif dataclasses.is_dataclass(tree):
        for entry in dataclasses.fields(tree):
            yield from _tensors(getattr(tree, entry.name))
