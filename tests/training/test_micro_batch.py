"""Micro-batches: the gradient of a partition, a piece at a time."""

from collections.abc import Callable

import pytest
import torch
from real_model import Regression, vector, vectors
from torch import nn

from draco.errors import OwnCodeError
from draco.job import Job
from draco.sampling import batch_indices
from draco.tasks.batch import cut
from draco.training.gradients import piece_sizes

Make = Callable[..., Job]


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize(
    ("samples", "most", "sizes"),
    [(11, 4, [4, 4, 3]), (11, 11, [11]), (11, 100, [11]), (11, None, [11]), (11, 1, [1] * 11), (12, 5, [4, 4, 4])],
)
def test_pieces_are_few_and_alike(samples: int, most: int | None, sizes: list[int]) -> None:
    assert piece_sizes(samples, most) == sizes


def test_pieces_give_the_vector_of_the_whole_up_to_rounding_and_a_large_one_its_bits() -> None:
    task = Regression()
    whole = vector(vectors(task))
    assert torch.equal(vector(vectors(task, micro_batch=11)), whole)
    for most in (1, 4, 10):
        pieces = vector(vectors(task, micro_batch=most))
        assert 0 < distance(pieces, whole) < 1e-6


def test_pieces_are_the_accumulation_of_a_plain_loop() -> None:
    task = Regression()
    model, (inputs, targets) = task.model(), task.samples("train")
    mine = batch_indices(7, 1, 22, 200)[:11]  # the first of two partitions
    for piece in torch.split(mine, [4, 4, 3]):
        loss = nn.functional.mse_loss(model(inputs[piece]), targets[piece])
        (loss * len(piece) / len(mine)).backward()  # its share of the mean over the partition
    expected = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    got = vector(vectors(task, micro_batch=4))[: len(expected)]
    assert distance(got, expected) < 1e-6


def test_an_encoding_of_pieces_in_one_pass_is_the_sum_of_the_explicit_ones_with_dropout() -> None:
    of = vectors(Regression(p=0.3), micro_batch=4)
    fused = torch.zeros(of.elements)
    of.weighted(1, [0, 1], [0.25, 0.5], fused)
    explicit = 0.25 * vector(of, 1, 0) + 0.5 * vector(of, 1, 1)
    assert distance(fused, explicit) < 1e-6


def test_all_who_compute_a_partition_in_pieces_get_the_same_bits() -> None:
    task = Regression(norm=True, p=0.3)
    first, second = vectors(task, micro_batch=4), vectors(task, micro_batch=4)
    vector(second, 1, 1)  # another partition before
    assert torch.equal(vector(first), vector(second))
    assert not torch.equal(vector(first, 2), vector(first))


def test_masks_of_pieces_differ() -> None:
    """The generator goes on from piece to piece: equal samples get different masks."""

    class Equal(Regression):
        def samples(self, split: str) -> object:
            return torch.ones(200, 4), torch.ones(200, 2)

    of = vectors(Equal(p=0.5), micro_batch=1, partitions=1, batch_size=2)
    two = vector(of)
    one = vector(vectors(Equal(p=0.5), micro_batch=1, partitions=1, batch_size=1))
    assert distance(two, one) > 1e-3


def test_statistics_are_the_weighted_mean_of_the_pieces() -> None:
    task = Regression(norm=True)
    of = vectors(task, micro_batch=4)
    statistics = vector(of)[of.parameters : -1]
    model, (inputs, _) = task.model(), task.samples("train")
    mine = batch_indices(7, 1, 22, 200)[:11]
    expected = torch.zeros(len(statistics))
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm1d)]
    for norm in norms:
        norm.momentum = 1.0
    for piece in torch.split(mine, [4, 4, 3]):
        model(inputs[piece])
        measured = torch.cat([torch.cat([norm.running_mean, norm.running_var]) for norm in norms])
        expected += measured * len(piece) / len(mine)
    torch.testing.assert_close(statistics, expected)  # k |P| / B is 1 here


def test_a_batch_that_cannot_be_cut_is_named() -> None:
    with pytest.raises(OwnCodeError, match=r"micro_batch: a batch of 3 samples has a tensor of shape \(2, 5\)"):
        cut({"x": torch.zeros(3, 2), "weights": torch.zeros(2, 5)}, [2, 1])


def test_a_run_in_pieces_is_the_run_without_up_to_rounding(make_job: Make, train) -> None:
    coded = ("scheme={name: cyclic, adversaries: 1}", "attack=reverse_gradient", "model=lenet")
    whole, pieces = train(make_job(*coded)), train(make_job(*coded, "micro_batch=2"))
    assert 0 < distance(pieces.model, whole.model) < 1e-5


def test_a_vote_on_bits_holds_in_pieces(make_job: Make, train) -> None:
    coded = ("scheme={name: repetition, adversaries: 1}", "micro_batch=2")
    assert torch.equal(train(make_job(*coded, "attack=random")).model, train(make_job(*coded)).model)
