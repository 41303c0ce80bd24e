"""The fully connected net after the original Draco (hwang595/Draco, src/model_ops/fc_nn.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from draco.models.model import Model, Shape, Size

if TYPE_CHECKING:
    from torch import nn


def _build(shape: Shape, classes: int) -> nn.Module:
    """Return the original's fully connected net c*h*w-800-500-classes: 1,033,510 parameters on (1, 28, 28), 10 classes.

    Different: the original ends with a sigmoid, whose output goes into the cross entropy as if it were logits. That
    bounds each class's probability by e / (e + classes - 1), 0.23 for 10 classes, and the loss from below by 1.46. Ours
    gives the logits themselves. Any image size and number of classes (the original: 784 values and 10). Weights
    as for LeNet (`lenet.py`).
    """
    from torch import nn

    channels, height, width = shape
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(channels * height * width, 800),
        nn.ReLU(),
        nn.Linear(800, 500),
        nn.ReLU(),
        nn.Linear(500, classes),
    )


def _size(shape: Shape, classes: int) -> Size:
    channels, height, width = shape
    return Size((channels * height * width + 1) * 800 + (800 + 1) * 500 + (500 + 1) * classes)


MODEL = Model(_build, smallest=1, batch_norm=False, size=_size)
