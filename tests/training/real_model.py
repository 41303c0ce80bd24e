"""A small task with what real models have: convolution, BatchNorm or not, dropout, and layers inside layers."""

from typing import Any

import torch
from torch import Tensor, nn

from draco.models.dropout import replace_dropout
from draco.tasks import Task
from draco.training.autocast import Autocast
from draco.training.gradients import Plan, StepVectors


class Block(nn.Module):
    """A residual block; it uses its dropout layer once."""

    def __init__(self, norm: bool, p: float) -> None:
        super().__init__()
        self.linear, self.drop = nn.Linear(8, 8), nn.Dropout(p)
        self.norm = nn.BatchNorm1d(8) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop(torch.relu(self.norm(self.linear(x))))


class Net(nn.Module):
    """An input layer, blocks, and an output layer."""

    def __init__(self, norm: bool, p: float) -> None:
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.blocks = nn.ModuleList(Block(norm, p) for _ in range(3))
        self.last = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = self.blocked(block, x)
        return self.last(x)

    def blocked(self, block: nn.Module, x: Tensor) -> Tensor:
        """Run a block; tests replace it."""
        out: Tensor = block(x)
        return out


class Regression(Task):
    """Two outputs of four inputs, by squared error."""

    def __init__(self, norm: bool = False, p: float = 0.0, net: type[Net] = Net) -> None:
        self.norm, self.p, self.net = norm, p, net

    def model(self) -> nn.Module:
        torch.manual_seed(3)
        return self.net(self.norm, self.p)

    def samples(self, split: str) -> Any:
        generator = torch.Generator().manual_seed(5)
        return torch.randn(200, 4, generator=generator), torch.randn(200, 2, generator=generator)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        inputs, targets = batch
        return (model(inputs) - targets).square().mean(1)


def vectors(
    task: Task, *, batch_size: int = 22, partitions: int = 2, where: torch.device | str = "cpu", **plan: Any
) -> StepVectors:
    """Return the step vectors of a task, whose model is built anew, on a device."""
    model = task.model()
    replace_dropout(model)
    if "autocast" in plan:
        plan["autocast"] = Autocast(*plan["autocast"])
    whole = Plan(7, batch_size, partitions, 200, **plan)
    return StepVectors(task, model, task.samples("train"), whole, where)


def vector(of: StepVectors, step: int = 1, partition: int = 0) -> Tensor:
    """Return one step vector (d,), on the CPU."""
    out = torch.full((of.elements,), torch.nan, device=of.device)
    of.partition(step, partition, out)
    return out.cpu()
