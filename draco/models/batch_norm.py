"""The BatchNorm layers of a model: whether it has any, and their running statistics as a flat vector of b numbers.

b counts a mean and a variance for every channel of every BatchNorm layer that keeps running statistics.
"""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from draco.models.frozen import is_frozen


def has_batch_statistics(model: nn.Module) -> bool:
    """Return whether, in training, the samples of a batch influence each other's outputs.

    They do through every BatchNorm layer that is not frozen. A frozen layer is in evaluation mode inside a model in
    training mode (frozen.py), and has running statistics to use instead. The answer is about training, so it is the
    same while the whole model is in evaluation mode.
    """
    return any(
        module.training or module.running_mean is None or not model.training
        for module in model.modules()
        if isinstance(module, _BatchNorm) and not (is_frozen(module) and module.running_mean is not None)
    )


def batch_norm_layers(model: nn.Module) -> list[_BatchNorm]:
    """Return the BatchNorm layers that keep running statistics, in module order; those of frozen ones do not change."""
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm) and not is_frozen(module)]
    return [layer for layer in layers if layer.running_mean is not None]


def statistics_size(model: nn.Module) -> int:
    """Return b: a mean and a variance for every channel of every BatchNorm layer."""
    return sum(2 * layer.num_features for layer in batch_norm_layers(model))


def statistics_momenta(model: nn.Module) -> Tensor:
    """Return the weight of a new batch's statistics in the running ones, for each of them, (b,) float32.

    Raises:
        ValueError: a layer averages over all batches (momentum None), so that the weight is no constant.
    """
    layers = batch_norm_layers(model)
    if any(layer.momentum is None for layer in layers):
        raise ValueError("a BatchNorm layer has momentum None, a cumulative average; give it a number")
    values = [torch.full((2 * layer.num_features,), float(layer.momentum or 0.0)) for layer in layers]
    return torch.cat(values) if values else torch.empty(0)


def measure_batch_statistics(model: nn.Module) -> None:
    """Let every forward in training mode leave exactly its batch's statistics in the running buffers.

    It sets the momentum to 1, so the buffers become 0 * old + 1 * batch. That is exact while the old values are finite.
    In a diverged model they may not be: overwrite them with `write_statistics` before the forward. The variance is the
    unbiased one, as torch keeps it.
    """
    for layer in batch_norm_layers(model):
        layer.momentum = 1.0


@torch.no_grad()
def read_statistics(model: nn.Module, out: Tensor) -> Tensor:
    """Copy every BatchNorm layer's running mean, then its running variance, in module order into `out` (b,)."""
    for buffer, piece in _pair(model, out):
        piece.copy_(buffer)
    return out


@torch.no_grad()
def write_statistics(model: nn.Module, values: Tensor) -> None:
    """Copy `values` (b,), laid out as by `read_statistics`, into the BatchNorm layers' running statistics."""
    for buffer, piece in _pair(model, values):
        buffer.copy_(piece)


def _pair(model: nn.Module, vector: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return each running buffer with its slice of `vector` (b,)."""
    size = statistics_size(model)
    if vector.shape != (size,):
        raise ValueError(f"BatchNorm statistics of this model are a vector ({size},), got {tuple(vector.shape)}")
    buffers: list[Tensor] = []
    for layer in batch_norm_layers(model):
        assert layer.running_mean is not None
        assert layer.running_var is not None
        buffers += [layer.running_mean, layer.running_var]
    return (
        list(zip(buffers, torch.split(vector, [buffer.numel() for buffer in buffers]), strict=True)) if buffers else []
    )
