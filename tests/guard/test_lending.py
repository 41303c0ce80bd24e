"""What a rank lends arrives with its bits and strides, at a rank with inputs of the same structure."""

from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from draco.errors import JobError
from draco.torch.lending import borrow, lend
from draco.torch.peers import Peers
from draco.torch.recording import Forward, Pass

CPU = torch.device("cpu")


class Wire:
    """Two ranks in one: what is sent waits in a queue."""

    def __init__(self) -> None:
        self.queue: list[Tensor] = []

    def send(self, tensors: list[Tensor], ranks: list[int]) -> None:
        self.queue += [tensor.clone() for tensor in tensors if tensor.numel()]

    def receive(self, tensors: list[Tensor], source: int) -> None:
        for tensor in tensors:
            if tensor.numel():
                tensor.copy_(self.queue.pop(0))

    def receive_plain(self, source: int) -> Any:
        return Peers.receive_plain(cast(Any, self), source)


def recorded(*inputs: Any) -> list[Pass]:
    """One backward pass of as many forward passes."""
    one = Pass(1)
    for number, given in enumerate(inputs):
        leaves, tree = pytree.tree_flatten(((given,), {}))
        one.forwards[number] = Forward(
            number=number,
            leaves=leaves,
            tree=tree,
            versions=[],
            random=[torch.get_rng_state()],
            autocast=(True, torch.bfloat16, True),
            buffers={"mean": torch.ones(3)},
        )
        one.seeds[number] = {0: torch.tensor(0.5)}
    return [one]


def test_passes_arrive_with_bits_and_strides_in_the_trees_of_the_borrower() -> None:
    transposed, repeated = torch.randn(3, 5).T, torch.randn(4, 1).expand(4, 6)
    wire = cast(Peers, Wire())
    lend(wire, 1, recorded({"x": transposed, "note": "text"}, [repeated, torch.empty(0)]), [None, torch.ones(2)])
    own = recorded([torch.zeros(1), torch.zeros(1)], {"x": torch.zeros(2), "note": "mine"})
    (got,), base = borrow(wire, 0, own, CPU)
    first, second = (got.forwards[number] for number in (0, 1))
    ((tree,), _) = pytree.tree_unflatten(first.leaves, first.tree)
    assert torch.equal(tree["x"], transposed)
    assert (tree["x"].stride(), tree["note"]) == (transposed.stride(), "text")
    assert torch.equal(second.leaves[0], repeated)
    assert second.leaves[0].stride() == repeated.stride()
    assert (first.autocast, got.seeds[1][0].item()) == ((True, torch.bfloat16, True), 0.5)
    assert base[0] is None
    assert torch.equal(cast(Tensor, base[1]), torch.ones(2))


def test_inputs_of_a_structure_that_the_borrower_has_not_are_refused() -> None:
    wire = cast(Peers, Wire())
    lend(wire, 1, recorded({"x": torch.zeros(2)}), [])
    with pytest.raises(JobError, match="rank 0 gave the model inputs of another structure"):
        borrow(wire, 0, recorded({"y": torch.zeros(2)}), CPU)
