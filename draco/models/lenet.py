"""LeNet after the original Draco (hwang595/Draco, src/model_ops/lenet.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from draco.models.model import Model, Shape, Size

if TYPE_CHECKING:
    from torch import nn


def _build(shape: Shape, classes: int) -> nn.Module:
    """Return the original's LeNet: 431,080 parameters on (1, 28, 28) with 10 classes.

    As in the original there is no activation between the two linear layers, and ReLU comes after the pooling.
    Different: it takes any number of channels and classes and any size from 16x16 up (the original: 1x28x28 and 10).
    Weights are from torch's present default initialisation; the original's torch 0.3.0 drew from the same ranges.
    """
    from torch import nn

    channels, height, width = shape
    features = 50 * _after_two_convolutions(height) * _after_two_convolutions(width)
    return nn.Sequential(
        nn.Conv2d(channels, 20, 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(20, 50, 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(features, 500),
        nn.Linear(500, classes),
    )


def _after_two_convolutions(size: int) -> int:
    """Return a side's length after two times 5x5 convolution without padding and 2x2 pooling."""
    return ((size - 4) // 2 - 4) // 2


def _size(shape: Shape, classes: int) -> Size:
    channels, height, width = shape
    features = 50 * _after_two_convolutions(height) * _after_two_convolutions(width)
    return Size((25 * channels + 1) * 20 + (25 * 20 + 1) * 50 + (features + 1) * 500 + (500 + 1) * classes)


MODEL = Model(_build, smallest=16, batch_norm=False, size=_size)  # the second pooling must leave a pixel
