"""Models by name: the table, and the way from a name to a model with its initial weights.

    model (the value) <- lenet, fc, resnet, vgg <- MODELS;    pooling: what building one puts in
    dropout, flat, batch_norm: what training does with a model

Each builder states how it differs from the original Draco's model (hwang595/Draco).
Shapes: N samples, an image is (c, h, w), p parameters, b BatchNorm statistics (mean and variance of every channel).
Invariants: no function reads or leaves changed any global random state; every model gives logits, to be used with
cross entropy. Torch is imported when a model is built, torchvision only when a ResNet or VGG is built.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from draco.models import fc, lenet, resnet, vgg
from draco.models.model import Model, Shape, Size

if TYPE_CHECKING:
    from torch import nn

__all__ = ["MODELS", "Model", "Shape", "Size", "build_model", "model_fault", "model_size"]

MODELS: dict[str, Model] = {
    "lenet": lenet.MODEL,
    "fc": fc.MODEL,
    "resnet18": resnet.model("resnet18"),
    "resnet34": resnet.model("resnet34"),
    "resnet50": resnet.model("resnet50"),
    "resnet101": resnet.model("resnet101"),
    "resnet152": resnet.model("resnet152"),
    "vgg11": vgg.model("vgg11"),
    "vgg11_bn": vgg.model("vgg11_bn"),
    "vgg13": vgg.model("vgg13"),
    "vgg13_bn": vgg.model("vgg13_bn"),
    "vgg16": vgg.model("vgg16"),
    "vgg16_bn": vgg.model("vgg16_bn"),
    "vgg19": vgg.model("vgg19"),
    "vgg19_bn": vgg.model("vgg19_bn"),
}


def build_model(name: str, shape: Shape, classes: int, seed: int) -> nn.Module:
    """Return the model in float32 on the CPU, in training mode, with weights that depend on `seed` alone.

    Raises:
        ValueError: no such model, or it cannot take such images.
        MissingError: the model comes from torchvision, which is not installed.
    """
    fault = model_fault(name, shape)
    if fault is not None:
        raise ValueError(fault)
    if classes < 1:
        raise ValueError(f"a model needs at least 1 class, got {classes}")
    import torch

    from draco.models.dropout import replace_dropout
    from draco.models.pooling import replace_pooling
    from draco.sampling import derive_seed

    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        # Not torch.manual_seed, which would also reseed every other device's generator, outside of fork_rng's care.
        torch.default_generator.manual_seed(derive_seed(seed, "weights"))
        model = MODELS[name].build(shape, classes).float()
    replace_dropout(model)
    replace_pooling(model)
    return model.train()


def model_size(name: str, shape: Shape, classes: int) -> Size:
    """Return how many numbers the model has; one that does not say is built, which loads torch."""
    if (size := MODELS[name].size) is not None:
        return size(shape, classes)
    model = build_model(name, shape, classes, seed=0)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Size(parameters, sum(buffer.numel() for buffer in model.buffers()))


def model_fault(name: str, shape: Shape) -> str | None:
    """Return one sentence that says why the model cannot take images of that shape; None when it can."""
    if name not in MODELS:
        return f"there is no model {name!r}; the models are {', '.join(MODELS)}"
    channels, height, width = shape
    if channels < 1:
        return f"images need at least 1 channel, got {channels}"
    smallest = MODELS[name].smallest
    if min(height, width) < smallest:
        return f"{name} needs images of at least {smallest}x{smallest} pixels, got {height}x{width}"
    return None
