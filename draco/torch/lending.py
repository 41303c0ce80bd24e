"""How one rank lends another what its step was computed from: plain values first, then the tensors' bits.

A tensor arrives with the strides that it had: kernels choose their order of summation by them. What is neither a tensor
nor a plain value does not travel; the borrower has its own, from its own step, in the same place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from draco.torch.measuring import describe
from draco.torch.peers import Peers
from draco.torch.recording import Forward, Pass

Base = Sequence["Tensor | None"]


def lend(peers: Peers, rank: int, passes: Sequence[Pass], base: Base) -> None:
    """Send the passes, and the gradients that were there before them, to a rank that calls `borrow`."""
    tensors: list[Tensor] = []

    def put(leaf: Any) -> list[Any]:
        if isinstance(leaf, Tensor):
            tensors.append(_core(leaf))
            return [*describe(leaf), list(leaf.stride())]
        return describe(leaf)

    plain = {
        "base": [put(leaf) for leaf in base],
        "passes": [
            [
                {
                    "leaves": [put(leaf) for leaf in forward.leaves],
                    "random": [put(state) for state in forward.random],
                    "buffers": {name: put(buffer) for name, buffer in forward.buffers.items()},
                    "seeds": {str(place): put(seed) for place, seed in one.seeds[number].items()},
                    "autocast": [forward.autocast[0], str(forward.autocast[1]), forward.autocast[2]],
                }
                for number, forward in sorted(one.forwards.items())
            ]
            for one in passes
        ],
    }
    peers.send_plain(plain, rank)
    peers.send(tensors, [rank])


def borrow(
    peers: Peers, lender: int, own: Sequence[Pass], device: torch.device
) -> tuple[list[Pass], list[Tensor | None]]:
    """Return the passes, and the gradients before them, that a rank lends.

    Args:
        peers: the other ranks.
        lender: who calls `lend`.
        own: this rank's own passes, for the trees of the inputs.
        device: where tensors go that are not on the lender's processor.
    """
    plain = peers.receive_plain(lender)
    sample = next(iter(own[0].forwards.values()))
    tensors: list[Tensor] = []

    def take(told: list[Any], mine: Any = None) -> Any:
        if told[0] == "tensor":
            full, core = _empty(told, device)
            tensors.append(core)
            return full
        return told[1] if told[0] == "value" else mine

    base = [take(told) for told in plain["base"]]
    passes: list[Pass] = []
    for task, forwards in enumerate(plain["passes"]):
        one = Pass(task)
        for number, told in enumerate(forwards):
            enabled, dtype, cached = told["autocast"]
            own_leaves = [*sample.leaves, *[None] * len(told["leaves"])]
            one.forwards[number] = Forward(
                number=number,
                leaves=[take(leaf, mine) for leaf, mine in zip(told["leaves"], own_leaves, strict=False)],
                tree=sample.tree,
                versions=[],
                random=[take(state) for state in told["random"]],
                buffers={name: take(buffer) for name, buffer in told["buffers"].items()},
                autocast=(enabled, getattr(torch, dtype.removeprefix("torch.")), cached),
            )
            one.seeds[number] = {int(place): take(seed) for place, seed in told["seeds"].items()}
        passes.append(one)
    peers.receive(tensors, lender)
    for one in passes:
        for forward in one.forwards.values():
            forward.versions = [leaf._version for leaf in forward.leaves if isinstance(leaf, Tensor)]
    return passes, base


def _core(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that is there once: one element of each dimension that repeats itself."""
    shape = [1 if stride == 0 else size for size, stride in zip(tensor.shape, tensor.stride(), strict=True)]
    return tensor.as_strided(shape, tensor.stride(), tensor.storage_offset())


def _empty(told: Sequence[Any], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return a tensor as described, and its part to fill."""
    _, dtype, shape, kind, stride = told
    place = torch.device("cpu") if kind == "cpu" else device
    full = torch.empty_strided(shape, stride, dtype=getattr(torch, dtype), device=place)
    return full, _core(full)
