"""Autocast: the formats in which a worker computes, and what stays float32."""

from collections.abc import Callable

import pytest
import torch
from real_model import Net, Regression, vector, vectors
from torch import Tensor

from draco.job import Job
from draco.runs import events
from draco.training.build import Built

Make = Callable[..., Job]
FORMATS = ("bfloat16", "float16")


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


class Looking(Net):
    """The net, which notes in which format its blocks give their outputs."""

    seen: set[torch.dtype]

    def blocked(self, block: torch.nn.Module, x: Tensor) -> Tensor:
        Looking.seen.add(block.linear(x).dtype)
        return super().blocked(block, x)


@pytest.mark.parametrize("dtype", FORMATS)
def test_layers_compute_in_it_and_the_vector_is_float32_and_near(dtype: str) -> None:
    Looking.seen = set()
    exact, near = vector(vectors(Regression())), vector(vectors(Regression(net=Looking), autocast=(dtype, 64.0)))
    assert Looking.seen == {getattr(torch, dtype)}
    assert near.dtype == torch.float32
    assert 1e-5 < distance(near, exact) < 0.05
    assert torch.equal(near, vector(vectors(Regression(), autocast=(dtype, 64.0))))  # replicas agree


def test_a_loss_scale_saves_small_gradients_and_leaves_no_trace_in_others() -> None:
    class Small(Regression):
        def loss(self, model: torch.nn.Module, batch: object) -> Tensor:
            return super().loss(model, batch) * 1e-7  # of activations about 1e-8: nothing in float16

    exact = vector(vectors(Small()))[:-1]
    lost, saved = (vector(vectors(Small(), autocast=("float16", scale)))[:-1] for scale in (1.0, 2.0**16))
    assert distance(saved, exact) < 0.05 < distance(lost, exact)
    ones, twos = (vector(vectors(Regression(), autocast=("float16", scale))) for scale in (4.0, 8.0))
    assert torch.equal(ones[-1], twos[-1])  # the loss itself
    assert distance(ones, twos) < 1e-4


def test_a_gradient_that_overflows_is_not_finite_and_refused(make_job: Make, train) -> None:
    assert not vector(vectors(Regression(), autocast=("float16", 2.0**24))).isfinite().all()
    from draco.errors import TrainingError

    with pytest.raises(TrainingError, match="finite"):
        train(make_job("autocast={dtype: float16, loss_scale: 16777216.0}", "steps=1", "scheme=uncoded"))


def test_pieces_and_recomputed_activations_go_with_it() -> None:
    task = Regression(norm=True, p=0.3)
    options = {"autocast": ("bfloat16", 1.0), "micro_batch": 4}
    kept, again = vector(vectors(task, **options)), vector(vectors(task, **options, recompute=("blocks.*",)))
    assert torch.equal(kept, again)


def test_a_code_is_encoded_explicitly_and_decodes_to_the_attack_free_model(make_job: Make, train) -> None:
    coded = ("scheme={name: cyclic, adversaries: 1}", "autocast=bfloat16")
    assert Built(make_job(coded[0])).encodes_freely
    assert not Built(make_job(*coded)).encodes_freely
    honest, attacked = train(make_job(*coded)), train(make_job(*coded, "attack=reverse_gradient"))
    assert distance(attacked.model, honest.model) < 1e-5
    steps = [e for e in events.read(attacked.run / "events.jsonl") if e["event"] == "step"]
    assert all(step["suspects"] == step["byzantine"] != [] for step in steps)


@pytest.mark.parametrize("dtype", FORMATS)
def test_a_vote_on_bits_holds(make_job: Make, train, dtype: str) -> None:
    coded = ("scheme={name: repetition, adversaries: 1}", f"autocast={dtype}", "steps=2")
    assert torch.equal(train(make_job(*coded, "attack=random")).model, train(make_job(*coded)).model)
