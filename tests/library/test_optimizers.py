"""Torch's optimizers without its compiler: the same steps, and no import that takes as long as torch's."""

import copy
import subprocess
import sys

import pytest
import torch

from draco.optimizers import OPTIMIZERS

OPTIONS = {
    "sgd": [{"lr": 0.1}, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}],
    "adam": [{"lr": 0.01, "weight_decay": 0.1}],
    "adamw": [{"lr": 0.01, "weight_decay": 0.1}],
}
TORCHS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


@pytest.mark.parametrize(("name", "options"), [(n, o) for n in OPTIMIZERS for o in OPTIONS[n]], ids=str)
def test_every_optimizer_takes_the_steps_of_torchs_own(name: str, options: dict[str, float]) -> None:
    """Also when it goes on from the state of the other one."""
    mine, theirs = (torch.nn.Parameter(torch.linspace(-1, 1, 50)) for _ in range(2))
    ours, twin = OPTIMIZERS[name].function([mine], **options), TORCHS[name]([theirs], **options)
    source = torch.Generator().manual_seed(1)
    for step in range(6):
        mine.grad = torch.randn(50, generator=source)
        theirs.grad = mine.grad.clone()
        ours.step()
        twin.step()
        assert torch.equal(mine, theirs)
        if step == 3:
            ours.load_state_dict(copy.deepcopy(twin.state_dict()))
    assert not mine.grad.requires_grad
    ours.zero_grad()
    assert mine.grad is None


def test_a_step_and_its_schedule_do_not_import_the_compiler() -> None:
    script = """
import sys, torch
from draco.optimizers import OPTIMIZERS, SCHEDULES
for name, optimizer in OPTIMIZERS.items():
    built = optimizer.function([torch.nn.Parameter(torch.zeros(2))], lr=0.1)
    schedule = SCHEDULES["constant"].function(built)
    built.param_groups[0]["params"][0].grad = torch.ones(2)
    built.step()
    schedule.step()
    built.load_state_dict(built.state_dict())
print(sorted({"torch._dynamo", "sympy"} & {*sys.modules}))
"""
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
