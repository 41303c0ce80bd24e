"""Recomputed activations: the bits of a model that keeps them, with dropout and BatchNorm; and models that do it."""

import pytest
import torch
from real_model import Block, Net, Regression, vector, vectors
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from draco.errors import JobError, OwnCodeError

BLOCKS = ("blocks.*",)


class Twice(Block):
    """A block that uses its layers twice."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(super().forward(x) + 1)


class Doubled(Net):
    """The net with such blocks."""

    def __init__(self, norm: bool, p: float) -> None:
        super().__init__(norm, p)
        self.blocks = nn.ModuleList(Twice(norm, p) for _ in range(3))


class Own(Net):
    """The net that checkpoints its blocks by itself."""

    def blocked(self, block: nn.Module, x: Tensor) -> Tensor:
        out: Tensor = checkpoint(block, x, use_reentrant=False)
        return out


class OwnDoubled(Doubled, Own):
    """The same with blocks whose dropout layer runs twice."""


@pytest.mark.parametrize("net", [Net, Doubled])
@pytest.mark.parametrize("micro_batch", [None, 4])
def test_the_bits_are_those_of_kept_activations(net: type[Net], micro_batch: int | None) -> None:
    task = Regression(norm=True, p=0.4, net=net)
    kept, again = vectors(task, micro_batch=micro_batch), vectors(task, micro_batch=micro_batch, recompute=BLOCKS)
    for step, partition in ((1, 0), (1, 1), (2, 0)):
        assert torch.equal(vector(again, step, partition), vector(kept, step, partition))


def test_a_backward_over_several_partitions_gives_the_same_bits() -> None:
    task = Regression(p=0.4)
    outs = []
    for recompute in ((), BLOCKS):
        of = vectors(task, recompute=recompute)
        outs.append(torch.zeros(of.elements))
        of.weighted(1, [0, 1], [0.25, 0.5], outs[-1])
    assert torch.equal(*outs)


def test_activations_are_really_computed_again() -> None:
    calls = []

    class Counting(Net):
        def __init__(self, norm: bool, p: float) -> None:
            super().__init__(norm, p)
            for block in self.blocks:
                block.linear.register_forward_hook(lambda *_: calls.append(1))

    vector(vectors(Regression(net=Counting), recompute=("blocks.0", "blocks.0.linear", "last")))
    assert len(calls) == 4  # of three blocks one twice


def test_a_glob_that_matches_nothing_names_the_modules_there_are() -> None:
    with pytest.raises(JobError, match=r"recompute: layers\.\* matches no module of the model; .* first, b"):
        vectors(Regression(), recompute=("layers.*",))


def test_names_of_the_model_stay() -> None:
    task = Regression(norm=True)
    assert {*vectors(task, recompute=BLOCKS).model.state_dict()} == {*task.model().state_dict()}


def test_a_model_that_checkpoints_by_itself_gets_the_same_masks() -> None:
    kept, own = (vectors(Regression(p=0.4, net=net)) for net in (Net, Own))
    for step in (1, 2):
        assert torch.equal(vector(own, step), vector(kept, step))


def test_a_layer_that_runs_twice_in_such_a_model_is_refused() -> None:
    with pytest.raises(OwnCodeError, match="dropout: a layer that runs 2 times in a forward pass is computed again"):
        vector(vectors(Regression(p=0.4, net=OwnDoubled)))
