"""Workers on a GPU: what they send has the bits of the CPU's where the device computes as the CPU does."""

from collections.abc import Callable

import pytest
import torch
from conftest import Trained

from draco.job import Job

Make = Callable[..., Job]
Train = Callable[..., Trained]
SMALL = ("model=fc", "steps=2", "server_device=cpu")


def close(gpu: torch.device, there: torch.Tensor, here: torch.Tensor) -> None:
    """Compare models: by their bits where the device poses, as it computes what the CPU computes."""
    if gpu.type == "posing":
        assert torch.equal(there, here)
    else:
        assert float((there - here).norm() / here.norm()) < 1e-3


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(["scheme=uncoded"], id="uncoded"),
        pytest.param(["scheme=repetition", "scheme.adversaries=1", "attack=reverse_gradient"], id="repetition"),
    ],
)
def test_it(gpu: torch.device, make_job: Make, train: Train, words: list[str]) -> None:
    here = train(make_job(*SMALL, *words))
    there = train(make_job(*SMALL, *words, "device=cuda"))
    assert there.status.state == "succeeded"
    close(gpu, there.model, here.model)
