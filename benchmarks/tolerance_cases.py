"""The models that benchmarks/tolerance.py looks at, as computations of one partition's gradient."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from draco.models import build_model


class Case(NamedTuple):
    """A model and one partition of a batch."""

    name: str
    model: nn.Module
    inputs: Tensor
    labels: Tensor

    def loss(self) -> Tensor:
        """Return the mean cross entropy."""
        logits = self.model(self.inputs)
        return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), self.labels)

    def gradient(self) -> Tensor:
        """Return the gradient of all parameters end to end, (p,)."""
        return flat(torch.autograd.grad(self.loss(), list(self.model.parameters())))


class _Block(nn.Module):
    """A transformer's block with GELU, and attention by two batched products."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attend, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        count, tokens, width = x.shape
        parts = self.attend(self.first(x)).view(count, tokens, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        mixed = torch.softmax(q @ k.transpose(-1, -2) * math.sqrt(self.heads / width), -1) @ v
        x = x + self.out(mixed.transpose(1, 2).reshape(count, tokens, width))
        y: Tensor = x + self.down(F.gelu(self.up(self.second(x))))
        return y


def _gpt(layers: int, width: int, vocabulary: int = 1000) -> nn.Module:
    blocks = [_Block(width, 4) for _ in range(layers)]
    return nn.Sequential(nn.Embedding(vocabulary, width), *blocks, nn.Linear(width, vocabulary))


def build(name: str, samples: int) -> Case:
    """Return a case: lenet, resnet18 (with batch statistics only), or gpt LAYERSxWIDTH with 128 tokens a sample."""
    with torch.random.fork_rng():
        torch.manual_seed(samples)
        if name.startswith("gpt "):
            layers, width = map(int, name.removeprefix("gpt ").split("x"))
            tokens = torch.randint(1000, (samples, 128))
            return Case(name, _gpt(layers, width), tokens, torch.randint(1000, (samples * 128,)))
        shape = (1, 28, 28) if name == "lenet" else (3, 32, 32)
        model = build_model(name, shape, 10, seed=7)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.track_running_stats, module.running_mean, module.running_var = False, None, None
        return Case(name, model, torch.randn(samples, *shape), torch.randint(10, (samples,)))


def flat(tensors: tuple[Tensor, ...] | list[Tensor]) -> Tensor:
    """Return tensors end to end."""
    return torch.cat([tensor.flatten() for tensor in tensors])
